"""Small networks on n-grams, pixels and features: what they read, that they learn it, and that they come back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import likely
from likely.data.examples import Labelled
from likely.data.files import padded_bytes
from likely.networks.load import load_network
from likely.networks.small import BUCKETS, Small, ngram_buckets

TEXTS = ["the cat", "Eine Katze", "el gato", "😀 漢字", "le chat noir et blanc", ""]
CLASSES = ("de", "en", "es")


def texts(items: Sequence[str] = TEXTS, labels: Sequence[int] | None = None) -> Labelled:
    own = None if labels is None else np.array(labels)
    contents = [item.encode() for item in items]
    return Labelled.of(list(items), lambda some: {"text": list(some)}, contents, classes=CLASSES, labels=own)


def files() -> Labelled:
    items = [np.frombuffer(one, np.uint8) for one in (b"\x7fELF", b"#!/bin/sh\n", b"{}")]
    return Labelled.of(items, padded_bytes, [one.tobytes() for one in items], classes=CLASSES)


def dense(name: str, shape: tuple[int, ...]) -> Labelled:
    items = list(torch.from_numpy(np.random.default_rng(0).uniform(0, 5, (9, *shape))))
    return Labelled.of(
        items, lambda some: {name: torch.stack(list(some))}, [x.numpy().tobytes() for x in items], classes=CLASSES
    )


EXAMPLES = {
    "text": texts(),
    "bytes": files(),
    "pixels": dense("pixel_values", (3, 2, 2)),
    "features": dense("features", (4,)),
}


def slow_buckets(text: str) -> set[int]:
    """The same hash in Python's whole numbers."""
    places, found = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB), set()
    for n in (1, 2, 3):
        for at in range(len(text) - n + 1):
            x = sum((ord(text[at + k]) + 1) * places[k] for k in range(n)) + n & 2**64 - 1
            x = (x ^ x >> 30) * places[1] & 2**64 - 1
            x = (x ^ x >> 27) * places[2] & 2**64 - 1
            found.add((x ^ x >> 31) % BUCKETS)
    return found


def test_buckets_are_those_of_a_slow_hash_and_of_one_example_alone() -> None:
    codes = np.frombuffer("".join(TEXTS).encode("utf-32-le"), np.uint32)
    buckets, counts = ngram_buckets(codes, np.array([len(text) for text in TEXTS]))
    parts = np.split(buckets, np.cumsum(counts)[:-1])
    assert [set(part.tolist()) for part in parts] == [slow_buckets(text) for text in TEXTS]
    assert [len(part) for part in parts] == [len(slow_buckets(text)) for text in TEXTS]


def test_buckets_are_spread_evenly() -> None:
    grams = [f"{a}{b}" for a in map(chr, range(33, 127)) for b in map(chr, range(33, 127))]
    found = Counter(min(slow_buckets(gram) - slow_buckets(gram[0]) - slow_buckets(gram[1])) for gram in grams)
    expected = BUCKETS * (1 - (1 - 1 / BUCKETS) ** len(grams))  # of so many balls in as many bins
    assert abs(len(found) / expected - 1) < 0.02


def test_a_texts_features_are_the_shares_of_its_n_grams() -> None:
    network = load_network("linear", examples=texts())
    assert isinstance(network, Small)
    with torch.no_grad():
        network.module.first.weight.copy_(torch.randn(BUCKETS, 3, generator=torch.Generator().manual_seed(0)))
        own = sorted(slow_buckets(" the cat "))
        expected = network.module.first.weight[own].sum(dim=0) / len(own) ** 0.5
        torch.testing.assert_close(network.head(texts().batch([0])).logits()[0], expected)
        torch.testing.assert_close(network.head(texts(["THE Cat"]).batch([0])).logits()[0], expected)


@pytest.mark.parametrize("kind", ["linear", "mlp:5"])
@pytest.mark.parametrize("reads", EXAMPLES)
def test_each_reads_a_batch_as_it_reads_one_by_one_and_comes_back(reads: str, kind: str, tmp_path: Path) -> None:
    examples = EXAMPLES[reads]
    network = load_network(kind, examples=examples, trainable=True)
    assert network.module is not None
    with torch.no_grad():
        for parameter in network.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        together = network.head(examples.batch(range(len(examples)))).logits()
        alone = torch.cat([network.head(examples.batch([at])).logits() for at in range(len(examples))])
    assert together.shape == (len(examples), 3)
    torch.testing.assert_close(together, alone)
    network.save(tmp_path)
    again = load_network(tmp_path, examples=examples)
    assert again.identity == network.identity
    assert again.classes == CLASSES
    assert again.module is not None
    assert not any(p.requires_grad for p in again.module.parameters())
    torch.testing.assert_close(again.head(examples.batch([0])).logits(), together[:1])
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "network.json"}


@pytest.mark.parametrize("kind", ["linear", "mlp:8"])
def test_a_text_network_learns(kind: str) -> None:
    items = ["the cat sat", "the dog ran", "eine Katze saß", "ein Hund lief", "un gato comió", "los perros corren"]
    examples = texts(items, [1, 1, 0, 0, 2, 2])
    network = load_network(kind, examples=examples, trainable=True)
    assert network.module is not None
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=0.1)
    batch = examples.batch(range(6))
    losses = []
    for _ in range(10):
        loss = likely.nll(network.head(batch), likely.labels(batch.labels, 3)).mean().cross_entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]
    assert network.head(texts(["the"]).batch([0])).logits().argmax() == 1


def test_features_are_standardised_by_the_examples_a_network_is_made_with() -> None:
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]], dtype=torch.float64)
    examples = Labelled.of(
        list(x), lambda some: {"features": torch.stack(list(some))}, [b"0", b"1"], classes=("a", "b")
    )
    head = load_network("linear", examples=examples).head(examples.batch([0, 1]))
    assert head.tensors[0] is not None
    assert head.tensors[0].tolist() == [[-1, 0], [1, 0]]


def test_a_seed_makes_a_network_and_touches_no_other() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (load_network("mlp:4", examples=texts(), seed=seed).identity.sha256 for seed in (1, 1, 2))
    assert one == same != other
    assert torch.equal(torch.rand(1), expected)


def test_what_it_cannot_be_made_of_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="linear: is made for the examples that it reads"):
        load_network("linear")
    with pytest.raises(ValueError, match="mlp:0: has no hidden unit"):
        load_network("mlp:0", examples=texts())
    with pytest.raises(ValueError, match="examples have no label; name them"):
        load_network("linear", examples=Labelled.of(["a"], lambda some: {"text": some}, [b"a"]))
    with pytest.raises(ValueError, match="linear: reads text, and the examples hold bytes"):
        load_network("linear", examples=texts()).head(files().batch([0]))
    with pytest.raises(ValueError, match="reads 4 numbers, an example has 5"):
        load_network("linear", examples=EXAMPLES["features"]).head(dense("features", (5,)).batch([0]))
    load_network("linear", examples=EXAMPLES["features"]).save(tmp_path)
    about = json.loads((tmp_path / "network.json").read_text())
    for broken, message in (
        ({"format": 2}, "its format is 2"),
        ({"kind": "entry", "name": "os:system"}, "made by the entry 'os:system', which is only run where it is named"),
        ({"size": 5}, "holds no network that can be read"),
    ):
        (tmp_path / "network.json").write_text(json.dumps(about | broken))
        with pytest.raises(ValueError, match=message):
            load_network(tmp_path)
