"""Computes batches in halves where memory runs out, and remembers which sizes did not fit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Any

from sailkit.distributed import passes_are_collective
from sailkit.errors import ProcessError
from sailkit.models.checks import out_of_memory
from sailkit.models.weights import free_memory

LESS_MEMORY = "use a smaller model, `dtype='bfloat16'` or more memory"
_LESS_MEMORY_EACH = "divide the weights among more processes, or train adapters (lora) or with a smaller training.optim"


class BatchHalver:
    """Computes batches, in halves where memory runs out.

    A failure costs the time of a pass. The size of a batch that failed is therefore remembered, and later batches of at
    least that size are halved before they are tried. The halves are those that a failure leads to, so that a resumed
    run, which has forgotten the size and fails again, computes the same ones.

    Attributes:
        turn: Held by the thread that computes a batch.
    """

    def __init__(self) -> None:
        """Start with no size that failed."""
        self._failed: dict[Hashable, int] = {}  # kind of computation -> tokens of the smallest batch that failed
        self.turn = Lock()

    def run(
        self,
        model: Any,
        batch: Sequence[Any],
        work: Callable[[Sequence[Any]], Sequence[Any]],
        kind: Hashable,
        length: Callable[[Any], int],
    ) -> list[Any]:
        """Compute a batch.

        Args:
            model: The torch module that `work` uses.
            batch: The items.
            work: Computes a result for each item of a batch, or of a part of one.
            kind: What needs the memory beside the tokens of the items; sizes are compared within a kind.
            length: Tokens of an item.

        Returns:
            A result for each item.

        Raises:
            ProcessError: Memory runs out with a single item; or the weights are divided among processes, of which none
                can halve a batch alone: the others would wait for it in the pass that failed.
        """
        tokens = len(batch) * max(map(length, batch))
        if len(batch) > 1 and tokens >= self._failed.get(kind, tokens + 1):
            return self._halves(model, batch, work, kind, length)
        try:
            return list(work(batch))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if passes_are_collective(model):
                who = f"process {os.environ.get('RANK', '0')}: out of memory with {_prompts(batch)}"
                raise ProcessError(f"{who} of up to {max(map(length, batch))} tokens; {_LESS_MEMORY_EACH}") from None
            if len(batch) == 1:
                raise ProcessError(f"out of memory with a single prompt; {LESS_MEMORY}") from None
        # Not within the handler, where the error still holds the tensors of the pass.
        free_memory()
        self._failed[kind] = tokens
        text = f"out of memory with {len(batch)} prompts; going on with half of them, as for later batches of this size"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return self._halves(model, batch, work, kind, length)

    def _halves(self, model: Any, batch: Sequence[Any], *how: Any) -> list[Any]:
        middle = len(batch) // 2
        return self.run(model, batch[:middle], *how) + self.run(model, batch[middle:], *how)


def _prompts(batch: Sequence[Any]) -> str:
    return f"{len(batch)} prompts" if len(batch) > 1 else "a single prompt"
