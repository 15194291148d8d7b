"""Turns failures of a forward pass that the user can fix into errors: NaN, out of memory, missing embeddings."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sailkit.errors import ProcessError, UserError

# torch has a class for its own GPU allocators only; what other libraries allocate fails in a plain RuntimeError.
_OUT_OF_MEMORY = re.compile(
    r"out of memory"  # CUDA and its driver, HIP, XPU, MPS
    r"|_STATUS_ALLOC_FAILED|_ALLOCATION_FAILED"  # cuBLAS, cuSOLVER, cuDNN before and since version 9
    r"|Invalid buffer size"  # MPS: a single tensor is larger than a buffer may be
    r"|can't allocate memory|not enough memory"  # torch's CPU allocator, on Linux and on Windows
    r"|Cannot allocate memory|std::bad_alloc"  # the C and C++ libraries
    r"|could not create a (primitive(?! descriptor)|memory object)"  # oneDNN; it does not support a missing descriptor
)


def check_finite(values: torch.Tensor) -> None:
    """Raise a UserError if a model's output is NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        raise UserError(
            "the model's output is not a number (NaN or infinite logits); try `dtype='float32'`, or check the weights"
        )


def check_complete(file: Path, report: Mapping[str, Collection[str]]) -> None:
    """Refuse a model of which some weights are missing: transformers initialises them at random.

    Args:
        file: The model's folder or file.
        report: The loading info of transformers.

    Raises:
        UserError: Some weights are missing.
    """
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{file}: {len(missing)} weights of its config are not in its files ({missing[0]}...)")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or bool(_OUT_OF_MEMORY.search(str(error)))


@contextlib.contextmanager
def memory_for(what: str, mend: str) -> Iterator[None]:
    """Turn an out-of-memory error into an error that the user can fix.

    Args:
        what: The activity, such as "moving a model to cuda".
        mend: How to need less memory.

    Raises:
        ProcessError: Memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ProcessError(f"out of memory while {what}; {mend}") from None


def check_tokens(rows: Sequence[Sequence[int]], embeddings: int, tokenizer: Any, name: str) -> None:
    """Raise a UserError for tokens without an embedding; on a GPU they would fail in an assertion without details.

    Args:
        rows: Token ids.
        embeddings: Number of embeddings of the model.
        tokenizer: The tokenizer of the ids, for the error.
        name: The model's name, for the error.

    Raises:
        UserError: A token has no embedding.
    """
    most = max((max(row, default=0) for row in rows), default=0)
    if most >= embeddings:
        raise UserError(
            f"{name} has no embedding for the token {tokenizer.convert_ids_to_tokens(most)!r} (id {most}): it has "
            f"{embeddings} embeddings, and its tokenizer or chat template writes more; use the tokenizer that it was "
            "trained with, `chat='off'` where only the template needs the token, or resize and train its embeddings"
        )
