"""A run folder: manifest, lock, resumable output, cache, seeds and progress; written once, used by every stage."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from sailkit import __version__
from sailkit.console import Ticker as Ticker  # noqa: PLC0414 - stages take these from here
from sailkit.console import notice as notice  # noqa: PLC0414
from sailkit.console import progress as progress  # noqa: PLC0414
from sailkit.errors import UserError
from sailkit.files import jsonl

MANIFEST = "manifest.json"
METRICS = "metrics.json"  # the figures of a finished run; written last
LOCK = ".lock"
_MANIFEST_KEYS = {"stage", "fingerprint", "settings", "environment"}
_PACKAGES = (
    *("torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "openai"),
    *("numpy", "scikit-learn"),
)


class Run:
    """An open run folder, locked against a second process.

    Attributes:
        folder: Where the run keeps its files.
        manifest: What was asked and on what; `settings` decides the values, `environment` describes.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    def path(self, name: str) -> Path:
        """A file of this run."""
        return self.folder / name

    @property
    def identity(self) -> str:
        """What trackers know the run by: 16 hex digits of how it began."""
        return jsonl.fingerprint({k: v for k, v in self.manifest.items() if k in _MANIFEST_KEYS})[:16]

    def describe(self, key: str, value: dict[str, Any]) -> None:
        """Add to the manifest what shows only when the run has started; it describes, and decides nothing.

        What was there first is kept. A start that differs, such as on another machine, adds how to
        `KEY_when_resumed`.

        Args:
            key: Of the manifest.
            value: What JSON can hold.
        """
        before = self.manifest.setdefault(key, value)
        if changes := list(_differences(before, value)):
            self.manifest[f"{key}_when_resumed"] = changes
        jsonl.write_json(self.path(MANIFEST), self.manifest)


@contextlib.contextmanager
def open_run(folder: str | Path, stage: str, settings: dict[str, Any], wait: float = 0) -> Iterator[Run]:
    """Open a run folder for writing, new or to be continued.

    Args:
        folder: The run's folder; made if absent.
        stage: The verb that runs.
        settings: Everything that decides the values; a run continues only if all of it is the same.
        wait: Seconds to wait for another process that holds the folder.

    Yields:
        The locked run.

    Raises:
        UserError: Another process holds the folder, it belongs to another run (the settings that differ are
            named), or it holds something else.
    """
    folder = Path(folder)
    try:
        # A typo in --out must not adopt, or write into, a folder of something else.
        foreign = folder.is_dir() and not (folder / MANIFEST).exists()
        if foreign and any(
            entry.name != LOCK and not entry.name.startswith(f".{MANIFEST}") for entry in folder.iterdir()
        ):
            raise UserError(f"{folder} exists and is not a run folder; choose another `out`")
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        lock.acquire(timeout=wait)
    except filelock.Timeout:
        raise UserError(f"{folder} is in use by another sailkit process; wait for it or choose another `out`") from None
    except OSError as error:
        raise jsonl.writing_failed(folder, error) from None
    try:
        jsonl.sweep(folder)
        yield Run(folder, _continue_or_begin(folder, stage, settings))
    finally:
        lock.release()


def _continue_or_begin(folder: Path, stage: str, settings: dict[str, Any]) -> dict[str, Any]:
    settings = json.loads(jsonl.dumps(settings))  # as it will be read back: tuples are lists
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        if manifest["stage"] != stage:
            raise UserError(f"{folder} holds a run of {manifest['stage']!r}, not {stage!r}; choose another `out`")
        if what := "; ".join(_differences(manifest["settings"], settings)):
            raise UserError(f"{folder} holds another run ({what}); choose another `out` or the same settings")
        return manifest
    manifest = {
        "stage": stage,
        "fingerprint": jsonl.fingerprint(settings),
        "settings": settings,
        "environment": environment(),
    }
    jsonl.write_json(folder / MANIFEST, manifest)
    return manifest


