"""The verb `fit`: train a cross-encoder on human judgements, for use as the labeler `entailment:FOLDER`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from sailkit import runs
from sailkit.arguments import checked
from sailkit.errors import UserError, at_least_one, required_extra
from sailkit.files import jsonl
from sailkit.labeling.base import statement
from sailkit.labeling.chunks import max_positions
from sailkit.labeling.human import STANCES, HumanPair, read_judgements
from sailkit.labeling.negatives import with_negatives
from sailkit.labeling.options import JudgementColumns
from sailkit.labeling.results import FITTED, FittedLabeler, fitted_on
from sailkit.models.encoder import guard_texts
from sailkit.models.sources import ENCODER, resolve_encoder
from sailkit.tasks.task import in_first_part

_CHECKPOINTS = "checkpoints"  # subfolder, removed at the end
_LEAST_LENGTH = 16  # tokens; less would leave hardly any of either text
_HELD_OUT = 10  # one claim in ten of those that are fitted on chooses the checkpoint


@checked
def fit(
    *,
    data: list[Path],
    out: Path,
    base: str = ENCODER,
    epochs: float = 3.0,
    learning_rate: float = 1e-4,
    batch_size: int = 32,
    max_length: int = 256,
    share: float = 0.5,
    limit: int | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    seed: int = 0,
    columns: Annotated[JudgementColumns, Parameter(name="*")] = JudgementColumns(),
) -> FittedLabeler:
    """Train a labeler on human judgements.

    It is trained on claims that audit does not report on.

    The model has three classes: the result supports the response, refutes it, or does neither. Data in which every
    result does one or the other (FEVER) get passages of other claims: near misses and random ones. A tenth of the
    claims chooses the best of two checkpoints per epoch, by macro-F1. The same command continues a stopped run.

    The folder is a sequence classification model of transformers: use it as entailment:FOLDER.

    Args:
        data: Climate-FEVER's JSONL, Factcheck-GPT's claim-evidence-stance JSONL, claims in the form of the task fever,
            or any table (see judgement-column); repeated for several.
        out: The new model folder.
        base: Base model: minilm-l6-v2, a folder or a hub id.
        epochs: Passes over the pairs.
        learning_rate: Peak learning rate, after a linear warmup over a tenth of the steps; it then decays to 0.
        batch_size: Pairs per optimizer step.
        max_length: Maximum tokens of a pair in training; the longer of the two texts is truncated.
        share: Share of the claims to fit on, from 0.5; audit reports on the others.
        limit: Use only the first LIMIT pairs of each data set's share.
        dtype: Number format of the forward pass; auto takes bfloat16 where the machine has it. Weights stay float32.
        seed: Random seed of the claims, the order and the new weights.
        columns: The columns of other tables.

    Returns:
        Number of pairs and claims, the training loss, and the model's folder.

    Raises:
        UserError: Any error that the user can fix; nothing is overwritten.
    """
    at_least_one(batch_size=batch_size, limit=limit)
    _check_numbers(epochs, learning_rate, max_length, share)
    with required_extra("label", "fitting a labeler"):
        import datasets
        from sentence_transformers.cross_encoder import CrossEncoder
    import torch
    from transformers import set_seed
    from transformers.utils import logging

    from sailkit.labeling.fit_trainer import train

    judged = [read_judgements(path, columns) for path in data]
    parts: tuple[list[HumanPair], list[HumanPair]] = [], []  # to train on, held out
    for each in judged:
        part = _used(each.pairs, seed, share, limit)
        for pairs, is_held_out in zip(parts, (False, True), strict=True):
            of_claims = [pair for pair in part if _is_held_out(pair, seed) == is_held_out]
            mined = each.needs_negatives and of_claims
            pairs.extend(with_negatives(of_claims, seed, "half") if mined else of_claims)
    used, held_out = [*parts[0], *parts[1]], parts[1]
    if len({pair.official for pair in parts[0]}) < 2:
        what = "only one kind of judgement" if used else "no evidence with text"
        raise UserError(f"{', '.join(map(str, data))}: {what} to learn from; use more data")
    rows = _rows(parts[0])
    cuda = torch.cuda.is_available()
    precision = _precision(dtype, cuda)
    source = resolve_encoder(base)
    settings = {
        "data": [each.name for each in judged],
        "data_sha256": [each.sha256 for each in judged],
        "base_sha256": jsonl.file_fingerprint(source.files()["weights"]),
        "seed": seed,
        "share": share,
        "limit": limit,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "max_length": max_length,
        "device": "cuda" if cuda else "cpu",
        "dtype": str(precision).removeprefix("torch."),
        **({"columns": asdict(columns)} if columns.judgement else {}),
    }
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    set_seed(seed)
    model = CrossEncoder(
        str(source.folder),
        num_labels=len(STANCES),
        max_length=max_length,
        local_files_only=True,
        device=settings["device"],
    )
    tokenizer = guard_texts(model)
    if max_length > (most := max_positions(model.model.config)):
        raise UserError(f"`max_length` {max_length}: {base} takes at most {most} tokens")
    with runs.open_run(out, "fit", settings) as run:
        if not (out / FITTED).exists():
            with jsonl.writing(out):
                figures = train(model, rows, _rows(held_out), settings, run.path(_CHECKPOINTS))
                _save(model.model, tokenizer, out)
            record = {
                **settings,
                "data": ", ".join(each.name for each in judged),
                "pairs": len(used),
                "claims": len({pair.claim for pair in used}),
                "held_out_pairs": len(held_out),
                "base_fitted_on": fitted_on(source.folder),
                **figures,
                "environment": runs.environment(),
            }
            jsonl.write_json(out / FITTED, record)
        shutil.rmtree(run.path(_CHECKPOINTS), ignore_errors=True)  # the last step: without it nothing is repeated
    return FittedLabeler.load(out)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.config.id2label = dict(enumerate(STANCES))
    model.config.label2id = {stance: index for index, stance in enumerate(STANCES)}
    model.save_pretrained(folder)
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    tokenizer.save_pretrained(folder)


def _is_held_out(pair: HumanPair, seed: int) -> bool:
    return runs.seed_for(seed, "held-out claims", pair.claim) % _HELD_OUT == 0


def _used(pairs: Sequence[HumanPair], seed: int, share: float, limit: int | None) -> list[HumanPair]:
    part = [pair for pair in pairs if in_first_part(pair.claim, seed, share)][:limit]
    return [pair for pair in part if pair.pair.result.body.strip()]


def _rows(pairs: Sequence[HumanPair]) -> list[dict[str, Any]]:
    """Rows for the trainer, with the share of votes for each class; sorted by length, as `LengthBatches` expects."""
    rows = [
        {"result": pair.pair.result.text, "statement": statement(pair.pair.instruction), "label": pair.targets}
        for pair in pairs
    ]
    return sorted(rows, key=lambda row: len(str(row["result"])))


def _check_numbers(epochs: float, learning_rate: float, max_length: int, share: float) -> None:
    for flag, value in (("`epochs`", epochs), ("`learning_rate`", learning_rate)):
        if not 0 < value < math.inf:
            raise UserError(f"{flag} should be above 0, not {value}")
    if max_length < _LEAST_LENGTH:
        raise UserError(f"`max_length` should be at least {_LEAST_LENGTH}, not {max_length}")
    if not 0.5 <= share < 1:
        raise UserError(f"`share` should be from 0.5 to below 1, not {share}")


def _precision(dtype: str, cuda: bool) -> Any:
    import torch

    from sailkit.models.weights import pick_dtype

    # Measured with AVX-512's bfloat16 on one core: a step of MiniLM takes 0.8 s, and 2.1 s in float32.
    if dtype == "auto" and not cuda and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return pick_dtype(dtype, torch.device("cuda" if cuda else "cpu"))
