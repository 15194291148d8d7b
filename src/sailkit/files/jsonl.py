"""Read, write and fingerprint JSON and JSON Lines; errors name file and line, writing is atomic."""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sailkit.errors import UserError
from sailkit.files import unpacking
from sailkit.text import without_surrogates

_UNFINISHED = ".sailkit-unfinished"  # suffix of our temporary files
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy's message when the disk is full
_OS_ERROR = re.compile(r"os error (\d+)")  # in the messages of libraries written in Rust
JsonObject = dict[str, Any]


def dumps(value: object) -> str:
    """Serialise to one line of JSON, deterministically; NaN and infinity are refused."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode(text: str) -> bytes:
    r"""Encode as UTF-8; lone surrogates become JSON escapes such as `\ud800`."""
    return text.encode("utf-8", "backslashreplace")


def read_rows(path: str | Path) -> Iterator[tuple[int, JsonObject]]:
    """Read the rows of a JSON Lines file with their line numbers.

    Args:
        path: The file, gzipped if its name ends in .gz; blank lines are skipped.

    Yields:
        Line number from 1, and the object on that line.

    Raises:
        UserError: The file is missing or not UTF-8, or a line is not a JSON object; file and line are named.
    """
    path = Path(path)
    try:
        with unpacking.open_gzip(path) as stream:
            for number, raw in enumerate(stream, start=1):
                line = _without_mark(raw, path) if number == 1 else raw
                if not line.strip():
                    continue
                try:
                    # json.loads accepts NaN, which would turn every mean into NaN.
                    row = json.loads(line.decode("utf-8"), parse_constant=refuse_constant)
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}, line {number}: not UTF-8 text ({error.reason})") from None
                except ValueError as error:
                    cut = "" if raw.endswith(b"\n") else "; the file may be truncated"
                    message = getattr(error, "msg", error)
                    raise UserError(f"{path}, line {number}: not valid JSON ({message}){cut}") from None
                except RecursionError:
                    raise UserError(f"{path}, line {number}: JSON nested too deeply") from None
                if not isinstance(row, dict):
                    kind = type(row).__name__
                    raise UserError(f"{path}, line {number}: expected a JSON object, found {kind}")
                yield number, row
    except unpacking.ERRORS as error:
        raise reading_failed(path, error) from None


def _without_mark(line: bytes, path: Path) -> bytes:
    """Remove the byte order mark that spreadsheets and editors write from a first line."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: UTF-16 text; save it as UTF-8")
    return line.removeprefix(codecs.BOM_UTF8)


def refuse_constant(name: str) -> float:
    """Refuse NaN and infinity, as the `parse_constant` of `json.loads`."""
    raise ValueError(f"{name} is not a JSON number")


def filled_field(row: JsonObject, name: str, path: str | Path, line: int) -> str:
    """A required text field that is not blank, such as an id or a claim."""
    value = text_field(row, name, path, line)
    if not value.strip():
        raise UserError(f"{path}, line {line}: field {name!r} is empty; fill it, or remove the row")
    return value


def text_field(row: JsonObject, name: str, path: str | Path, line: int) -> str:
    """A required text field; a whole number is accepted, since ids are often written as numbers."""
    if name not in row:
        raise UserError(f"{path}, line {line}: no field {name!r} (found: {', '.join(sorted(row)) or 'nothing'})")
    value = row[name]
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return check_text(str(value) if is_number else value, name, f"{path}, line {line}")


def check_text(value: object, name: str, where: str) -> str:
    """A field's value, which must be text.

    Args:
        value: The value.
        name: The field's name.
        where: Its file and line.

    Raises:
        UserError: The value has another type, or contains a lone surrogate, which UTF-8 cannot encode.
    """
    if not isinstance(value, str):
        raise UserError(f"{where}: field {name!r} should be text, found {type(value).__name__}")
    if not value.isascii() and value != without_surrogates(value):
        raise UserError(f"{where}: field {name!r} holds half a surrogate pair, which is no character")
    return value


