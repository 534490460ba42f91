"""What a fit warns of, each kind a class of its own, so that it can be silenced or made an error.

Shapes: D features, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

if TYPE_CHECKING:
    from likely.solvers.solve import Solution

MOST = 5


class SeparationWarning(UserWarning):
    """The classes are separable: there is no maximum likelihood estimate, and the coefficients are where it stopped."""


class CollinearityWarning(UserWarning):
    """Columns repeat others or are constant: the coefficients are the smallest of many that fit equally well."""


def notices(
    found: Solution, separation: dict[str, Any] | None, names: Sequence[str], classes: Sequence[Any]
) -> list[tuple[type[Warning], str]]:
    """What a solution warns of, with the columns' names in the place of their numbers."""
    said: list[tuple[type[Warning], str]] = []
    few = any("do not determine" in text for text in found.warnings)
    for text in found.warnings:
        if few and "linear combination" in text:  # with fewer rows than columns nearly every one is
            continue
        if "separa" in text:
            told = text if separation is None else separation_text(separation, classes)
            said.append((SeparationWarning, told))
        elif "column" in text:
            said.append((CollinearityWarning, named(text, names)))
        else:
            said.append((ConvergenceWarning, text))
    return said


def named(text: str, names: Sequence[str]) -> str:
    """A sentence about columns, given by number, with their names.

    >>> named("column 2 is a linear combination of columns 0, 1", ["a", "b", "c"])
    "column 'c' is a linear combination of columns 'a', 'b'"
    """

    def with_names(match: re.Match[str]) -> str:
        return match[1] + re.sub(r"\d+", lambda number: repr(names[int(number[0])]), match[2])

    return re.sub(r"(\bcolumns? )(\d+(?:, \d+)*)", with_names, text)


def read_separation(
    found: Solution, kept: np.ndarray | None, names: Sequence[str], binary: bool
) -> dict[str, Any] | None:
    """The direction that was found, in the caller's terms.

    Returns: `direction` (K, D), for a binary model (1, D), the change of the coefficients that lowers the loss for
        ever; `features`, the names of the columns it moves; `rows`, those whose classes it tells apart; `complete`,
        whether these are all.
    """
    one = found.separation
    if one is None:
        return None
    direction = np.asarray(one.direction, dtype=np.float64).T
    if binary and len(direction) == 2:
        direction = direction[1:] - direction[:1]
    rows = np.asarray(one.rows, dtype=np.int64)
    return {
        "direction": direction,
        "features": [names[j] for j in one.features],
        "rows": rows if kept is None else np.flatnonzero(kept)[rows],
        "complete": bool(one.complete),
        "columns": [int(j) for j in one.features],
    }


def separation_text(found: dict[str, Any], classes: Sequence[Any]) -> str:
    """The direction in words, and the remedies.

    >>> one = {"direction": np.array([[0.0, 2.0]]), "features": ["dose"], "columns": [1], "rows": np.arange(4)}
    >>> print(separation_text(one | {"complete": False}, ["no", "yes"]))
    quasi-complete separation: 'dose' (+2 for class 'yes') tells the classes of 4 rows apart without an error; ...
    """
    direction, moved = found["direction"], []
    order = sorted(zip(found["columns"], found["features"]), key=lambda pair: -np.abs(direction[:, pair[0]]).max())
    for column, name in order[:MOST]:
        k = int(np.abs(direction[:, column]).argmax())
        label = classes[k + (len(classes) - len(direction))]
        moved.append(f"{name!r} ({direction[k, column]:+.3g} for class {label!r})")
    more = f" and {len(order) - MOST} more columns" if len(order) > MOST else ""
    kind = "complete" if found["complete"] else "quasi-complete"
    rows = "all rows" if found["complete"] else f"{len(found['rows']):,} rows"
    apart = "tells" if len(order) <= 1 else "together tell"
    return (
        f"{kind} separation: {', '.join(moved) or 'the intercept'}{more} {apart} the classes of {rows} apart without "
        "an error; there is no maximum likelihood estimate, the coefficients would grow for ever, and these are where "
        "the fit stopped. Remedies: penalty_strength, or label_smoothing"
    )
