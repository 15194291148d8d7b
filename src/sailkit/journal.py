"""Record in `pipeline.json` which steps of a pipeline have finished, by fingerprint."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.rendering.model import Block, Bullets, Cell, Group, Headline, Report, Row, Table, Text, short
from sailkit.rendering.result import Result, to_json
from sailkit.steps.recipe import Step, dependents

JOURNAL = "pipeline.json"
State = Literal["new", "finished", "interrupted", "changed", "again"]
_NOT_CONTINUED = ("merge",)  # verbs that write a whole folder at once, and refuse one that exists


@dataclass(frozen=True)
class StepRun:
    """The state of a step.

    Attributes:
        name: Name of the step.
        command: The step as a command line.
        folder: Its output folder; None for a stage that only prints.
        state: `new`; `finished`; `interrupted` (continues); `changed` since it ran; `again` (requested by the user).
        seconds: Duration of the last finished run; None if it never finished.
        bytes: Size of its folder.
        verdict: What the result says in one line, if it has a verdict.
        result: The stage's result as JSON; None if it has not finished.
        estimate: In a dry run, the stage's own estimate of memory and time, if it has one and its inputs exist.
    """

    name: str
    command: str
    folder: str | None
    state: State
    seconds: float | None = None
    bytes: int = 0
    verdict: str = ""
    result: Any = None
    estimate: Any = None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @property
    def time(self) -> str | None:
        """Duration in words."""
        if self.seconds is None:
            return None
        return f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.0f} min"

    @property
    def size(self) -> str | None:
        """Size of its folder in words."""
        if not self.bytes:
            return None
        return f"{self.bytes / 1e6:.1f} MB" if self.bytes >= 1e5 else f"{self.bytes / 1e3:.1f} kB"


@dataclass(frozen=True)
class PipelineRun(Result):
    """The result of a pipeline, or its plan in a dry run.

    Attributes:
        folder: The pipeline's folder, with a subfolder for each step.
        steps: Every step with its state, command, time and result.
        dry_run: Whether this is a plan.
        again: Whether steps were run again that had not changed (`--from`).
    """

    folder: Path
    steps: tuple[StepRun, ...]
    dry_run: bool = False
    again: bool = False

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        steps = [step.to_json() for step in self.steps]
        unfinished = {} if self.unfinished is None else {"unfinished": self.unfinished}
        return {"folder": str(self.folder), "dry_run": self.dry_run, "steps": steps, **unfinished}

    @property
    def unfinished(self) -> str | None:
        """The step that did not finish, in words; None if all did."""
        last = self.steps[-1] if self.steps and not self.dry_run else None
        stopped = last is not None and last.state == "interrupted"
        without = " without --from" if self.again else ""
        return f"step {last.name}; the same command{without} continues it" if last and stopped else None

    def report(self) -> Report:
        """A table with a row for each step; in a dry run with its command and estimate."""
        rows = [Row(step.name, [Cell(step.state), Cell(step.time), Cell(step.size)]) for step in self.steps]
        blocks: list[Block] = [Table(("state", "time", "size"), [Group("", rows)])]
        blocks.append(Bullets([(step.name, f" {step.verdict}") for step in self.steps if step.verdict]))
        if self.dry_run:
            blocks.append(Bullets([(step.name, " " + step.command) for step in self.steps]))
            blocks += [Text(f"{step.name}: {_needs(step.estimate)}") for step in self.steps if step.estimate]
        return short(str(self.folder), "what would run" if self.dry_run else "a pipeline", *blocks)


def _verdict(result: Result) -> str:
    """The sentences in which a result's report states a verdict."""
    blocks = (block for section in result.report().sections for block in section.blocks)
    return "; ".join(block.text for block in blocks if isinstance(block, Headline))


def _needs(estimate: Mapping[str, Any]) -> str:
    """Describe the estimate of a step."""
    if "missing" in estimate and isinstance(estimate["missing"], list):
        return f"missing: {', '.join(estimate['missing'])}"
    if "not_yet" in estimate:
        return f"can be estimated when earlier steps have finished ({estimate['not_yet']})"
    named = {
        "rows": "{:,} rows",
        "tokens_in_all": "{:,} tokens",
        "steps": "{:,} training steps",
        "seconds": "{:,.0f} s",
    }
    words = [form.format(estimate[name]) for name, form in named.items() if estimate.get(name)]
    if memory := estimate.get("memory"):
        words.append(f"{memory['total'] / 1e9:.1f} GB of memory for a step")
    return ", ".join(words)


