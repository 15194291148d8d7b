"""Open, lock, describe, list and compare run folders; cache values and derive seeds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from sailkit.console import Ticker as Ticker  # noqa: PLC0414 - stages take these from here
from sailkit.console import notice as notice  # noqa: PLC0414
from sailkit.console import progress as progress  # noqa: PLC0414
from sailkit.distributed import Processes
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.provenance import environment as environment  # noqa: PLC0414

MANIFEST = "manifest.json"
METRICS = "metrics.json"  # figures of a finished run; written last
LOCK = ".lock"
_MANIFEST_KEYS = {"stage", "fingerprint", "settings", "environment"}


class Run:
    """An open run folder, locked against a second process.

    Attributes:
        folder: The run's folder.
        manifest: `settings` determines the results, `environment` is informative.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    def path(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.folder / name

    @property
    def identity(self) -> str:
        """The id of the run for experiment trackers: 16 hex digits of its initial manifest."""
        return jsonl.fingerprint({k: v for k, v in self.manifest.items() if k in _MANIFEST_KEYS})[:16]

    def describe(self, key: str, value: dict[str, Any]) -> None:
        """Add an informative description to the manifest that is known only after the start.

        The first description is kept. If that of a resumed run differs, for example on another machine, the
        differences are written as `KEY_when_resumed`.

        Args:
            key: The key in the manifest.
            value: A JSON value.
        """
        before = self.manifest.setdefault(key, value)
        if changes := list(differences(before, value)):
            self.manifest[f"{key}_when_resumed"] = changes
        jsonl.write_json(self.path(MANIFEST), self.manifest)


@contextlib.contextmanager
def open_run(folder: str | Path, stage: str, settings: dict[str, Any], wait: float = 0) -> Iterator[Run]:
    """Open a run folder for writing, to begin or to continue a run.

    Args:
        folder: The run's folder; created if absent.
        stage: The verb that runs.
        settings: Everything that affects the results; a run is continued only with equal settings.
        wait: Seconds to wait for another process that holds the lock.

    Yields:
        The locked run.

    Raises:
        UserError: Another process holds the lock, the folder belongs to another run (differing settings are
            named), or it is not a run folder.
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


@contextlib.contextmanager
def open_shared_run(
    processes: Processes, folder: str | Path, stage: str, settings: dict[str, Any], wait: float = 0
) -> Iterator[Run]:
    """Open a run folder in the main process, which holds its lock for all; see `open_run`.

    Yields:
        The run; in the other processes it has no manifest, and its folder may be on another machine.

    Raises:
        UserError: The processes have different settings, or the folder cannot be opened.
    """
    processes.raise_if_different(settings)
    with contextlib.ExitStack() as stack:
        run = Run(Path(folder), {})
        with processes.raise_together():
            if processes.is_main:
                run = stack.enter_context(open_run(folder, stage, settings, wait))
        yield run


def _continue_or_begin(folder: Path, stage: str, settings: dict[str, Any]) -> dict[str, Any]:
    # As it will be read back: tuples are lists, and numpy's integers are Python's.
    settings = json.loads(json.dumps(settings, allow_nan=False, default=operator.index))
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        if manifest["stage"] != stage:
            raise UserError(f"{folder} holds a run of {manifest['stage']!r}, not {stage!r}; choose another `out`")
        if what := "; ".join(differences(manifest["settings"], settings)):
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


def differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    """The values that differ between two nested dictionaries, as `a.b: 1 there, 2 now`."""
    if isinstance(there, dict) and isinstance(now, dict):
        for key in {**there, **now}:
            yield from differences(there.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif there != now:
        yield f"{name}: {_short(there)} there, {_short(now)} now"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def read_manifest(folder: str | Path, *stages: str) -> dict[str, Any]:
    """Read the manifest of a run folder.

    Args:
        folder: The run folder.
        stages: The stages that the run may be of; none accepts all.

    Raises:
        UserError: The folder has no manifest of a run, or one of another stage.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise UserError(f"{folder} is not a run folder: it has no {MANIFEST}")
    manifest = jsonl.read_json(path)
    if not manifest.keys() >= _MANIFEST_KEYS:
        raise UserError(f"{folder} is not a run folder: its {MANIFEST} is another program's")
    if stages and manifest["stage"] not in stages:
        raise UserError(f"{folder} holds a run of {manifest['stage']!r}, not of {' or '.join(map(repr, stages))}")
    return manifest


def read_finished(folder: str | Path, file: str, *stages: str) -> dict[str, Any]:
    """Read the manifest of a finished run; see `read_manifest`.

    Args:
        folder: The run folder.
        file: The file that the stage writes last.
        stages: The stages that the run may be of; none accepts all.

    Raises:
        UserError: The folder has no manifest of a run, one of another stage, or no such file.
    """
    manifest = read_manifest(folder, *stages)
    if not (Path(folder) / file).exists():
        raise not_finished(folder, manifest["stage"])
    return manifest


def not_finished(folder: str | Path, stage: str, missing: str = "") -> UserError:
    """The error for a run that has not finished; `missing` says in parentheses what it lacks."""
    return UserError(
        f"{folder} is not finished{missing}; run the same  sailkit {stage}  again, it continues where it stopped"
    )


def setting_of(folder: str | Path, *keys: str) -> Any:
    """A setting of the run in a folder, by its nested keys; None without a run or such a setting."""
    value: Any = None
    if (Path(folder) / MANIFEST).exists():
        value = read_manifest(folder)["settings"]
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def find_runs(folder: str | Path) -> list[Path]:
    """Run folders at or below a folder, sorted; a manifest.json of another program is skipped."""
    folders = []
    for path in sorted(Path(folder).rglob(MANIFEST)):
        with contextlib.suppress(UserError):
            read_manifest(path.parent)
            folders.append(path.parent)
    return folders


@dataclass(frozen=True)
class RunSummary:
    """A run in a list of runs; fields without a setting are None."""

    folder: str
    stage: str
    model: Any
    task: Any
    protocol: Any
    wording: Any
    answer: Any
    started_at: str


@dataclass(frozen=True)
class RunList:
    """Runs, sorted by folder within each searched folder."""

    runs: tuple[RunSummary, ...]

    def to_json(self) -> dict[str, Any]:
        """As `--json` writes it."""
        return {"runs": [asdict(run) for run in self.runs]}


@dataclass(frozen=True)
class RunDifference:
    """How two runs differ.

    Attributes:
        names: The two run folders.
        differences: Setting, or `version of PACKAGE` -> its value in each run; None if a run does not have it.
    """

    names: tuple[str, str]
    differences: dict[str, tuple[Any, Any]]

    def to_json(self) -> dict[str, Any]:
        """As `--json` writes it."""
        differences = {name: list(values) for name, values in self.differences.items()}
        return {"names": list(self.names), "differences": differences}


def overview(*folders: Path) -> RunList | RunDifference:
    """List runs, or show how two of them differ.

    Args:
        folders: Folders to search (`runs` by default), or two run folders whose settings to compare.

    Returns:
        A summary of each run; or the settings in which two runs differ, with both values.

    Raises:
        UserError: A folder does not exist.
    """
    if not folders and not Path("runs").is_dir():
        raise UserError("no folder runs here; name the folder of your runs")
    folders = folders or (Path("runs"),)
    if len(folders) == 2 and all((folder / MANIFEST).exists() for folder in folders):
        return _compare(*folders)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}")
    return RunList(tuple(_summary(run) for folder in folders for run in find_runs(folder)))


