"""Comparisons where the truth is known: intervals that cover it, numbers by hand, and words that do not overclaim."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from likely.data.examples import IGNORED
from likely.evaluation import evaluate
from likely.measures import estimate
from likely.networks import Identity
from likely.training.comparison import Comparison, compare
from likely.training.measure import BOUND, Measured, measure
from likely.training.values import Units, holm
from tests.training.toys import Rows, Toy

C = 3


def made(
    nll: Any,
    groups: Any,
    *,
    correct: Any = None,
    kl: Any = None,
    label: Any = None,
    example: Any = None,
    bytes_of: Any = None,
    confidence: Any = 0.7,
    name: str = "student",
    **given: Any,
) -> Measured:
    """Rows of which only some numbers matter; each is its own example unless told otherwise."""
    group = np.asarray(groups)
    N = len(group)
    example = np.arange(N) if example is None else np.asarray(example)
    label = np.zeros(N, np.int64) if label is None else np.asarray(label)
    correct = np.ones(N, bool) if correct is None else np.asarray(correct, bool)
    first = np.unique(example, return_index=True)[1]
    soft: dict[str, Any] = {}
    if kl is not None:
        soft = {"kl": np.asarray(kl, float), "entropy": np.full(N, 0.4), "teacher": "t"}
        soft["cross_entropy"] = soft["kl"] + soft["entropy"]
    return Measured(
        **{
            "network": Identity("entry", "m:f", name),
            "classes": C,
            "data": "d",
            "language": bytes_of is not None,
            "example": example,
            "group": group,
            "label": label,
            "prediction": np.where(correct, 0, 1),
            "confidence": np.full(N, confidence),
            "nll": np.asarray(nll, float),
            "example_group": group[first],
            "example_bytes": None if bytes_of is None else np.asarray(bytes_of),
            **soft,
            **given,
        }
    )


def against(own: Measured, base: Measured, **given: Any) -> Comparison:
    return compare({"student": own, "labels only": base}, reference="labels only", **given)


# --------------------------------------------------------------------------------------------------- the intervals


def simulated(make: np.random.Generator, shift: float) -> tuple[Measured, Measured]:
    """Two networks on 40 documents of 1 … 12 examples of 4 rows, alike within a document; the truth is known.

    Mean NLL 1 and 1 + shift; 3 bytes an example on average; error rates 0.3 and 0.3.
    """
    counts = make.integers(1, 13, 40)
    group_E = np.repeat(np.arange(40), counts)
    E = len(group_E)
    example = np.repeat(np.arange(E), 4)
    document = make.normal(size=(3, 40))[:, group_E[example]]
    bytes_E = make.integers(1, 6, E)
    noise = make.gamma(2.0, 0.5, len(example)) - 1
    nll = 1 + 0.3 * document[0] + 0.2 * noise
    other = nll + shift + 0.15 * document[1] + 0.1 * make.normal(size=len(example))
    wrong = [0.8 * document[k] + 0.6 * make.normal(size=len(example)) < -0.52440051 for k in (0, 2)]
    return tuple(  # type: ignore[return-value]
        made(loss, group_E[example], example=example, bytes_of=bytes_E, correct=~bad)
        for loss, bad in zip((nll, other), wrong)
    )


def test_intervals_cover_the_truth_though_rows_resemble_each_other() -> None:
    make = np.random.default_rng(0)
    truth = {"nll": 1.0, "perplexity": math.e, "bits_per_byte": 4 / (3 * math.log(2)), "error": 0.3}
    paired = {"nll": -0.1, "perplexity": math.e - math.exp(1.1), "bits_per_byte": -0.4 / (3 * math.log(2)), "error": 0}
    repeats = 200
    hit = {f"{kind} {name}": 0 for kind in ("own", "paired", "naive") for name in truth}
    for _ in range(repeats):
        one, other = (Units(measured, 0.95) for measured in simulated(make, 0.1))
        own = one.estimates()
        for name in truth:
            difference = one.less(other, name)
            assert difference is not None
            naive = estimate(one.values[name][0])
            hit[f"own {name}"] += own[name].low < truth[name] < own[name].high
            hit[f"paired {name}"] += difference.low < paired[name] < difference.high
            hit[f"naive {name}"] += naive.low < truth[name] < naive.high
    coverage = {name: count / repeats for name, count in hit.items()}
    for name, share in coverage.items():
        if name.startswith("naive"):
            assert share < 0.85, coverage  # what rows taken as independent promise
        else:
            assert 0.90 <= share <= 0.99, coverage


def test_independent_rows_are_evaluated_as_elsewhere() -> None:
    data = Rows(E=150, longest=1, ignored=0.0)
    data.groups = np.arange(len(data))
    student, teacher = Toy(seed=1), Toy(hidden=12, seed=2)
    found = compare({"s": measure(student, data, teacher=teacher)}, reference="s").values["s"]
    batch = data.batch(range(len(data)))
    q, p = (network.head(batch).logits().detach().softmax(dim=-1) for network in (student, teacher))
    hard, soft = evaluate(q, batch.labels), evaluate(q, p)
    right = hard.accuracy
    for own, theirs in (
        (found["nll"], hard.cross_entropy),
        (found["calibration_error"], hard.calibration_error),
        (found["cross_entropy"], soft.cross_entropy),
        (found["entropy"], soft.entropy),
        (found["kl"], soft.kl),
        (found["agreement"], soft.agreement),
        (found["error"], replace(right, mean=1 - right.mean, low=1 - right.high, high=1 - right.low)),
    ):
        for name in ("mean", "standard_error", "low", "high", "n"):
            assert getattr(own, name) == pytest.approx(getattr(theirs, name), rel=1e-9, abs=1e-12)


def test_a_paired_difference_is_the_difference_of_the_numbers() -> None:
    data, teacher = Rows(E=150), Toy(hidden=12, seed=2)
    found = against(*(measure(Toy(seed=seed), data, teacher=teacher) for seed in (1, 5)))
    for name, difference in found.differences["student"].items():
        own, base = (found.values[which][name].mean for which in ("student", "labels only"))
        assert difference.mean == pytest.approx(own - base, abs=1e-12)
        assert difference.groups == found.documents == 75


def test_perplexity_and_bits_per_byte_by_hand() -> None:
    nll = np.array([0.5, 1.0, 1.5, 2.0, 0.25, 0.75])
    one = made(nll, [0, 0, 1, 1, 2, 2], example=[0, 0, 1, 1, 2, 2], bytes_of=[4, 6, 2])
    other = made(2 * nll, [0, 0, 1, 1, 2, 2], example=[0, 0, 1, 1, 2, 2], bytes_of=[4, 6, 2])
    found = against(one, other)
    values = found.values["student"]
    assert values["perplexity"].mean == pytest.approx(math.exp(1.0))
    assert values["perplexity"].standard_error == pytest.approx(math.e * values["nll"].standard_error)
    assert values["perplexity"].low == pytest.approx(math.exp(values["nll"].low))
    bits, sizes = np.array([1.5, 3.5, 1.0]) / math.log(2), np.array([4, 6, 2])
    ratio = bits.sum() / 12
    residual = (bits - ratio * sizes) / 12
    assert values["bits_per_byte"].mean == pytest.approx(ratio)
    assert values["bits_per_byte"].standard_error == pytest.approx(math.sqrt(3 / 2 * (residual**2).sum()))
    # Twice the losses: the difference is minus the network's own number, with its own standard error.
    difference = found.differences["student"]["bits_per_byte"]
    assert difference.mean == pytest.approx(-ratio)
    assert difference.standard_error == pytest.approx(values["bits_per_byte"].standard_error)
    assert found.differences["student"]["perplexity"].mean == pytest.approx(math.e - math.exp(2))


def test_bytes_of_an_example_with_masked_rows_divide_nothing() -> None:
    label = [0, 0, IGNORED, 0, 0, 0]
    one = made(np.ones(5), np.arange(6) // 2, example=np.arange(6) // 2, label=label, bytes_of=[4, 100, 4])
    found = compare({"s": one}, reference="s").values["s"]
    assert found["bits_per_byte"].mean == pytest.approx(4 / math.log(2) / 8)
    assert found["nll"].n == 5


# ------------------------------------------------------------------------------------------------------- the words


def test_a_gain_is_said_with_its_interval() -> None:
    make = np.random.default_rng(1)
    groups = np.arange(400) // 4
    base = 1 + make.normal(size=400) * 0.1
    found = against(
        made(base - 0.3 + 0.01 * make.normal(size=400), groups, kl=np.full(400, 0.1) + 0.01 * make.random(400)),
        made(base, groups, kl=np.full(400, 0.3)),
    )
    assert [found.verdict("student", name) for name in ("nll", "error", "kl")] == [
        "better",
        "not established",
        "better",
    ]
    first, second, third = found.sentences()[:3]
    assert first.startswith("“student” gains over “labels only”: NLL of the labels −0.30")
    assert "nats [−0.30" in first
    assert second == "“student” shows no significant gain over “labels only”: error +0 points [+0, +0]."
    assert third.startswith("“student” is closer to the teacher than “labels only”: KL from the teacher −0.19")
    assert found.documents == 100


def test_no_significant_gain_is_said_with_its_interval() -> None:
    make = np.random.default_rng(2)
    loss = 1 + make.normal(size=(2, 200)) * 0.3
    found = against(*(made(one, np.arange(200) // 2) for one in loss))
    first = found.sentences()[0]
    assert first.startswith("“student” shows no significant gain over “labels only”: NLL of the labels ")
    difference = found.differences["student"]["nll"]
    assert difference.low < 0 < difference.high
    assert "[−" in first
    assert not any("gains over" in sentence for sentence in found.sentences())


def test_all_that_are_compared_are_told_in_one_sentence() -> None:
    make = np.random.default_rng(7)
    by = {"full": 0.0, "top": 0.25, "far": 0.5, "near": -0.125, "twin": 0.0}
    found = compare(
        {
            name: made(1 + more + 0.01 * make.random(200), np.arange(200), kl=[1 + more] * 200, name=name)
            for name, more in by.items()
        },
        reference="full",
    )
    assert found.summary("kl") == (
        "KL from the teacher in nats, less that of “full”: worse for “top” +0.2500 [+0.2500, +0.2500], “far” +0.5000 "
        "[+0.5000, +0.5000]; better for “near” −0.1250 [−0.1250, −0.1250]; not established for “twin” +0 [+0, +0]."
    )
    assert found.summary("nll").startswith("NLL of the labels in nats, less that of “full”: worse for “top” +0.2")
    assert found.summary("perplexity") == "perplexity, less that of “full”: not known of any."


def test_a_network_against_itself_shows_no_gain() -> None:
    data, teacher = Rows(E=40), Toy(seed=2)
    student = measure(Toy(seed=1), data, teacher=teacher)
    found = against(student, student)
    assert all(value.mean == value.standard_error == 0 for value in found.differences["student"].values())
    assert {found.verdict("student", name) for name in found.p_values["student"]} == {"not established"}
    assert found.sentences()[0].startswith("“student” shows no significant gain over “labels only”")


def test_a_chance_find_among_many_is_not_a_gain() -> None:
    """Ten networks that differ from the reference by noise alone, and one interval that happens to leave 0 out."""
    make = np.random.default_rng(4)
    base = np.ones(60)
    noise = make.normal(size=(10, 60))
    noise[3] += 2.5 / math.sqrt(60) * noise[3].std() - noise[3].mean()  # t = 2.5: remarkable were it alone
    many = {f"s{k}": made(base + 0.1 * noise[k], np.arange(60)) for k in range(10)}
    found = compare({"labels only": made(base, np.arange(60)), **many}, reference="labels only")
    assert found.differences["s3"]["nll"].low > 0
    assert found.verdict("s3", "nll") == "not established among so many"
    alone = compare({"labels only": made(base, np.arange(60)), "s3": many["s3"]}, reference="labels only")
    assert alone.verdict("s3", "nll") == "worse"
    assert not any("gains" in sentence or "is worse" in sentence for sentence in found.sentences())


def test_holm_keeps_the_order_and_leaves_out_the_unknown() -> None:
    assert holm({"a": {"x": 0.04, "y": math.nan}, "b": {"x": 0.01, "y": 0.03}})["b"] == {"x": 0.03, "y": 0.06}
    corrected = holm({"a": {"x": 0.04, "y": math.nan}, "b": {"x": 0.01, "y": 0.03}})["a"]
    assert corrected["x"] == 0.06
    assert math.isnan(corrected["y"])


def test_one_document_has_no_standard_error_and_it_is_said() -> None:
    make = np.random.default_rng(3)
    found = against(*(made(make.random(30), np.zeros(30, int), kl=make.random(30)) for _ in range(2)))
    assert math.isnan(found.values["student"]["nll"].standard_error)
    assert found.verdict("student", "nll") == "unknown"
    sentences = found.sentences()
    assert sentences[0].startswith("“student” cannot be compared with “labels only”: NLL of the labels ")
    assert any("of one document" in sentence for sentence in sentences)
    tables = [found.table(), found.difference_table()]
    shown = [str(cell) for _, rows in tables for row in rows for cell in row]
    assert not any("nan" in text.lower() for text in [*shown, *sentences])
    assert any(text.endswith("± unknown") for text in shown)
    assert "NaN" not in json.dumps(found.to_dict(), allow_nan=False)


def test_nothing_but_masked_rows() -> None:
    data = Rows(ignored=1.0)
    own, base = (measure(Toy(seed=seed), data, teacher=Toy(seed=9)) for seed in (1, 2))
    found = against(own, base)
    assert set(found.values["student"]) == {"cross_entropy", "entropy", "kl", "agreement"}
    assert any(sentence.startswith("No row has a label") for sentence in found.sentences())
    assert found.reliability == {}
    data.row_counts = np.zeros(len(data), dtype=np.int64)
    nothing = measure(Toy(seed=1), data)
    found = against(nothing, nothing)
    assert found.sentences() == ["There is no row to measure."]
    assert found.table()[0] == [""]
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_infinite_losses_are_said() -> None:
    groups = np.arange(6)
    found = against(made([1.0] * 5 + [math.inf], groups), made(np.ones(6), groups))
    assert math.isinf(found.values["student"]["nll"].mean)
    assert any(s.startswith("Infinite") and "NLL of the labels of “student”" in s for s in found.sentences())
    assert found.verdict("student", "nll") == "unknown"
    both = against(made([1.0] * 5 + [math.inf], groups), made([1.0] * 5 + [math.inf], groups))
    assert both.verdict("student", "nll") == "unknown"
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["networks"]["student"]["nll"]["mean"] == "inf"


def test_of_a_teacher_against_itself_only_the_labels_are_news() -> None:
    data, teacher = Rows(E=40, ignored=0.0), Toy(seed=2)
    found = compare(
        {"teacher": measure(teacher, data, teacher=teacher), "student": measure(Toy(seed=1), data, teacher=teacher)},
        reference="student",
    )
    assert found.values["teacher"]["kl"].mean == 0
    assert found.values["teacher"]["agreement"].mean == 1
    assert set(found.differences["teacher"]) == {"nll", "error", "calibration_error"}


def test_bounds_and_unknown_entropies_are_named() -> None:
    groups = np.arange(50)
    make = np.random.default_rng(5)
    own, base = (made(np.ones(50), groups, kl=make.random(50) + k, fidelity=BOUND) for k in (0, 1))
    assert any("lower bounds" in sentence for sentence in against(own, base).sentences())
    bare = against(replace(own, kl=None, entropy=None), replace(base, kl=None, entropy=None))
    assert "kl" not in bare.values["student"]
    # The entropy is the same in both cross-entropies and goes out.
    assert bare.differences["student"]["kl"].mean == pytest.approx(against(own, base).differences["student"]["kl"].mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "e"}, "were measured on other examples"),
        ({"label": np.array([0, 1, 0])}, "were measured on other rows"),
        ({"teacher": "u"}, "other teachers, u"),
        ({"temperature": 2.0}, "at the temperatures 2 and 1"),
    ],
)
def test_what_cannot_be_compared_is_named(change: dict[str, Any], message: str) -> None:
    base = made(np.ones(3), np.arange(3), kl=np.ones(3))
    with pytest.raises(ValueError, match=f"student and labels only: .*{message}"):
        against(replace(base, **change), base)
    with pytest.raises(ValueError, match="reference: 'x' is none of 'a'"):
        compare({"a": base}, reference="x")


def test_tables_hold_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    from likely.cli.output import print_table

    make = np.random.default_rng(6)
    own, base = (made(make.random(90), np.arange(90) // 3, correct=make.random(90) < 0.8) for _ in range(2))
    found = against(own, base)
    columns, rows = found.table()
    assert columns == ["", "NLL", "error %", "calibration error %"]
    assert str(rows[0][2]) == str(replace_scaled(found.values["student"]["error"]))
    print_table(*found.table())
    print_table(*found.difference_table())
    shown = capsys.readouterr().out
    assert "less labels only" in shown
    assert "95% interval" in shown
    assert "not established" in shown


def replace_scaled(value: Any) -> Any:
    names = ("mean", "standard_error", "low", "high")
    return replace(value, **{name: 100 * getattr(value, name) for name in names})


def test_float32_networks_are_summed_in_float64() -> None:
    data = Rows(E=30)
    found = measure(Toy(seed=1, dtype=torch.float32), data, teacher=Toy(seed=2, dtype=torch.float32))
    assert found.kl is not None
    assert found.kl.dtype == found.nll.dtype == found.confidence.dtype == np.float64
