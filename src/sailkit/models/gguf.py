"""Reads GGUF files: dense copies of their weights, and config and tokenizer alone."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.folders import cache_once

_VERSION = 2  # of what a copy may hold: earlier ones had random numbers in place of missing weights


def dequantised(gguf: Path) -> Path:
    """The folder of a dense safetensors copy of a GGUF file in the user's cache, written once and atomically."""
    target = _cache_of(gguf)
    cache_once(target, lambda folder: _dequantise(gguf, folder))
    return target


def outline(gguf: Path) -> Path:
    """A folder with config and tokenizer of a GGUF file, written once: to parse the file takes seconds."""
    folder = _cache_of(gguf)
    if not folder.exists():
        folder = folder.with_name(f"{folder.name}-outline")
        cache_once(folder, lambda target: _write_outline(gguf, target))
    return folder


def _write_outline(gguf: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    for loader in (AutoConfig, AutoTokenizer):
        try:
            loader.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
        except Exception as error:  # a damaged file raises errors without a common base class
            raise UserError(f"{gguf} cannot be read as a model: {' '.join(str(error).split())[:200]}") from None


def _cache_of(gguf: Path) -> Path:
    digest = jsonl.file_fingerprint([gguf])[:16]
    return runs.cache_folder() / "models" / f"{gguf.stem}-{digest}-{_VERSION}"


def _dequantise(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    from sailkit.models.checks import check_complete

    logging.disable_progress_bar()  # sailkit shows its own
    with runs.progress(f"dequantising {gguf.name}, once", total=2) as tick:
        source: Any = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        try:
            tokenizer = AutoTokenizer.from_pretrained(**source)
            tick()
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that transformers cannot turn off
                model, report = AutoModelForCausalLM.from_pretrained(
                    **source, quantization_config=GgufConfig(dequantize=True), output_loading_info=True
                )
        except Exception as error:  # a damaged file raises errors without a common base class
            raise UserError(f"{gguf} cannot be read as a model: {' '.join(str(error).split())[:200]}") from None
        check_complete(gguf, report)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tick()
