"""Losses and counts of training batches, which stay on the device until they are read together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sailkit.distributed import Processes
from sailkit.training.batches import example_ids

_ROWS = ("input_ids", "attention_mask", "position_ids")  # by which the examples of a batch are named


# Mean in the log -> the sums of which it is the quotient.
_MEANS = {
    "entropy": ("entropy", "predicted"),
    "mean_token_accuracy": ("correct", "predicted"),
    "kl": ("kl", "targeted"),
    "cross_entropy": ("cross_entropy", "predicted"),
}
_ORDER = ("entropy", "mean_token_accuracy", "num_tokens", "kl", "cross_entropy")


@dataclass(frozen=True)
class _Entry:
    step: int
    training: bool
    rows: dict[str, torch.Tensor]
    names: tuple[str, ...]
    values: torch.Tensor  # the loss, then a sum for each name


class BatchLog:
    """Losses and counts of the batches since the last `read`.

    To read a value is to wait until the device has computed it, and meanwhile no further work is queued there. So
    batches are only noted, and read together: for a line of the log, a checkpoint or an evaluation.

    Attributes:
        sums: Sums of what was noted, over the training batches of all processes that were read.
    """

    def __init__(self, processes: Processes, ids: Mapping[tuple[int, ...], str]) -> None:
        """Start with nothing noted.

        Args:
            processes: The process group.
            ids: Tokens of each row -> its id, for errors.
        """
        self.sums: Counter[str] = Counter()
        self._processes = processes
        self._ids = ids
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        """Number of unread batches."""
        return len(self._entries)

    def note(
        self, step: int, training: bool, loss: torch.Tensor, batch: Mapping[str, Any], sums: Mapping[str, torch.Tensor]
    ) -> None:
        """Note a batch.

        Args:
            step: The optimizer steps before it.
            training: Whether it is trained on.
            loss: Its loss.
            batch: Its inputs.
            sums: Further sums of it, for the attribute `sums`.
        """
        dtype = torch.float32 if loss.device.type == "mps" else torch.float64
        values = torch.stack([value.detach().to(dtype) for value in (loss, *sums.values())])
        rows = {name: batch[name] for name in _ROWS if name in batch}
        self._entries.append(_Entry(step, training, rows, tuple(sums), values))

    def read(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Add what was noted to `sums`; every process has to call this function after the same batches.

        Args:
            gather: Concatenates a tensor of each process.

        Raises:
            UserError: A loss is NaN or infinite; see `Processes.raise_if_any`.
        """
        entries, self._entries = self._entries, []
        if not entries:
            return
        processes = gather(torch.cat([entry.values for entry in entries])[None]).tolist()
        begin = 0
        for entry in entries:
            end = begin + len(entry.values)
            losses, *columns = zip(*(values[begin:end] for values in processes), strict=True)
            if not all(map(math.isfinite, losses)):
                # All processes stop here: the others would hang in their next collective call.
                loss = processes[self._processes.rank][begin]
                self._processes.raise_if_any(None if math.isfinite(loss) else self._not_finite(entry, loss))
            self.sums.update({name: sum(column) for name, column in zip(entry.names, columns, strict=True)})
            begin = end

    def figures(self, num_tokens: int) -> dict[str, float]:
        """The figures of the log, in its order.

        Args:
            num_tokens: Tokens of training so far.
        """
        sums = self.sums
        means = {name: sums[part] / max(sums[of], 1) for name, (part, of) in _MEANS.items() if part in sums}
        figures = {**means, "num_tokens": num_tokens}
        return {name: figures[name] for name in _ORDER if name in figures}

    def _not_finite(self, entry: _Entry, loss: float) -> str:
        what = f"loss of step {entry.step + 1}" if entry.training else f"held-out loss behind step {entry.step}"
        return (
            f"the {what} is {loss}, in the batch of {', '.join(example_ids(entry.rows, self._ids))}; "
            "try a lower learning_rate, max_grad_norm, or bf16: false"
        )
