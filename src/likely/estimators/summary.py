"""`summary()`: the table that a statistician reads, as text and as HTML.

Shapes: D features, K classes, P = D + 1 parameters a class (D without an intercept), k classes but the first.
"""

from __future__ import annotations

import html
import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.special

from likely._checks import require

if TYPE_CHECKING:
    from likely.estimators.base import LinearClassifier

INTERCEPT = "(intercept)"


@dataclass(frozen=True)
class Coefficient:
    """A coefficient with its standard error, Wald's z, its p-value and interval; NaN where there is none."""

    label: Any
    name: str
    estimate: float
    standard_error: float
    z: float
    p: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """A fit told: `facts` of the whole, one `Coefficient` for each class and feature, and `notes` on how to read them.

    `print(summary)` gives a text, a notebook shows `to_html()`, and `to_dict()` is for JSON. `log_likelihood`,
    `null_log_likelihood`, `mcfadden_r2`, `likelihood_ratio`, `aic` and `bic` are quasi-likelihood figures where
    `quasi` is set: the targets are distributions, so that no sample of labels was drawn of which they would be the
    probability, and no p-value comes with them.

    Attributes:
        title: what was fitted.
        contrast: what the coefficients are differences from.
        n, total: rows, and the sum of their weights.
        freedom: the number of parameters; with a penalty the effective one, `tr((H + λ)⁻¹ H)`.
        likelihood_ratio: `2 (log_likelihood − null_log_likelihood)`, with `likelihood_ratio_df` and
            `likelihood_ratio_p` (None where no χ² holds).

    Source: Hosmer, Lemeshow and Sturdivant, Applied Logistic Regression (2013); McFadden (1974) for R².
    """

    title: str
    contrast: str
    coefficients: tuple[Coefficient, ...]
    notes: tuple[str, ...]
    quasi: bool
    confidence: float
    n: int
    total: float
    covariance: str
    freedom: float
    log_likelihood: float
    null_log_likelihood: float
    mcfadden_r2: float
    likelihood_ratio: float
    likelihood_ratio_df: int
    likelihood_ratio_p: float | None
    aic: float
    bic: float
    penalty: float
    solver: str
    n_iter: int
    gap: float
    certificate: str
    cross_entropy: float
    entropy: float
    kl: float
    classes: tuple[Any, ...]

    def facts(self) -> list[tuple[str, str]]:
        """Names and values of the figures of the whole fit, as they stand in the table."""
        quasi = "quasi-" if self.quasi else ""
        ratio = f"{self.likelihood_ratio:.4f} on {self.likelihood_ratio_df} df"
        if self.likelihood_ratio_p is not None:
            ratio += f", p {_p(self.likelihood_ratio_p, sign=True)}"
        rows = f"{self.n:,}" if self.total == self.n else f"{self.n:,} (weights sum to {self.total:.6g})"
        facts = [
            ("rows", rows),
            ("classes", f"{len(self.classes):,}"),
            ("covariance", self.covariance),
            ("penalty λ", f"{self.penalty:.6g}" if self.penalty else "none"),
            ("parameters" if not self.penalty else "effective parameters", f"{self.freedom:.6g}"),
            ("solver", f"{self.solver}, {self.n_iter} iterations"),
            ("certified gap", "none" if math.isnan(self.gap) else f"{self.gap:.2e} nats"),
            (f"{quasi}log-likelihood", f"{self.log_likelihood:.4f}"),
            (f"null {quasi}log-likelihood", f"{self.null_log_likelihood:.4f}"),
            ("McFadden's R²" if not self.quasi else "McFadden's R² (quasi)", f"{self.mcfadden_r2:.4f}"),
            ("LR statistic" if not self.quasi else "LR statistic (quasi)", ratio),
            ("AIC" if not self.quasi else "AIC (quasi)", f"{self.aic:.4f}"),
            ("BIC" if not self.quasi else "BIC (quasi)", f"{self.bic:.4f}"),
            ("cross-entropy", f"{self.cross_entropy:.6f} nats"),
        ]
        if self.quasi:
            facts += [("= entropy", f"{self.entropy:.6f} nats"), ("+ KL", f"{self.kl:.6f} nats")]
        return facts

    def text(self, most: int = 60) -> str:
        """The table as plain text, with at most `most` coefficients."""
        facts = self.facts()
        half = -(-len(facts) // 2)
        left = max(len(name) for name, _ in facts[:half]), max(len(value) for _, value in facts[:half])
        right = max(len(name) for name, _ in facts[half:])
        lines = []
        for i, (name, value) in enumerate(facts[:half]):
            line = f"{name:<{left[0]}}  {value:<{left[1]}}"
            if half + i < len(facts):
                line += f"    {facts[half + i][0]:<{right}}  {facts[half + i][1]}"
            lines.append(line.rstrip())
        shown = self.coefficients[:most]
        width = max([len(one.name) for one in shown] + [12])
        level = f"{self.confidence:.0%}"
        head = f"{'':<{width}} {'coef':>11} {'std err':>10} {'z':>8} {'P>|z|':>7} {f'{level} low':>11} {'high':>11}"
        rule = "─" * max(len(head), max(len(line) for line in lines), len(self.title))
        out = [self.title, rule, *lines, rule, self.contrast, head]
        label: Any = object()
        for one in shown:
            if one.label is not None and one.label is not label:
                label = one.label
                out.append(f"class {label}")
            out.append(f"{one.name:<{width}} {_row(one)}")
        if len(self.coefficients) > most:
            out.append(f"… and {len(self.coefficients) - most:,} more: see .coefficients")
        out.append(rule)
        out += [textwrap.fill(f"Note: {note}", width=len(rule), subsequent_indent="  ") for note in self.notes]
        return "\n".join(out)

    def __str__(self) -> str:
        return self.text()

    def to_html(self, most: int = 400) -> str:
        """The table as a piece of HTML; names and classes are shown as text, whatever markup they hold."""
        cell = html.escape
        facts = "".join(f"<tr><th>{cell(n)}</th><td>{cell(v)}</td></tr>" for n, v in self.facts())
        level = f"{self.confidence:.0%}"
        heads = ["", "coef", "std err", "z", "P>|z|", f"{level} low", "high"]
        body, label = [], object()
        for one in self.coefficients[:most]:
            if one.label is not None and one.label is not label:
                label = one.label
                body.append(f'<tr><th colspan="7" scope="colgroup">class {cell(str(label))}</th></tr>')
            numbers = "".join(f"<td>{cell(v)}</td>" for v in _cells(one))
            body.append(f'<tr><th scope="row">{cell(one.name)}</th>{numbers}</tr>')
        if len(self.coefficients) > most:
            body.append(f'<tr><td colspan="7">… and {len(self.coefficients) - most:,} more</td></tr>')
        notes = "".join(f"<li>{cell(note)}</li>" for note in self.notes)
        heading = "".join(f'<th scope="col">{cell(text)}</th>' for text in heads)
        under = f"<ul>{notes}</ul>" if notes else ""
        return (
            f"<div><style>{_STYLE}</style><div class='likely-summary'><p><strong>{cell(self.title)}</strong></p>"
            f"<table class='facts'><tbody>{facts}</tbody></table><p>{cell(self.contrast)}</p>"
            f"<table><thead><tr>{heading}</tr></thead><tbody>{''.join(body)}</tbody></table>{under}</div></div>"
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_dict(self) -> dict[str, Any]:
        """Numbers, text and lists for JSON; what is unknown is None."""
        skipped = {"coefficients", "classes", "notes"}
        plain = {name: _plain(value) for name, value in vars(self).items() if name not in skipped}
        rows = [{name: _plain(value) for name, value in vars(one).items()} for one in self.coefficients]
        return plain | {"classes": [_plain(c) for c in self.classes], "notes": list(self.notes), "coefficients": rows}


def summarise(model: LinearClassifier, reference: Any = None, confidence: float = 0.95) -> Summary:
    """The summary of a fitted model; see `LinearClassifier.summary`."""
    require(0 < confidence < 1, f"confidence: is {confidence}; it is a level between 0 and 1, 0.95 is usual")
    facts: dict[str, Any] = model._inference
    binary, classes = model._binary, model.classes_.tolist()
    against = None
    if reference is not None:
        plain = reference.item() if isinstance(reference, np.generic) else reference
        require(plain in classes, f"reference: {reference!r} is no class; the classes are {classes}")
        against = classes.index(plain)
    names = [*model._feature_names(), *([INTERCEPT] if facts["intercept"] else [])]
    theta = np.column_stack([model.coef_, model.intercept_]) if facts["intercept"] else model.coef_
    full = np.vstack([np.zeros_like(theta), theta]) if binary else theta
    if binary and against is None:
        against = 0
    K, P = full.shape
    combine = np.eye(K) - (1 / K if against is None else np.eye(K)[against])
    value, error = combine @ full, np.full((K, P), np.nan)
    if "matrix" in facts:
        error = _errors(facts, combine[:, 1:], P)
    z = value / error
    p = 2 * scipy.special.ndtr(-np.abs(z))
    half = float(scipy.special.ndtri((1 + confidence) / 2)) * error
    shown = [c for c in range(K) if c != against]
    rows = tuple(
        Coefficient(
            None if binary else classes[c],
            names[j],
            *(float(v[c, j]) for v in (value, error, z, p, value - half, value + half)),
        )
        for c in shown
        for j in range(P)
    )
    if binary:
        contrast = (
            f"log odds of class {classes[1 - against]!s} against {classes[against]!s}" if against is not None else ""
        )
    elif against is None:
        contrast = "coefficients of the logits; over the classes they sum to zero"
    else:
        contrast = f"log odds of each class against {classes[against]!s}"
    return _whole(model, facts, rows, contrast, confidence)


def _errors(facts: dict[str, Any], combine: np.ndarray, P: int) -> np.ndarray:
    """(K, P) standard errors of combinations over the classes, NaN where the likelihood is flat along them."""
    k = combine.shape[1]
    matrix = np.asarray(facts["matrix"]).reshape(k, P, k, P)
    variance = np.einsum("ca,ajbj,cb->cj", combine, matrix, combine)
    error = np.sqrt(np.where(variance > 0, variance, np.nan))
    flat = np.asarray(facts["directions"]).reshape(k, P, -1)
    if flat.size:
        moved = np.linalg.norm(np.einsum("ca,ajm->cjm", combine, flat), axis=2)
        error[moved > 1e-6 * (np.abs(combine) @ np.asarray(facts["size"]).reshape(k, P))] = np.nan
    return error


def _whole(
    model: LinearClassifier, facts: dict[str, Any], rows: tuple[Coefficient, ...], contrast: str, confidence: float
) -> Summary:
    quasi, weights = bool(facts["soft"]), facts["weights"]
    quasi = quasi or weights == "sampling"
    columns, K = model.n_features_in_, len(model.classes_)
    whole, nothing = float(facts["log_likelihood"]), float(facts["null_log_likelihood"])
    # Without a penalty the likelihood's rank; unknown without the information, then the number of parameters.
    count = (K - 1) * (columns + int(facts["intercept"]))
    rank = int(facts.get("rank", count))
    freedom = float(facts.get("freedom", rank)) if model.penalty_ else float(rank)
    df = max(0, rank - (K - 1) * int(facts["intercept"]))
    ratio = max(0.0, 2 * (whole - nothing))
    p = None if quasi or model.penalty_ or df == 0 else float(scipy.special.chdtrc(df, ratio))
    n = float(facts["total"]) if weights == "frequency" else float(facts["n"])
    kind = {"fisher": "Fisher information", "sandwich": "sandwich (robust)", "none": "not computed"}[
        facts["covariance"]
    ]
    if facts["clusters"] and facts["covariance"] != "none":
        kind = f"sandwich, {facts['clusters']:,} clusters"
    what = "Logistic regression" if model._binary else "Softmax regression"
    how = "penalised maximum likelihood" if model.penalty_ else "maximum likelihood"
    if quasi:
        how = "least cross-entropy, with a penalty" if model.penalty_ else "least cross-entropy = least KL"
    return Summary(
        title=f"{what}: {how}",
        contrast=contrast,
        coefficients=rows,
        notes=tuple(_notes(model, facts, quasi)),
        quasi=quasi,
        confidence=confidence,
        n=int(facts["n"]),
        total=float(facts["total"]),
        covariance=kind,
        freedom=freedom,
        log_likelihood=whole,
        null_log_likelihood=nothing,
        mcfadden_r2=1 - whole / nothing if nothing else math.nan,
        likelihood_ratio=ratio,
        likelihood_ratio_df=df,
        likelihood_ratio_p=p,
        aic=2 * freedom - 2 * whole,
        bic=math.log(n) * freedom - 2 * whole,
        penalty=model.penalty_,
        solver=model.solver_,
        n_iter=model.n_iter_,
        gap=model.gap_,
        certificate=model.certificate_,
        cross_entropy=model.cross_entropy_,
        entropy=model.entropy_,
        kl=model.kl_,
        classes=tuple(model.classes_.tolist()),
    )


def _notes(model: LinearClassifier, facts: dict[str, Any], quasi: bool) -> list[str]:
    notes = list(model.warnings_)
    if facts["covariance"] == "none":
        why = "the classes are separable, so there is no estimate that they could belong to"
        if not model.separable_:
            why = "they were not asked for, and take a while here: fit(..., covariance='fisher') or 'sandwich'"
        notes.append(f"There are no standard errors: {why}.")
    if model.penalty_:
        notes.append(
            f"Conditional on the penalty λ = {model.penalty_:.6g}: estimates are shrunk towards 0 and their intervals "
            "are those of the penalised coefficients; no likelihood ratio test holds."
        )
    if facts["soft"]:
        notes.append(
            "The targets are distributions: log-likelihood, LR statistic, AIC and BIC are quasi-likelihood figures, "
            "to be compared between models of the same rows, and have no p-value."
        )
    elif quasi:
        notes.append("With sampling weights the likelihood is a quasi-likelihood and has no p-value.")
    if facts["weighted"] and facts["weights"] == "frequency":
        notes.append("Weights are taken as frequencies: a row of weight 2 counts as two rows.")
    if model.class_weight is not None:
        notes.append("Class weights change what is estimated; the figures are those of the reweighted rows.")
    if "directions" in facts and np.asarray(facts["directions"]).size:
        notes.append("Coefficients without a standard error are not determined by the data (smallest of many).")
    if model.certificate_:
        notes.append(f"{model.certificate_[0].upper()}{model.certificate_[1:]}.")
    return notes


_STYLE = (
    ".likely-summary table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.5em 0}"
    ".likely-summary th,.likely-summary td{padding:.15em .7em;text-align:right;border:0;background:none}"
    ".likely-summary th[scope=row],.likely-summary th[scope=colgroup],.likely-summary .facts th{text-align:left;"
    "font-weight:400}.likely-summary th[scope=colgroup]{font-weight:600}"
    ".likely-summary .facts td{text-align:left}.likely-summary thead th{border-bottom:1px solid currentColor}"
)


def _number(x: float) -> str:
    if math.isnan(x):
        return ""
    size = abs(x)
    return f"{x:.4f}" if x == 0 or 1e-3 <= size < 1e5 else f"{x:.3e}"


def _p(x: float, sign: bool = False) -> str:
    if math.isnan(x):
        return ""
    text = f"{x:.3f}" if x >= 0.0005 else "<0.001"
    return text if not sign else (f"= {text}" if not text.startswith("<") else f"< {text[1:]}")


def _cells(one: Coefficient) -> list[str]:
    z = "" if math.isnan(one.z) else f"{one.z:.3f}"
    return [_number(one.estimate), _number(one.standard_error), z, _p(one.p), _number(one.low), _number(one.high)]


def _row(one: Coefficient) -> str:
    return " ".join(f"{text:>{width}}" for text, width in zip(_cells(one), (11, 10, 8, 7, 11, 11))).rstrip()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