class Journal:
    """The record of the steps that ran in a pipeline's folder, locked against a second process."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self.steps: dict[str, dict[str, Any]] = {}
        self._lock = None if read_only else filelock.FileLock(folder / runs.LOCK)

    def __enter__(self) -> Journal:
        try:
            self._read()  # fails before anything is locked or written
            foreign = self.folder.is_dir() and not self.path.is_file()
            unfinished = f".{self.path.name}."  # the name of a file whose writing was killed begins with it
            entries = self.folder.iterdir() if foreign else ()
            others = any(entry.name != runs.LOCK and not entry.name.startswith(unfinished) for entry in entries)
            if others or self.folder.is_file():
                raise UserError(f"{self.folder} exists and is not a pipeline folder; choose another `out`")
            if self._lock:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{self.folder} is in use by another sailkit process; wait for it") from None
        except OSError as error:
            raise jsonl.writing_failed(self.folder, error) from None
        self.steps = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock:
            self._lock.release()

    def _read(self) -> dict[str, dict[str, Any]]:
        steps = jsonl.read_json(self.path).get("steps") if self.path.is_file() else {}
        if not isinstance(steps, dict):
            raise UserError(f"{self.path} was not written by sailkit; choose another `out`")
        return steps

    def look_up(self, step: Step, again: bool) -> StepRun:
        """Determine the state of a step."""
        entry = self.steps.get(step.name, {})
        exists = step.folder is None or step.folder.exists()
        state: State
        if again or entry.get("again"):
            state = "again"
        elif not entry or not exists:
            state = "new"
        elif entry["fingerprint"] != step.fingerprint:
            state = "changed"
        else:
            state = "finished" if entry["finished"] else "interrupted"
        files = step.folder.rglob("*") if step.folder else ()
        size = sum(file.stat().st_size for file in files if file.is_file())
        result, verdict = (entry.get("result"), entry.get("verdict", "")) if state == "finished" else (None, "")
        folder = str(step.folder) if step.folder else None
        return StepRun(step.name, step.command, folder, state, entry.get("seconds"), size, verdict, result)

    def run_again(self, steps: Sequence[Step]) -> None:
        """Record that all these steps must run again, even if the pipeline stops before it reaches them."""
        for step in steps:
            if entry := self.steps.get(step.name):
                entry["again"] = True
        if self._lock and steps:
            jsonl.write_json(self.path, {"steps": self.steps})

    def notice_lost(self, steps: Sequence[Step]) -> None:
        """Let what read a folder that is gone run again: what replaces it may have another content."""
        lost = [step for step in steps if step.name in self.steps and step.folder and not step.folder.exists()]
        self.run_again([step for step in dependents(steps, lost) if step not in lost])

    @contextlib.contextmanager
    def begin(self, step: Step, step_run: StepRun) -> Iterator[None]:
        """Record the start of a step; output that it does not continue is moved to `earlier`, never deleted.

        A step that is refused before it writes anything leaves all as it was: its arguments may have a typo.
        """
        entry, kept = self.steps.get(step.name), None
        killed_at_its_end = step_run.state == "interrupted" and step.verb in _NOT_CONTINUED
        replaced = step_run.state in ("changed", "again") or killed_at_its_end
        if entry and step.folder and step.folder.exists() and replaced:
            version = f"{step.name}-{entry['fingerprint'][:8]}-{time.strftime('%Y%m%d-%H%M%S')}"
            earlier = self.folder / "earlier"
            earlier.mkdir(exist_ok=True)
            names = itertools.chain([version], (f"{version}-{number}" for number in itertools.count(2)))
            kept = step.folder.rename(next(earlier / name for name in names if not (earlier / name).exists()))
        seconds = entry and entry.get("seconds")
        self._write(step, {"fingerprint": step.fingerprint, "finished": False, "seconds": seconds})
        try:
            yield
        except BaseException:
            if entry and not (step.folder and step.folder.exists()):
                if kept and step.folder:
                    kept.rename(step.folder)
                self._write(step, entry)
            raise

    def finish(self, step: Step, seconds: float, result: Any) -> StepRun:
        """Record the end of a step, with the result of its stage."""
        verdict = _verdict(result) if isinstance(result, Result) else ""
        result = to_json(result)
        finished = not (isinstance(result, dict) and result.get("unfinished"))
        ran = {"fingerprint": step.fingerprint, "finished": finished, "seconds": round(seconds, 1)}
        self._write(step, {**ran, "verdict": verdict, "result": result})
        return self.look_up(step, again=False)

    def _write(self, step: Step, entry: dict[str, Any]) -> None:
        self.steps.pop(step.name, None)  # the step that started last is the last in the file
        self.steps[step.name] = {"command": step.command, **entry}
        self.folder.mkdir(parents=True, exist_ok=True)
        jsonl.write_json(self.path, {"steps": self.steps})


@contextlib.contextmanager
def continued_without(from_: str | None) -> Iterator[None]:
    """A step that is stopped or fails under `--from` is continued without it; with it, it would begin again."""
    if from_ is None:
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command without --from continues; with it the steps begin again") from None
    except UserError as error:
        advice = "without `from` the command continues the step, with it the step begins again"
        raise UserError(f"{error} ({advice})") from None
