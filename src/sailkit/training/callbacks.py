"""Trainer callbacks: progress, history, throughput, early stopping, and evaluation before and after training."""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from sailkit import runs
from sailkit.files import jsonl
from sailkit.training.held_out import measure_held_out
from sailkit.training.samples_file import SAMPLES


class EarlyStopping(EarlyStoppingCallback):  # type: ignore[misc]
    """Early stopping whose count of evaluations without improvement survives a restart."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Restore only the count; Transformers would restore all callbacks, without their constructor arguments."""
        super().on_train_begin(args, state, control, **more)
        saved = state.stateful_callbacks.get(type(self).__name__, self.state())
        self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]


class Speed:
    """Measures tokens per second of training, without the time for evaluation and saving."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._paused = 0.0  # seconds
        self._before = 0  # tokens up to the checkpoint that was resumed from
        self._last = (0.0, 0)  # seconds and tokens

    def start(self, tokens: int = 0) -> None:
        """Start the clock, once; `tokens` is the count at the checkpoint that training resumes from."""
        if self._start is None:
            self._start = time.perf_counter()
            self._paused = 0.0
            self._before = tokens
            self._last = (0.0, tokens)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """A context in which the clock is stopped."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def overall(self, tokens: int) -> float:
        """Throughput since the start, given the tokens so far."""
        return (tokens - self._before) / max(self._seconds(), 1e-9)

    def since_last(self, tokens: int) -> float:
        """Throughput since the last call, given the tokens so far."""
        (seconds, before), self._last = self._last, (self._seconds(), tokens)
        return (tokens - before) / max(self._last[0] - seconds, 1e-9)

    def _seconds(self) -> float:
        return time.perf_counter() - self._start - self._paused if self._start is not None else 0.0


class Progress(TrainerCallback):  # type: ignore[misc]
    """Shows a progress bar with the throughput; steps before a checkpoint are counted too."""

    def __init__(self, show: Callable[[int], runs.Ticker], speed: Callable[[], float]) -> None:
        self._show = show
        self._speed = speed
        self._tick: runs.Ticker | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the bar only now: setup time would distort its estimate of the remaining time."""
        self._tick = self._show(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step."""
        assert self._tick is not None
        self._tick(1, f"{self._speed():,.0f} tokens/s")


class History(TrainerCallback):  # type: ignore[misc]
    """Writes the trainer's log history as JSON Lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Rewrite the whole history: it is short, and a resumed run restores it from the checkpoint."""
        if state.is_world_process_zero:
            jsonl.write_rows(self._path, map(_finite, state.log_history))


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Replace values that JSON cannot hold: a gradient norm may be infinite without stopping training."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}


class FreedMemory(TrainerCallback):  # type: ignore[misc]
    """Returns freed memory to the system every few steps, where the C library is glibc.

    Batches differ in length, and a block that one of them frees seldom fits the next, so that the process grows. Not
    after every step, because the system clears what it gives out again.
    """

    _STEPS = 10

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Return what is free now: gradients and activations of the step are gone."""
        if self._trim and args.device.type == "cpu" and state.global_step % self._STEPS == 0:
            self._trim(0)


class BeforeAndAfter(TrainerCallback):  # type: ignore[misc]
    """Evaluates the held-out rows before the first step and after the last.

    This happens within `train`, because FSDP and DeepSpeed shard the model only there.

    Attributes:
        tuned: Figures of the trained model, once training has ended.
    """

    def __init__(self, trainer: Any, base: Path, sample: Callable[[str], None] | None = None) -> None:
        """Initialise the callback.

        Args:
            trainer: A `sailkit.training.trainer.Trainer` with held-out rows.
            base: File for the figures of the base model.
            sample: Generates answers for people to read, and writes them to the run folder; takes `base` or `tuned`.
        """
        self._trainer = trainer
        self._base = base
        self._sample = sample
        self.tuned: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate the base model, unless a resumed run has its figures already."""
        if state.global_step > 0:
            return
        processes = self._trainer.processes
        figures = processes.broadcast(
            jsonl.read_json(self._base) if processes.is_main and self._base.exists() else None
        )
        if figures is not None:  # the base figures exist, but training stopped before the first checkpoint
            self._trainer.log(figures)
            return
        figures = measure_held_out(self._trainer, self._base.parent, "base")
        if self._sample is not None:
            self._sample("base")
        if processes.is_main:
            jsonl.write_json(self._base, figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate the final model: the trainer has reloaded the best weights."""
        self.tuned = measure_held_out(self._trainer, self._base.parent, "tuned")
        if self._sample is not None and (self._base.parent / SAMPLES.format("base")).exists():
            self._sample("tuned")
