"""What is kept of a row is what the definition says, for every kind, temperature, head and dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from likely.heads import Head, Linear, Logits
from likely.measures import entropy
from likely.teachers import keep as keeping
from likely.teachers.keep import Keep, Rows, bytes_per_row, keep_rows, uniforms

KINDS = ["dense", "top:3", "top:3+tail", "samples:7", "hybrid:3+5"]
SIZES = [23, 300]
"""Classes of one cell, and of three of which the last is filled up."""
C, N = 23, 50


def head(dtype: torch.dtype = torch.float64, scale: float = 1.5, C: int = C) -> Linear:
    generator = torch.Generator().manual_seed(3)
    x_ND = torch.randn(N, 6, dtype=torch.float64, generator=generator) * scale
    return Linear(x_ND.to(dtype), torch.randn(C, 6, dtype=torch.float64, generator=generator).to(dtype))


def probabilities(of: Head, temperature: float) -> torch.Tensor:
    return torch.softmax(of.logits().double() / temperature, dim=-1)


def same(a: Rows, b: Rows) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a) if getattr(a, name) is not None)


@pytest.mark.parametrize("text", KINDS)
def test_a_kind_is_named_as_it_is_parsed(text: str) -> None:
    assert str(Keep.parse(text)) == text
    assert Keep.parse(Keep.parse(text)) == Keep.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "top", "top:0", "top:-1", "top:3+", "top:3 ", "samples:", "samples:65536", "hybrid:3", "hybrid:0+2", "Dense"],
)
def test_what_is_no_kind_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="keep: is"):
        Keep.parse(text)


def test_more_classes_than_there_are_cannot_be_kept() -> None:
    bytes_per_row("top:5", 5)
    for text, least in (("top:6", "at most 5"), ("hybrid:5+1", "at most 4")):
        with pytest.raises(ValueError, match=least):
            bytes_per_row(text, 5)


def test_only_truncation_is_biased() -> None:
    assert [Keep.parse(text).gradient for text in KINDS] == ["unbiased", "biased", "biased", "unbiased", "unbiased"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("text", KINDS)
@pytest.mark.parametrize("C", SIZES)
def test_kept_is_what_the_definition_says(C: int, text: str, temperature: float, dtype: torch.dtype) -> None:
    of, keep = head(dtype, C=C), Keep.parse(text)
    p_NC = probabilities(of, temperature)
    rows = keep_rows(of, keep, temperature=temperature)
    assert rows.entropy is not None
    np.testing.assert_allclose(rows.entropy, entropy(p_NC), rtol=3e-6)
    if keep.kind == "dense":
        assert rows.logprobs is not None
        np.testing.assert_allclose(rows.logprobs, p_NC.log(), rtol=1e-5, atol=1e-6)
        return
    assert rows.ids is not None
    starts = np.cumsum(rows.entries) - rows.entries
    if keep.top:
        assert rows.logprobs is not None
        top = p_NC.topk(keep.top)
        ids = rows.ids[starts[:, None] + np.arange(keep.top)]
        assert np.array_equal(ids, top.indices)
        np.testing.assert_allclose(rows.logprobs.astype(float), top.values.log(), rtol=2**-11 * 1.01, atol=1e-6)
        if rows.tail is not None:
            np.testing.assert_allclose(rows.tail, 1 - top.values.sum(-1), rtol=1e-4 if dtype != torch.float64 else 1e-6)
    if keep.draws:
        assert rows.counts is not None
        total = np.add.reduceat(rows.counts.astype(int), np.cumsum(rows.entries - keep.top) - (rows.entries - keep.top))
        assert (total == keep.draws).all()
    for start, entries in zip(starts, rows.entries):  # no class stands twice
        assert len(set(rows.ids[start : start + entries])) == entries


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_confident_row_keeps_the_digits_of_its_entropy_and_tail(dtype: torch.dtype) -> None:
    z_NC = torch.zeros(1, 1000, dtype=dtype)
    z_NC[0, 5] = 40
    rest = 999 * np.exp(-40.0)
    rows = keep_rows(Logits(z_NC), Keep.parse("hybrid:1+4"))
    assert rows.tail is not None
    assert rows.entropy is not None
    assert float(rows.tail[0]) == pytest.approx(rest, rel=1e-6)
    assert float(rows.entropy[0]) == pytest.approx(rest * 41, rel=1e-4)


@pytest.mark.parametrize("text", KINDS)
@pytest.mark.parametrize("C", SIZES)
def test_an_impossible_class_has_no_mass_and_is_never_drawn(C: int, text: str) -> None:
    z_NC = head(C=C).logits()
    z_NC[:, ::2] = -torch.inf
    keep = Keep.parse(text)
    rows = keep_rows(Logits(z_NC), keep)
    assert rows.entropy is not None
    np.testing.assert_allclose(rows.entropy, entropy(torch.softmax(z_NC, -1)), rtol=1e-6)
    if keep.kind == "dense":
        assert rows.logprobs is not None
        assert np.isneginf(rows.logprobs[:, ::2]).all()
    else:
        assert rows.ids is not None
        assert (rows.ids % 2 == 1).all()


@pytest.mark.parametrize("C", [4, *SIZES])
def test_a_row_with_no_mass_left_has_no_draws(C: int) -> None:
    z_NC = torch.full((2, C), -torch.inf)
    z_NC[0, :2] = torch.tensor([0.0, 1.0])
    z_NC[1, :4] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    rows = keep_rows(Logits(z_NC), Keep.parse("hybrid:2+3"))
    assert rows.tail is not None
    assert rows.counts is not None
    assert rows.entries[0] == 2
    assert rows.tail[0] == 0
    assert rows.counts.sum() == 3


def test_fewer_possible_classes_than_are_kept() -> None:
    z_NC = torch.full((1, 300), -torch.inf)
    z_NC[0, [7, 290]] = torch.tensor([0.0, 1.0])
    rows = keep_rows(Logits(z_NC), Keep.parse("top:3+tail"))
    assert rows.ids is not None
    assert rows.logprobs is not None
    assert rows.ids.tolist()[:2] == [290, 7]
    assert rows.ids[2] < 300
    assert np.isneginf(rows.logprobs[0, 2])


@pytest.mark.parametrize("C", SIZES)
@pytest.mark.parametrize("text", ["samples:4", "hybrid:2+4"])
def test_classes_are_drawn_with_their_probability(C: int, text: str) -> None:
    rows, z_NC = 20_000, head(C=C).logits()[:1]
    p_C, keep = torch.softmax(z_NC[0], dim=-1).numpy(), Keep.parse(text)
    kept = keep_rows(Logits(z_NC.expand(rows, C)), keep, seed=9)
    assert kept.ids is not None
    assert kept.counts is not None
    head_K = kept.ids[: keep.top]
    p_C[head_K] = 0
    p_C /= p_C.sum()
    drawn = kept.ids[np.concatenate([np.arange(n) for n in kept.entries]) >= keep.top]
    count_C, expected_C = np.bincount(drawn, weights=kept.counts, minlength=C), p_C * rows * keep.draws
    assert (np.abs(count_C - expected_C) <= 5 * np.sqrt(expected_C) + 5).all()
    often_C = expected_C > 20
    assert often_C.sum() > 10
    assert (((count_C - expected_C) ** 2 / np.maximum(expected_C, 1))[often_C]).mean() < 2


@pytest.mark.parametrize("C", SIZES)
def test_rows_depend_on_nothing_but_their_logits_and_their_number(C: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {text: keep_rows(Logits(head(C=C).logits()), Keep.parse(text), temperature=9.0, seed=4) for text in KINDS}
    monkeypatch.setattr(keeping, "_BLOCK_BYTES", 1)
    for text, rows in whole.items():
        z_NC = head(C=C).logits()
        parts = [
            keep_rows(Logits(z_NC[at : at + 17]), Keep.parse(text), temperature=9.0, seed=4, first_row=at)
            for at in range(0, N, 17)
        ]
        assert same(rows, Rows.join(parts)), text
        assert same(rows, keep_rows(Logits(z_NC), Keep.parse(text), temperature=9.0, seed=4)), text


def test_a_seed_is_a_stream_of_its_own() -> None:
    u = [uniforms(seed, row, 1, 6) for seed in (0, 1, 2**62) for row in (0, 1, 10**12)]
    assert len({float(v) for one in u for v in one.reshape(-1)}) == 9 * 6
    many = uniforms(0, 0, 20_000, 5)
    assert abs(many.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / many.size**0.5
    assert 0 <= many.min() < many.max() < 1


def test_the_teacher_s_logits_are_left_as_they_are() -> None:
    z_NC = head().logits()
    before = z_NC.clone()
    keep_rows(Logits(z_NC), Keep.parse("hybrid:2+2"), temperature=3.0)
    assert torch.equal(z_NC, before)


def test_logits_are_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_BLOCK_BYTES", 8 * C * 8)
    taken = []

    class Watched(Linear):
        def logits(self, rows: slice = slice(None), out: torch.Tensor | None = None) -> torch.Tensor:
            taken.append(rows.stop - rows.start)
            return super().logits(rows, out)

    of = head()
    keep_rows(Watched(of.x, of.weight), Keep.parse("top:2"))
    assert max(taken) == 8
    assert sum(taken) == N


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("text", KINDS)
@pytest.mark.parametrize("C", SIZES)
def test_a_row_that_is_no_distribution_is_named(C: int, text: str, wrong: float) -> None:
    z_NC = head(torch.float32, C=C).logits()
    z_NC[31, 4] = wrong
    with pytest.raises(ValueError, match="NaN or infinite logits at row 31"):
        keep_rows(Logits(z_NC), Keep.parse(text))
    z_NC[31] = -torch.inf
    with pytest.raises(ValueError, match="row 31"):
        keep_rows(Logits(z_NC), Keep.parse(text))


def test_the_declared_rounding_is_what_happens() -> None:
    of = head(scale=4.0)
    log_p_NC = torch.log_softmax(of.logits(), dim=-1)
    rows = keep_rows(of, Keep.parse("top:20"))
    assert rows.logprobs is not None
    exact_NK = log_p_NC.topk(20).values.numpy()
    assert (np.abs(rows.logprobs.astype(float) - exact_NK) <= np.abs(exact_NK) / 2048 + 3e-8).all()
