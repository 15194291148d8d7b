"""Several processes of a launcher: the teacher's cache of one, whoever is killed, and nobody waits until a time-out."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import threading
import time
from pathlib import Path

import psutil
import pytest
from transformers import AutoTokenizer, GenerationConfig

from distillation.test_teacher_cache import Served, files
from sailkit.distributed import Processes
from sailkit.errors import UserError
from sailkit.testing import MisbehavingServer
from small_rows import example, write
from training.test_distributed import CONFIGS, finished, started

pytest.importorskip("trl")
SET = ["training.bf16=false", "training.max_length=512", "training.max_steps=2", "training.logging_steps=1"]


@pytest.fixture(scope="module")
def teacher(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("build"), map(example, range(70)), map(example, range(70, 80)))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def launched(count: int, *words: str | Path, program: str = "several") -> list[str | Path]:
    """The words of a command on so many processes; one has no launcher."""
    if count == 1:
        return ["-m", program, *words]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", CONFIGS / "cpu.yaml", "--num_processes", count]
    return [*map(str, launcher), "-m", program, *words]


def caching(teacher: str | Path, data: Path, out: Path, *more: str | Path) -> list[str | Path]:
    """The words of a cache of several files, each of several batches."""
    small = ["--shard-tokens", "500", *(() if "endpoint" in str(teacher) else ("--batch-tokens", "600"))]
    return ["teacher-cache", "--teacher", teacher, "--data", data, "--out", out, *small, *more]


@pytest.fixture(scope="module")
def whole(teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done, said = finished(*launched(1, *caching(teacher, data, out), program="sailkit"))
    assert done == 0, said
    assert len(list(out.glob("*.safetensors"))) > 3
    return out


def settings(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())["settings"]


def batches(notes: Path) -> list[list[str]]:
    """The batches that each process computed."""
    return [path.read_text().splitlines() for path in sorted(notes.glob("rows-*"))]


def complaints(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("sailkit:")]


@pytest.mark.long
def test_two_processes_write_the_cache_of_one(teacher, data, whole, notes, tmp_path):
    """Even where a launcher's config lets FSDP load weights in one process alone."""
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    out = tmp_path / "run"
    done, said = finished(*launched(2, *caching(teacher, data, out)), NOTES=str(notes), **fsdp)
    assert done == 0, said
    assert complaints(said).count(f"sailkit: written to {out}") == 1
    assert files(out) == files(whole)
    assert settings(out) == settings(whole)
    first, second = batches(notes)
    assert 0 <= len(first) - len(second) <= 1
    assert len(second) > 5
    assert len({*first, *second}) == len(first) + len(second)


@pytest.mark.long
def test_two_processes_do_a_shard(teacher, data, whole, notes, tmp_path):
    for count, shard in ((2, "1/2"), (1, "2/2")):
        words = caching(teacher, data, tmp_path / "run", "--shard", shard)
        done, said = finished(*launched(count, *words), NOTES=str(notes))
        assert done == 0, said
    assert files(tmp_path / "run") == files(whole)


