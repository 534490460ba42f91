"""Models of `transformers` as networks: their own logits, without their being formed, from folders without code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import likely
from likely.data.examples import Examples, Labelled
from likely.data.loading import load_examples
from likely.data.texts import Document, Tokens, tokenizer_hash
from likely.heads import Linear
from likely.networks import Network
from likely.networks.hf import HuggingFace, Reader
from likely.networks.load import load_network
from likely.networks.pretrained import own_tokenizer
from tests.networks import tiny

CAUSAL: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Llama tied": {"tie_word_embeddings": True},
    "GPT2": {},
    "Gemma2": {"final_logit_softcapping": 3.0},
    "Granite": {"logits_scaling": 4.0},
    "Cohere": {"logit_scale": 0.25},
}


def stretches(lengths: Sequence[int] = (9, 3, 14), seed: int = 0, tokenizer: str | None = None) -> Tokens:
    make = np.random.default_rng(seed)
    ids = [make.integers(0, tiny.VOCABULARY, n) for n in lengths]
    return Tokens.of([Document(one, one, None, f"text {at}") for at, one in enumerate(ids)], tokenizer=tokenizer)


def texts(items: Sequence[str] = tiny.TEXTS, classes: tuple[str, ...] | None = None) -> Labelled:
    return Labelled.of(list(items), lambda some: {"text": list(some)}, [t.encode() for t in items], classes=classes)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_language_models_head_gives_its_own_logits_and_forms_none(kind: str) -> None:
    model = tiny.causal(kind.split()[0], **CAUSAL[kind])
    network = HuggingFace(model, kind, "tokens")
    batch = stretches().batch([0, 1, 2])
    rows_seen: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, __, z: rows_seen.append(z.shape[-2]))
    with torch.no_grad():
        head = network.head(batch)
        handle.remove()
        own = model(**batch.inputs).logits.flatten(0, 1)[batch.rows]
    assert isinstance(head, Linear)
    assert head.rows == len(batch.labels) == 8 + 2 + 13
    assert rows_seen == [0]
    torch.testing.assert_close(head.logits(), own, atol=1e-5, rtol=1e-5)


def test_padding_changes_no_row() -> None:
    network = HuggingFace(tiny.causal(), "tiny", "tokens")
    examples = stretches()
    with torch.no_grad():
        alone = torch.cat([network.head(examples.batch([at])).logits() for at in range(3)])
        together = network.head(examples.batch([0, 1, 2])).logits()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_model_whose_logits_are_something_else_is_refused() -> None:
    model = tiny.causal()
    model.lm_head.register_forward_hook(lambda _, __, z: z + torch.arange(z.shape[-1]))
    with pytest.raises(ValueError, match=r"tiny: LlamaForCausalLM makes its logits .* not known"):
        Reader.of(model, "tiny")


def test_gradients_reach_every_parameter_of_a_tied_model_as_they_do_by_its_logits() -> None:
    model = tiny.causal(tie_word_embeddings=True)
    batch = stretches().batch([0, 2])
    network = HuggingFace(model, "tiny", "tokens", frozen=False)
    likely.nll(network.head(batch), likely.labels(batch.labels, tiny.VOCABULARY)).mean().cross_entropy.backward()
    through_head = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(**batch.inputs).logits.flatten(0, 1)[batch.rows], batch.labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(through_head[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_a_folder_is_known_by_its_weights_and_its_tokenizer_and_not_by_their_files(tmp_path: Path) -> None:
    own = tiny.tokenizer()
    one = load_network(tiny.saved(tmp_path / "one", tiny.causal(), own))
    sharded = load_network(tiny.saved(tmp_path / "two", tiny.causal(), own, max_shard_size="8KB"))
    other = load_network(tiny.saved(tmp_path / "three", tiny.causal(seed=1)))
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 1
    assert one.identity.sha256 == sharded.identity.sha256 != other.identity.sha256
    assert one.identity.tokenizer == sharded.identity.tokenizer == tokenizer_hash(own)
    assert other.identity.tokenizer is None
    (tmp_path / "four").mkdir()
    one.save(tmp_path / "four")
    again = load_network(tmp_path / "four")
    assert again.identity == type(again.identity)("transformers", "four", one.identity.sha256, one.identity.tokenizer)


def test_a_teacher_is_at_rest_and_a_student_asks_for_gradients(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "m", tiny.causal(attention_dropout=0.5).bfloat16())
    teacher, student = load_network(folder), load_network(folder, trainable=True)
    assert teacher.module is not None
    assert student.module is not None
    assert not teacher.module.training
    assert not student.module.training
    assert not any(p.requires_grad for p in teacher.module.parameters())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in student.module.parameters())
    assert next(teacher.module.parameters()).dtype == torch.bfloat16


def test_a_student_of_a_configuration_is_random_by_its_seed(tmp_path: Path) -> None:
    tiny.causal().config.save_pretrained(tmp_path)
    examples = stretches()
    for name in (tmp_path, tmp_path / "config.json"):
        one, same, other = (load_network(name, examples=examples, trainable=True, seed=seed) for seed in (3, 3, 4))
        assert one.identity.sha256 == same.identity.sha256 != other.identity.sha256
    with pytest.raises(ValueError, match="holds no weights"):
        load_network(tmp_path)


def test_weights_that_are_a_pickle_or_not_all_there_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny.causal().config.save_pretrained(tmp_path / "pickled")
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    for trainable in (False, True):
        with pytest.raises(ValueError, match="its weights are a pickle"):
            load_network(tmp_path / "pickled", trainable=trainable, examples=stretches())
    folder = tiny.saved(tmp_path / "part", tiny.causal())
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no weights for lm_head.weight; a teacher whose weights are random"):
        load_network(folder)
    with pytest.warns(UserWarning, match="these start at random"):
        load_network(folder, trainable=True, examples=stretches())
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match="its weights cannot be read"):
        load_network(folder)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    folder = tiny.saved(tmp_path / "m", tiny.causal())
    (folder / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no configuration that can be read"):
        load_network(folder)
    assert not ran.exists()


def test_tokens_of_another_tokenizer_or_vocabulary_and_long_stretches_are_refused(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "m", tiny.causal(), tiny.tokenizer())
    with pytest.raises(ValueError, match="not the one that made the examples' tokens"):
        load_network(folder, examples=stretches(tokenizer="0" * 64))
    wide = Tokens.of([Document(np.array([1, 300]), np.array([1, 300]), None, "text")])
    with pytest.raises(ValueError, match="vocabulary of 300, and the examples hold token 300"):
        load_network(folder, examples=wide)
    long = stretches([5, 70])
    with pytest.raises(ValueError, match=r"text 1, tokens 0–69: has 70 tokens, and m reads 64; .*--max-length"):
        load_network(folder, examples=long)
    with pytest.raises(ValueError, match=f"example {len(long) - 1}: has 70 tokens, and m reads 64"):
        load_network(folder).head(long.batch([0, len(long) - 1]))


@pytest.mark.parametrize("decoder", [False, True])
def test_a_text_classifier_reads_texts_as_its_model_does_one_by_one(tmp_path: Path, decoder: bool) -> None:
    own = tiny.tokenizer()
    if decoder:
        import transformers

        config = tiny.causal().config
        config.num_labels, config.pad_token_id = 3, None
        torch.manual_seed(0)
        model: Any = transformers.LlamaForSequenceClassification(config).eval()
    else:
        model = tiny.text_classifier()
    network = load_network(tiny.saved(tmp_path / "m", model, own))
    assert network.classes == (3 if decoder else ("calm", "wild", "odd"))
    batch = texts().batch([0, 1, 2, 3])
    with torch.no_grad():
        found = network.head(batch).logits()
        alone = torch.cat(
            [model(**own(text, return_tensors="pt", return_token_type_ids=False)).logits for text in tiny.TEXTS]
        )
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


def test_a_text_that_is_too_long_is_named_and_cut_only_when_asked(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "m", tiny.text_classifier(), tiny.tokenizer())
    examples = texts(["short", "x " * 60])
    network = load_network(folder, examples=examples)
    with pytest.raises(ValueError, match=r"example 1: has 1\d\d tokens, and m reads 40; let it be cut \(--truncate\)"):
        network.head(examples.batch([0, 1]))
    cut = load_network(folder, examples=examples, truncate=True)
    assert cut.head(examples.batch([0, 1])).rows == 2


def test_a_student_gets_the_classes_of_the_examples(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    tiny.text_classifier(("LABEL_0", "LABEL_1")).config.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    student = load_network(folder, examples=texts(classes=("a", "b", "c", "d")), trainable=True)
    assert student.classes == ("a", "b", "c", "d")
    saved = tmp_path / "saved"
    saved.mkdir()
    student.save(saved)
    again = load_network(saved, examples=texts())
    assert again.classes == student.classes
    assert again.identity.sha256 == student.identity.sha256


def test_a_classifier_without_a_tokenizer_or_of_other_inputs_says_so(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "m", tiny.text_classifier())
    with pytest.raises(ValueError, match="no tokenizer, which its texts need"):
        load_network(folder)
    tiny.tokenizer().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"m: cannot read .*: m: reads text, and the examples hold input_ids"):
        load_network(folder, examples=stretches())


def test_an_image_classifier_standardises_pixels_as_its_preprocessor_says(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 11, 9, 3), dtype=np.uint8)
    for name, one in zip(("cat", "dog"), pixels):
        Image.fromarray(one).save(tmp_path / "data" / name / "1.png")
    model = tiny.image_classifier(2)
    folder = tiny.saved(tmp_path / "m", model)
    settings = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    examples = load_examples(tmp_path / "data", size=8)
    assert examples.classes == ("cat", "dog")
    network = load_network(folder, examples=examples)
    batch = examples.batch([0, 1])
    assert batch.labels.tolist() == [0, 1]
    x = batch.inputs["pixel_values"]
    expected = [np.asarray(Image.fromarray(one).resize((8, 8), Image.Resampling.BILINEAR)) / 255 for one in pixels]
    np.testing.assert_allclose(x.permute(0, 2, 3, 1), np.stack(expected), atol=1e-6)
    mean, std = (torch.tensor(settings[key]).view(-1, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        torch.testing.assert_close(network.head(batch).logits(), model(pixel_values=(x - mean) / std).logits)
    saved = tmp_path / "saved"
    saved.mkdir()
    network.save(saved)
    torch.testing.assert_close(load_network(saved).head(batch).logits(), network.head(batch).logits())


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    import transformers

    model = transformers.BertModel(tiny.text_classifier().config)
    with pytest.raises(ValueError, match="names BertModel; a network is a causal language model, or a classifier"):
        load_network(tiny.saved(tmp_path / "m", model))


def test_only_a_language_models_texts_are_read_with_its_tokenizer(tmp_path: Path) -> None:
    own = tiny.tokenizer()
    model = str(tiny.saved(tmp_path / "model", tiny.causal(), own))
    classifier = str(tiny.saved(tmp_path / "classifier", tiny.text_classifier(), own))
    bare = str(tiny.saved(tmp_path / "bare", tiny.causal()))
    assert own_tokenizer(None, "linear", classifier, bare, model) == model
    assert own_tokenizer(classifier, bare, str(tmp_path)) is None


def test_what_is_loaded_is_a_network_and_examples(tmp_path: Path) -> None:
    network: Network = load_network(tiny.saved(tmp_path / "m", tiny.causal()))
    examples: Examples = stretches()
    assert network.head(examples.batch([0])).classes == network.classes
