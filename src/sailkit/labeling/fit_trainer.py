"""The training loop of `fit`, on the trainer of sentence-transformers; imported only where torch is needed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.evaluation import CrossEncoderClassificationEvaluator
from sentence_transformers.util import batch_to_device
from sklearn.metrics import f1_score
from torch.utils.data import BatchSampler
from transformers import PrinterCallback, TrainerCallback

from sailkit import runs

_POOL = 16  # batches in a pool; shuffled rows are sorted by length within each pool
_EVALUATIONS = 2  # per epoch


def train(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Train a cross-encoder in place and leave it with its best weights; continues after the last checkpoint.

    Args:
        model: The CrossEncoder.
        rows: `result`, `statement` and `label`, the share of each class; sorted by length.
        held_out: Rows that choose the best checkpoint; without any, it is the last.
        settings: The settings of the run; see `fit`.
        folder: The folder of the checkpoints.

    Returns:
        The mean training loss, the number of steps, and the best step with its macro-F1 on the held-out rows.
    """
    per_epoch = math.ceil(len(rows) / settings["batch_size"])
    steps = math.ceil(settings["epochs"] * per_epoch)
    every = max(1, math.ceil(per_epoch / _EVALUATIONS))
    evaluated = {
        "eval_strategy": "steps", "eval_steps": every, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_held_out_f1_macro", "greater_is_better": True,
    } if held_out else {}  # fmt: skip
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(folder), num_train_epochs=settings["epochs"], learning_rate=settings["learning_rate"],
        per_device_train_batch_size=settings["batch_size"], warmup_steps=max(1, steps // 10), seed=settings["seed"],
        data_seed=settings["seed"], save_strategy="steps", save_steps=every, save_total_limit=1, report_to="none",
        disable_tqdm=True, logging_steps=every, use_cpu=settings["device"] == "cpu",
        dataloader_pin_memory=settings["device"] == "cuda", bf16=settings["dtype"] == "bfloat16",
        fp16=settings["dtype"] == "float16", batch_sampler=LengthBatches, **evaluated,
    )  # fmt: skip
    # The state of the trainer is the last file of a checkpoint: without it, writing was interrupted.
    checkpoints = {int(path.parent.name.split("-")[1]): path.parent for path in folder.glob("*/trainer_state.json")}
    done = max(checkpoints, default=0)
    last = str(checkpoints[done]) if done else None
    with runs.progress(f"fitting on {', '.join(settings['data'])}", steps, done) as tick:
        trainer = CrossEncoderTrainer(
            model=model, args=arguments, train_dataset=datasets.Dataset.from_list(list(rows)),
            evaluator=HeldOutF1(held_out) if held_out else None,
            loss=SoftCrossEntropy(model), callbacks=[Ticking(tick)],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=last)
    best = trainer.state.best_metric
    return {
        "train_loss": _mean_loss(trainer.state.log_history),
        "best_step": trainer.state.best_global_step if held_out else steps,
        "steps": steps,
        "held_out_f1_macro": None if best is None else float(best),
    }


def _mean_loss(log: Sequence[Mapping[str, Any]]) -> float:
    """The mean loss of all steps, also of those before the run was resumed, which `TrainOutput` leaves out.

    Args:
        log: The log of the trainer, with a line at each checkpoint; a `loss` is the mean since the line before.
    """
    lines = [(line["step"], line["loss"]) for line in log if "loss" in line]
    begins = [0, *(step for step, _ in lines)]
    return float(sum((step - begin) * loss for begin, (step, loss) in zip(begins, lines, strict=False)) / begins[-1])


class HeldOutF1(CrossEncoderClassificationEvaluator):  # type: ignore[misc]
    """Macro-F1 on held-out rows, by which the best checkpoint is chosen.

    Judgements of whether a passage is informative give supports and refutes equal shares. If all rows are such, these
    two are one class; among rows with a stance, whichever of the two the model prefers for such a row is right.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        shares = np.array([row["label"] for row in rows])
        self._without_stance = bool((shares[:, 0] == shares[:, 1]).all())
        self._either = (shares[:, 0] == shares[:, 1]) & (shares[:, 0] >= shares[:, 2])
        super().__init__([[row["result"], row["statement"]] for row in rows], self._classes(shares).tolist())

    def __call__(self, model: Any, *_: Any, **__: Any) -> dict[str, float]:
        """Evaluate the model."""
        shares = model.predict(self.sentence_pairs, show_progress_bar=False, activation_fn=torch.nn.Softmax(-1))
        labels = np.array(self.labels)
        if not self._without_stance:
            labels[self._either] = shares[self._either, :2].argmax(1)
        return {"held_out_f1_macro": float(f1_score(labels, self._classes(shares), average="macro"))}

    def _classes(self, shares: Any) -> Any:
        supports, refutes, neither = shares.T
        return (supports + refutes < neither).astype(int) if self._without_stance else shares.argmax(1)


class SoftCrossEntropy(torch.nn.Module):
    """Cross-entropy against the share of each class."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model  # the trainer looks for it under this name

    def forward(self, texts: Sequence[Sequence[str]], labels: Sequence[torch.Tensor], **_: Any) -> torch.Tensor:
        """The mean loss of a batch."""
        inputs = self.model.preprocess(list(zip(*texts, strict=True)))
        logits = self.model(batch_to_device(inputs, self.model.device))["scores"]
        return torch.nn.functional.cross_entropy(logits.float(), torch.stack(list(labels)).to(logits.device))


class LengthBatches(BatchSampler):
    """Batches of similar length, to save padding; the rows are already sorted by length."""

    def __init__(self, dataset: Any, batch_size: int, drop_last: bool, seed: int = 0, **_: Any) -> None:
        super().__init__(dataset, batch_size, drop_last)
        self.rows, self.seed, self.epoch = len(dataset), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rng = random.Random(runs.seed_for(self.seed, "batches", str(self.epoch)))  # noqa: S311 - no secret
        order = list(range(self.rows))
        rng.shuffle(order)
        pool = _POOL * self.batch_size
        pools = (sorted(order[start : start + pool]) for start in range(0, len(order), pool))  # by length
        batches = [part[i : i + self.batch_size] for part in pools for i in range(0, len(part), self.batch_size)]
        rng.shuffle(batches)
        yield from batches


class Ticking(TrainerCallback):  # type: ignore[misc]
    """Shows the progress, and evaluates and saves after the last step too."""

    def __init__(self, tick: runs.Ticker) -> None:
        self.tick = tick

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer."""
        self.tick()
        if state.global_step >= state.max_steps:
            control.should_log = control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"
