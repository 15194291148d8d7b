"""A teacher's cache in a student's tokens: whose habits are learnt, and when targets are made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from sailkit.data.exports import HELD_OUT, TRAIN
from sailkit.distillation.align import end_tokens
from sailkit.distillation.cache import CacheReader
from sailkit.distillation.distill import distill
from sailkit.distillation.load import TeacherModelOptions
from sailkit.distillation.project import Projection, collect
from sailkit.distillation.records import Targets
from sailkit.distillation.targets import TargetCompiler
from sailkit.distillation.teacher_cache import teacher_cache
from sailkit.training.tokenise import Prepared, prepare, read_data
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
    def make(min_mass: float = 0.1, cache: Path = folder, tokenizer: Any = None) -> TargetCompiler:
        theirs = AutoTokenizer.from_pretrained(teacher)
        return TargetCompiler(CacheReader.open(cache), theirs, tokenizer or trained("byte-level"), min_mass)

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


def test_targets_of_the_same_settings_are_read_again(compiler, rows, tmp_path):
    file = tmp_path / "targets"
    first = compiler().compile(rows[HELD_OUT], file, rows[TRAIN])
    before = file.stat().st_mtime_ns
    again = compiler().compile(rows[HELD_OUT], file, rows[TRAIN])
    assert same(again.targets, first.targets)
    assert again.figures == first.figures
    assert file.stat().st_mtime_ns == before
