"""Reads sets of predictions from a run folder or from a table of recorded outputs."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.errors import UserError, nearest
from sailkit.evaluation.recording_layouts import RECORDED_FIELDS, bare, layout_of, words_of_answers
from sailkit.files import jsonl
from sailkit.files.tables import read_table, with_ids, with_nested
from sailkit.files.yaml_files import read_yaml
from sailkit.prompts.parse import ANSWER_RULES_VERSION, read_answer
from sailkit.records import AnswerScore, Prediction
from sailkit.tasks.task import Task, builtin_tasks, load_task

PREDICTIONS = "predictions.jsonl"
NOISE_FILE = "noise.json"  # how much margins depend on the batch, if that was measured
REFERENCE_FOLDER = "reference"
_CSV_START = b"id,text,gold,reference,"
# Settings that may explain a difference between two sets; recorded outputs of other programs have none of them.
FACTORS = (
    "model", "weights_sha256", "dtype", "device", "chat_template", "task", "protocol", "wording", "answer",
    "search", "results", "style", "verify", "shots", "calibrate", "data_sha256", "prompts_sha256", "tokenizer_sha256",
    "max_new_tokens",
)  # fmt: skip
# Settings that only some runs have: `date`, if the chat template contains the date; the results of a separate search.
RARE_FACTORS = ("date", "searched_sha256")
_NEEDED = ("id", "output")
_OPTIONAL = ("group", "reason", "thought")  # left out of a row if they are empty


@dataclass(frozen=True)
class PredictionSet:
    """The answers of one model to one set of examples.

    Attributes:
        name: The folder's or file's name.
        labels: The task's labels, in order.
        predictions: One row per example.
        provenance: The known settings of the run; see `FACTORS`.
        rules_version: Version of the parsing rules that gave the labels.
        noise: The largest change of a margin with its batch, in nats; None if it was not measured.
        extra: Further fields of a recording, for checks of its provenance.
    """

    name: str
    labels: tuple[str, ...]
    predictions: tuple[Prediction, ...]
    provenance: dict[str, Any]
    rules_version: int = ANSWER_RULES_VERSION
    noise: float | None = None
    extra: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    @property
    def missing(self) -> list[str]:
        """Factors that are not known."""
        return [name for name in FACTORS if name not in self.provenance]


def to_row(prediction: Prediction) -> dict[str, Any]:
    """A prediction as a row of JSON Lines."""
    row = {f.name: getattr(prediction, f.name) for f in dataclasses.fields(prediction)}
    row["answers"] = {
        word: {"label": a.label, "ids": a.ids, "logprob": a.logprob, "bound": a.bound}
        for word, a in prediction.answers.items()
    }
    # A row holds the model's answer alone; these two are joined when a set is read.
    del row["reference"], row["recorded"]
    return {name: value for name, value in row.items() if value or name not in _OPTIONAL}


def from_row(row: Mapping[str, Any], where: str, reference: str | None = None) -> Prediction:
    """The prediction of a row; see `to_row`."""
    try:
        answers = {
            w: AnswerScore(a["label"], tuple(a["ids"]), a["logprob"], a["bound"]) for w, a in row["answers"].items()
        }
        return Prediction(**{**row, "answers": answers, "turns": tuple(row["turns"]), "reference": reference})
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where}: not a prediction ({error})") from None


def check_csv(path: str | Path | None) -> None:
    """Refuse to overwrite a file that is not a CSV of predictions."""
    if path is None or not Path(path).exists():
        return
    try:
        with Path(path).open("rb") as stream:
            is_csv = stream.read(len(_CSV_START)) == _CSV_START
    except OSError:  # a folder, or not readable
        is_csv = False
    if not is_csv:
        raise UserError(f"{path} exists and is no CSV of predictions; choose another `csv_out`")


def as_csv(rows: Sequence[Prediction]) -> str:
    """Predictions as CSV, one row each; cells that a spreadsheet would read as a formula are quoted."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    labels = sorted({label for p in rows for label in p.scores})
    writer.writerow(
        ["id", "text", "gold", "reference", "label", "outcome", *(f"score_{x}" for x in labels), "raw_output"]
    )
    for p in rows:
        scores = [p.scores.get(label, "") for label in labels]
        cells = [p.id, p.text, p.gold, p.reference, p.label, p.outcome, *scores, p.raw_output]
        writer.writerow(
            ["'" + c if isinstance(c, str) and c[:1] in ("=", "+", "-", "@", "\t", "\r") else c for c in cells]
        )
    return stream.getvalue()


