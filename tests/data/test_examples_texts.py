"""Documents as stretches of tokens: what is predicted, of what, and how many bytes of text that is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from likely.data.examples import IGNORED, Examples
from likely.data.loading import load_examples
from likely.data.texts import Document, Tokens, load_tokenizer, next_token_rows, plain_documents, tokenizer_hash
from likely.data.tuning import tuning_document
from tests.networks import tiny

TEXTS = [*tiny.TEXTS, "", "x", "😀漢字" * 9, " spaces around ", "e\u0301\u00e9\r\n\t"]
CHAT = [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "the cat sat"}]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}|"
    "{% endgeneration %}{% else %}{{ m.content }}|{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer()


def documents(texts: Sequence[str], tokenizer: Any) -> list[Document]:
    return list(plain_documents([(f"text {at}", text) for at, text in enumerate(texts)], tokenizer))


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_are_those_that_a_loop_finds(seed: int) -> None:
    make = np.random.default_rng(seed)
    labels = torch.from_numpy(make.integers(0, 9, (4, 7)))
    labels[torch.from_numpy(make.random((4, 7)) < 0.3)] = IGNORED
    left, right = make.integers(0, 3, 4), make.integers(4, 8, 4)
    mask = torch.tensor([[int(left[b] <= at < right[b]) for at in range(7)] for b in range(4)])
    expected = [
        (b * 7 + at, int(labels[b, at + 1]))
        for b in range(4)
        for at in range(6)
        if labels[b, at + 1] != IGNORED and mask[b, at] and mask[b, at + 1]
    ]
    rows, own = next_token_rows(labels, mask)
    assert list(zip(rows.tolist(), own.tolist())) == expected


def test_rows_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels: have shape \(3,\)"):
        next_token_rows(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"attention_mask: has shape \(1, 2\) where labels have \(1, 3\)"):
        next_token_rows(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 2))


@pytest.mark.parametrize("max_length", [2, 3, 7, 1000])
def test_each_token_but_a_documents_first_is_predicted_once_from_the_one_before(
    tokenizer: Any, max_length: int
) -> None:
    found = documents(TEXTS, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        examples = Tokens.of(found, max_length=max_length)
    batch = examples.batch(range(len(examples)))
    assert batch.rows is not None
    assert batch.inputs["input_ids"].shape[1] <= max_length
    before = batch.inputs["input_ids"].flatten()[batch.rows]
    group = torch.from_numpy(examples.groups)[batch.example]
    for number, one in enumerate(found):
        own = group == number
        assert before[own].tolist() == one.ids[:-1].tolist()
        assert batch.labels[own].tolist() == one.ids[1:].tolist()
    assert torch.bincount(batch.example, minlength=len(examples)).tolist() == examples.row_counts.tolist()


@pytest.mark.parametrize("max_length", [2, 5, 1000])
def test_bytes_are_exact_for_whole_documents_less_their_first_token(tokenizer: Any, max_length: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        examples = Tokens.of(documents(TEXTS, tokenizer), max_length=max_length)
    assert examples.byte_counts is not None
    for number in np.unique(examples.groups):
        text = TEXTS[number]
        end = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][0][1]
        whole = len(text.encode()) - len(text[:end].encode())
        assert examples.byte_counts[examples.groups == number].sum() == whole


def test_a_token_before_the_text_makes_the_bytes_whole(tokenizer: Any) -> None:
    from tokenizers import processors

    own = tiny.tokenizer()
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", 1)]
    )
    text = "naïve 漢字"
    examples = Tokens.of(documents([text], own))
    assert examples.batch([0]).inputs["input_ids"][0, 0] == 1
    assert examples.byte_counts is not None
    assert examples.byte_counts.sum() == len(text.encode())
    assert tokenizer_hash(own) != tokenizer_hash(tokenizer)


def test_what_no_token_covers_counts_for_its_neighbour_and_special_tokens_for_nothing() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({"[U]": 0, "[S]": 1, "[E]": 2, "é": 3, "b": 4}, unk_token="[U]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[S] $A [E] [E]", special_tokens=[("[S]", 1), ("[E]", 2)]
    )
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    for text, sizes in ((" é  b", [0, 3, 3, 0, 0]), ("b é \n", [0, 1, 3, 0, 2])):
        (one,) = documents([text], own)
        assert one.bytes is not None
        assert one.bytes.tolist() == sizes
        assert sum(sizes) == len(text.encode())


def test_empty_documents_are_left_out_counted_and_said(tokenizer: Any) -> None:
    with pytest.warns(UserWarning, match="2 documents hold no token to predict and are left out: text 0, text 2"):
        examples = Tokens.of(documents(["", "the cat", "x"], tokenizer))
    assert (examples.skipped, examples.groups.tolist()) == (2, [1])
    with pytest.raises(ValueError, match="hold no token to predict"):
        Tokens.of(documents(["", "x"], tokenizer))


def test_a_fingerprint_is_of_the_tokens_in_their_order_and_of_what_is_predicted(tokenizer: Any) -> None:
    found = documents(tiny.TEXTS, tokenizer)
    own = Tokens.of(found, max_length=6)
    masked = [Document(found[0].ids, np.where(np.arange(len(found[0].ids)) == 3, IGNORED, found[0].labels), None, "t")]
    others = [
        Tokens.of(found[::-1], max_length=6),
        Tokens.of(found, max_length=7),
        Tokens.of(masked + found[1:], max_length=6),
    ]
    others += [own.subset([1, 0]), own.subset([0])]
    assert len({one.fingerprint for one in [own, *others]}) == 6
    assert own.subset(range(len(own))).fingerprint == own.fingerprint == Tokens.of(found, max_length=6).fingerprint


def test_a_subset_has_the_rows_of_its_stretches(tokenizer: Any) -> None:
    own = Tokens.of(documents(tiny.TEXTS, tokenizer), max_length=5)
    part: Examples = own.subset([4, 1])
    assert part.row_counts.tolist() == own.row_counts[[4, 1]].tolist()
    assert part.batch([1, 0]).labels.tolist() == own.batch([1, 4]).labels.tolist()
    assert part.byte_counts is not None
    assert own.byte_counts is not None
    assert part.byte_counts.tolist() == own.byte_counts[[4, 1]].tolist()


# ------------------------------------------------------------------------------------------------ supervised tuning


def test_of_a_prompt_and_its_completion_the_completion_and_its_end_are_learnt(tokenizer: Any) -> None:
    one = tuning_document({"prompt": "the cat ", "completion": "sat"}, tokenizer, "row 0")
    prompt = tokenizer("the cat ")["input_ids"]
    whole = tokenizer("the cat sat")["input_ids"]
    assert whole[: len(prompt)] == prompt  # as TRL counts the prompt
    assert one.ids.tolist() == [*whole, tokenizer.eos_token_id]
    assert one.labels.tolist() == [IGNORED] * len(prompt) + [*whole[len(prompt) :], tokenizer.eos_token_id]
    assert one.bytes is not None
    assert one.bytes[one.labels != IGNORED].sum() == len("sat")
    assert Tokens.of([one]).byte_counts == [len("sat")]
    short = tuning_document({"prompt": "the cat ", "completion": "z"}, tokenizer, "row 0")
    assert tokenizer.decode(short.ids[short.labels != IGNORED]) == "z<end>"


def test_a_token_across_the_border_is_learnt(tokenizer: Any) -> None:
    one = tuning_document({"prompt": "the c", "completion": "at"}, tokenizer, "row 0")
    learnt = tokenizer.decode(one.ids[one.labels != IGNORED][:-1])
    assert learnt == " cat"


def test_messages_are_laid_out_by_the_chat_template_and_its_mask() -> None:
    own = tiny.tokenizer()
    own.chat_template = TEMPLATE
    one = tuning_document({"messages": CHAT}, own, "row 0")
    assert own.decode(one.ids) == "<user>hi there|<assistant>the cat sat|"
    assert own.decode(one.ids[one.labels != IGNORED]) == "the cat sat|"
    pair = tuning_document({"prompt": CHAT[:1], "completion": CHAT[1:]}, own, "row 0")
    assert pair.ids.tolist() == one.ids.tolist()
    assert pair.labels.tolist() == one.labels.tolist()
    own.chat_template = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert (tuning_document({"messages": CHAT}, own, "row 0").labels != IGNORED).all()
    own.chat_template = None
    with pytest.raises(ValueError, match="row 0: holds messages, and the tokenizer no chat template"):
        tuning_document({"messages": CHAT}, own, "row 0")


def test_tokens_that_are_given_keep_their_labels_and_masks() -> None:
    row = {"input_ids": [5, 6, 7, 0], "attention_mask": [1, 1, 1, 0]}
    for more in (
        {"labels": [IGNORED, 6, IGNORED, IGNORED]},
        {"completion_mask": [0, 1, 0, 1]},
        {"assistant_masks": [0, 1, 0, 0]},
    ):
        one = tuning_document(row | more, None, "row 0")
        assert one.ids.tolist() == [5, 6, 7]
        assert one.labels.tolist() == [IGNORED, 6, IGNORED]
    with pytest.raises(ValueError, match="row 3: labels has 2 entries where input_ids has 4"):
        tuning_document(row | {"labels": [1, 2]}, None, "row 3")
    with pytest.raises(ValueError, match="row 3: has neither input_ids nor messages"):
        tuning_document({"prompt": "a"}, tiny.tokenizer(), "row 3")
    with pytest.raises(ValueError, match="row 3: holds text; give a tokenizer"):
        tuning_document({"prompt": "a", "completion": "b"}, None, "row 3")


# ---------------------------------------------------------------------------------------------------- from files


def test_the_layouts_are_known_by_their_columns(tmp_path: Path) -> None:
    own = tiny.tokenizer()
    own.chat_template = TEMPLATE
    rows: dict[str, list[dict[str, Any]]] = {
        "plain": [{"text": "the cat sat"}, {"text": "a dog ran"}],
        "tokens": [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8, 9]}],
        "pairs": [{"prompt": "the ", "completion": "cat"}],
        "chat": [{"messages": [*CHAT, {"role": "user", "content": "x", "name": "me"}]}],
    }
    found = {
        name: load_examples(tiny.lines(tmp_path / f"{name}.jsonl", some), tokenizer=own) for name, some in rows.items()
    }
    assert [type(one) for one in found.values()] == [Tokens] * 4
    assert found["tokens"].batch([0, 1]).labels.tolist() == [6, 7, 9]
    assert found["chat"].row_counts.tolist() == [len(own("the cat sat|")["input_ids"])]
    import pyarrow as pa
    import pyarrow.parquet

    for name, some in rows.items():
        pyarrow.parquet.write_table(pa.Table.from_pylist(some), tmp_path / f"{name}.parquet")
        again = load_examples(tmp_path / f"{name}.parquet", tokenizer=own)
        assert again.fingerprint == found[name].fingerprint


def test_a_folder_a_glob_and_a_file_of_texts(tmp_path: Path) -> None:
    own = tiny.tokenizer()
    own.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for name, text in {
        "b.txt": "the cat sat",
        "a10.txt": "a dog ran",
        "a9.txt": "it rains",
        "deep/c.py": "x = 1",
    }.items():
        (tmp_path / "texts" / name).write_text(text, "utf-8")
    (tmp_path / "texts" / ".hidden").write_bytes(b"\xff")
    whole = load_examples(tmp_path / "texts", tokenizer=tmp_path / "tokenizer")
    assert (
        whole.tokenizer
        == tokenizer_hash(own)
        == tokenizer_hash(load_tokenizer(tmp_path / "tokenizer" / "tokenizer.json"))
    )
    assert isinstance(whole, Tokens)
    assert whole.names is not None
    assert [name.split(",")[0] for name in whole.names] == ["a9.txt", "a10.txt", "b.txt", "deep/c.py"]
    assert len(load_examples(tmp_path / "texts", tokenizer=own, limit=2)) == 2
    globbed = load_examples(tmp_path / "texts" / "**" / "*.txt", tokenizer=own)
    assert sorted(globbed.row_counts) == sorted(whole.row_counts[:3])
    assert len(load_examples(tmp_path / "texts" / "b.txt", tokenizer=own)) == 1
    (tmp_path / "texts" / "d.bin").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"d.bin: is not UTF-8 \(byte 3\)"):
        load_examples(tmp_path / "texts", tokenizer=own)


def test_the_length_of_a_stretch_is_the_tokenizers_unless_it_is_said(tmp_path: Path) -> None:
    own = tiny.tokenizer()
    path = tmp_path / "t.txt"
    path.write_text("x y " * 500)
    for asked, length in ((None, 64), (200, 200)):
        examples = load_examples(path, tokenizer=own, max_length=asked)
        assert examples.batch(range(len(examples))).inputs["input_ids"].shape[1] == length


def test_texts_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    own = tiny.tokenizer()
    with pytest.raises(ValueError, match="tokenizer: is missing"):
        load_examples(tiny.lines(tmp_path / "t.jsonl", [{"text": "x"}]), kind="language")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; nothing is fetched"):
        load_examples(tmp_path / "t.jsonl", tokenizer=tmp_path / "nowhere")
    (tmp_path / "cut.jsonl").write_text('{"text": "fine"}\n{"text": "cu')
    with pytest.raises(ValueError, match=r"cut.jsonl: line 2 is no JSON .* is the file cut short"):
        load_examples(tmp_path / "cut.jsonl", tokenizer=own)
    (tmp_path / "half.jsonl").write_text('{"text": "\\ud800"}\n')
    with pytest.raises(ValueError, match=r"half a surrogate|what is no text"):
        load_examples(tmp_path / "half.jsonl", tokenizer=own)
    with pytest.raises(ValueError, match="column 'text': row 1 is None, no text"):
        load_examples(tiny.lines(tmp_path / "none.jsonl", [{"text": "x y"}, {"text": None}]), tokenizer=own)
    with pytest.raises(ValueError, match="max_length: is 1"):
        load_examples(tmp_path / "t.jsonl", tokenizer=own, max_length=1)
