"""Others' records: their encoders, written again from what they do, and what our importers make of their files.

Shapes: E examples, L tokens, C classes, K stored classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.typing import NDArray

import likely
from likely.data.examples import IGNORED
from likely.data.loading import load_examples
from likely.teachers.distillkit import Compression
from likely.teachers.importers import import_record
from likely.teachers.record import Record
from likely.teachers.replacing import EXAMPLES

C, K = 40, 6
LENGTHS = (12, 7, 2, 30)


# ---------------------------------------------------------------------------------------------- a teacher and a text


def text(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Examples drawn from a teacher: tokens (L,), and the log-probabilities of each token given those before, (L, C).

    The first token's own distribution is nobody's prediction: NaN.
    """
    rng = np.random.default_rng(seed)
    examples = []
    for length in lengths:
        z_LC = 3 * rng.normal(size=(length, C))
        log_p_LC = z_LC - np.log(np.exp(z_LC).sum(axis=1, keepdims=True))
        token = np.array([rng.choice(C, p=np.exp(row)) for row in log_p_LC])
        log_p_LC[0] = math.nan
        examples.append((token, log_p_LC))
    return examples


def top(log_p_LC: NDArray[np.float64], k: int = K) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    index = np.argsort(-log_p_LC, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(log_p_LC, index, axis=1)


def imported(path: Path, out: Path, **options: Any) -> Any:
    return import_record(path, out, **{"format": "axolotl", "classes": C, **options})


def probabilities(record: Record, example: int) -> NDArray[np.float64]:
    """What the record says of the rows of an example, (n, C); NaN where it does not say."""
    target: Any = record.target([example], tail="bucket" if record.manifest.keep.tail else "renormalise")
    p_nC = np.full((len(target.index), C), math.nan)
    np.put_along_axis(p_nC, target.index.numpy(), target.value.numpy(), axis=1)
    return p_nC


def require_same(record: Record, example: int, log_p_nC: NDArray[np.float64], k: int = K, off: float = 1e-2) -> None:
    """The record says of an example's rows what the teacher said: the k largest, and the mass of the others."""
    index, value = top(log_p_nC, k)
    p_nC = probabilities(record, example)
    assert np.isnan(p_nC).sum() == (C - k) * len(log_p_nC)
    np.testing.assert_allclose(np.take_along_axis(p_nC, index, axis=1), np.exp(value), rtol=off)


# ---------------------------------------------------------------------------------------------------- their encoders


def pack(number: Sequence[int], bits: int) -> list[int]:
    """Whole numbers as bits, the highest first, filled up with zeros to whole bytes."""
    stream = "".join(format(int(one), f"0{bits}b") for one in number)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[at : at + 8], 2) for at in range(0, len(stream), 8)]


def raw(values: NDArray[np.float64], dtype: str) -> tuple[list[int], NDArray[np.float64]]:
    """The bytes of numbers in a dtype, and the numbers as they were rounded."""
    tensor = torch.tensor(values, dtype=getattr(torch, dtype)).reshape(-1)
    return tensor.view(torch.uint8).tolist(), tensor.double().numpy()