class UniqueIds:
    """The ids of the rows read so far, to refuse duplicates."""

    def __init__(self) -> None:
        self._where: dict[str, str] = {}

    def add(self, item_id: str, where: str) -> None:
        """Add an id.

        Args:
            item_id: The id.
            where: File and line of its row.

        Raises:
            UserError: An earlier row has the same id.
        """
        if (first := self._where.setdefault(item_id, where)) != where:
            raise UserError(f"{where}: id {item_id!r} was used before, at {first}; ids must be unique")


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write a file atomically: a temporary file beside it, fsync, rename. A pipe or a device is written to as it is."""
    path = Path(path)
    payload = encode(data) if isinstance(data, str) else data
    try:
        if path.exists() and not path.is_dir() and (not path.is_file() or Path("/dev") in path.parents):
            path.write_bytes(payload)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = _begin(path)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(payload)
                stream.flush()
                os.fsync(stream.fileno())
                # mkstemp makes private files; a result should follow the user's umask like any other.
                umask = os.umask(0)
                os.umask(umask)
                unfinished.chmod(0o666 & ~umask)
                unfinished.replace(path)  # while it is locked
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
    except OSError as error:
        raise writing_failed(path, error) from None


def write_rows(path: str | Path, rows: Iterable[JsonObject]) -> None:
    """Write rows as JSON Lines, atomically."""
    write_atomic(path, "".join(dumps(row) + "\n" for row in rows))


def _begin(path: Path) -> tuple[int, Path]:
    """Create a temporary file for `path`, open and locked; the lock is released when the process ends."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
        with contextlib.suppress(OSError):  # some file systems have no locks; `sweep` leaves such files
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # another process swept it before it was locked


def sweep(folder: Path) -> None:
    """Remove temporary files of killed processes; files still being written are locked, and are kept."""
    for leftover in [*folder.rglob(f".*{_UNFINISHED}")]:
        with contextlib.suppress(OSError):
            handle = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(handle)


def write_json(path: str | Path, value: object) -> None:
    """Write indented JSON, atomically."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def read_json(path: str | Path) -> JsonObject:
    """Read one JSON object from a file.

    Raises:
        UserError: The file is missing, not JSON, or not an object.
    """
    value: JsonObject = read_value(path, dict, "object")
    return value


def read_value(path: str | Path, kind: type, name: str) -> Any:
    """Read a JSON value of one kind from a file; `name` is the kind's name in the error."""
    path = Path(path)
    try:
        value = json.loads(path.read_text("utf-8-sig"), parse_constant=refuse_constant)
    except OSError as error:
        raise reading_failed(path, error) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: expected a JSON {name}, found {type(value).__name__}")
    return value


def reading_failed(path: str | Path, error: Exception) -> UserError:
    """The error for a file that cannot be read."""
    return UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}")


@contextlib.contextmanager
def writing(path: str | Path, mend: str = "") -> Iterator[None]:
    """Turn the errors of a library that writes files into a UserError.

    Args:
        path: The file that is written.
        mend: Advice that is appended to the error.

    Raises:
        UserError: The file cannot be written, for example because the disk is full.
    """
    try:
        yield
    except Exception as error:  # safetensors and tokenizers raise their own types, with the OS error in the message
        if not isinstance(error, OSError) and not _OS_ERROR.search(str(error)):
            raise
        raise UserError(f"{writing_failed(path, error)}{mend}") from None


def writing_failed(path: str | Path, error: Exception) -> UserError:
    """The error for a file that cannot be written, with advice if the disk is full."""
    match = _OS_ERROR.search(str(error))
    number = int(match[1]) if match else getattr(error, "errno", None)
    if number is None and _SHORT_WRITE.search(str(error)):
        number = errno.ENOSPC
    reason = os.strerror(number) if number else error
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    mend = "; free some space and run the same command again, it continues where it stopped" if full else ""
    return UserError(f"cannot write {path}: {reason}{mend}")


def fingerprint(value: object) -> str:
    """sha256 of a JSON value, its keys sorted; 64 hex digits."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(encode(text)).hexdigest()


def file_fingerprint(paths: Iterable[str | Path]) -> str:
    """sha256 over the bytes of files, in the given order; 64 hex digits."""
    total = hashlib.sha256()
    for path in paths:
        try:
            with Path(path).open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise reading_failed(path, error) from None
    return total.hexdigest()
