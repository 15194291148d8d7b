"""A run folder: one process at a time, one set of settings, and the same bytes however often it was stopped."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sailkit import runs
from sailkit.cli import main
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.runs import Cache, open_run, seed_for


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def settings_of(folder: Path, stage: str = "test", **settings: object) -> dict[str, object]:
    with open_run(folder, stage, settings) as run:
        return run.manifest["settings"]


def test_a_second_process_is_refused_and_a_dead_one_is_forgotten(tmp_path):
    holder = "import sys, time\nfrom sailkit import runs\n"
    holder += 'with runs.open_run(sys.argv[1], "test", {}):\n    print("open", flush=True)\n    time.sleep(60)'
    with python(holder, str(tmp_path / "run")) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(UserError, match="is in use by another sailkit process"):
            settings_of(tmp_path / "run")
        process.kill()
    assert settings_of(tmp_path / "run") == {}


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), open_run(tmp_path, "test", {}):
        raise RuntimeError
    assert settings_of(tmp_path) == {}


def test_a_run_goes_on_with_the_same_settings_only(tmp_path):
    folder = tmp_path / "run"
    first = {"model": "small", "seed": 1, "labels": ("a", "b")}
    settings_of(folder, **first)
    before = (folder / "manifest.json").read_bytes()
    assert settings_of(folder, **first) == {**first, "labels": ["a", "b"]}
    with pytest.raises(UserError) as caught:
        settings_of(folder, model="large", labels=("a", "b"), data="x" * 100)
    message = str(caught.value)
    assert 'model: "small" there, "large" now; seed: 1 there, null now; data: null there, "xxx' in message
    assert "labels" not in message
    assert len(message) < 300
    with pytest.raises(UserError, match="holds a run of 'test', not 'other'"):
        settings_of(folder, "other", **first)
    assert (folder / "manifest.json").read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear to somebody")
    with pytest.raises(UserError, match="exists and is not a run folder"):
        settings_of(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(UserError, match=r"is not a run folder: its manifest\.json is another program's"):
        settings_of(tmp_path)
    with pytest.raises(UserError, match="File exists"):
        settings_of(tmp_path / "thesis.tex")
    assert {p.name for p in tmp_path.iterdir()} <= {"thesis.tex", "manifest.json", ".lock"}


def test_a_run_killed_before_its_manifest_can_begin_again(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".manifest.json.abc123").write_text("{")
    assert settings_of(tmp_path, n=1) == {"n": 1}


def test_the_cache_keeps_a_value_under_everything_that_decided_it(tmp_path):
    cache, key = Cache(tmp_path), {"model": "m", "revision": 1, "input": "é"}
    assert cache.get(key) is None
    cache.put(key, [1, "two"])
    assert Cache(tmp_path).get(dict(reversed(key.items()))) == [1, "two"]
    for name in key:
        assert cache.get({**key, name: "other"}) is None
        assert cache.get({k: v for k, v in key.items() if k != name}) is None
    cache.put({**key, "revision": 2}, "new")
    assert cache.get(key) == [1, "two"]


@pytest.mark.parametrize("damage", [b"", b'{"key": {}, "val', b"[]", b"null", b"\xff\xfe", b'{"key": {}}'])
def test_a_damaged_cache_entry_is_a_miss(tmp_path, damage):
    cache, key = Cache(tmp_path), {"a": 1}
    cache.put(key, "value")
    (entry,) = (p for p in tmp_path.rglob("*") if p.is_file())
    entry.write_bytes(damage)
    assert cache.get(key) is None
    cache.put(key, "value")
    assert cache.get(key) == "value"


def test_the_cache_folder_is_the_one_that_was_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path))
    assert runs.cache_folder() == tmp_path
    monkeypatch.delenv("SAILKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert runs.cache_folder() == tmp_path / "xdg" / "sailkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert runs.cache_folder() == Path.home() / ".cache" / "sailkit"


@given(st.integers(), st.text(), st.text())
def test_a_seed_hangs_on_seed_purpose_and_item(seed, purpose, item):
    value = seed_for(seed, purpose, item)
    assert value == seed_for(seed, purpose, item)
    assert 0 <= value < 2**64
    assert value not in {seed_for(seed + 1, purpose, item), seed_for(seed, purpose + "x", item)}
    assert value != seed_for(seed, purpose, item + "x")


def test_a_seed_is_the_same_in_every_process_and_version():
    assert seed_for(0, "bootstrap") == int(hashlib.sha256(b"0\x00bootstrap\x00").hexdigest()[:16], 16)


def test_the_overview_lists_runs_and_passes_over_other_folders(tmp_path):
    for name, model in (("b", "large"), ("a", "small"), ("a/reference", "judge")):
        settings_of(tmp_path / name, "evaluate", model=model, task="t")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "a web page"}')
    rows = runs.overview(tmp_path).runs
    assert [(Path(row.folder).relative_to(tmp_path).as_posix(), row.model) for row in rows] == [
        ("a", "small"),
        ("a/reference", "judge"),
        ("b", "large"),
    ]
    assert all(row.stage == "evaluate" and row.task == "t" and row.started_at for row in rows)


def test_the_overview_of_two_runs_shows_what_differs(tmp_path):
    settings_of(tmp_path / "a", model="small", seed=0)
    settings_of(tmp_path / "b", model="large", seed=0, shots=4)
    difference = runs.overview(tmp_path / "a", tmp_path / "b")
    assert difference.differences == {"model": ("small", "large"), "shots": (None, 4)}
    assert difference.to_json() == {
        "names": [str(tmp_path / "a"), str(tmp_path / "b")],
        "differences": {"model": ["small", "large"], "shots": [None, 4]},
    }


def test_a_folder_without_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no folder runs"):
        runs.overview()
    assert runs.overview(tmp_path).to_json() == {"runs": []}
    with pytest.raises(UserError, match=r"is not a run folder: it has no manifest\.json"):
        runs.read_manifest(tmp_path)


def test_progress_counts_on_from_where_a_run_stopped(monkeypatch, capsys):
    monkeypatch.setenv("SAILKIT_PROGRESS", "on")
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr("sailkit.console.time.monotonic", lambda: next(clock))
    with runs.progress("scoring", total=10, done=4) as tick:
        for _ in range(3):
            tick(2)
    assert capsys.readouterr().err == "scoring: 8/10, 3 s left\nscoring: 10/10, 0 s left\n"


def test_progress_tells_the_speed_in_lines_and_in_the_bar(monkeypatch, capsys):
    monkeypatch.setenv("SAILKIT_PROGRESS", "on")
    monkeypatch.setenv("COLUMNS", "120")
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr("sailkit.console.time.monotonic", lambda: next(clock))
    with runs.progress("training", total=4) as tick:
        tick(2, "1,234 tokens/s")
        tick(2, "1,300 tokens/s")
    assert capsys.readouterr().err == "training: 4/4, 1,300 tokens/s, 0 s left\n"
    monkeypatch.undo()
    monkeypatch.setenv("SAILKIT_PROGRESS", "on")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with runs.progress("training", total=4) as tick:
        tick(1, "1,234 tokens/s")
    bar = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search(r"training .*1/4 1,234 tokens/s", bar)


def test_progress_can_be_switched_off(capsys):
    with runs.progress("scoring", total=1) as tick:
        tick()
    assert capsys.readouterr().err == ""


HALFWAY = """
import os, sys, time
from sailkit.files import jsonl
def wait(handle):
    print(handle, flush=True)
    time.sleep(60)