@pytest.mark.long
@pytest.mark.parametrize("last", [1, 2, 3])
def test_processes_that_were_killed_end_with_the_bytes_of_one(teacher, data, whole, notes, tmp_path, last):
    out, chance = tmp_path / "run", random.Random(last)
    words, count = caching(teacher, data, out), len(list(whole.glob("*.safetensors")))
    for share in (chance.uniform(0.05, 0.4), chance.uniform(0.5, 0.75)):
        with started(*launched(2, *words), NOTES=str(notes), SLOW="0.3") as child:
            until = time.monotonic() + 200
            while len(list(out.glob("*.safetensors"))) < share * count:
                assert child.poll() is None
                assert time.monotonic() < until
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.1))
            for one in (psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            child.communicate(timeout=60)
        assert not (out / "index.jsonl").exists()
    done, said = finished(*launched(last, *words), NOTES=str(notes))
    assert done == 0, said
    assert files(out) == files(whole)
    assert settings(out) == settings(whole)
    assert not list(out.glob(".teacher*"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("trouble", "words", "message"),
    [
        ({"FAILS": "1"}, (), "the second process has no luck"),
        ({"UNLIKE": "1"}, (), "process 1 is unlike the main process (torch: 0.0 there, "),
        ({}, ("--ray",), "--ray starts its own processes; leave out the launcher"),
    ],
)
def test_an_error_of_one_process_ends_both_with_one_line(teacher, data, notes, tmp_path, trouble, words, message):
    words = launched(2, *caching(teacher, data, tmp_path / "run", *words))
    done, said = finished(*words, NOTES=str(notes), **trouble)
    assert done != 0
    (line,) = complaints(said)
    assert line.startswith(f"sailkit: error: {message}")


@pytest.mark.long
def test_a_server_is_asked_by_one_process(teacher, data, notes, tmp_path):
    asked, written = [], []
    for count in (1, 2):
        with MisbehavingServer(echo=Served(teacher, "prompt_logprobs")) as server:
            more = ["--teacher-tokenizer", teacher, "--max-length", "400", "--concurrency", "1"]
            words = caching(f"endpoint:any@{server.url}", data, tmp_path / f"{count}", *more)
            done, said = finished(*launched(count, *words), NOTES=str(notes))
        assert done == 0, said
        asked.append(len(server.requests))
        written.append(files(tmp_path / f"{count}"))
    assert asked[0] == asked[1] > 10
    assert written[0] == written[1]


@pytest.mark.long
def test_two_processes_distill_from_the_same_cache_and_wait_for_no_time_out(teacher, data, notes, tmp_path):
    """No call waits for 20 seconds, where the data, the cache and the targets take longer each."""
    write(tmp_path / "data", map(example, range(40)), map(example, range(40, 48)))
    given = [word for setting in SET for word in ("--set", setting)]
    words = ["distill", "--teacher", teacher, "--student-layers", "2", "--data", tmp_path / "data", *given, "--out"]
    one, two = tmp_path / "one", tmp_path / "two"
    done, said = finished(*launched(1, *words, one, program="sailkit"))
    assert done == 0, said
    patience = {"TIMEOUT": "20", "SLOW": "12", "ALONE": "22"}
    done, said = finished(*launched(2, *words, two), NOTES=str(notes), seconds=500, **patience)
    assert done == 0, said
    assert 2 <= max(map(len, batches(notes))) <= 5
    assert len(batches(notes)) == 2
    assert files(two / "teacher") == files(one / "teacher")
    for name in ("targets-train.safetensors", "targets-held_out.safetensors"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert not list(two.glob(".*-written"))
    # Neither process holds the targets in memory of its own.
    for rank in range(2):
        assert str(two / "targets-train.safetensors") in (notes / f"maps-{rank}").read_text()


@pytest.mark.long
def test_two_processes_write_the_answers_of_one(teacher, data, notes, tmp_path):
    given = [word for setting in (*SET, "distillation.max_new_tokens=80") for word in ("--set", setting)]
    brief = Path(shutil.copytree(teacher, tmp_path / "brief"))  # its stories end with the first sentence
    period = AutoTokenizer.from_pretrained(brief).convert_tokens_to_ids(".")
    GenerationConfig(bos_token_id=1, eos_token_id=[2, period]).save_pretrained(brief)
    words = ["distill", "--teacher", brief, "--model", teacher, "--method", "sequence"]
    words += ["--data", data, *given, "--out"]
    one, two = tmp_path / "one", tmp_path / "two"
    done, said = finished(*launched(1, *words, one, program="sailkit"))
    assert done == 0, said
    done, said = finished(*launched(2, *words, two), NOTES=str(notes))
    assert done == 0, said
    counts = [sum(map(int, path.read_text().split())) for path in sorted(notes.glob("answers-*"))]
    assert min(counts) > 20
    for name in ("answers/answers.jsonl", "answers/train.jsonl", "answers/dropped.jsonl", "data/train.jsonl"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert not list(two.glob(".*-written"))


def test_work_comes_back_in_order_and_an_error_ends_it():
    computed = []

    def work(item: int) -> int:
        computed.append(item)
        if item == 3:
            raise UserError("three")
        return item * item

    results = Processes().map(work, range(5))
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert computed == [0, 1, 2]  # none is computed before it is needed
    with pytest.raises(UserError, match="three"):
        next(results)


def test_threads_compute_ahead_in_order_and_an_error_ends_them():
    later, computed = threading.Event(), []

    def work(item: int) -> int:
        computed.append(item)
        if item == 0:
            assert later.wait(10)  # for the second, which another thread computes meanwhile
        if item == 1:
            later.set()
        if item == 3:
            raise UserError("three")
        return item * item

    results = Processes().map(work, range(100), threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(UserError, match="three"):
        next(results)
    assert max(computed) < 6
