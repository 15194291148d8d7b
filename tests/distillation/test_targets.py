"""A teacher's cache in a student's tokens: whose habits are learnt, and when targets are made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from sailkit.data.exports import HELD_OUT, TRAIN
from sailkit.distillation.align import end_tokens
from sailkit.distillation.cache import CacheReader
from sailkit.distillation.distill import distill
from sailkit.distillation.load import TeacherModelOptions
from sailkit.distillation.loss import TargetTable, distillation_loss
from sailkit.distillation.project import Projection, collect
from sailkit.distillation.records import Targets
from sailkit.distillation.targets import TargetCompiler
from sailkit.distillation.teacher_cache import teacher_cache
from sailkit.errors import UserError
from sailkit.training.tokenise import IGNORED, Prepared, prepare, read_data
from small_models import student, trained
from small_rows import example, write

FLOAT32 = TeacherModelOptions(dtype="float32")

LENGTH = 1024


@pytest.fixture(scope="module")
def teacher(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("build"), map(example, range(8)), map(example, range(8, 11)))


@pytest.fixture(scope="module")
def folder(teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "run"
    teacher_cache(teacher=str(teacher), data=[str(data)], out=out, options=FLOAT32, top_p=1.0)
    return out


@pytest.fixture(scope="module")
def rows(data: Path) -> dict[str, Prepared]:
    tokenizer = trained("byte-level")
    return {name: prepare(read_data([str(data)], name), tokenizer, LENGTH) for name in (TRAIN, HELD_OUT)}


@pytest.fixture
def compiler(folder: Path, teacher: Path) -> Callable[..., TargetCompiler]:
    def make(
        min_mass: float = 0.1, cache: Path = folder, tokenizer: Any = None, workers: int | None = None
    ) -> TargetCompiler:
        theirs = AutoTokenizer.from_pretrained(teacher)
        return TargetCompiler(CacheReader.open(cache), theirs, tokenizer or trained("byte-level"), min_mass, workers)

    return make


def by_hand(compiler: TargetCompiler, rows: Prepared, learn_from: Prepared | None) -> Targets:
    """Targets whose habits are those of certain rows, or that know none."""
    sides, cache = compiler.tokenizers, compiler.cache
    both = sides.tokenise(rows)
    ends = end_tokens(sides.teacher_tokenizer, (row.teacher for row in both))
    projection = Projection(sides.teacher, sides.student, ends, compiler.min_mass)
    if learn_from is not None:
        projection.learn_habits((row.teacher, row.student) for row in sides.tokenise(learn_from))
    return collect(
        projection.targets(cache.get(row.example.prompt, row.example.completion), row.teacher, row.student)
        for row in both
    )


def same(first: Targets, second: Targets) -> bool:
    return all(np.array_equal(value, getattr(second, name)) for name, value in vars(first).items())


def test_habits_are_learnt_from_the_rows_themselves_or_from_others(compiler, rows, tmp_path):
    made = compiler()
    train, held_out = rows[TRAIN], rows[HELD_OUT]
    cases = {name: by_hand(made, held_out, learn) for name, learn in
             (("own", held_out), ("others", train), ("none", None))}  # fmt: skip
    assert same(made.compile(held_out, tmp_path / "own").targets, cases["own"])
    assert same(made.compile(held_out, tmp_path / "others", train).targets, cases["others"])
    assert not any(same(cases[a], cases[b]) for a, b in (("own", "others"), ("own", "none"), ("others", "none")))


def test_the_targets_of_held_out_rows_know_the_habits_of_the_training_rows_alone(
    compiler, teacher, data, folder, rows, tmp_path
):
    model = student(tmp_path / "student")
    steps = ("max_steps=1", "max_length=1024", "bf16=false", "eval_strategy='no'", "save_strategy='no'")
    settings = [*(f"training.{step}" for step in steps), "distillation.top_p=1.0"]
    distill(teacher=str(teacher), model=str(model), data=[str(data)], out=tmp_path / "run", set=settings)
    made = compiler(cache=tmp_path / "run" / "teacher")
    expected = made.compile(rows[HELD_OUT], tmp_path / "expected", rows[TRAIN]).targets
    kept = Targets(**load_file(tmp_path / "run" / "targets-held_out.safetensors"))
    assert same(kept, expected)
    assert not same(kept, made.compile(rows[HELD_OUT], tmp_path / "own").targets)


@pytest.fixture(scope="module")
def other_cache(teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("other") / "run"
    teacher_cache(teacher=str(teacher), data=[str(data)], out=out, options=FLOAT32, k=2)
    return out


@pytest.mark.parametrize("differs", ["min_mass", "cache", "rows", "habits"])
def test_targets_of_other_settings_are_made_again(compiler, rows, other_cache, tmp_path, differs):
    usual = compiler(), rows[HELD_OUT], rows[TRAIN]
    other = {
        "min_mass": (compiler(min_mass=0.9), *usual[1:]),
        "cache": (compiler(cache=other_cache), *usual[1:]),
        "rows": (usual[0], rows[TRAIN], rows[TRAIN]),
        "habits": (*usual[:2], None),
    }[differs]
    file = tmp_path / "targets"
    first = usual[0].compile(usual[1], file, usual[2])
    second = other[0].compile(other[1], file, other[2])
    fresh = other[0].compile(other[1], tmp_path / "fresh", other[2])
    assert same(second.targets, fresh.targets)
    assert second.figures == fresh.figures
    assert not same(second.targets, first.targets)


def test_the_targets_of_two_more_processes_are_those_of_this_one(compiler, rows, tmp_path):
    state = torch.get_rng_state()
    for workers in (0, 2):
        made = compiler(workers=workers)
        computed, read = [], made._teacher_row
        made._teacher_row = lambda *args, read=read, computed=computed: computed.append(args) or read(*args)
        made.compile(rows[TRAIN], tmp_path / f"{workers}")
        assert len(computed) == (0 if workers else len(rows[TRAIN].examples))  # the others count in their own memory
    assert (tmp_path / "0").read_bytes() == (tmp_path / "2").read_bytes()
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_of_another_process_is_one_line_and_ends_all(compiler, rows, tmp_path):
    damaged = compiler(workers=2)

    def fails(*args):
        raise UserError("this shard is damaged")

    damaged._teacher_row = fails
    with pytest.raises(UserError, match=r"^this shard is damaged$"):
        damaged.compile(rows[TRAIN], tmp_path / "targets")
    assert not psutil.Process().children()


def test_targets_of_the_same_settings_are_read_again(compiler, rows, tmp_path):
    file = tmp_path / "targets"
    first = compiler().compile(rows[HELD_OUT], file, rows[TRAIN])
    before = file.stat().st_mtime_ns
    again = compiler().compile(rows[HELD_OUT], file, rows[TRAIN])
    assert same(again.targets, first.targets)
    assert again.figures == first.figures
    assert file.stat().st_mtime_ns == before


def mapped_file(array: np.ndarray) -> str:
    """The file that an array's memory is a part of; empty if it is none."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is in memory")
