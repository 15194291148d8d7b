"""A log of batches: resumed with the same bytes however a run was stopped, and whole batches only."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.batch_log import BatchLog, write_batches

PLAN = [[f"batch {b}, row {r}" for r in range(1 + b % 3)] for b in range(12)]
# Appends every batch of the plan that is not yet there; rows are long, so that a batch takes several writes.
WRITER = """
import json, sys, time
from pathlib import Path
from sailkit import runs
from sailkit.files.batch_log import BatchLog
folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
with runs.open_run(folder, "test", {"n": sum(map(len, plan))}) as run:
    log = BatchLog(run.path("rows.jsonl"), plan)
    print("open", flush=True)
    for batch in plan[log.done:]:
        log.append([{"id": item, "text": item * 500} for item in batch])
        time.sleep(0.005)  # so that a busy machine can still kill it on its way
    log.close()
"""


def rows_of(batch: list[str]) -> list[dict[str, str]]:
    return [{"id": item, "text": f"é {item}"} for item in batch]


def write_all(path: Path, plan: list[list[str]] = PLAN) -> BatchLog:
    log = BatchLog(path, plan)
    for batch in plan[log.done :]:
        log.append(rows_of(batch))
    log.close()
    return log


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


@given(st.data())
def test_a_log_cut_anywhere_ends_with_the_same_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("log") / "rows.jsonl"
    write_all(path)
    whole = path.read_bytes()
    size = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:size])
    log = BatchLog(path, PLAN)
    log.close()
    kept = path.read_bytes()
    assert whole.startswith(kept)
    assert kept.count(b"\n") == log.rows_done == sum(map(len, PLAN[: log.done]))
    following = "".join(jsonl.dumps(row) + "\n" for row in rows_of(PLAN[log.done])) if log.done < len(PLAN) else "\n"
    assert size < len(kept) + len(following.encode()), "a whole batch was thrown away"
    write_all(path)
    assert path.read_bytes() == whole


def test_a_log_that_is_whole_stays_so(tmp_path):
    write_all(tmp_path / "rows.jsonl")
    before = (tmp_path / "rows.jsonl").read_bytes()
    os.utime(tmp_path / "rows.jsonl", (0, 0))
    assert write_all(tmp_path / "rows.jsonl").done == len(PLAN)
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    assert (tmp_path / "rows.jsonl").stat().st_mtime == 0, "who reads the run would take it for another"


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (b'{"id": "batch 1, ro\n', "line 3: damaged; remove the run folder to start again"),
        (b"\x00\x00\xff\n", "line 3: damaged"),
        (b"[]\n", "line 3: damaged"),
        (b'{"id": "another"}\n', "line 3: found id 'another' where 'batch 1, row 1' was planned"),
    ],
)
def test_a_row_that_was_not_planned_is_named_and_kept(tmp_path, bad, complaint):
    path = tmp_path / "rows.jsonl"
    write_all(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = bad
    path.write_bytes(b"".join(lines))
    with pytest.raises(UserError) as caught:
        BatchLog(path, PLAN)
    assert f"{path}, {complaint}" in str(caught.value)
    assert path.read_bytes() == b"".join(lines)


def test_a_process_killed_at_any_moment_is_continued_to_the_same_bytes(tmp_path):
    plan = [[f"{b}-{r}" for r in range(1 + b % 7)] for b in range(150)]
    arguments = json.dumps(plan)
    with python(WRITER, str(tmp_path / "whole"), arguments) as process:
        assert process.wait() == 0
    whole = (tmp_path / "whole" / "rows.jsonl").read_bytes()
    rows = tmp_path / "killed" / "rows.jsonl"
    moments = random.Random(0)
    killed = set()
    for part in range(6):
        enough = moments.uniform(part, part + 1) / 7 * len(whole)
        with python(WRITER, str(tmp_path / "killed"), arguments) as process:
            process.stdout.readline()
            while rows.stat().st_size < enough:
                assert process.poll() is None, "it ended, or failed, before it was killed"
                time.sleep(0.0005)
            process.send_signal(signal.SIGKILL)
        killed.add(rows.read_bytes())
    assert len(killed) > 2, "the kills came at no different moments"
    assert all(whole.startswith(some) for some in killed)
    with python(WRITER, str(tmp_path / "killed"), arguments) as process:
        assert process.wait() == 0
    assert rows.read_bytes() == whole


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small file system needs root on Linux; a limit on file size stands in for it below")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_whole_batches_and_the_run_completes_later(tmp_path, small_disk):
    plan = [[f"{b}-{r}" for r in range(8)] for b in range(30)]
    text = "x" * 700
    (small_disk / "other").write_bytes(b"\0" * 20_000)

    def append_all(path: Path) -> None:
        log = BatchLog(path, plan)
        try:
            for batch in plan[log.done :]:
                log.append([{"id": item, "text": text} for item in batch])
        finally:
            log.close()

    append_all(tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    path = small_disk / "rows.jsonl"
    for _ in range(2):  # the second time there is no more room than the first
        with pytest.raises(UserError) as caught:
            append_all(path)
        assert str(caught.value) == (
            f"cannot write {path}: No space left on device; "
            "free some space and run the same command again, it continues where it stopped"
        )
        kept = path.read_bytes()
        assert whole.startswith(kept)
        assert kept.count(b"\n") % 8 == 0
        assert 0 < len(kept) < len(whole)
    with pytest.raises(UserError, match="No space left"):
        jsonl.write_json(small_disk / "metrics.json", text * 200)
    assert sorted(p.name for p in small_disk.iterdir()) == ["other", "rows.jsonl"]
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    append_all(path)
    assert path.read_bytes() == whole


def test_a_file_that_may_not_grow_keeps_whole_batches(tmp_path):
    """The same without root: a limit on the size of files stands in for the full disk."""
    plan = json.dumps([[f"{b}-{r}" for r in range(8)] for b in range(20)])

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, resource.RLIM_INFINITY))

    def run(folder: Path, before=None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WRITER, str(folder), plan]
        return subprocess.run(command, check=False, preexec_fn=before, capture_output=True, text=True)

    assert run(tmp_path / "whole").returncode == 0
    whole = (tmp_path / "whole" / "rows.jsonl").read_bytes()
    failed = run(tmp_path / "short", limit)
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("sailkit.errors.UserError: cannot write")
    assert last.endswith("free some space and run the same command again, it continues where it stopped")
    kept = (tmp_path / "short" / "rows.jsonl").read_bytes()
    assert whole.startswith(kept)
    assert kept.count(b"\n") % 8 == 0
    assert 0 < len(kept) <= 70_000
    assert run(tmp_path / "short").returncode == 0
    assert (tmp_path / "short" / "rows.jsonl").read_bytes() == whole


def test_a_row_with_half_a_surrogate_pair_is_logged(tmp_path):
    log = BatchLog(tmp_path / "rows.jsonl", [["a"]])
    log.append([{"id": "a", "raw_output": "\ud83d"}])
    log.close()
    assert list(jsonl.read_rows(tmp_path / "rows.jsonl")) == [(1, {"id": "a", "raw_output": "\ud83d"})]


def test_only_the_remaining_batches_are_computed(tmp_path):
    path = tmp_path / "rows.jsonl"
    computed: list[list[str]] = []

    def compute(batches):
        for batch in batches:
            computed.append(batch)
            if len(computed) == 5:
                raise UserError("the server went away")
            yield rows_of(batch)

    with pytest.raises(UserError, match="went away"):
        write_batches(path, PLAN, str, compute, "testing")
    assert path.read_bytes().count(b"\n") == sum(map(len, PLAN[:4]))
    assert write_batches(path, PLAN, str, compute, "testing") == sum(map(len, PLAN[:4]))
    assert computed == [*PLAN[:5], *PLAN[4:]]
    write_all(tmp_path / "whole.jsonl")
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_every_batch_needs_its_rows(tmp_path):
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        write_batches(tmp_path / "rows.jsonl", PLAN, str, lambda batches: (rows_of(b) for b in batches[:1]), "testing")
