"""Shares an evaluation out over a launcher's processes: all of them load the model, the main process alone writes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

from sailkit.distributed import Processes, warn_of_idle_gpus
from sailkit.errors import UserError
from sailkit.files import batch_log, jsonl
from sailkit.models.base import Model, ModelOptions, is_endpoint, is_vllm

Item = TypeVar("Item")


def check_shared(processes: Processes, options: ModelOptions, *models: str | Model | None) -> None:
    """Refuse models that several processes cannot share the items of.

    Args:
        processes: The process group; a process without others may use any model.
        options: How the models will be loaded.
        models: The models or their names.

    Raises:
        UserError: A model is an endpoint, all processes would use the same device, or the launcher's configuration has
            only one process load the weights.
    """
    if processes.count == 1:
        return
    for name in (model if isinstance(model, str) else model.name for model in models if model is not None):
        if is_endpoint(name):
            raise UserError(f"{name}: one process asks an endpoint, see `concurrency`; start without a launcher")
    if ":" in options.device:
        raise UserError(f"`device='{options.device}'` would be the device of all processes; leave it out")
    from transformers.modeling_utils import is_fsdp_enabled

    if is_fsdp_enabled():  # transformers gives the other processes empty weights
        raise UserError("with this FSDP configuration one process loads the weights; use one without FSDP")


def warn_of_unused(processes: Processes, options: ModelOptions, model: str | Model, loaded: Model) -> None:
    """Warn if a process without others has loaded a model on one of several GPUs, and the user chose none.

    Args:
        processes: The process group.
        options: How the model was loaded.
        model: Its name, or the model that the caller had loaded.
        loaded: The model.
    """
    chosen = not isinstance(model, str) or options.device != "auto" or is_vllm(model)
    if processes.count == 1 and not chosen and loaded.describe().get("device") == "cuda":
        import torch

        warn_of_idle_gpus(torch.cuda.device_count(), "evaluate")


def write_batches(
    processes: Processes,
    path: Path,
    batches: Sequence[Sequence[Item]],
    item_id: Callable[[Item], str],
    work: Callable[[Sequence[Item]], list[jsonl.JsonObject]],
    activity: str,
    threads: int = 1,
) -> None:
    """Compute the planned batches that a file does not contain yet, each in one of the processes.

    The main process appends the rows in the order of the plan, so the file is the same for any number of processes,
    also of a run that is resumed with another number.

    Args:
        processes: The process group.
        path: The file.
        batches: The whole plan, the same in all processes.
        item_id: Returns the id of an item, which is `id` in its row.
        work: Computes the rows of a batch.
        activity: Label of the progress bar.
        threads: Number of batches that a process computes at a time.

    Raises:
        UserError: See `batch_log.write_batches`, or `work` raised one.
    """

    def compute(remaining: Sequence[Sequence[Item]]) -> Generator[list[jsonl.JsonObject], None, None]:
        return processes.map(work, processes.broadcast(remaining), threads=threads)

    if processes.is_main:
        batch_log.write_batches(path, batches, item_id, compute, activity)
        return
    for _ in compute(()):  # the main process says which batches remain
        pass
