"""The verb `fit`: train a cross-encoder on human judgements, for use as the labeler `entailment:FOLDER`."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from sailkit import runs
from sailkit.arguments import checked
from sailkit.errors import UserError, at_least_one, required_extra
from sailkit.files import jsonl
from sailkit.files.folders import atomic_folder
from sailkit.labeling.base import statement
from sailkit.labeling.chunks import max_positions
from sailkit.labeling.human import HumanJudgements, HumanPair, read_judgements
from sailkit.labeling.results import FITTED, FittedLabeler
from sailkit.models.encoder import guard_texts
from sailkit.models.sources import ENCODER, resolve_encoder
from sailkit.tasks.task import in_first_half

_POOL = 16  # batches in a pool; shuffled rows are sorted by length within each pool
_LEAST_LENGTH = 16  # tokens; less would leave hardly any of either text


@checked
def fit(
    *,
    data: Path,
    out: Path,
    base: str = ENCODER,
    epochs: float = 3.0,
    learning_rate: float = 5e-5,
    batch_size: int = 32,
    max_length: int = 256,
    limit: int | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    seed: int = 0,
) -> FittedLabeler:
    """Train a labeler on human judgements, on the half of the claims that audit does not report on.

    The folder is a sequence classification model of transformers: use it as entailment:FOLDER.

    Args:
        data: Climate-FEVER's JSONL, or Factcheck-GPT's claim-evidence-stance JSONL.
        out: The new model folder.
        base: Base model: minilm-l6-v2, a folder or a hub id.
        epochs: Passes over the pairs.
        learning_rate: Peak learning rate, after a linear warmup over a tenth of the steps; it then decays to 0.
        batch_size: Pairs per optimizer step.
        max_length: Maximum tokens of a pair in training; the longer of the two texts is truncated.
        limit: Use only the first LIMIT pairs of that half.
        dtype: Number format of the forward pass; auto takes bfloat16 on a GPU that has it. Weights stay float32.
        seed: Random seed of the halves, the order and the new weights.

    Returns:
        Number of pairs and claims, the training loss, and the model's folder.

    Raises:
        UserError: Any error that the user can fix; nothing is overwritten.
    """
    at_least_one(batch_size=batch_size, limit=limit)
    _check_numbers(epochs, learning_rate, max_length)
    with required_extra("label", "fitting a labeler"):
        import datasets
        from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
        from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    import torch
    from transformers import set_seed
    from transformers.utils import logging

    if out.exists():
        raise UserError(f"{out} exists; choose another `out`")
    judged = read_judgements(data)
    used = _used(judged, data, seed, limit)
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    set_seed(seed)
    cuda = torch.cuda.is_available()
    precision = _precision(dtype, cuda)
    source = resolve_encoder(base)
    model = CrossEncoder(str(source.folder), num_labels=1, max_length=max_length, local_files_only=True)
    tokenizer = guard_texts(model)
    if max_length > (most := max_positions(model.model.config)):
        raise UserError(f"`max_length` {max_length}: {base} takes at most {most} tokens")
    rows = _rows(used)
    try:
        with atomic_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
            steps = math.ceil(epochs * math.ceil(len(rows) / batch_size))
            arguments = CrossEncoderTrainingArguments(
                output_dir=scratch, num_train_epochs=epochs, learning_rate=learning_rate,
                per_device_train_batch_size=batch_size, warmup_steps=max(1, steps // 10), seed=seed, data_seed=seed,
                save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=max(1, steps // 10),
                use_cpu=not cuda, dataloader_pin_memory=cuda, bf16=precision == torch.bfloat16,
                fp16=precision == torch.float16, batch_sampler=_batches(),
            )  # fmt: skip
            with runs.progress(f"fitting on {judged.name}", steps) as tick:
                trainer = CrossEncoderTrainer(
                    model=model, args=arguments, train_dataset=datasets.Dataset.from_list(rows),
                    loss=BinaryCrossEntropyLoss(model), callbacks=[_ticking(tick)],
                )  # fmt: skip
                trainer.remove_callback(_printer())
                done = trainer.train()
            _save(model.model, tokenizer, folder)
            record = {
                "data": judged.name,
                "data_sha256": judged.sha256,
                "base_sha256": jsonl.file_fingerprint(source.files()["weights"]),
                "seed": seed,
                "pairs": len(rows),
                "claims": len({pair.claim for pair in used}),
                "epochs": epochs,
                "learning_rate": learning_rate,
                "batch_size": batch_size,
                "max_length": max_length,
                "device": "cuda" if cuda else "cpu",
                "dtype": str(precision).removeprefix("torch."),
                "train_loss": done.training_loss,
                "environment": runs.environment(),
            }
            jsonl.write_json(folder / FITTED, record)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing is kept of an unfinished fit") from None
    return FittedLabeler.load(out)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.config.id2label, model.config.label2id = {0: "informative"}, {"informative": 0}
    model.save_pretrained(folder)
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    tokenizer.save_pretrained(folder)


def _used(judged: HumanJudgements, data: Path, seed: int, limit: int | None) -> list[HumanPair]:
    half = [pair for pair in judged.pairs if in_first_half(pair.claim, seed)][:limit]
    used = [pair for pair in half if pair.pair.result.body.strip()]
    if len({pair.official for pair in used}) < 2:
        what = "only one kind of judgement" if used else "no evidence with text"
        raise UserError(f"{data}: {what} to learn from; use more data")
    return used


def _rows(used: Sequence[HumanPair]) -> list[dict[str, Any]]:
    """Rows for the trainer, with the share of votes as target; sorted by length, as `_batches` expects."""
    rows = [
        {"result": pair.pair.result.text, "statement": statement(pair.pair.instruction), "label": pair.share}
        for pair in used
    ]
    return sorted(rows, key=lambda row: len(str(row["result"])))


def _check_numbers(epochs: float, learning_rate: float, max_length: int) -> None:
    for flag, value in (("`epochs`", epochs), ("`learning_rate`", learning_rate)):
        if not 0 < value < math.inf:
            raise UserError(f"{flag} should be above 0, not {value}")
    if max_length < _LEAST_LENGTH:
        raise UserError(f"`max_length` should be at least {_LEAST_LENGTH}, not {max_length}")


def _precision(dtype: str, cuda: bool) -> Any:
    import torch

    from sailkit.models.weights import pick_dtype

    # On CPUs the backward pass of such small models is slower in bfloat16.
    chosen = "float32" if dtype == "auto" and not cuda else dtype
    return pick_dtype(chosen, torch.device("cuda" if cuda else "cpu"))


def _batches() -> Any:
    """A sampler of batches of similar length, to save padding; rows are already sorted by length."""
    from torch.utils.data import BatchSampler

    class Batches(BatchSampler):
        def __init__(self, dataset: Any, batch_size: int, drop_last: bool, seed: int = 0, **_: Any) -> None:
            super().__init__(dataset, batch_size, drop_last)
            self.rows, self.seed, self.epoch = len(dataset), seed, 0

        def set_epoch(self, epoch: int) -> None:
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

    return Batches


def _printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback


def _ticking(tick: runs.Ticker) -> Any:
    from transformers import TrainerCallback

    class Ticking(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            tick()

    return Ticking()