os.fsync = wait
jsonl.write_atomic(sys.argv[1], "x" * 1000)
"""


def test_what_a_killed_process_left_is_swept_and_what_another_is_writing_is_not(tmp_path):
    folder = tmp_path / "run"
    with runs.open_run(folder, "search", {"a": 1}):
        pass
    (folder / ".metrics.json.mine").write_text("a file of the user's")
    (folder / ".x.sailkit-unfinished").mkdir()
    writers = [
        subprocess.Popen([sys.executable, "-c", HALFWAY, str(path)], stdout=subprocess.PIPE)
        for path in (folder / "metrics.json", folder / "plots" / "loss.svg", folder / "other.json")
    ]
    for writer in writers:
        writer.stdout.readline()  # it is in the middle of writing
    for writer in writers[:2]:
        writer.kill()
        writer.communicate()
    assert len([path for path in folder.rglob(".*") if path.is_file()]) == 5  # three of these, the lock, the user's
    with runs.open_run(folder, "search", {"a": 1}):
        pass
    left = sorted(path.name for path in folder.rglob(".*") if path.is_file())
    assert [name for name in left if not name.startswith(".other.json.")] == [".lock", ".metrics.json.mine"]
    assert len(left) == 3
    writers[2].kill()
    writers[2].communicate()
    assert (folder / ".x.sailkit-unfinished").is_dir()


def test_files_are_written_whole_while_others_sweep(tmp_path):
    """Writers and sweepers at once: nothing that is being written is taken away."""
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            jsonl.sweep(tmp_path)

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in sweepers:
        thread.start()
    try:
        for i in range(300):
            jsonl.write_atomic(tmp_path / f"{i % 7}.txt", str(i))
    finally:
        done.set()
        for thread in sweepers:
            thread.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i}.txt" for i in range(7)]


def test_a_run_records_the_command_line_that_began_it(tmp_path):
    folder = Path(__file__).parent / "fixtures" / "runs" / "runs" / "search"
    main(["label", "--results", str(folder), "--labeler", "overlap", "--out", f"{tmp_path}/a b"])
    manifest = jsonl.read_json(tmp_path / "a b" / "manifest.json")
    assert manifest["environment"]["command"].endswith(f"--labeler overlap --out '{tmp_path}/a b'")
    settings_of(tmp_path / "python")
    assert "command" not in jsonl.read_json(tmp_path / "python" / "manifest.json")["environment"]
