"""`teacher-cache --ray`: the bytes of a run here, the errors of a run here, and workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sailkit import cli
from sailkit.cluster import Job, Pool, RayOptions
from sailkit.distillation.cache import INDEX, CacheReader
from sailkit.distillation.load import TeacherModelOptions
from sailkit.distillation.teacher_cache import teacher_cache
from sailkit.errors import UserError
from small_cluster import small_cluster
from small_rows import example, write

ONE = RayOptions(enabled=True, actors=1, cpus=0.5)
TWO = replace(ONE, actors=2)


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        # The workers import what this file gives them to do.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        with small_cluster():
            yield


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cache") / "build", map(example, range(24)), map(example, range(24, 32)))


def keep(teacher: Path, data: Path, out: Path, **more):
    options = TeacherModelOptions(dtype="float32", batch_tokens=800)
    return teacher_cache(
        teacher=str(teacher), data=[str(data)], out=out, **{"options": options, "shard_tokens": 300, **more}
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".safetensors", ".jsonl")}


@pytest.mark.long
def test_the_bytes_are_those_of_a_run_here_stopped_or_not(cluster, folder, data, tmp_path):
    here = keep(folder, data, tmp_path / "here")
    there = keep(folder, data, tmp_path / "there", ray=TWO)
    assert replace(here, folder=there.folder) == there
    whole = files(tmp_path / "here")
    assert len(whole) > 5
    assert files(tmp_path / "there") == whole

    # What was done is not done again, and what is left is, there or here.
    shards = sorted((tmp_path / "there").glob("*.safetensors"))
    before = shards[0].stat().st_mtime_ns
    for path in [*shards[2:], tmp_path / "there" / INDEX]:
        path.unlink()
    (tmp_path / "there" / f".{shards[2].name}.torn").write_bytes(b"left behind by a kill")
    keep(folder, data, tmp_path / "there", ray=TWO)
    assert files(tmp_path / "there") == whole
    assert shards[0].stat().st_mtime_ns == before
    assert not list((tmp_path / "there").glob(".teacher*"))
    CacheReader.open(tmp_path / "there")


@pytest.mark.long
def test_a_teacher_that_fails_there_is_one_line_here(cluster, folder, data, tmp_path):
    from sailkit.testing import MisbehavingServer

    with MisbehavingServer(otherwise=401, text="no key") as server:
        told = {"teacher_tokenizer": folder, "max_length": 400, "ray": TWO}
        with pytest.raises(UserError, match=r"^endpoint:any@.*no key") as caught:
            teacher_cache(teacher=f"endpoint:any@{server.url}", data=[str(data)], out=tmp_path / "run", **told)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("*.safetensors"))


class Model:
    """Something that works, of some version."""

    def __init__(self, setup):
        self.version = setup["version"]

    def describe(self):
        return {"version": self.version}


def die_at(model, task):
    """Die at a task as often as it says."""
    folder, times = task
    for number in range(times):
        if not (seen := Path(folder) / str(number)).exists():
            seen.touch()
            os._exit(1)
    return f"{times} deaths".encode()


@pytest.mark.long
def test_a_task_whose_worker_dies_is_done_by_another(cluster, tmp_path):
    job, here = Job("model", Model, {"version": 1}, die_at), Model({"version": 1})
    tasks = [[str(tmp_path), 0], [str(tmp_path), 1], [str(tmp_path), 0]]
    assert list(Pool(ONE).run(job, here, tasks)) == [
        b"0 deaths",
        b"1 deaths",
        b"0 deaths",
    ]


@pytest.mark.long
def test_another_teacher_on_a_node_is_refused(cluster):
    job = Job("teacher", Model, {"version": 1}, die_at)
    with pytest.raises(UserError, match=r"the teacher on node .* is not the one here \(version: 1 there, 2 here\)"):
        list(Pool(ONE).run(job, Model({"version": 2}), [["", 0]]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"shard": "1/2"}, "leave out `shard`"),
        ({"ray": RayOptions(actors=2)}, "go with `ray`"),
        ({"ray": RayOptions(True, gpus=1.5)}, "a part of one GPU"),
        ({"options": TeacherModelOptions(max_requests=5)}, "leave it out"),
    ],
)
def test_what_does_not_go_together_is_refused(folder, data, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        keep(folder, data, tmp_path / "run", **{"ray": RayOptions(True), **flags})
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_command_that_is_killed_goes_on_and_leaves_nothing(folder, tmp_path):
    data = write(tmp_path / "data", map(example, range(300)))
    words = ["teacher-cache", "--teacher", str(folder), "--data", str(data), "--dtype", "float32"]
    words += ["--shard-tokens", "300", "--batch-tokens", "800", "--out"]
    cli.main([*words, str(tmp_path / "here")])
    command = [sys.executable, "-m", "sailkit", *words, str(tmp_path / "there")]
    command += ["--ray", "--ray-actors", "1", "--ray-cpus", "0.5"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not list((tmp_path / "there").glob("teacher-*")):
        time.sleep(0.01)
    ours = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGKILL)
    said = child.communicate()[1]
    assert child.returncode == -signal.SIGKILL
    assert "Traceback" not in said
    # Ray's agents try for a minute to tell the cluster that it was killed.
    assert psutil.wait_procs(ours, timeout=300)[1] == []
    whole = files(tmp_path / "here")
    assert 0 < len(files(tmp_path / "there")) < len(whole)
    subprocess.run(command, check=True, capture_output=True)
    assert files(tmp_path / "there") == whole
