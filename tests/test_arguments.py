"""A stage called from Python refuses what the command line refuses; a path may be text, and a list its only entry."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, Protocol

import pytest

import sailkit
from sailkit.arguments import checked, renamed
from sailkit.errors import UserError
from sailkit.pipeline import STAGES


class Loaded(Protocol):
    name: str


@dataclasses.dataclass(frozen=True)
class Options:
    dtype: Literal["auto", "float32"] = "auto"
    batch: int = 0


@checked
def stage(
    *sets: Path | str,
    out: Path,
    data: list[Path] | None = None,
    names: list[str] | None = None,
    kinds: list[Literal["near", "own"]] | None = None,
    title: str = "",
    model: str | Loaded | None = None,
    task: str | Path | Options | None = None,
    half: Literal["first", "second"] | None = None,
    limit: int | None = None,
    share: float = 0.5,
    verify: bool = False,
    options: Annotated[Options, "*"] = Options(),
) -> dict[str, object]:
    return dict(locals())


def test_paths_may_be_text_and_lists_of_one_entry_the_entry():
    values = stage("a", out="runs/a", data="train.jsonl", names="SUPPORTS")
    assert values["out"] == Path("runs/a")
    assert values["data"] == [Path("train.jsonl")]
    assert values["names"] == ["SUPPORTS"]
    assert stage(out=Path("x"), data=["a", Path("b")])["data"] == [Path("a"), Path("b")]


def test_a_tuple_is_a_list():
    values = stage(out="x", data=("a", Path("b")), kinds=("near",))
    assert values["data"] == [Path("a"), Path("b")]
    assert values["kinds"] == ["near"]


def test_what_is_right_passes_unchanged():
    model = object()
    given = {"out": Path("a"), "model": model, "half": "first", "limit": 3, "share": 1, "options": Options(batch=2)}
    assert {name: stage(**given)[name] for name in given} == given
    assert stage(out=Path("a"), half=None)["half"] is None
    assert stage(out=Path("a"), task="own.yaml")["task"] == "own.yaml"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"half": "firts"}, "`half` takes first, second, not 'firts'"),
        ({"kinds": ["nearr"]}, "`kinds` takes near, own, not 'nearr'; did you mean 'near'"),
        ({"kinds": ("nearr",)}, "`kinds` takes near, own, not 'nearr'; did you mean 'near'"),
        ({"title": ("q.jsonl",)}, r"`title` should be text, not \('q.jsonl',\)"),
        ({"limit": "5"}, "`limit` should be a whole number, not '5'"),
        ({"limit": 2.5}, "`limit` should be a whole number, not 2.5"),
        ({"limit": True}, "`limit` should be a whole number, not True"),
        ({"share": "half"}, "`share` should be a number, not 'half'"),
        ({"verify": "no"}, "`verify` should be true or false, not 'no'"),
        ({"options": {"dtype": "float32"}}, "`options` should be a Options, not"),
        ({"options": Options(dtype="float23")}, "`dtype` takes auto, float32, not 'float23'"),
        ({"options": Options(batch="many")}, "`batch` should be a whole number, not 'many'"),
    ],
)
def test_what_the_command_line_would_refuse_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        stage(out=Path("a"), **given)


def test_a_missing_or_unknown_argument_stays_pythons_own_error():
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'out'"):
        stage()
    with pytest.raises(TypeError, match="unexpected keyword argument 'outt'"):
        stage(outt="a")


@checked
def later(*, out: Path, max_results: Annotated[int, renamed("results")] = 3) -> int:
    return max_results


def test_an_earlier_name_of_an_argument_still_works():
    assert later(out="x", results=5) == 5
    with pytest.raises(UserError, match="`max_results` should be a whole number"):
        later(out="x", results="5")
    with pytest.raises(TypeError, match="unexpected keyword argument 'results'"):
        later(out="x", max_results=4, results=5)


@pytest.mark.parametrize("name", [*STAGES, "run"])
def test_every_stage_is_checked(name):
    assert hasattr(getattr(sailkit, name.replace("-", "_")), "__wrapped__")