@pytest.mark.parametrize("when", ["made", "read"])
def test_targets_are_part_of_their_file_and_not_copied(compiler, rows, tmp_path, when):
    file = tmp_path / "targets"
    for _ in range(1 if when == "made" else 2):
        targets = compiler().compile(rows[TRAIN], file).targets
    assert {mapped_file(value) for value in vars(targets).values()} == {str(file)}
    table = TargetTable((targets, tokens(rows[TRAIN])))
    entry = int(targets.starts[np.flatnonzero(targets.kind)[0]])
    at = torch.tensor([int(np.searchsorted(targets.starts, entry, "right")) - 1])
    targets.probs[entry], targets.ids[entry] = 0.25, 7
    looked_up = table.at(at)
    assert (looked_up.probs[0, 0].item(), looked_up.ids[0, 0].item()) == (0.25, 7)
    assert not same(Targets(**load_file(file)), targets)  # what was written to is a copy of the page, not the file


def tokens(prepared: Prepared) -> np.ndarray:
    return np.array([label for labels in prepared.labels for label in labels if label != IGNORED])


def test_the_loss_of_mapped_targets_is_that_of_targets_in_memory(compiler, rows, tmp_path):
    made = compiler()
    mapped, loaded = [], []
    for name, prepared in rows.items():
        mapped.append((made.compile(prepared, tmp_path / name).targets, tokens(prepared)))
        loaded.append((Targets(**load_file(tmp_path / name)), tokens(prepared)))
    tables = TargetTable(*mapped), TargetTable(*loaded)
    assert len({len(table) for table in tables}) == 1
    places = torch.randperm(len(tables[0]), generator=torch.Generator().manual_seed(0))
    columns, losses = len(trained("byte-level").get_vocab()), []
    for table in tables:
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(len(places), 8, generator=generator, requires_grad=True)
        weight = torch.randn(columns, 8, generator=generator)
        loss, parts = distillation_loss(hidden, weight, None, table.at(places), ce_weight=0.1, columns=columns)
        loss.backward()
        losses.append((loss.detach(), hidden.grad, *vars(parts).values()))
    assert all(torch.equal(one, other) for one, other in zip(*losses, strict=True))
    assert losses[0][0] > 0
