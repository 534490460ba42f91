"""The settings of a training run: one dataclass, one YAML file, one option of the command line for each field."""

from __future__ import annotations

import difflib
import math
import os
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from likely._checks import require
from likely._files import new_file
from likely.targets import TAILS

Settings_ = TypeVar("Settings_", bound="Settings")


def option(default: Any, help: str, **limits: Any) -> Any:
    """A field with its help: `low` and `high` are the ends of its range, `above` an end outside it."""
    return field(default=default, metadata={"help": help, **limits})


def needed(help: str) -> Any:
    """A field that has no default."""
    return field(metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a student is trained.

    `loss = hard_weight · CE(labels) + soft_weight · T² · D`, where `D` is the cross-entropy to the teacher at `beta`
    0, KL(student ‖ teacher) at 1, and the generalised Jensen–Shannon divergence between; teacher and student are
    softened by the temperature `T`.  Each part is the mean over those rows of the whole step that have a label, or a
    teacher.

    Raises: ValueError naming a setting that is of the wrong kind or out of its range.

    Examples
    --------
    >>> Settings(learning_rate=3e-4, temperature=2).temperature
    2.0
    >>> Settings(batch_size=0)
    Traceback (most recent call last):
    ...
    ValueError: batch_size: is 0; it is at least 1

    Source: Hinton, Vinyals and Dean, 2015 (the loss); Loshchilov and Hutter, 2017 and 2019 (the schedule, AdamW).
    """

    hard_weight: float = option(0.5, "The weight of the labels in the loss.", low=0)
    soft_weight: float = option(0.5, "The weight of the teacher in the loss.", low=0)
    temperature: float = option(1.0, "The T that softens teacher and student alike.", above=0)
    beta: float = option(0.0, "0: forward KL to the teacher; 1: reverse; between: Jensen-Shannon.", low=0, high=1)
    tail: str | None = option(None, "What a top-k record left out, to be spread how.", choices=TAILS)
    learning_rate: float = option(1e-3, "The highest learning rate of AdamW.", above=0)
    weight_decay: float = option(0.01, "AdamW's, of weights; of biases and of norms nothing decays.", low=0)
    warmup: float = option(0.05, "The share of the steps in which the learning rate rises.", low=0, high=1)
    clip: float = option(1.0, "The longest gradient; 0 clips none.", low=0)
    epochs: int = option(1, "How often every example is seen.", low=1)
    max_steps: int | None = option(None, "The steps of the optimiser, instead of epochs.", low=1)
    batch_size: int = option(32, "The examples of a step of the optimiser.", low=1)
    micro_batch: int | None = option(None, "The examples held at once, of which a step adds up the gradients.", low=1)
    mixed_precision: str | None = option(None, "bf16 or fp16 (a GPU's).", choices=("bf16", "fp16"))
    seed: int = option(0, "Of the order of the examples, and of dropout.", low=0)
    evaluate_every: int | None = option(None, "The steps between two looks at the validation part; else five.", low=1)
    save_every: int = option(200, "The steps between two checkpoints.", low=1)
    keep_checkpoints: int = option(1, "How many are kept.", low=1)
    tensorboard: bool = option(False, "Write TensorBoard's events too.")

    def __post_init__(self) -> None:
        for one in fields(self):
            object.__setattr__(self, one.name, _checked(one, _hint(type(self), one.name), getattr(self, one.name)))

    def to_dict(self) -> dict[str, Any]:
        """The settings as YAML and JSON hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls: type[Settings_], given: Mapping[str, Any]) -> Settings_:
        """Settings by name; what is missing has its default.

        Raises: ValueError for an unknown name, with the nearest that exists, and for one that must be given.
        """
        names = [one.name for one in fields(cls)]
        for name in given:
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0)
            require(name in names, f"settings: there is no {name!r}; the nearest name is {near[0]!r}")
        absent = [one.name for one in fields(cls) if one.default is MISSING and given.get(one.name) is None]
        require(not absent, f"settings: {' and '.join(absent)} must be given")
        return cls(**{str(name): value for name, value in given.items()})

    def training(self) -> Settings:
        """The fields that `train` reads, of settings that have more."""
        return Settings(**{one.name: getattr(self, one.name) for one in fields(Settings)})

    def write(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write them to a YAML file, which appears whole or not at all."""
        import yaml

        with new_file(path, overwrite) as temporary:
            temporary.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Run(Settings):
    """The settings of a whole run: those of the training, and what is trained on what.

    Examples
    --------
    >>> run = Run(data="corpus.jsonl", student="linear", teacher="record", weight_decays=[0, 0.1])
    >>> [(one.learning_rate, one.weight_decay) for one in run.grid()][:3]
    [(0.0003, 0.0), (0.0003, 0.1), (0.001, 0.0)]
    """

    data: str = needed("The data: a file or a folder.")
    student: str = needed("A folder or config of transformers, 'linear', 'mlp:H', or package.module:function.")
    teacher: str | None = option(None, "A network, or the folder of a record.")
    out: str = option("likely-distill", "The folder for the student, the metrics and the report.")
    kind: str | None = option(None, "How the data are read; by default what they look like.")
    text: str | None = option(None, "The column of texts.")
    target: str | None = option(None, "The column of labels.")
    group: str | None = option(None, "The column of documents, of which each goes into one part.")
    tokenizer: str | None = option(None, "The folder of a tokenizer; by default the teacher's, or the student's.")
    max_length: int | None = option(None, "The most tokens of an example.", low=2)
    truncate: bool = option(False, "Let a classifier cut texts that are longer than it reads.")
    limit: int | None = option(None, "Read so many examples and no more.", low=1)
    validation_share: float = option(0.1, "The share of the documents that the tuning chooses by.", above=0, high=0.5)
    test_share: float = option(0.1, "The share of the documents that everything is measured on.", above=0, high=0.5)
    learning_rate_factors: tuple[float, ...] = option(
        (0.3, 1.0, 3.0), "Multiples of the learning rate that student and baseline both try.", above=0
    )
    weight_decays: tuple[float, ...] = option((), "Weight decays that both try, instead of the one.", low=0)
    baseline: bool = option(True, "Also train, and tune alike, a student of the labels alone.")
    device: str | None = option(None, "cpu or cuda; by default a GPU where there is one.")

    def grid(self) -> list[Settings]:
        """The training settings that are tried."""
        return [
            replace(self.training(), learning_rate=self.learning_rate * factor, weight_decay=decay)
            for factor in self.learning_rate_factors or (1.0,)
            for decay in self.weight_decays or (self.weight_decay,)
        ]


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The names and values in a YAML file.

    Raises: FileNotFoundError; ValueError for what is no YAML, or no list of names and values.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no YAML file: {' '.join(str(error).split())}") from None
    found = {} if found is None else found
    require(isinstance(found, dict), f"{path}: holds a {type(found).__name__}; settings are lines of `name: value`")
    return found


def difference(now: Mapping[str, Any], then: Mapping[str, Any]) -> str | None:
    """How two sets of settings differ, or None.

    >>> difference({"seed": 1, "clip": 1.0}, {"seed": 0, "clip": 1.0})
    'seed is 1 where it was 0'
    """
    names = dict.fromkeys([*now, *then])
    changed = [name for name in names if now.get(name) != then.get(name)]
    return ", ".join(f"{name} is {now.get(name)!r} where it was {then.get(name)!r}" for name in changed) or None


def parts(hint: Any) -> tuple[type, bool, bool]:
    """A field's type as (the type of a value, whether it may be None, whether it is a list of values).

    >>> parts(int | None), parts(tuple[float, ...])
    ((<class 'int'>, True, False), (<class 'float'>, False, True))
    """
    if get_origin(hint) in (types.UnionType, Union):
        inner = next(arm for arm in get_args(hint) if arm is not type(None))
        return parts(inner)[0], True, parts(inner)[2]
    return (get_args(hint)[0], False, True) if get_origin(hint) is tuple else (hint, False, False)


def _hint(cls: type, name: str) -> Any:
    return get_type_hints(cls)[name]


def _checked(one: Field[Any], hint: Any, value: Any) -> Any:
    kind, optional, many = parts(hint)
    if value is None:
        require(optional, f"{one.name}: is empty; leave the line out for its default")
        return None
    if many:
        listed = value if isinstance(value, list | tuple) else [value]
        return tuple(_one(one, kind, inner) for inner in listed)
    return _one(one, kind, value)


def _one(one: Field[Any], kind: type, value: Any) -> Any:
    """A value as its kind, within its range.  YAML 1.1 reads `1e-3` as text, so a number may come as one."""
    limits = one.metadata
    wrong = f"{one.name}: is {value!r}; it is {_KINDS[kind]}"
    if kind in (int, float):
        require(not isinstance(value, bool) and isinstance(value, int | float | str), wrong)
        try:
            number = float(value)
        except ValueError:
            raise ValueError(wrong) from None
        require(math.isfinite(number) and (kind is float or number == int(number)), wrong)
        value = kind(number)
        low, above, high = limits.get("low"), limits.get("above"), limits.get("high")
        require(low is None or value >= low, f"{one.name}: is {value}; it is at least {low}")
        require(above is None or value > above, f"{one.name}: is {value}; it is more than {above}")
        require(high is None or value <= high, f"{one.name}: is {value}; it is at most {high}")
        return value
    require(isinstance(value, kind), wrong)
    choices = limits.get("choices")
    require(choices is None or value in choices, f"{one.name}: is {value!r}; it is one of {', '.join(choices or ())}")
    return value


_KINDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
