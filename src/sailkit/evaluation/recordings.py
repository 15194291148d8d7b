"""Loads sets of predictions from run folders, tables of recorded outputs, and sample logs of other tools."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.special import softmax

from sailkit.errors import UserError
from sailkit.evaluation import predictions
from sailkit.evaluation.logs import SampleLog, chosen_letter, field_of_doc, read_sample_log, stated_letter
from sailkit.evaluation.predictions import PredictionSet
from sailkit.evaluation.recording_layouts import words_of_answers
from sailkit.evaluation.results import Evaluation
from sailkit.prompts.parse import read_answer
from sailkit.prompts.thoughts import split_thoughts
from sailkit.records import AnswerScore, Prediction
from sailkit.tasks.task import Task, load_task


def load_predictions(
    source: str | Path | Evaluation, task: str | Path | Task | None = None, fields: Sequence[str] | None = None
) -> PredictionSet:
    """Load predictions from a run folder or a recording.

    Args:
        source: A run folder or an evaluation, or a recording; see `load_recording`.
        task: For a recording: the task whose answer words are used; by default the built-in one that has its labels.
        fields: For a recording: the names of its fields; see `sailkit.evaluation.predictions.field_names`.
    """
    if isinstance(source, Evaluation):
        return predictions.load_run(source.folder)
    return predictions.load_run(source) if Path(source).is_dir() else load_recording(source, task, fields)


def load_recording(
    path: str | Path, task: str | Path | Task | None = None, fields: Sequence[str] | None = None
) -> PredictionSet:
    """Load recorded outputs, and parse labels from the raw answers.

    Args:
        path: A table, or a sample log of lm-evaluation-harness, inspect_ai or lighteval; see `sailkit.evaluation.logs`.
        task: The task whose answer words are used; by default the built-in one that has the labels.
        fields: Names of the fields of a table; if given, no file is read as a log.

    Raises:
        UserError: As `sailkit.evaluation.predictions.load_table` and `sailkit.evaluation.logs.read_sample_log`.
    """
    path = Path(path)
    log = None if fields else read_sample_log(path)
    return _predictions_of_log(path, log, task) if log else predictions.load_table(path, task, fields)


def _predictions_of_log(path: Path, log: SampleLog, task: str | Path | Task | None) -> PredictionSet:
    """The predictions of a sample log: parsed from raw answers, or the choice with the highest score."""
    for note in log.notes:
        warnings.warn(f"{path.name}: {note}", RuntimeWarning, stacklevel=2)
    targets = [row["label"] for row in log.rows]
    known = load_task(task, ["all"]) if task else predictions.task_of(path, targets, words=True)
    golds = [predictions.label_of(row, "label", known, f"{path}, sample {row['id']!r}") for row in log.rows]
    labels = predictions.labels_in_use(known, golds)
    chosen = Task(known.spec, labels, known.folder)
    fields = known.spec.data.fields
    # The ids of the data set join the log with other sets; the tool's own ids are often just row numbers.
    data_ids = field_of_doc(log.rows, fields.id) if fields else None
    ids = data_ids if data_ids and len({*data_ids}) == len(data_ids) else [str(row["id"]) for row in log.rows]
    texts = (field_of_doc(log.rows, fields.text) if fields else None) or [
        str(row.get("text") or row.get("prompt") or "") for row in log.rows
    ]
    if len({*ids}) < len(ids):
        raise UserError(f"{path}: an id occurs twice; is it several logs in one file?")
    decided = [value for row in log.rows for value in (row["label"], row.get("prediction_recorded"))]
    words = words_of_answers(chosen, decided, [row["output"] or "" for row in log.rows], path)
    rows = []
    for index, (item, text, gold, row) in enumerate(zip(ids, texts, golds, log.rows, strict=True)):
        answer = _answer_of_sample(row, known, labels, words, f"{path}, sample {item!r}")
        recorded = predictions.word_label(chosen, row.get("prediction_recorded"))
        rows.append(
            Prediction(
                id=item, index=index, text=text, gold=gold, raw_output=row["output"], prompt=row.get("prompt", ""),
                recorded=recorded, group=str(row.get("group") or ""), **answer,
            )
        )  # fmt: skip
    model = predictions.shared_value(log.rows, "model")
    provenance = {"task": known.name} | ({"model": model} if model else {})
    return PredictionSet(path.name.removesuffix(path.suffix), labels, tuple(rows), provenance)


def _answer_of_sample(
    row: Mapping[str, Any], task: Task, in_use: Sequence[str], words: Mapping[str, str], where: str
) -> dict[str, Any]:
    """Label, outcome and scores of one sample of a log; another label of the task than those in use is no answer."""
    if logprobs := row.get("choice_logprobs"):
        labels = [predictions.label_of({"choice": choice}, "choice", task, where) for choice in row["choices"]]
        if len({*labels}) < len(labels):
            raise UserError(f"{where}: several choices are words of one label ({', '.join(row['choices'])})")
        answers = {
            choice: AnswerScore(str(label), (), logprob)
            for choice, label, logprob in zip(row["choices"], labels, logprobs, strict=True)
        }
        scores = dict(zip(labels, map(float, softmax(logprobs)), strict=True))
        best = max(answers.values(), key=lambda answer: answer.logprob).label
        decided = {"label": best, "outcome": "answered"} if best in in_use else {"label": None, "outcome": "unreadable"}
        scores = {label: score for label, score in scores.items() if label in in_use}
        return {**decided, "answered_by": "logprob", "answers": answers, "scores": scores}
    if row.get("refused"):
        return {"label": None, "outcome": "refused", "answered_by": "text"}
    output = row["output"] or ""
    label, outcome = read_answer(output, words)
    answer, in_thought = split_thoughts(output)
    choices = row.get("choices", ())
    choice = stated_letter(answer, choices) or (chosen_letter(answer, choices) if outcome == "unreadable" else None)
    if choice and not in_thought:  # reasoning before `ANSWER: B` may name other choices
        label, outcome = predictions.word_label(task, choice), "answered"
        label = label if label in in_use else None
    return {
        "label": label,
        "outcome": outcome if label or outcome != "answered" else "unreadable",
        "answered_by": "text",
    }
