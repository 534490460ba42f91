"""Models of `transformers` from a folder on this machine: safetensors or GGUF, no pickle, no code of the folder's."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from likely._checks import require
from likely.data.examples import Examples, name_of
from likely.data.texts import Tokens, load_tokenizer, tokenizer_hash
from likely.networks.hf import HuggingFace, is_causal, quiet

TASKS = {
    "tokens": "AutoModelForCausalLM",
    "text": "AutoModelForSequenceClassification",
    "pictures": "AutoModelForImageClassification",
}


def hugging_face(
    path: Path,
    examples: Examples | None = None,
    classes: tuple[str, ...] | None = None,
    *,
    trainable: bool = False,
    seed: int = 0,
    dtype: Any = None,
    truncate: bool = False,
) -> HuggingFace:
    """The model in a folder, in a GGUF file, or of a configuration; see `likely.networks.load.load_network`.

    A teacher has all its weights.  A student may lack them: all where there is only a configuration, or those of its
    last layer, which then has the classes of the examples.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{path}: is read with transformers: pip install 'likely[hf]' ({error})") from None
    folder = path if path.is_dir() else path.parent
    gguf = path.name if path.suffix == ".gguf" else None
    fresh = gguf is None and (not path.is_dir() or not list(folder.glob("*.safetensors")))
    if fresh:
        pickles = sorted(one.name for one in folder.glob("*.bin")) if path.is_dir() else []
        require(
            not pickles,
            f"{path}: its weights are a pickle ({pickles[:1]}); save them as safetensors" if pickles else "",
        )
        require(trainable, f"{path}: holds no weights (*.safetensors); only a student may start from a configuration")
    config = _config(path, folder, gguf)
    task = "tokens" if gguf else _task(config, examples, trainable, str(path))
    maker = getattr(transformers, TASKS[task])
    names = classes or (None if examples is None else examples.classes)
    if task != "tokens" and names is not None and trainable and (fresh or not _is_classifier(config)):
        config.id2label = dict(enumerate(names))
        config.label2id = {name: at for at, name in enumerate(names)}
    dtype = dtype or (torch.float32 if trainable else None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if fresh:
            module = maker.from_config(config, dtype=dtype, trust_remote_code=False)
        else:
            module = _weights(maker, folder, gguf, config, dtype, trainable)
    module.requires_grad_(trainable)
    if classes is not None and task != "tokens":
        number = int(module.config.num_labels)
        require(len(classes) == number, f"classes: are {len(classes)} where {path} has {number}")
    tokenizer = _tokenizer(path if gguf else folder) if task != "pictures" else None
    if task == "text":
        require(tokenizer is not None, f"{folder}: has no tokenizer, which its texts need; put tokenizer.json into it")
        _pad(tokenizer, module, folder)
    pictures = folder / "preprocessor_config.json"
    network = HuggingFace(
        module,
        path.name if path.suffix != ".json" else folder.name,
        task,
        tokenizer=tokenizer,
        classes=classes,
        truncate=truncate,
        pictures=json.loads(pictures.read_text()) if task == "pictures" and pictures.is_file() else None,
        frozen=not trainable,
    )
    _require_tokens(network, examples)
    return network


def own_tokenizer(*names: str | None) -> str | None:
    """The first of these networks that is a causal language model with a tokenizer: what its texts are read with.

    A classifier reads texts by itself and is passed over, and so is what is no model of `transformers`.

    >>> own_tokenizer(None, "linear") is None
    True
    """
    for name in names:
        if name is None or not Path(name).exists():
            continue
        path = Path(name)
        if path.suffix == ".gguf":
            return name
        if not (path / "config.json").is_file() or not _has_tokenizer(path):
            continue
        try:
            own = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures")
        except (ValueError, AttributeError):
            continue  # which is said when it is loaded
        if not own or is_causal(set(own)):
            return name
    return None


def _config(path: Path, folder: Path, gguf: str | None) -> Any:
    from transformers import AutoConfig

    more = {"gguf_file": gguf} if gguf else {}
    source = str(path if path.suffix == ".json" else folder)
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False, **more)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: has no configuration that can be read ({reason})") from None


