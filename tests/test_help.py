"""The help: verbs in the order of a pipeline, flags in groups, examples that parse, and one meaning for each flag."""

from __future__ import annotations

import inspect
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest

from sailkit import help as help_texts
from sailkit.cli import VERBS, build_app


def printed(capsys, *words: str) -> str:
    build_app()([*words, "--help"], result_action="return_value")
    return capsys.readouterr().out


def flags(verb: str) -> dict[str, object]:
    """The flags that the help of a verb shows, with the types of their values."""
    arguments = build_app()[verb].assemble_argument_collection()
    return {each.names[0]: each.hint for each in arguments if each.show and each.names[0].startswith("--")}


def test_verbs_are_listed_in_the_order_of_a_pipeline_on_one_line_each(capsys):
    lines = printed(capsys).splitlines()
    named = [line.split()[1] for line in lines if line.startswith("│ ") and line[2] not in " -"]
    ordered = [verb for verbs in help_texts.VERB_GROUPS.values() for verb in verbs]
    assert named[: len(ordered)] == ordered
    assert {*named} == {*VERBS}
    assert [line.split()[1] for line in lines if line.startswith("╭")][:-1] == [*help_texts.VERB_GROUPS]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_described_in_a_line_of_80_columns(verb):
    first = inspect.getdoc(VERBS[verb]).split("\n\n")[0]
    longest = max(map(len, next((verbs for verbs in help_texts.VERB_GROUPS.values() if verb in verbs), VERBS)))
    assert len(first) + longest + len("│   │") + 1 <= 80
    assert "\n" not in first


def test_a_verb_without_a_group_is_listed_in_the_last(capsys, monkeypatch):
    monkeypatch.setitem(VERBS, "later", VERBS["runs"])
    text = printed(capsys)
    assert text.index("─ Pipelines ─") < text.index("─ Other ─") < text.index("│ later ")
    assert "Example" not in printed(capsys, "later")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_has_no_flag_that_only_restores_a_default(verb, capsys):
    text = printed(capsys, verb)
    assert "--empty-" not in text
    assert [word for word in text.split() if word.startswith("--no-")] in ([], ["--no-match-wording"])
    assert "[default: False]" not in text
    assert all(flag in text for flag in flags(verb))


@pytest.mark.parametrize("verb", help_texts.EXAMPLES)
def test_the_example_of_a_verb_parses(verb, capsys):
    program, *words = shlex.split(help_texts.EXAMPLES[verb])
    assert program == "sailkit"
    assert words[0] == verb
    command, bound, _ = build_app().parse_args(words, print_error=False, exit_on_error=False)
    assert command.__name__ == VERBS[verb].__name__
    assert bound.arguments
    assert help_texts.EXAMPLES[verb] in " ".join(printed(capsys, verb).split())


def test_every_verb_of_a_group_has_an_example():
    assert {*help_texts.EXAMPLES} == {verb for verbs in help_texts.VERB_GROUPS.values() for verb in verbs}


def test_every_flag_of_these_verbs_is_in_one_group():
    grouped = [flag for named in help_texts.FLAG_GROUPS.values() for flag in named]
    assert len(grouped) == len({*grouped})
    assert {flag for verb in help_texts.EXAMPLES for flag in flags(verb)} <= {*grouped}


def kind(hint: object) -> object:
    """What a value is, whether it may be missing or repeated, and whether a path may be a name."""
    if get_origin(hint) is Annotated:
        return kind(get_args(hint)[0])
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType, list, tuple) else ()
    kinds = {kind(member) for member in members if member not in (types.NoneType, ...)} or {hint}
    if any(get_origin(each) is Literal for each in kinds):
        return "choice"
    return "text" if kinds & {str, Path, "text"} else next(iter(kinds))


def test_a_flag_has_one_meaning():
    kinds: dict[str, dict[str, object]] = {}
    for verb in help_texts.EXAMPLES:
        for flag, hint in flags(verb).items():
            kinds.setdefault(flag, {})[verb] = kind(hint)
    assert {flag: each for flag, each in kinds.items() if len({*each.values()}) > 1} == {}
    for flag, verbs in {
        "--labels": {"build"},
        "--results": {"label", "build"},
        "--seed": {"fit", "audit", "build", "build-task", "evaluate"},
        "--timeout": {"label", "audit", "teacher-cache", "evaluate", "ask", "demo", "serve"},
        "--measure": {"label", "audit"},
        "--k": {"search", "ask", "demo", "serve"},
    }.items():
        assert {*kinds[flag]} == verbs
    assert "merge" not in kinds["--dtype"]


@pytest.mark.parametrize(
    ("verb", "earlier", "current", "value"),
    [
        ("search", "--timeout", "web_timeout", "5"),
        ("evaluate", "--labels", "label_set", "all"),
        ("evaluate", "--results", "max_results", "2"),
        ("merge", "--dtype", "save_dtype", "bfloat16"),
        ("rescore", "--seed", "bootstrap_seed", "3"),
        ("compare", "--seed", "bootstrap_seed", "3"),
        ("compare", "--measure", "metric", "accuracy"),
        ("report", "--seed", "bootstrap_seed", "3"),
        ("build", "--held-out", "held_out_share", "0.2"),
        ("build-task", "--held-out", "held_out_share", "0.2"),
        ("teacher-cache", "--k", "top_k", "8"),
    ],
)
def test_an_earlier_flag_still_works_and_is_not_shown(verb, earlier, current, value, capsys):
    words = [*shlex.split(help_texts.EXAMPLES[verb])[1:], earlier, value]
    bound = build_app().parse_args(words, print_error=False, exit_on_error=False)[1]
    given = bound.arguments[current]
    assert str(given[0] if isinstance(given, list) else given).removesuffix(".0") == value
    assert f"{earlier} " not in printed(capsys, verb)


def test_shell_completion_is_installed(tmp_path, monkeypatch):
    words = ["--install-completion", "--shell", "bash", "--output", "sailkit.bash"]
    done = subprocess.run(
        [sys.executable, "-m", "sailkit", *words], cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    script = (tmp_path / "sailkit.bash").read_text()
    assert "teacher-cache" in script
    assert "--bootstrap-seed" in script
    assert "--empty-" not in script
    assert "sailkit.bash" in done.stdout
