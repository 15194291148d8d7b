"""Several real processes evaluate what one evaluates: the same bytes, also after kills, and one line for an error."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

import forked
from evaluation.test_evaluate import command, whole_lines, write_task
from evaluation.test_seeds import tuned  # noqa: F401 - a fixture
from sailkit.distributed import Processes
from sailkit.evaluation.processes import warn_of_unused
from sailkit.models.base import ModelOptions
from training.test_distributed import CONFIGS, finished, free_port, started

# Written in RANK 1 only, after a few batches: as when the memory of one GPU runs out.
FAULT = """
import os
from sailkit.cli import main
from sailkit.errors import UserError
from sailkit.models.local import LocalModel

real, calls = LocalModel.score, []

def score(self, prompts, answers):
    calls.append(prompts)
    if os.environ["RANK"] == "1" and len(calls) == 4:
        raise UserError("out of memory with a single prompt")
    return real(self, prompts, answers)

LocalModel.score = score
main(__import__("sys").argv[1:])
"""


@pytest.fixture(scope="module")
def tiny(shared: Path) -> str:
    return str(shared / "models" / "stories260k")


def begin(*words: object, count: int = 2, more: tuple[tuple[object, ...], ...] = ()) -> list[forked.Command]:
    """A command in several processes, as a launcher starts them; `more` are words for each process."""
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        forked.Command(
            *words, *(more[rank] if more else ()),
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(count)
    ]  # fmt: skip


_CONNECTED = re.compile(rb"^.*Expected number of connected peers.*\n", re.MULTILINE)  # logged by torch's gloo


def ended(processes: list[forked.Command]) -> list[subprocess.CompletedProcess[bytes]]:
    """What each process wrote; they all have to end by themselves."""
    try:
        all_done = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
    for done in all_done:
        done.stdout, done.stderr = (_CONNECTED.sub(b"", text) for text in (done.stdout, done.stderr))
    return all_done


def run(*words: object, **how) -> str:
    """What the main process printed; the others print nothing, and all succeed."""
    main, *others = ended(begin(*words, **how))
    assert main.returncode == 0, main.stderr.decode()
    assert [(done.returncode, done.stdout, done.stderr) for done in others] == [(0, b"", b"")] * len(others)
    return main.stdout.decode()


def refused(processes: list[forked.Command]) -> str:
    """The line of the main process, the only one."""
    all_done = ended(processes)
    assert all(done.returncode > 0 for done in all_done)
    assert all(done.stdout == b"" for done in all_done)
    (line,) = b"".join(done.stderr for done in all_done).decode().splitlines()
    assert line.startswith("sailkit: error: ")
    return line


def content(folder: Path) -> dict[str, object]:
    """Every file of a run folder by name: its bytes, of manifests what does not depend on the moment."""
    files: dict[str, object] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
    for name in [name for name in files if name.endswith("manifest.json")]:
        manifest = json.loads(files[name])
        for key in ("started_at", "command", "processes"):
            manifest["environment"].pop(key, None)
        files[name] = json.dumps(manifest)
    return files


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--protocol", "think-twice"),
        ("--calibrate", "--dtype", "bfloat16"),
        ("--answer", "generate", "--max-new-tokens", "5", "--reference", "itself"),
        ("--limit", "1"),
    ],
)
def test_three_processes_write_what_one_writes(tiny, tmp_path, more):
    task = write_task(tmp_path, 50)
    more = [tiny if word == "itself" else word for word in more]
    alone = forked.run(*command(tiny, task, tmp_path / "run-of-1", *more), check=True)
    shown = run(*command(tiny, task, tmp_path / "run-of-3", *more), count=3)
    assert shown == alone.stdout.replace("run-of-1", "run-of-3")
    assert content(tmp_path / "run-of-3") == content(tmp_path / "run-of-1")
    assert {"predictions.jsonl", "metrics.json"} <= content(tmp_path / "run-of-3").keys()
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("run-of-1", "run-of-3")]
    assert [manifest["environment"].get("processes") for manifest in manifests] == [None, 3]
    again = forked.run(*command(tiny, task, tmp_path / "run-of-3", *more), check=True)  # finished: nothing is computed
    assert again.stdout == shown
    assert content(tmp_path / "run-of-3") == content(tmp_path / "run-of-1")


def test_each_process_computes_its_share(tiny, tmp_path):
    program = tmp_path / "counted.py"
    program.write_text(
        "import os, sys\nfrom sailkit.cli import main\nfrom sailkit.evaluation import evaluate as stage\n"
        f"real, counts = stage.answer_batch, open({str(tmp_path)!r} + '/count-' + os.environ['RANK'], 'w')\n"
        "def counted(model, plan, batch):\n"
        "    print(len(batch), file=counts, flush=True)\n"
        "    return real(model, plan, batch)\n"
        "stage.answer_batch = counted\n"
        "main(sys.argv[1:])\n"
    )
    run(program, *command(tiny, write_task(tmp_path, 60), tmp_path / "run"))
    counts = [[*map(int, (tmp_path / f"count-{rank}").read_text().split())] for rank in range(2)]
    assert sum(map(sum, counts)) == 60
    assert abs(len(counts[0]) - len(counts[1])) <= 1


def test_processes_that_score_in_threads_write_what_one_writes(tiny, tmp_path):
    """As on GPUs, where a process prepares batches while another of its batches is computed."""
    program = tmp_path / "threads.py"
    program.write_text(
        "import itertools, os, sys, threading\n"
        "from sailkit.cli import main\nfrom sailkit.evaluation import evaluate as stage\n"
        f"real, names = stage.answer_batch, open({str(tmp_path)!r} + '/threads-' + os.environ['RANK'], 'w')\n"
        "calls, at_once = itertools.count(), threading.Barrier(3)\n"
        "def noted(*words):\n"
        "    print(threading.current_thread().name, file=names, flush=True)\n"
        "    if next(calls) < 3:\n"  # a pool starts no thread while another one is idle
        "        at_once.wait(60)\n"
        "    return real(*words)\n"
        "stage.answer_batch, stage.scoring_threads = noted, lambda model: 3\n"
        "main(sys.argv[1:])\n"
    )
    task = write_task(tmp_path, 60)
    forked.run(*command(tiny, task, tmp_path / "run-of-1"), check=True)
    run(program, *command(tiny, task, tmp_path / "run-of-2"))
    assert content(tmp_path / "run-of-2") == content(tmp_path / "run-of-1")
    for rank in range(2):
        names = {*(tmp_path / f"threads-{rank}").read_text().splitlines()}
        assert len(names) == 3
        assert "MainThread" not in names


@pytest.mark.long
def test_killed_processes_end_with_the_same_bytes_in_any_number(tiny, tmp_path):
    rng = random.Random(3)
    task = write_task(tmp_path, 400)
    forked.run(*command(tiny, task, tmp_path / "whole"), check=True)
    expected = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    out, path = tmp_path / "killed", tmp_path / "killed" / "predictions.jsonl"
    for count in (2, 3, 1, 2):
        before = len(whole_lines(path))
        words = command(tiny, task, out)
        processes = begin(*words, count=count) if count > 1 else [forked.Command(*words)]
        target = before + rng.randrange(1, 80)
        while len(whole_lines(path)) < target and processes[0].poll() is None:
            time.sleep(0.003)
        time.sleep(rng.random() * 0.02)
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait()
        after = b"".join(line + b"\n" for line in whole_lines(path))
        assert expected.startswith(after)
        assert after.count(b"\n") > before - 30
    assert 0 < len(whole_lines(path)) < 400
    forked.run(*command(tiny, task, out), check=True)
    assert content(out) == content(tmp_path / "whole")


def test_an_error_of_one_process_ends_all_with_one_line(tiny, tmp_path):
    task = write_task(tmp_path, 400)
    (tmp_path / "fault.py").write_text(FAULT)
    words = command(tiny, task, tmp_path / "run")
    assert "out of memory with a single prompt (batch of items item-" in refused(
        begin(tmp_path / "fault.py", *words, count=3)
    )
    assert 0 < len(whole_lines(tmp_path / "run" / "predictions.jsonl")) < 400
    assert not (tmp_path / "run" / "metrics.json").exists()
    run(*words)
    forked.run(*command(tiny, task, tmp_path / "whole"), check=True)
    assert content(tmp_path / "run") == content(tmp_path / "whole")


@pytest.mark.long
def test_an_error_of_the_main_process_ends_all_with_one_line(tiny, tmp_path):
    words = command(tiny, write_task(tmp_path, 40), tmp_path / "run")
    run(*words)
    path = tmp_path / "run" / "predictions.jsonl"
    path.write_bytes(b"{" + path.read_bytes())
    assert "damaged" in refused(begin(*words))


@pytest.mark.long
def test_what_several_processes_cannot_share_is_refused_with_one_line(tiny, tmp_path):
    task = write_task(tmp_path, 10)
    words = command(tiny, task, tmp_path / "run")
    endpoint = "endpoint:model@http://127.0.0.1:9"
    unlike = refused(begin(*words, more=(("--seed", "1"), ("--seed", "2"))))
    assert "process 1 is unlike the main process (seed: 2 there, 1 here)" in unlike
    assert "start without a launcher" in refused(begin(*command(endpoint, task, tmp_path / "run")))
    assert "start without a launcher" in refused(begin(*words, "--reference", endpoint))
    vllm = command(f"vllm:{tiny}", task, tmp_path / "run", "--answer", "generate")
    assert "vLLM runs in one process; start without a launcher" in refused(begin(*vllm))
    assert "--device cpu:0 would be the device of all processes" in refused(begin(*words, "--device", "cpu:0"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert "is not a run folder" in refused(begin(*command(tiny, task, tmp_path / "mine")))


@pytest.mark.long
def test_the_models_of_several_seeds_are_measured_by_all_processes(tuned, tmp_path):  # noqa: F811
    words = ["evaluate", "--model", tuned, "--task", "sample-claims", "--limit", "24", "--batch-tokens", "400", "--out"]
    alone = forked.run(*words, tmp_path / "run-of-1", check=True)
    assert run(*words, tmp_path / "run-of-2") == alone.stdout.replace("run-of-1", "run-of-2")
    assert content(tmp_path / "run-of-2") == content(tmp_path / "run-of-1")


class OnGpu:
    """A model that says that it is on a GPU."""

    def describe(self) -> dict[str, str]:
        return {"device": "cuda"}


def test_idle_gpus_are_named_unless_one_was_chosen(monkeypatch, recwarn):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    warn_of_unused(Processes(0, 4), ModelOptions(), "name", OnGpu())
    warn_of_unused(Processes(), ModelOptions(device="cuda:2"), "name", OnGpu())
    warn_of_unused(Processes(), ModelOptions(), OnGpu(), OnGpu())
    assert not recwarn
    with pytest.warns(RuntimeWarning, match=r"4 GPUs are visible.*accelerate launch -m sailkit evaluate"):
        warn_of_unused(Processes(), ModelOptions(), "name", OnGpu())


@pytest.mark.long
def test_the_launcher_starts_ends_and_resumes_it(tiny, tmp_path):
    """The documented command: killed on the way, then finished, both on two processes."""
    task = write_task(tmp_path, 400)
    launcher = ["-m", "accelerate.commands.launch", "--config_file", CONFIGS / "cpu.yaml", "-m", "sailkit"]
    words = [*launcher, *command(tiny, task, tmp_path / "run")]
    path = tmp_path / "run" / "predictions.jsonl"
    with started(*words) as child:
        until = time.monotonic() + 240
        while len(whole_lines(path)) < 40:
            assert child.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        for process in psutil.Process(child.pid).children(recursive=True):
            process.send_signal(signal.SIGKILL)
        child.communicate(timeout=60)
    assert 0 < len(whole_lines(path)) < 400
    status, shown = finished(*words)
    assert status == 0, shown
    assert "error" not in shown
    assert finished("-m", "sailkit", *command(tiny, task, tmp_path / "whole"))[0] == 0
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    status, shown = finished(*launcher, *command(tiny, task, tmp_path / "other", "--limit", "0"))
    assert status != 0
    (line,) = [line for line in shown.splitlines() if line.startswith("sailkit:")]
    assert line.endswith("--limit should be at least 1, not 0")
