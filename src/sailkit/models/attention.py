"""Choose the implementation of attention, by the names of transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from sailkit.errors import UserError, nearest
from sailkit.models.base import ATTN_IMPLEMENTATIONS

# FlashAttention by version, the fastest first -> its package, and the compute capability that it needs.
_FLASH = {
    "flash_attention_4": ("flash-attn-4", (9, 0)),
    "flash_attention_3": ("flash-attn-3", (8, 0)),
    "flash_attention_2": ("flash-attn", (8, 0)),
}


def check_attention(name: str) -> None:
    """Refuse an implementation that this machine lacks, before weights are loaded.

    Without its package, transformers would download a kernel and run it.

    Args:
        name: A name of transformers, or `auto`.

    Raises:
        UserError: There is no such implementation, or its package or GPU is missing.
    """
    if name not in ATTN_IMPLEMENTATIONS:
        raise UserError(f"attn_implementation: no implementation {name!r}; {nearest(name, ATTN_IMPLEMENTATIONS)}")
    if name in _FLASH and not _has_flash(name):
        package, (major, minor) = _FLASH[name]
        raise UserError(
            f"attn_implementation: {name} needs a CUDA GPU of compute capability {major}.{minor} or higher and the "
            f"package {package}; leave attn_implementation out, or take sdpa"
        )


def packed_attention(dtype: torch.dtype) -> list[str]:
    """Implementations that read rows packed into one sequence in time proportional to the rows, the fastest first.

    They are FlashAttention's with variable lengths. All others mask the whole sequence.

    Args:
        dtype: The number format of the computation; FlashAttention takes 16 bits alone.
    """
    return [name for name in _FLASH if _has_flash(name)] if dtype in (torch.float16, torch.bfloat16) else []


def set_attention(model: Any, name: str) -> None:
    """Set the implementation of a loaded model.

    Args:
        model: A model of transformers, with or without adapters.
        name: A name of transformers.

    Raises:
        UserError: The architecture does not support it.
    """
    check_attention(name)
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    before = base.config._attn_implementation
    try:
        base.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise UserError(f"attn_implementation: {name}: {' '.join(str(error).split())[:200]}") from None
    if name != before == base.config._attn_implementation:  # transformers only logs that it cannot
        raise UserError(f"attn_implementation: {type(base).__name__} takes no other than {before}")


@contextlib.contextmanager
def with_masks(model: Any) -> Iterator[None]:
    """A context in which a model takes any mask of attention, such as that of a tree of answers.

    FlashAttention and FlexAttention do not; in the context, SDPA is used instead of them.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    before = base.config._attn_implementation
    if before in ("eager", "sdpa"):
        yield
        return
    set_attention(model, "sdpa" if base._supports_sdpa else "eager")
    try:
        yield
    finally:
        set_attention(model, before)


def _has_flash(name: str) -> bool:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < _FLASH[name][1]:
        return False
    from transformers import utils

    return bool(getattr(utils, f"is_{name.replace('attention', 'attn')}_available")())