def field_names(fields: Sequence[str] | None) -> dict[str, str]:
    """Read the field names of a recording, by key.

    Args:
        fields: `KEY=NAME` pairs, also separated by commas, or YAML files of such pairs; the keys are those of
            `RECORDED_FIELDS`.

    Raises:
        UserError: An unknown key, or a file that is not a YAML mapping of text.
    """
    names: dict[str, str] = {}
    for entry in (part for text in fields or [] for part in text.split(",")):
        if entry.endswith((".yaml", ".yml")):
            loaded = read_yaml(entry)
            if not isinstance(loaded, dict) or not all(isinstance(v, str) for v in loaded.values()):
                raise UserError(f"{entry}: expected lines of KEY: NAME")
            names |= loaded
        else:
            key, equals, name = entry.partition("=")
            if not equals or not name:
                raise UserError(f"`fields` takes KEY=NAME or a YAML file, not {entry!r}")
            names[key] = name
    for key in names:
        if key not in RECORDED_FIELDS:
            raise UserError(f"`fields` has no field {key!r}; {nearest(str(key), RECORDED_FIELDS)}")
    return names


def load_run(folder: str | Path) -> PredictionSet:
    """Read the predictions of an evaluation.

    Raises:
        UserError: Not an evaluation's folder, or the evaluation is not finished.
    """
    folder = Path(folder)
    manifest = runs.read_manifest(folder, "evaluate")
    settings = manifest["settings"]
    reference_file = folder / REFERENCE_FOLDER / PREDICTIONS
    has_reference = reference_file.exists()
    reference = {row["id"]: row["label"] for _, row in jsonl.read_rows(reference_file)} if has_reference else {}
    path = folder / PREDICTIONS
    rows = [from_row(row, f"{path}, line {n}", reference.get(row.get("id"))) for n, row in jsonl.read_rows(path)]
    for what, count in (("items", len(rows)), ("reference labels", len(reference) if has_reference else len(rows))):
        if count != settings["n"]:
            raise runs.not_finished(folder, "evaluate", f" ({count} of {settings['n']} {what})")
    provenance = {name: settings[name] for name in (*FACTORS, *RARE_FACTORS) if name in settings}
    if settings.get("search") not in (None, "none"):
        provenance.setdefault("searched_sha256", None)  # the data's own search results were shown
    return PredictionSet(
        name=folder.name,
        labels=tuple(settings["labels"]),
        predictions=tuple(sorted(rows, key=lambda p: p.index)),
        provenance=provenance,
        rules_version=settings["rules_version"],
        noise=jsonl.read_json(folder / NOISE_FILE)["noise"] if (folder / NOISE_FILE).exists() else None,
    )


