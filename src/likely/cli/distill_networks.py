"""`likely distill` for networks: the options that the settings' fields make, and what is shown."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from likely.cli import output

if TYPE_CHECKING:
    from likely.training.settings import Run


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of the settings that it has no parameter for, instead of `**options`.

    An option that was not given is None.
    """
    from likely.training.settings import Run, parts

    signature = inspect.signature(command, eval_str=True)
    own = {name: one for name, one in signature.parameters.items() if one.kind is not one.VAR_KEYWORD}
    hints = get_type_hints(Run)
    for one in sorted(fields(Run), key=lambda one: one.name != "student"):
        if one.name in own:
            continue
        kind, _, many = parts(hints[one.name])
        names = [f"--{one.name.replace('_', '-')}"]
        shown: Any = one.default
        if kind is bool:
            names = [f"{names[0]}/--no-{names[0][2:]}"]
        elif many:
            kind, shown = str, ",".join(f"{value:g}" for value in shown) or None
        default = "" if shown in (None, MISSING) or kind is bool else f" [default: {shown}]"
        says = typer.Option(*names, help=one.metadata["help"] + default)
        own[one.name] = inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, says]
        )
    command.__signature__ = signature.replace(parameters=list(own.values()))  # type: ignore[attr-defined]
    return command


def settings_of(config: Path | None, given: Mapping[str, Any]) -> Run:
    """The settings in a YAML file and on the command line, which wins.

    Raises: ValueError for what is no setting; FileNotFoundError.
    """
    from likely.teachers.manifest import MANIFEST, read_manifest
    from likely.training.settings import Run, read_yaml

    merged = {} if config is None else read_yaml(config)
    merged |= {name: value for name, value in given.items() if value is not None}
    for name in ("learning_rate_factors", "weight_decays"):
        if isinstance(merged.get(name), str):
            merged[name] = [part for part in merged[name].split(",") if part.strip()]
    teacher = merged.get("teacher")
    if isinstance(teacher, str) and "temperature" not in merged and (Path(teacher) / MANIFEST).is_file():
        merged["temperature"] = read_manifest(Path(teacher)).temperature
    return Run.from_dict(merged)


def distill_networks(run: Run, *, overwrite: bool, as_json: bool) -> None:
    """Run it, and show what came of it."""
    from likely.networks.load import path_of
    from likely.training.network_run import distil

    inputs = [path_of(name) for name in (run.data, run.teacher, run.student) if name is not None]
    output.refuse_inputs_inside(Path(run.out), *(path for path in inputs if path is not None))
    try:
        done = distil(run, overwrite=overwrite, stamp=output.stamp("distill"), write_metrics=output.write_metrics)
    except KeyboardInterrupt:
        output.note("interrupted; the same command goes on from the last checkpoint")
        sys.exit(130)
    if done.no_report is not None:
        output.note(f"no report was written: {done.no_report}")
    if as_json:
        output.print_json({**done.metrics, "out": run.out})
        return
    print(f"{output.printable(run.data)}: {_counts(done.metrics)}")
    print(f"{done.metrics['formula']}\n")
    for name, chosen in done.metrics["chosen"].items():
        tried = len(done.metrics["tried"][name])
        print(
            f"{name}: learning rate {chosen['learning_rate']:g}, weight decay {chosen['weight_decay']:g}, "
            f"the best of {tried} on the validation part"
            + (", at the edge of what was tried: try more (--learning-rate-factors)" if chosen["at_the_edge"] else "")
        )
    print()
    output.print_table(*done.comparison.table())
    print()
    if done.comparison.differences:
        output.print_table(*done.comparison.difference_table())
        print()
    for sentence in done.comparison.sentences():
        print(sentence)
    print(f"\nwritten to {output.printable(run.out)}")


def _counts(metrics: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{metrics['examples'][name]:,} examples of {metrics['documents'][name]:,} documents to {verb}"
        for name, verb in (("train", "train on"), ("validation", "choose by"), ("test", "measure on"))
    )