def compress(value: NDArray[np.float64], config: dict[str, Any]) -> list[int]:
    """One row of descending log-probabilities as DistillKit's `compress_monotonic_logprobs` has it, undiffused."""
    if config["delta_encoding"]:
        value = np.diff(value, prepend=0)
    exact, behind = value[: config["exact_k"]], value[config["exact_k"] : config["k"]]
    data = raw(exact, config["exact_dtype"])[0] if len(exact) else []
    if config["polynomial_terms"]:
        t = np.linspace(0, 1, len(behind)) if config["normalize_t"] else np.arange(len(behind))
        X = np.stack([getattr(np, i)(t) if isinstance(i, str) else t**i for i in config["polynomial_terms"]], axis=1)
        coefficient_bytes, coefficients = raw(np.linalg.lstsq(X, behind, rcond=None)[0], config["term_dtype"])
        data += coefficient_bytes
        behind = behind - X @ coefficients
    for one in config["residual_bins"]:
        part, behind = behind[: one["num_elements"]], behind[one["num_elements"] :]
        bits = one["element_bits"]
        largest = np.abs(part).max()
        scale_bytes, scale = raw(np.array(largest / (1 if bits == 1 else 2 ** (bits - 1)) or 1.0), one["scale_dtype"])
        least, most = (0, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        data += scale_bytes + pack((np.clip(np.round(part / scale), least, most) - least).astype(int).tolist(), bits)
    return data


EXACT: dict[str, Any] = {
    "d": C,
    "k": K,
    "exact_k": K,
    "exact_dtype": "float32",
    "polynomial_terms": [],
    "term_dtype": "float32",
    "residual_bins": [],
    "delta_encoding": False,
    "error_diffusion": False,
    "normalize_t": False,
}
FINE = {"scale_dtype": "float32", "element_bits": 12, "num_elements": 6}
CONFIGS = [
    EXACT,
    {**EXACT, "delta_encoding": True},
    {**EXACT, "exact_dtype": "bfloat16"},
    {**EXACT, "k": 10, "exact_k": 4, "polynomial_terms": [0, 1, 2, "sqrt"], "residual_bins": [FINE]},
    {**EXACT, "k": 10, "exact_k": 4, "polynomial_terms": [0, 1], "residual_bins": [FINE], "normalize_t": True},
    {**EXACT, "k": 12, "exact_k": 4, "residual_bins": [FINE, {**FINE, "element_bits": 9, "num_elements": 2}]},
    {**EXACT, "k": 10, "exact_k": 4, "polynomial_terms": [0, "exp"], "residual_bins": [FINE], "delta_encoding": True},
]


def write_distillkit(
    folder: Path, config: dict[str, Any], examples: Any = None, files: int = 1, **columns: list[Any]
) -> Path:
    """A capture as `distillkit-sample-logits` leaves it; the rows of a first token are dropped, as vLLM has none."""
    folder.mkdir(parents=True)
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    rows: dict[str, list[Any]] = {"input_ids": [], "compressed_logprobs": [], "bytepacked_indices": []}
    for token, log_p_LC in text() if examples is None else examples:
        index, value = top(log_p_LC[1:], config["k"])
        rows["input_ids"].append(token.tolist())
        rows["compressed_logprobs"].append([compress(one, config) for one in value])
        bits = math.ceil(math.log2(config["d"]))
        rows["bytepacked_indices"].append([pack(one, bits) for one in index])
    rows |= columns
    kinds = {"input_ids": pa.list_(pa.uint64()), "labels": pa.list_(pa.int64()), "attention_mask": pa.list_(pa.int64())}
    byte_lists = pa.list_(pa.list_(pa.uint8()))
    table = pa.table({name: pa.array(value, kinds.get(name, byte_lists)) for name, value in rows.items()})
    size = -(-len(table) // files)
    for number in range(files):
        pq.write_table(table.slice(number * size, size), folder / f"data_{number}.parquet")
    return folder


def prepare(examples: Any, ahead: int, prompt: int = 0, normalise: bool = False) -> list[dict[str, Any]]:
    """Rows as Axolotl prepares them: of token j + ahead, with what has no target masked and filled up.

    Today `ahead` is 1 and −1e9 fills up; older versions had 0 and −inf.
    """
    fill = -1e9 if ahead else -math.inf
    rows = []
    for token, log_p_LC in examples:
        labels = [IGNORED] * min(prompt, len(token)) + token[prompt:].tolist()
        ids, logprobs, mask = [], [], []
        for j in range(len(token)):
            at = j + ahead
            if 1 <= at < len(token) and labels[at] != IGNORED:
                index, value = top(log_p_LC[at : at + 1])
                if normalise:
                    value = value - np.log(np.exp(value).sum())
                ids.append(index[0].tolist())
                logprobs.append(value[0].tolist())
                mask.append([1] * K)
            else:
                ids.append([0] * K)
                logprobs.append([fill] * K)
                mask.append([0] * K)
        rows.append(
            {
                "input_ids": token.tolist(),
                "labels": labels,
                "target_token_ids": ids,
                "target_logprobs": logprobs,
                "target_mask": mask,
            }
        )
    return rows


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ------------------------------------------------------------------------------------------------------- DistillKit


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(str(v) for v in list(config.values())[1:]))
def test_distillkit_says_what_its_teacher_said(tmp_path: Path, config: dict[str, Any]) -> None:
    path = write_distillkit(tmp_path / "capture", config)
    done = imported(path, tmp_path / "out", format="distillkit", classes=None)
    assert done.record.manifest.classes == C
    assert str(done.record.manifest.keep) == f"top:{config['k']}+tail"
    for example, (_, log_p_LC) in enumerate(text()):
        off = 2e-2 if config["exact_dtype"] == "bfloat16" or config["exact_k"] < config["k"] else 3e-3
        require_same(done.record, example, log_p_LC[1:], config["k"], off)


def test_a_residual_of_one_bit_is_plus_or_minus_its_scale() -> None:
    one_bit = {"scale_dtype": "float16", "element_bits": 1, "num_elements": 3}
    settings = Compression.of({**EXACT, "k": 4, "exact_k": 1, "residual_bins": [one_bit]})
    data = raw(np.array([-1.0]), "float32")[0] + raw(np.array(0.25), "float16")[0] + pack([1, 0, 1], 1)
    assert settings.logprobs(np.array([data], dtype=np.uint8)).tolist() == [[-1.0, 0.25, -0.25, 0.25]]


def test_distillkit_keeps_shards_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    examples = text([5] * 11)
    path = write_distillkit(tmp_path / "capture", EXACT, examples, files=11)
    done = imported(path, tmp_path / "out", format="distillkit")
    for example in (1, 2, 10):
        require_same(done.record, example, examples[example][1][1:])
    assert pq.read_table(done.data)["input_ids"].to_pylist() == [token.tolist() for token, _ in examples]


def test_distillkit_leaves_out_what_is_masked_padded_or_of_the_next_packed_example(tmp_path: Path) -> None:
    (token, log_p_LC), *_ = text([9])
    labels = token.copy()
    labels[3] = IGNORED
    segment = [1, 1, 1, 1, 1, 2, 2, 0, 0]  # token 5 begins another example, tokens 7 and 8 are padding
    columns: Any = {"labels": [labels.tolist()], "attention_mask": [segment]}
    path = write_distillkit(tmp_path / "capture", EXACT, [(token, log_p_LC)], **columns)
    done = imported(path, tmp_path / "out", format="distillkit")
    due = [1, 2, 4, 6]
    require_same(done.record, 0, log_p_LC[due])
    expected = [token[at] if at in due else IGNORED for at in range(9)]
    assert pq.read_table(done.data)["labels"].to_pylist() == [expected]


def test_distillkit_packed_has_a_last_row_of_a_token_that_is_not_there(tmp_path: Path) -> None:
    examples = text()
    path = write_distillkit(tmp_path / "capture", EXACT, examples)
    table = pq.read_table(path / "data_0.parquet")
    cut = pa.array([ids[:-1] for ids in table["input_ids"].to_pylist()], pa.list_(pa.uint64()))
    pq.write_table(table.set_column(0, "input_ids", cut), path / "data_0.parquet")
    done = imported(path, tmp_path / "out", format="distillkit")
    require_same(done.record, 0, examples[0][1][1:-1])
    assert "1 of 4 examples have no target and are left out" in done.notes  # of two tokens one was left


def test_rows_that_sum_to_more_than_one_are_divided_by_their_sums_and_it_is_said(tmp_path: Path) -> None:
    examples = [(token, log_p_LC + math.log(1.03)) for token, log_p_LC in text()]
    config = {**EXACT, "k": C, "exact_k": C}
    done = imported(write_distillkit(tmp_path / "c", config, examples), tmp_path / "out", format="distillkit")
    require_same(done.record, 0, text()[0][1][1:], C)
    assert "47 rows sum to more than 1 (at most 1.0300): divided by their sums" in done.notes
    stored = pq.read_table(tmp_path / "out" / "part-00000.parquet")["target_logprobs"].to_pylist()
    assert np.exp([row for example in stored for row in example]).sum(axis=1) == pytest.approx(1, abs=1e-3)


# ---------------------------------------------------------------------------------------------------------- Axolotl


@pytest.mark.parametrize("ahead", [1, 0], ids=["next", "same"])
@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
@pytest.mark.parametrize("prompt", [0, 1])
def test_axolotl_prepared(tmp_path: Path, ahead: int, write: Any, prompt: int) -> None:
    path = write(tmp_path / f"rows.{'jsonl' if write is write_jsonl else 'parquet'}", prepare(text(), ahead, prompt))
    done = imported(path, tmp_path / "out")
    assert ("row j is of token j + 1" in done.notes[0]) == bool(ahead)
    for example, (_, log_p_LC) in enumerate(text()):
        require_same(done.record, example, log_p_LC[1:])


@pytest.mark.parametrize("ahead", [1, 0])
def test_the_mask_tells_the_alignment_of_the_shortest_file(tmp_path: Path, ahead: int) -> None:
    examples = text([3], seed=5)
    done = imported(write_parquet(tmp_path / "rows.parquet", prepare(examples, ahead)), tmp_path / "out")
    require_same(done.record, 0, examples[0][1][1:])


def test_axolotl_masked_prompts_have_no_rows(tmp_path: Path) -> None:
    done = imported(write_parquet(tmp_path / "rows.parquet", prepare(text(), 1, prompt=4)), tmp_path / "out")
    assert done.record.row_counts.tolist() == [8, 3, 26]
    require_same(done.record, 2, text()[3][1][4:])
    assert "1 of 4 examples have no target and are left out" in done.notes


def test_axolotl_masked_entries_are_no_targets_whatever_they_say(tmp_path: Path) -> None:
    rows = prepare(text(), 1)
    for row in rows:
        del row["labels"]
    rows[0]["target_mask"][3] = [0] * K
    rows[3]["target_mask"][2][K - 1] = 0
    done = imported(write_parquet(tmp_path / "rows.parquet", rows), tmp_path / "out")
    assert done.record.row_counts.tolist() == [10, 6, 1, 29]
    require_same(done.record, 0, text()[0][1][[1, 2, 3, *range(5, 12)]], K - 1)
    assert f"rows hold {K - 1} to {K} classes" in " ".join(done.notes)


def served(examples: Any, entry: Any, begin: int) -> list[dict[str, Any]]:
    """Rows as a server gives them from token `begin` on: null for the first of all."""
    rows = []
    for token, log_p_LC in examples:
        index, value = top(log_p_LC)
        said = [entry(i.tolist(), v.tolist()) if at else None for at, (i, v) in enumerate(zip(index, value))]
        rows.append({"input_ids": token.tolist(), "prompt_logprobs": said[begin:]})
    return rows


ENTRIES = {
    "distilabel": lambda ids, values: [{"token": f"token_id:{i}", "logprob": v} for i, v in zip(ids, values)],
    "vllm": lambda ids, values: {
        str(i): {"logprob": v, "rank": r, "decoded_token": "?"} for r, (i, v) in enumerate(zip(ids, values), 1)
    },
    "plain": lambda ids, values: {str(i): v for i, v in zip(ids, values)},
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("begin", [0, 1, 5])
def test_axolotl_served_ends_with_the_last_token(tmp_path: Path, entry: Any, begin: int) -> None:
    examples = [one for one in text() if len(one[0]) > begin]
    done = imported(write_jsonl(tmp_path / "rows.jsonl", served(examples, entry, begin)), tmp_path / "out")
    for example, (_, log_p_LC) in enumerate(examples):
        require_same(done.record, example, log_p_LC[max(begin, 1) :])


def test_axolotl_served_as_parallel_lists(tmp_path: Path) -> None:
    rows = served(text(), lambda ids, values: values, 1)
    for row, (_, log_p_LC) in zip(rows, text()):
        row["target_token_ids"] = top(log_p_LC)[0][1:].tolist()
    done = imported(write_parquet(tmp_path / "rows.parquet", rows), tmp_path / "out")
    require_same(done.record, 3, text()[3][1][1:])


def test_a_token_sampled_outside_the_k_widens_its_row_only(tmp_path: Path) -> None:
    """vLLM adds the sampled token's entry: the K largest of all rows are kept, and it is said."""
    rows = served(text(), ENTRIES["vllm"], 1)
    widest = top(text()[0][1], K + 1)
    rows[0]["prompt_logprobs"][4][str(widest[0][5][K])] = {"logprob": widest[1][5][K], "rank": K + 1}
    done = imported(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    assert f"rows hold {K} to {K + 1} classes: the {K} largest are kept, their mass is in the tail" in done.notes
    require_same(done.record, 0, text()[0][1][1:])


# ------------------------------------------------------------------------------------------------- what a record says


def test_kl_is_that_of_the_stored_classes_and_one_for_the_rest(tmp_path: Path) -> None:
    done = imported(write_parquet(tmp_path / "rows.parquet", prepare(text(), 1)), tmp_path / "out")
    log_p_nC = text()[0][1][1:]
    target = done.record.target([0], tail="bucket")
    kl = likely.nll(likely.Logits(torch.tensor(log_p_nC)), target).kl
    assert torch.allclose(kl, torch.zeros_like(kl), atol=1e-3)
    with pytest.raises(ValueError, match="does not say"):
        done.record.entropy([0])
    assert done.record.manifest.keep.gradient == "biased"
    assert done.record.manifest.data == load_examples(done.data).fingerprint
    assert any("entropy is not in the file" in note for note in done.notes)


def test_renormalised_rows_have_no_tail(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", prepare(text(), 1, normalise=True))
    done = imported(path, tmp_path / "out")
    assert str(done.record.manifest.keep) == f"top:{K}"
    assert any("renormalised" in note for note in done.notes)


def test_an_import_is_taken_up_and_is_the_same(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", prepare(text(), 1))
    first = imported(path, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    again = imported(path, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert EXAMPLES in before
    assert again.record.manifest == first.record.manifest
    first.record.verify()
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_every_shard_holds_the_rows_of_its_examples(tmp_path: Path) -> None:
    examples = text([97] * 100)
    done = imported(write_parquet(tmp_path / "rows.parquet", prepare(examples, 1)), tmp_path / "out")
    assert len(done.record.manifest.shards) == 3
    for example in (0, 42, 43, 86, 99):
        require_same(done.record, example, examples[example][1][1:])


def test_the_examples_may_be_cut_into_shorter_stretches(tmp_path: Path) -> None:
    """Their rows are the same, one after another, whatever examples they are of."""
    path = write_parquet(tmp_path / "rows.parquet", prepare(text([12, 30]), 1))

    done = imported(path, tmp_path / "out", max_length=7)
    record = done.record
    assert record.row_counts.tolist() == [6, 5, 6, 6, 6, 6, 5]
    record.require_matches(data=load_examples(done.data, max_length=7).fingerprint)
    with pytest.raises(ValueError, match="data: the record"):
        record.require_matches(data=load_examples(done.data).fingerprint)
    (_, first), (_, second) = text([12, 30])
    require_same(record, 1, first[7:])
    require_same(record, 3, second[7:13])


# --------------------------------------------------------------------------------------------------------- bad input


def long_text() -> Any:
    return text([120, 90], seed=3)


def test_rows_that_are_shifted_are_refused(tmp_path: Path) -> None:
    """The rows of a first token, which a server leaves null, were dropped and a last one was added."""
    rows = served(long_text(), ENTRIES["vllm"], 1)
    for row in rows:
        row["prompt_logprobs"].append(row["prompt_logprobs"][-1])
    with pytest.raises(
        ValueError, match=r"the rows are shifted by one: they make the token after their own more probable"
    ):
        imported(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_alignment_is_told_by_the_tokens_where_no_mask_tells_it(tmp_path: Path) -> None:
    def unmasked(ahead: int, examples: Any) -> Path:
        rows = prepare(examples, ahead)
        for row in rows:
            del row["target_mask"], row["labels"]
            first = row["target_logprobs"]
            for j, one in enumerate(first):
                if one[0] < -1e8:  # a list that is filled up with another's numbers
                    row["target_token_ids"][j], first[j] = row["target_token_ids"][2], first[2]
        return write_parquet(tmp_path / "rows.parquet", rows)

    for ahead, told in ((1, "row j is of token j + 1"), (0, "row j is of token j:")):
        assert told in imported(unmasked(ahead, long_text()), tmp_path / f"out{ahead}").notes[0]
    short = unmasked(1, text([4], seed=5))
    with pytest.raises(ValueError, match="alignment: the file does not tell"):
        imported(short, tmp_path / "short")
    assert imported(short, tmp_path / "short", alignment="next").record.manifest.rows == 3
    with pytest.raises(ValueError, match="alignment: is 'last'; that of this file is 'next' or 'same'"):
        imported(short, tmp_path / "short", alignment="last")


def spoil(change: Any) -> Any:
    """Prepared rows of which one, the third, is changed."""

    def rows() -> list[dict[str, Any]]:
        rows = prepare(text(), 1)
        change(rows[3])
        return rows

    return rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["target_token_ids"][4].__setitem__(2, C), rf"row 3: the target of token 5 holds class {C}"),
        (lambda row: row["target_token_ids"][4].__setitem__(2, -1), r"row 3: the target of token 5 holds class -1"),
        (lambda row: row["target_token_ids"][4].__setitem__(2, row["target_token_ids"][4][1]), r"row 3: .* twice"),
        (lambda row: row["target_logprobs"][4].__setitem__(0, math.nan), r"row 3: the target of token 5 holds NaN"),
        (lambda row: row["target_logprobs"][4].__setitem__(0, math.inf), r"row 3: the target of token 5 holds NaN or"),
        (lambda row: row["target_logprobs"].__setitem__(4, [-0.5] * K), r"row 3: the target of token 5 sums to 3.6"),
        (lambda row: row["target_logprobs"].pop(), r"row 3: target_logprobs has 29 rows for 30 tokens"),
        (lambda row: row["target_mask"][4].pop(), r"row 3: target_mask is not shaped like"),
        (lambda row: row["target_token_ids"][4].pop(), r"row 3: target_token_ids is not shaped like"),
        (lambda row: row["labels"].append(1), r"row 3: labels has 31 entries for 30 tokens"),
        (
            lambda row: row.update(labels=[*row["labels"][1:], 0]),
            r"row 3: the label at position 0 is .* were they shif",
        ),
        (lambda row: row.update(input_ids=None), r"row 3: has no input_ids"),
    ],
)
def test_a_malformed_row_is_named_and_nothing_is_written(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imported(write_jsonl(tmp_path / "rows.jsonl", spoil(change)()), tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"messages": [], "logprobs": []}], "has no input_ids, so that nothing says"),
        (
            [{"input_ids": [1, 2], "a_logprobs": [], "b_logprobs": []}],
            r"one column .* \(found: a_logprobs, b_logprobs\)",
        ),
        ([{"input_ids": [1, 2], "logprobs": [None, None, None]}], "row 0: logprobs has 3 rows for 2 tokens"),
        ([{"input_ids": [1, 2], "logprobs": [None, ["x"]]}], "row 0: logprobs of token 1: holds"),
        ([{"input_ids": [1, 2], "logprobs": [None, {"x": -1}]}], "row 0: logprobs of token 1: .* is no token's number"),
        ([{"input_ids": [1, 2], "logprobs": [None, None]}], "holds no target at all"),
        ([{"input_ids": [1.5], "logprobs": [None]}], "row 0: input_ids: is no list of whole numbers"),
    ],
)
def test_a_file_that_does_not_say_enough(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imported(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out")


def test_files_cut_short(tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", prepare(text(), 1))
    rows.write_text(rows.read_text()[:-40])
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 3: is no JSON"):
        imported(rows, tmp_path / "out")
    table = write_parquet(tmp_path / "rows.parquet", prepare(text(), 1))
    table.write_bytes(table.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"rows\.parquet: cannot be read .* is it cut short"):
        imported(table, tmp_path / "out")


def test_settings_of_another_capture(tmp_path: Path) -> None:
    path = write_distillkit(tmp_path / "capture", EXACT)
    for change, message in (
        ({"k": K + 1, "exact_k": K + 1}, r"row 0: compressed_logprobs: row 0 has 24 bytes where .* make it 28"),
        ({"d": 2**12}, r"row 0: bytepacked_indices: row 0 has 5 bytes where .* make it 9"),
        ({"exact_dtype": "int8"}, r"exact_dtype: is 'int8'; it is one of"),
        ({"k": None}, r"k: is None; it is a whole number"),
        ({"exact_k": K + 1}, r"exact_k: is 7, more than k = 6"),
        ({"exact_k": 2, "residual_bins": [FINE]}, r"residual_bins: hold 6 elements for 4 values"),
        ({"exact_k": 2}, r"polynomial_terms: neither"),
        ({"polynomial_terms": ["log"], "exact_k": 2}, r"polynomial_terms: 'log' is neither"),
    ):
        (path / "compression_config.yaml").write_text(yaml.safe_dump({**EXACT, **change}))
        with pytest.raises(ValueError, match=message):
            imported(path, tmp_path / "out", format="distillkit", classes=None)
    training = tmp_path / "train.yaml"
    training.write_text(yaml.safe_dump({"model": "m", "teacher": {"kind": "dataset", "logprob_compressor": EXACT}}))
    assert imported(path, tmp_path / "out", format="distillkit", compression=training).record.manifest.rows == 47
    (path / "compression_config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="compression settings"):
        imported(path, tmp_path / "other", format="distillkit")


def test_where_it_may_not_be_written(tmp_path: Path) -> None:
    path = write_distillkit(tmp_path / "capture", EXACT)
    for out in (path, tmp_path):
        with pytest.raises(ValueError, match=r"out: .* lies in"):
            imported(path, out, format="distillkit")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match=r"letter\.txt"):
        imported(path, tmp_path / "mine", format="distillkit")
    with pytest.raises(ValueError, match="format: is 'trl'"):
        imported(path, tmp_path / "out", format="trl")
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        imported(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="classes: is missing"):
        imported(path, tmp_path / "out", classes=None)
