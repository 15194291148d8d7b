"""Reads sample logs of lm-evaluation-harness, inspect_ai and lighteval as recordings.

Each sample becomes a row with the fields of a recording, so that the raw answers are parsed again by the rules of this
package. Nothing in a log is executed or unpickled.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailkit.errors import UserError, required_extra
from sailkit.files import jsonl, unpacking
from sailkit.files.tables import read_table, table_kind

MAX_SAMPLE_BYTES = 256 * 2**20  # of one decompressed member of an `.eval` file
_LM_EVAL = {"doc", "target", "resps", "filtered_resps"}
_LIGHTEVAL = {"doc", "model_response"}
_ZSTANDARD = 93  # the compression method's number in a zip file; `zipfile` knows it from Python 3.14 on


@dataclass(frozen=True)
class SampleLog:
    """The samples that a tool recorded for one task.

    Attributes:
        tool: The tool that wrote the file.
        rows: One row per sample, with the fields of a recording: `id`, `text`, `label` (the target), `output`,
            `prompt`, `prediction_recorded` (the answer that the tool's own parser extracted) where there is one, and

            - `doc`: the data set's own row,
            - `choices`: the texts of the sample's choices, if it has any,
            - `choice_logprobs`: log-probability in nats of each choice, if the tool scored them,
            - `group`: the sample's name, if a sample has several rows (epochs),
            - `refused`: True where a provider's content filter withheld the answer.
        notes: Sentences about the log that help to interpret the figures.
    """

    tool: str
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()


def read_sample_log(path: Path) -> SampleLog | None:
    """Read a sample log of another tool.

    Args:
        path: `samples_*.jsonl` of lm-evaluation-harness (`--log_samples`), `.eval` or `.json` of inspect_ai, or a
            `details_*.parquet` of lighteval (`--save-details`).

    Returns:
        The log, or None if the file is something else.

    Raises:
        UserError: The file is damaged, or holds nothing that can be read.
    """
    kind = table_kind(path)
    if kind == ".eval":
        return _inspect_archive(path)
    if kind == ".json" and (log := _inspect_json(path)):
        return log
    if kind in (".json", ".jsonl", ".parquet"):
        table = read_table(path)
        first = next(table, None)
        if first is None:
            return None
        if first[1].keys() >= _LM_EVAL:
            return _lm_eval(path, [first, *table])
        if first[1].keys() >= _LIGHTEVAL:
            return _lighteval(path, [first, *table])
    return None


def field_of_doc(rows: Sequence[Mapping[str, Any]], name: str | None) -> list[str] | None:
    """A field of the data set's rows, if every sample has it as text or an integer; else None."""
    docs = [row.get("doc") for row in rows]
    values = [doc.get(name) if isinstance(doc, dict) else None for doc in docs]
    if not all(isinstance(value, (str, int)) and not isinstance(value, bool) for value in values):
        return None
    return [str(value) for value in values]


def chosen_letter(text: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer names only by its letter: `B`, `(B)`, `ANSWER: B`."""
    lines = [line for line in text.splitlines() if line.strip()]
    index = _index_of_letter(lines[-1].rpartition(":")[2].strip(" \t().*[]")) if lines else -1
    return choices[index] if 0 <= index < len(choices) else None


_STATED = re.compile(r"\bANSWER\s*:[\s*_(]*([A-Z])[\s*_).]*$", re.IGNORECASE | re.MULTILINE)


def stated_letter(text: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer last names by its letter at the end of a line, after `ANSWER:` as inspect_ai asks."""
    letters = _STATED.findall(text)
    return chosen_letter(letters[-1].upper(), choices) if letters else None


def _index_of_letter(text: str) -> int:
    return ord(text) - ord("A") if len(text) == 1 else -1


def _lm_eval(path: Path, table: Sequence[tuple[int, dict[str, Any]]]) -> SampleLog:
    filters = list(dict.fromkeys(str(row.get("filter", "none")) for _, row in table))
    notes = []
    if len(filters) > 1:
        others = ", ".join(map(repr, filters[1:]))
        notes.append(f"the answers of filter {filters[0]!r} are the recorded ones; the log also has filter {others}")
    rows = []
    for line, sample in table:
        if str(sample.get("filter", "none")) != filters[0]:
            continue
        where = f"{path}, line {line}"
        try:
            calls = [list(call.values()) for call in sample["arguments"].values()]
            replies = [reply[0] for reply in sample["resps"]]
            row = {"id": str(sample["doc_id"]), "doc": sample["doc"], "prompt": str(calls[0][0])}
            # A generation has one call, whose second argument is its settings; scored choices have one call each.
            if isinstance(replies[0], str):
                row |= {"output": replies[0], "label": _first(sample["target"])}
                row["prediction_recorded"] = _first(sample["filtered_resps"])
            else:
                choices = [str(call[1]).strip() for call in calls]
                half = len(choices) // 2
                if choices[:half] == choices[half:]:  # scored once more without the question, for `acc_mutual_info`
                    choices, replies = choices[:half], replies[:half]
                logprobs = _logprobs(reply[0] for reply in replies)
                label = _target(sample, choices, choices[logprobs.index(max(logprobs))])
                row |= {"output": None, "choices": choices, "label": label, "choice_logprobs": logprobs}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise _not_a_sample(where, "lm-evaluation-harness", error) from None
        rows.append(row)
    return SampleLog("lm-evaluation-harness", tuple(rows), tuple(notes))


def _lighteval(path: Path, table: Iterable[tuple[int, dict[str, Any]]]) -> SampleLog:
    rows = []
    for line, sample in table:
        where = f"{path}, row {line}"
        try:
            doc, response = sample["doc"], sample["model_response"]
            choices = [str(choice).strip() for choice in doc["choices"]]
            gold = doc["gold_index"]
            row = {
                "id": str(doc["id"]),
                "doc": doc.get("specific") or {},
                "text": doc["query"],
                "prompt": response["input"] if isinstance(response["input"], str) else "",
                "label": choices[gold[0] if isinstance(gold, list) else gold],
            }
            if response["text"]:
                row["output"] = response["text"][0]
            elif len(response["logprobs"] or ()) == len(choices):
                row |= {"output": None, "choices": choices, "choice_logprobs": _logprobs(response["logprobs"])}
            else:
                raise ValueError("neither a text nor a log-probability for each choice")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise _not_a_sample(where, "lighteval", error) from None
        rows.append(row)
    return SampleLog("lighteval", tuple(rows))


def _logprobs(values: Iterable[Any]) -> list[float]:
    """Log-probabilities of the choices, of which some may be -inf, but not all."""
    logprobs = [float(value) for value in values]
    if any(math.isnan(value) or value == math.inf for value in logprobs) or max(logprobs) == -math.inf:
        raise ValueError(f"log-probabilities {logprobs}")
    return logprobs


def _inspect_json(path: Path) -> SampleLog | None:
    try:
        with unpacking.open_gzip(path) as stream:
            data = stream.read()
        log = json.loads(data.decode(json.detect_encoding(data)))
    except (*unpacking.ERRORS, ValueError, RecursionError):
        return None  # reading it as a table gives the error
    if not isinstance(log, dict) or not log.keys() >= {"eval", "status"}:
        return None
    return _inspect(path, log, log.get("samples") or [])


def _inspect_archive(path: Path) -> SampleLog:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            header = members.get("header.json") or members.get("_journal/start.json")
            if header is None:
                raise UserError(f"{path}: not a log of inspect_ai (it holds no header.json)")
            log = json.loads(_member(archive, header, path))
            samples = [
                json.loads(_member(archive, info, path))
                for name, info in members.items()
                if name.startswith("samples/") and name.endswith(".json")
            ]
    except OSError as error:
        raise jsonl.reading_failed(path, error) from None
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, struct.error) as error:  # or encrypted
        raise UserError(f"{path}: not a readable log of inspect_ai ({' '.join(str(error).split())})") from None
    return _inspect(path, log, samples)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    """Read a member of a zip file, also if it is compressed with Zstandard, as by inspect_ai."""
    if info.file_size > MAX_SAMPLE_BYTES:
        raise UserError(f"{path}: {info.filename!r} takes {info.file_size:,} bytes, and {MAX_SAMPLE_BYTES:,} are read")
    if info.compress_type != _ZSTANDARD:
        return archive.read(info)
    with required_extra("parquet", f"reading {path}, which is compressed with Zstandard,"):
        import pyarrow
    assert archive.fp is not None  # it is open
    archive.fp.seek(info.header_offset)
    # The local header has 30 bytes and ends with the lengths of the name and the extra field that follow it.
    name_length, extra_length = struct.unpack("<26xHH", archive.fp.read(30))
    archive.fp.seek(name_length + extra_length, 1)
    compressed = archive.fp.read(info.compress_size)
    try:
        data: bytes = pyarrow.decompress(compressed, info.file_size, codec="zstd", asbytes=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{info.filename}: {error}") from None
    if zlib.crc32(data) != info.CRC:
        raise ValueError(f"{info.filename}: bad CRC-32")
    return data


def _inspect(path: Path, log: Any, samples: Any) -> SampleLog:
    try:
        return _inspect_log(path, log, samples)
    except (TypeError, AttributeError) as error:  # of a log, or of samples, that have another structure
        raise _not_a_sample(str(path), "inspect_ai", error) from None


def _inspect_log(path: Path, log: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> SampleLog:
    notes = []
    if (status := log.get("status", "unfinished")) != "success":
        notes.append(f"the run ended with status {status!r}: {len(samples)} samples are recorded")
    about = log.get("eval") or {}
    model = about.get("model")
    epochs = {sample.get("epoch", 1) for sample in samples}
    rows = []
    for number, sample in enumerate(samples, start=1):
        try:
            rows.append(_inspect_row(sample, len(epochs) > 1) | ({"model": model} if model else {}))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise _not_a_sample(f"{path}, sample {number}", "inspect_ai", error) from None
    if not rows:
        raise UserError(f"{path}: the log holds no samples (status {status!r})")
    order = {str(name): i for i, name in enumerate((about.get("dataset") or {}).get("sample_ids") or ())}
    rows.sort(key=lambda row: (order.get(row["sample"], len(order)), row["id"]))
    return SampleLog("inspect_ai", tuple(rows), tuple(notes))


def _inspect_row(sample: Mapping[str, Any], several_epochs: bool) -> dict[str, Any]:
    name = str(sample["id"])
    choices = sample.get("choices") or []
    output = sample.get("output") or {}
    first = (output.get("choices") or [{}])[0]
    scores = (sample.get("scores") or {}).values()
    extracted = next((score["answer"] for score in scores if score.get("answer") is not None), None)
    prompt = sample["input"]
    if not isinstance(prompt, str):
        of_user = [message for message in prompt if message["role"] == "user"]
        prompt = _message_text((of_user or prompt)[-1])  # some logs have a system prompt alone
    row = {
        "id": f"{name}, epoch {sample['epoch']}" if several_epochs else name,
        "sample": name,
        "doc": sample.get("metadata") or {},
        "text": prompt,
        "label": _choice(sample["target"], choices),
        "output": _message_text(first["message"]) if "message" in first else None,
        "refused": first.get("stop_reason") == "content_filter",
    }
    if several_epochs:
        row["group"] = name
    if choices:
        row["choices"] = list(map(str, choices))
    if extracted is not None:
        row["prediction_recorded"] = _choice(extracted, choices)
    return row


def _message_text(message: Mapping[str, Any]) -> str:
    """The text of a chat message, without reasoning, which is in separate parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def _first(value: Any) -> str:
    """A target or an extracted answer; the first if there are several."""
    while isinstance(value, (list, tuple)):
        value = value[0]
    return str(value)


def _target(sample: Mapping[str, Any], choices: Sequence[str], best: str) -> str:
    """The text of the right choice, which lm-evaluation-harness names by its index or, in some tasks, by its text.

    Where the choices are numbers, `acc` tells which: whether the likeliest choice, `best`, is right.
    """
    name = _first(sample["target"])
    readings = [choices[int(name)]] if name.isdecimal() and int(name) < len(choices) else []
    readings.append(_choice(name, choices))
    acc = sample.get("acc")
    fitting = [label for label in readings if acc is None or (label == best) == bool(acc)]
    return (fitting or readings)[0]


def _choice(value: Any, choices: Sequence[Any]) -> str:
    """The text of a choice that is named by its index or letter; any other value unchanged."""
    name = _first(value)
    if name in choices or not choices:
        return name
    index = int(name) if name.isdecimal() else _index_of_letter(name)
    return str(choices[index]) if 0 <= index < len(choices) else name


def _not_a_sample(where: str, tool: str, error: Exception) -> UserError:
    kind = type(error).__name__
    return UserError(f"{where}: not a sample as {tool} writes it ({kind}: {' '.join(str(error).split())[:120]})")