def load_table(
    path: str | Path, task: str | Path | Task | None = None, fields: Sequence[str] | None = None
) -> PredictionSet:
    """Read a table of recorded outputs, and parse labels from the raw answers.

    Args:
        path: JSON Lines, CSV or another table; rows without an id get their number.
        task: The task whose answer words are used; by default the built-in one that has the labels.
        fields: Names of the file's fields; see `field_names`.

    Raises:
        UserError: A field is missing, an id occurs twice, a label is unknown, or no task fits the labels.
    """
    path = Path(path)
    mapped = field_names(fields)
    rows = list(read_table(path))
    if not rows:
        raise UserError(f"{path}: no rows")
    layout = layout_of(rows[0][1], str(path)) if "output" not in mapped else RECORDED_FIELDS
    names = {**layout, **mapped}
    rows = [(line, with_nested(row, mapped.values())) for line, row in rows]
    if "id" not in mapped:
        rows = with_ids(rows, names["id"], path)
    for key in (*_NEEDED, *mapped):
        for line, row in rows:
            if names[key] not in row:
                present = ", ".join(sorted(map(str, row))) or "nothing"
                raise UserError(
                    f"{path}, line {line}: no field {names[key]!r} (found: {present}); map it with `fields` {key}=NAME"
                )
    known = load_task(task, ["all"]) if task else task_of(path, [row.get(names["label"]) for _, row in rows])
    labels = labels_in_use(known, [row.get(names["label"]) for _, row in rows])
    chosen = Task(known.spec, labels, known.folder)
    given = [row.get(names[key]) for key in ("prediction", "reference") for _, row in rows]
    words = words_of_answers(chosen, given, [str(row[names["output"]] or "") for _, row in rows], path)
    predictions, extra = [], []
    ids = jsonl.UniqueIds()
    for index, (line, row) in enumerate(rows):
        where = f"{path}, line {line}"
        item = jsonl.filled_field(row, names["id"], path, line)
        ids.add(item, where)
        raw = row[names["output"]]
        if raw is not None and not isinstance(raw, str):
            raise UserError(f"{where}: field {names['output']!r} should be text, found {type(raw).__name__}")
        prompt = str(row.get(names["prompt"]) or "")
        # Some recordings repeat the prompt before the answer, and the prompt names the labels.
        new = (raw or "").removeprefix(prompt)
        label, outcome = read_answer(new, words)
        # Another label of the task counts as none: a recorded prediction is then wrong.
        reference = label_of(row, names["reference"], known, where)
        reference = reference if reference in labels else None
        recorded = label_of(row, names["prediction"], known, where)
        recorded = recorded if recorded in labels else None
        if reference is None and (answer := row.get(names["reference_output"])):
            reference = read_answer(str(answer), words)[0]
        predictions.append(
            Prediction(
                id=item, index=index, text=str(row.get(names["text"]) or ""), raw_output=raw, prompt=prompt,
                gold=label_of(row, names["label"], chosen, where), label=label, outcome=outcome, answered_by="text",
                reference=reference, recorded=recorded,
                group=_text(row, names["group"]),
            )
        )  # fmt: skip
        extra.append({k: v for k, v in row.items() if k not in names.values()})
    shared = {k: v for k in FACTORS if (v := shared_value(extra, k)) is not None}
    texts = {k: v if isinstance(v, (str, int, float)) else jsonl.dumps(v) for k, v in shared.items()}
    provenance = texts | {"task": known.name}
    return PredictionSet(
        path.name.removesuffix(path.suffix), labels, tuple(predictions), provenance, extra=tuple(extra)
    )


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value)


def shared_value(extra: Sequence[Mapping[str, Any]], name: str) -> Any:
    """A field's value if it is the same in every row of a recording, else None."""
    values = [row.get(name) for row in extra]
    return values[0] if values and all(v == values[0] for v in values) else None


def task_of(path: Path, labels: Sequence[object], words: bool = False) -> Task:
    """The built-in task with all of these labels, or with `words` their answer words, and with the fewest others."""
    used = {str(label) for label in labels if label not in (None, "")}
    fitting = []
    for name in builtin_tasks():
        task = load_task(name, ["all"])
        answers = {word.casefold() for word in task.words()} if words else set()
        if used and all(label in task.labels or label.strip().casefold() in answers for label in used):
            fitting.append(task)
    if fitting:  # the first with the fewest labels in use: a macro-F1 counts also labels that do not occur
        return min(fitting, key=lambda task: len(labels_in_use(task, labels)))
    shown = ", ".join(sorted(used)[:5]) or "none"
    raise UserError(
        f"{path}: no built-in task has its labels ({shown}); name the task, or your task's YAML, with `task`"
    )


def labels_in_use(task: Task, labels: Sequence[object]) -> tuple[str, ...]:
    """The task's default labels, or all of its labels if the data have others."""
    defaults = task.spec.default_labels or tuple(task.spec.labels)
    used = {word_label(task, label) for label in labels if label not in (None, "")}
    return defaults if used <= {*defaults} else tuple(task.spec.labels)


def label_of(row: Mapping[str, Any], column: str, task: Task, where: str) -> str | None:
    """A label given by its name or one of its words; None if the field is absent or empty."""
    value = row.get(column)
    if value in (None, ""):
        return None
    if (label := word_label(task, value)) is None:
        raise UserError(
            f"{where}: {column} {value!r} is neither a label of task {task.name} ({', '.join(task.labels)}) "
            "nor a word for one; leave it empty where there is none"
        )
    return label


def word_label(task: Task, value: object) -> str | None:
    """The label with a name or word; None if there is none, or no value."""
    if value in (None, ""):
        return None
    words = task.label_words
    return str(value) if str(value) in task.labels else words.get(str(value).strip().casefold(), words.get(bare(value)))


def units_of(predictions: Sequence[Prediction]) -> list[str] | None:
    """The group of each prediction, as the unit of resampling and testing; None if no groups are declared."""
    return [p.unit for p in predictions] if any(p.group for p in predictions) else None