def _is_classifier(config: Any) -> bool:
    return any(name.endswith("Classification") for name in config.architectures or [])


def _task(config: Any, examples: Examples | None, trainable: bool, name: str) -> str:
    """What it is to do: by its configuration; a student's, which may get a new last layer, by the examples."""
    if examples is not None and (trainable or not config.architectures):
        inputs = examples.batch([0]).inputs
        for task, kind in (("tokens", "input_ids"), ("text", "text"), ("pictures", "pixel_values")):
            if kind in inputs:
                return task
        raise ValueError(f"{name}: reads tokens, texts or pictures, and the examples hold {', '.join(inputs)}")
    own = set(config.architectures or [])
    if is_causal(own):
        return "tokens"
    for task, ending in (("text", "ForSequenceClassification"), ("pictures", "ForImageClassification")):
        if any(one.endswith(ending) for one in own):
            return task
    raise ValueError(
        f"{name}: its configuration names {', '.join(sorted(own)) or 'no architecture'}; a network is a causal "
        "language model, or a classifier of texts or of pictures"
    )


def _weights(maker: Any, folder: Path, gguf: str | None, config: Any, dtype: Any, trainable: bool) -> Any:
    """The model with the weights of its folder.

    Raises: ValueError where they are none of its own, or a teacher lacks some, which would be random.
    """
    more = {"gguf_file": gguf} if gguf else {"use_safetensors": True, "config": config}
    try:
        with quiet():
            module, found = maker.from_pretrained(
                str(folder),
                dtype=dtype or "auto",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **more,
            )
    except ImportError as error:
        raise ImportError(f"{folder}: {error}") from None
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder}: its weights cannot be read ({reason})") from None
    if gguf:  # its weights are plain numbers by now, which it would refuse to save
        module.hf_quantizer = None
        if hasattr(module.config, "quantization_config"):
            del module.config.quantization_config
    missing = sorted(found["missing_keys"])
    if missing and trainable:
        warnings.warn(f"{folder}: has no weights for {', '.join(missing[:4])}; these start at random", stacklevel=4)
    require(
        trainable or not missing,
        f"{folder}: has no weights for {', '.join(missing[:4])}; a teacher whose weights are random teaches nothing",
    )
    return module


def _has_tokenizer(folder: Path) -> bool:
    kinds = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
    return any((folder / kind).is_file() for kind in kinds)


def _tokenizer(source: Path) -> Any:
    return load_tokenizer(source) if source.is_file() or _has_tokenizer(source) else None


def _pad(tokenizer: Any, module: Any, folder: Path) -> None:
    """A token to pad with, which a classifier that reads the last token of a text must know."""
    if tokenizer.pad_token_id is None:
        require(tokenizer.eos_token_id is not None, f"{folder}: its tokenizer has no token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    if module.config.pad_token_id is None:
        module.config.pad_token_id = tokenizer.pad_token_id


def _require_tokens(network: HuggingFace, examples: Examples | None) -> None:
    """The examples' tokens are of the network's tokenizer, in its vocabulary, and no example is too long."""
    if not isinstance(examples, Tokens) or network.task != "tokens":
        return
    own = tokenizer_hash(network.tokenizer) if network.tokenizer is not None else None
    require(
        own is None or examples.tokenizer is None or own == examples.tokenizer,
        f"{network.name}: its tokenizer is not the one that made the examples' tokens; make them with its own",
    )
    largest = int(examples.ids.max())
    require(
        largest < network.reader.classes,
        f"{network.name}: has a vocabulary of {network.reader.classes:,}, and the examples hold token {largest:,}",
    )
    longest = int(examples.lengths.argmax())
    length, most = int(examples.lengths[longest]), network.max_length
    require(
        most is None or length <= most,
        f"{name_of(examples, longest)}: has {length} tokens, and {network.name} reads {most}; cut it (--max-length)",
    )