def _compare(first: Path, second: Path) -> RunDifference:
    values = []
    for manifest in (read_manifest(first), read_manifest(second)):
        versions = {f"version of {name}": version for name, version in manifest["environment"]["versions"].items()}
        values.append({**manifest["settings"], **versions})
    pairs = {name: (values[0].get(name), values[1].get(name)) for name in {**values[0], **values[1]}}
    differences = {name: (ours, theirs) for name, (ours, theirs) in pairs.items() if ours != theirs}
    return RunDifference((str(first), str(second)), differences)


def _summary(folder: Path) -> RunSummary:
    manifest = read_manifest(folder)
    settings = {name: manifest["settings"].get(name) for name in ("model", "task", "protocol", "wording", "answer")}
    started_at = manifest["environment"]["started_at"]
    return RunSummary(folder=str(folder), stage=manifest["stage"], **settings, started_at=started_at)


class Cache:
    """A cache of values by the hash of everything that affects them, one file each; safe to share and to delete."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, key: dict[str, Any]) -> Any:
        """Return the stored value, or None; damaged entries count as missing."""
        try:
            return json.loads(self._path(key).read_text("utf-8"))["value"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: dict[str, Any], value: object) -> None:
        """Store a value together with its key, to make entries readable for people."""
        jsonl.write_atomic(self._path(key), json.dumps({"key": key, "value": value}, ensure_ascii=False))

    def _path(self, key: dict[str, Any]) -> Path:
        digest = jsonl.fingerprint(key)
        return self.folder / digest[:2] / f"{digest}.json"


def cache_folder() -> Path:
    """The folder for values that can be recomputed: `SAILKIT_CACHE`, or else in the user's cache folder."""
    if folder := os.environ.get("SAILKIT_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sailkit"


def seed_for(seed: int, purpose: str, item: str = "") -> int:
    """Derive a 64-bit seed from the run's seed, a purpose and an item's id, independent of order and shards."""
    return int.from_bytes(hashlib.sha256(f"{seed}\x00{purpose}\x00{item}".encode()).digest()[:8], "big")
