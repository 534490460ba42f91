"""`likely check`: the doctor for a distillation loss."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import output
from likely.cli.output import Json, Seed

if TYPE_CHECKING:
    from likely.doctor import Examination

WIDTH = 100


def check(
    loss: Annotated[
        str, typer.Argument(metavar="PACKAGE.MODULE:NAME", help="A function, or a class whose instances are called.")
    ],
    call: Annotated[
        list[str] | None,
        typer.Option(
            help="Values of further parameters, of the call or of the constructor: 'alpha=0.5, reduction=sum'."
        ),
    ] = None,
    student: Annotated[str | None, typer.Option(metavar="NAME", help="The student's parameter.")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="NAME", help="The teacher's parameter.")] = None,
    temperature: Annotated[str | None, typer.Option(metavar="NAME", help="The temperature's parameter.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="NAME", help="The labels' parameter.")] = None,
    mask: Annotated[
        str | None, typer.Option(metavar="NAME", help="The mask's parameter: 1 where a row counts.")
    ] = None,
    total: Annotated[
        str | None, typer.Option(metavar="NAME", help="The parameter for the number of rows of the whole batch.")
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="logits|log_probs|probs",
            help="What the two are given as; 'a,b' where they differ. By default told by names.",
        ),
    ] = None,
    shape: Annotated[
        str, typer.Option(metavar="auto|rows|sequences", help="(rows, classes), or (batch, length, classes).")
    ] = "auto",
    expect: Annotated[
        str, typer.Option(metavar="forward|reverse|jsd[:β]|cross_entropy", help="The divergence that is meant.")
    ] = "forward",
    aligned: Annotated[
        bool, typer.Option("--aligned", help="The label of a position is that of the next token already.")
    ] = False,
    accept: Annotated[str, typer.Option(metavar="CHECK,…", help="Checks whose failure is meant.")] = "",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Examine a distillation loss: does it compute what its author means?

    The loss is called on small random cases. Its values tell which divergence it is, at which temperature and divided
    by what; gradients, masks, parts of a batch, half precision and bad input are tried. Each check passes or fails with
    the reason and what to do. A check that cannot apply says why. Status 1: a check failed.

    Parameters are recognised by their names (student_logits, teacher, T, labels, mask, …); what was given to which is
    printed first. Importing a module runs its code: the one that is named here is imported, and nothing else.

    \b
    Example:
      likely check torch.nn.functional:kl_div
      likely check torch.nn:KLDivLoss --call reduction=batchmean
      likely check train:distillation_loss --call alpha=0.5 --expect reverse
    """
    from likely.doctor import examine, load

    roles = {"student": student, "teacher": teacher, "temperature": temperature, "labels": labels, "mask": mask}
    names = {role: name for role, name in (roles | {"total": total}).items() if name is not None}
    call_values, accepted = _values(call or []), [name.strip() for name in accept.split(",") if name.strip()]
    options: dict[str, Any] = {"inputs": inputs, "shape": shape, "expect": expect, "aligned": aligned, "seed": seed}
    try:
        found = examine(load(loss), call=call_values, names=names, accept=accepted, **options)
    except TypeError as error:  # of what was named: no fault of the program
        raise ValueError(str(error)) from error
    if as_json:
        output.print_json(output.stamp("check", name=loss, expect=expect, seed=seed) | found.to_dict())
    else:
        _show(loss, found)
    if found.failed:
        raise typer.Exit(1)


def _values(texts: list[str]) -> dict[str, Any]:
    """`alpha=0.5, reduction=sum` as a dictionary; a bare word is a string.

    >>> _values(["alpha=0.5, reduction=sum", "weights=(1, 2)"])
    {'alpha': 0.5, 'reduction': 'sum', 'weights': (1, 2)}
    """
    found: dict[str, Any] = {}
    for text in texts:
        try:
            parsed = ast.parse(f"f({text})", mode="eval").body
            assert isinstance(parsed, ast.Call) and not parsed.args  # noqa: PT018
            for keyword in parsed.keywords:
                assert keyword.arg is not None
                own = keyword.value
                found[keyword.arg] = own.id if isinstance(own, ast.Name) else ast.literal_eval(own)
        except (SyntaxError, ValueError, AssertionError):
            raise ValueError(f"--call: {text!r} is not name=value, name=value") from None
    return found


def _show(name: str, found: Examination) -> None:
    """A table of the findings, folded to the terminal's width."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    console = Console(highlight=False, emoji=False, width=min(WIDTH, console.width) if console.is_terminal else WIDTH)
    console.print(Text(output.printable(name), style="bold"))
    console.print(Text(f"  {output.printable(found.formula)}"))
    for parameter, given in found.bindings.items():
        console.print(Text(f"  {parameter} ← {output.printable(given)}", style="dim"))
    console.print()
    table = Table(box=None, pad_edge=False, show_header=False)
    for width in (4, max(len(finding.name) for finding in found)):
        table.add_column(width=width, no_wrap=True)
    table.add_column(overflow="fold")
    shown = {"pass": ("pass", "green"), "fail": ("FAIL", "bold red"), "note": ("note", "yellow")}
    for finding in found:
        word, style = shown.get(finding.verdict, ("n/a", "dim"))
        text = Text(output.printable(finding.reason), style="dim" if word == "n/a" else "")
        if finding.fix:
            text.append("\n→ " + output.printable(finding.fix), style="cyan")
        table.add_row(Text(word, style=style), finding.name, text)
    console.print(table)
    verdicts = [finding.verdict for finding in found]
    counts = [("pass", "passed"), ("fail", "failed"), ("note", "noted"), ("not applicable", "not applicable")]
    said = [f"{verdicts.count(verdict)} {word}" for verdict, word in counts if verdict in verdicts]  # type: ignore[arg-type]
    console.print()
    console.print(", ".join(said))
