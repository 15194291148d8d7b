"""Loads encoders of sentence-transformers that read special tokens in texts as plain text."""

from __future__ import annotations

import warnings
from typing import Any

from sailkit.errors import UserError, required_extra
from sailkit.files import jsonl
from sailkit.models.sources import Source, resolve_encoder
from sailkit.prompts.safety import for_texts

_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")


def load_encoder(name: str, needed_for: str, device: str = "auto") -> tuple[Any, Source]:
    """Load a SentenceTransformer for untrusted texts.

    Args:
        name: `minilm-l6-v2`, a folder or a hub id.
        needed_for: The feature that needs it, for the error if the library is not installed.
        device: `auto` or a torch device.

    Raises:
        UserError: The library is not installed, the device or the model does not exist, or it is a language model.
    """
    with required_extra("label", needed_for):
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    from sailkit.models.weights import pick_device

    logging.disable_progress_bar()  # sailkit shows its own
    source = resolve_encoder(name)
    where = pick_device(device)
    _check(name, source)
    try:
        model = SentenceTransformer(str(source.folder), device=str(where), local_files_only=True)
    except Exception as error:  # damaged files raise errors without a common base class
        raise UserError(f"cannot load {name} as an encoder: {' '.join(str(error).split())[:200]}") from None
    guard_texts(model)
    return model, source


def guard_texts(model: Any) -> Any:
    """Make a SentenceTransformer encode special tokens in texts as plain text.

    Returns:
        Its original tokenizer, which is the one to save with the model.
    """
    tokenizer = model.tokenizer
    # Since version 6 a module's tokenizer is its processor's, and cannot be set.
    setattr(model[0], "processor" if hasattr(model[0], "processor") else "tokenizer", for_texts(tokenizer))
    return tokenizer


def _check(name: str, source: Source) -> None:
    """Refuse language models and warn of models without a pooling config, because the library loads any model."""
    if (source.folder / "modules.json").exists():
        return
    config = source.model.folder / "config.json"
    settings = jsonl.read_json(config) if config.is_file() else {}
    if any(kind.endswith(_LANGUAGE_MODELS) for kind in settings.get("architectures") or ()):
        raise UserError(f"{name} is a language model, not a sentence encoder; as a judge it is judge:{name}")
    warnings.warn(
        f"{name} has no modules.json: it may never have been trained to compare sentences; "
        "the mean of its token vectors is taken",
        RuntimeWarning,
        stacklevel=3,
    )