def _differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(now, dict):
        for key in {**there, **now}:
            yield from _differences(there.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif there != now:
        yield f"{name}: {_short(there)} there, {_short(now)} now"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        UserError: The folder has none, or one that is not a run's.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise UserError(f"{folder} is not a run folder: it has no {MANIFEST}")
    manifest = jsonl.read_json(path)
    if not manifest.keys() >= _MANIFEST_KEYS:
        raise UserError(f"{folder} is not a run folder: its {MANIFEST} is another program's")
    return manifest


def setting_of(folder: str | Path, *keys: str) -> Any:
    """A setting of the run in a folder, by its nested keys; None where there is no run yet, or no such setting."""
    found: Any = None
    if (Path(folder) / MANIFEST).exists():
        found = read_manifest(folder)["settings"]
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
    return found


def find_runs(folder: str | Path) -> list[Path]:
    """Run folders at or below a folder, by name; other programs keep a manifest.json too, and are passed over."""
    found = []
    for path in sorted(Path(folder).rglob(MANIFEST)):
        with contextlib.suppress(UserError):
            read_manifest(path.parent)
            found.append(path.parent)
    return found


def overview(*folders: Path) -> dict[str, Any]:
    """List runs, or show how two of them differ.

    Args:
        folders: Where to look (the folder `runs` by default); two run folders, to compare their settings.

    Returns:
        `runs`, a row each; or `differences`, the two values of each setting that differs.
    """
    places = folders or (Path("runs"),)
    if len(places) == 2 and all((place / MANIFEST).exists() for place in places):
        first, second = (read_manifest(place) for place in places)
        flat = [
            {**m["settings"], **{f"version of {k}": v for k, v in m["environment"]["versions"].items()}}
            for m in (first, second)
        ]
        differ = {
            k: [flat[0].get(k), flat[1].get(k)] for k in {**flat[0], **flat[1]} if flat[0].get(k) != flat[1].get(k)
        }
        return {"names": [str(place) for place in places], "differences": differ}
    rows = []
    for place in places:
        if not place.is_dir():
            raise UserError(f"no folder {place}")
        for folder in find_runs(place):
            manifest = read_manifest(folder)
            shown = {k: manifest["settings"].get(k) for k in ("model", "task", "protocol", "wording", "answer")}
            started = manifest["environment"]["started_at"]
            rows.append({"folder": str(folder), "stage": manifest["stage"], **shown, "started_at": started})
    return {"runs": rows}


def environment() -> dict[str, Any]:
    """Versions, platform and git revision; described in the manifest, deciding nothing."""
    versions = {"sailkit": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "git_revision": _git_revision(),
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _git_revision() -> str | None:
    """The revision of the user's own checkout, marked where it has uncommitted changes."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return None


class BatchLog:
    """An append-only JSON Lines file that is its own checkpoint.

    Rows arrive in planned batches. A killed run leaves complete batches and at most one torn one; the torn one
    is cut off and computed again as a whole, because a row's low bits depend on the batch it was computed in.
    """

    def __init__(self, path: Path, plan: Sequence[Sequence[str]]) -> None:
        """Read what is there and cut it back to whole batches.

        Args:
            path: The file; need not exist.
            plan: Ids of every batch, in the order in which they are written.

        Raises:
            UserError: The rows there are not the first rows of this plan.
        """
        self.path = path
        self.done = 0
        self.rows_done = 0
        self._size = 0
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        except OSError as error:
            raise jsonl.reading_failed(path, error) from None
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        for batch in plan:
            part = lines[self.rows_done : self.rows_done + len(batch)]
            for offset, (line, expected) in enumerate(zip(part, batch, strict=False)):
                number = self.rows_done + offset + 1
                try:
                    found = json.loads(line)["id"]
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path}, line {number}: damaged; remove the run folder to start again") from None
                if found != expected:
                    raise UserError(f"{path}, line {number}: found id {found!r} where {expected!r} was planned")
            if len(part) < len(batch):
                break
            self.done += 1
            self.rows_done += len(batch)
            self._size += sum(map(len, part))
        try:
            self._stream = path.open("ab")
            self._stream.truncate(self._size)
        except OSError as error:
            raise jsonl.writing_failed(path, error) from None

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write one batch through to the disk; on failure the file keeps its whole batches only."""
        data = jsonl.encode("".join(jsonl.dumps(row) + "\n" for row in rows))
        try:
            self._stream.write(data)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            # Closed first: a stream that is closed later writes what its buffer still holds into the space just freed.
            self.close()
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._size)
            raise jsonl.writing_failed(self.path, error) from None
        self._size += len(data)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._stream.close()


class Cache:
    """Values by the hash of everything that decided them, each an atomic file; safe to share and to delete."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, key: dict[str, Any]) -> Any:
        """The stored value, or None; a damaged entry counts as absent."""
        try:
            return json.loads(self._path(key).read_text("utf-8"))["value"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: dict[str, Any], value: object) -> None:
        """Store a value with its key beside it, so that an entry can be read by a person."""
        jsonl.write_atomic(self._path(key), json.dumps({"key": key, "value": value}, ensure_ascii=False))

    def _path(self, key: dict[str, Any]) -> Path:
        digest = jsonl.fingerprint(key)
        return self.folder / digest[:2] / f"{digest}.json"


def cache_folder() -> Path:
    """Where sailkit keeps what can be made again: `SAILKIT_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("SAILKIT_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sailkit"


def seed_for(seed: int, purpose: str, item: str = "") -> int:
    """A 64-bit seed from the run's seed, a purpose and an item's id, so that order and shards change nothing."""
    return int.from_bytes(hashlib.sha256(f"{seed}\x00{purpose}\x00{item}".encode()).digest()[:8], "big")
