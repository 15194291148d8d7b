"""What can go wrong inside a forward pass, told from what cannot."""

from __future__ import annotations

import torch

from sailkit.errors import UserError


def finite(values: torch.Tensor) -> None:
    """Raise a UserError where a model's output is no number."""
    if not bool(torch.isfinite(values).all()):
        raise UserError(
            "the model's output is not a number (NaN or infinite logits); try --dtype float32, or check the weights"
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    # The CPU's allocator, and its kernels in half precision, raise a plain RuntimeError.
    said = ("can't allocate memory", "could not create a primitive")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in said)
