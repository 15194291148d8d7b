"""The real trackers on a real run: what arrives, where it is kept, and what never is."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from sailkit.data.exports import example_row
from sailkit.errors import UserError
from sailkit.records import SearchResult, TrainingExample
from sailkit.training.finetune import finetune
from sailkit.training.recipe import Recipe, read_recipe
from sailkit.training.tracking import check_trackers, tracking

sft_config = pytest.importorskip("sailkit.training.arguments").sft_config
SECRET = "0123456789abcdef0123456789abcdef01234567"  # the form of a key of W&B's
EXPECTED = ("loss", "eval_loss", "base_loss", "tuned_loss", "base_flagging_auroc", "eval_flagging_auroc",
            "tuned_flagging_auroc")  # fmt: skip


def example(i: int) -> TrainingExample:
    good, bad = SearchResult(f"Seals like {i} red balls.", "Seals"), SearchResult("It was a sunny day.", "Day")
    return TrainingExample(
        str(i), "What do seals like?", "", (good, bad), ("informative", "distracting"), "Balls.", "sail-fixed"
    )


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, shared):
    """One run of the command with all three at once, in a home of its own."""
    place = tmp_path_factory.mktemp("tracked")
    for name, numbers in (("train", range(8)), ("held_out", range(8, 11))):
        rows = (json.dumps(example_row(example(i))) + "\n" for i in numbers)
        (place / f"{name}.jsonl").write_text("".join(rows))
    for name in ("home", "elsewhere", "temporary"):
        (place / name).mkdir()
    settings = ("training.report_to=[tensorboard, trackio, wandb]", "training.logging_steps=1", "training.bf16=false",
                "training.max_length=512", "training.gradient_accumulation_steps=4")  # fmt: skip
    words = [sys.executable, "-m", "sailkit", "finetune", "--out", str(place / "run"), "--data", str(place)]
    words += ["--model", str(shared / "models" / "stories260k"), "--json", "-"]
    words += [word for one in settings for word in ("--set", one)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "TRACKIO", "XDG", "HF"))}
    environment = {
        **kept, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(place / "home"), "WANDB_MODE": "offline",
        "WANDB_API_KEY": SECRET, "HF_TOKEN": "hf_" + SECRET, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "TMPDIR": str(place / "temporary"),
    }  # fmt: skip
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment, cwd=place / "elsewhere", timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return place, done


@pytest.fixture(scope="module")
def written(tracked) -> dict[str, list[float]]:
    """What history.jsonl says: every tracker is to have the same."""
    rows = [json.loads(line) for line in (tracked[0] / "run" / "history.jsonl").read_text().splitlines()]
    found = {name: [row[name] for row in rows if name in row] for name in EXPECTED}
    assert [len(values) for values in found.values()] == [6, 3, 1, 1, 1, 3, 1]
    return found


def arrived(name: str) -> str:
    """Transformers' name for a figure."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


@pytest.mark.long
def test_tensorboard_has_every_figure(tracked, written):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked[0] / "run" / "tracking" / "tensorboard"))
    events.Reload()
    for name, values in written.items():
        assert [one.value for one in events.Scalars(arrived(name))] == pytest.approx(values, rel=1e-5), name


@pytest.mark.long
def test_trackio_has_every_figure(tracked, written):
    import sqlite3

    (file,) = (tracked[0] / "run" / "tracking" / "trackio").glob("sailkit*.db")
    with sqlite3.connect(file) as base:
        names = [column[1] for column in base.execute("pragma table_info(metrics)")]
        rows = [dict(zip(names, row, strict=True)) for row in base.execute("select * from metrics order by id")]
    base.close()
    assert {row["run_name"] for row in rows} == {"run"}
    logged = [json.loads(row["metrics"]) for row in rows]
    for name, values in written.items():
        assert [row[arrived(name)] for row in logged if arrived(name) in row] == pytest.approx(values), name


def records(file: Path):
    """Records of a file of W&B's, which is a log in LevelDB's format behind a header of seven bytes."""
    data, place, record = file.read_bytes(), 7, b""
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record = (record if kind in (3, 4) else b"") + data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record


@pytest.mark.long
def test_wandb_has_every_figure(tracked, written):
    from wandb.proto import wandb_internal_pb2

    (file,) = (tracked[0] / "run" / "tracking" / "wandb").glob("offline-run-*/*.wandb")
    logged, project, ended = [], None, None
    for raw in records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        project = record.run.project or project
        ended = record.exit.exit_code if record.HasField("exit") else ended
        logged.append({(one.key or "/".join(one.nested_key)): one.value_json for one in record.history.item})
    assert (project, ended) == ("sailkit", 0)
    for name, values in written.items():
        found = [json.loads(row[arrived(name)]) for row in logged if arrived(name) in row]
        assert found == pytest.approx(values), name


@pytest.mark.long
def test_everything_stays_in_the_run_folder(tracked):
    place, _ = tracked
    for name in ("home", "elsewhere"):
        assert [path for path in (place / name).rglob("*") if path.is_file()] == []


@pytest.mark.long
def test_no_key_is_written_or_said(tracked):
    place, done = tracked
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.long
def test_the_result_is_alone_on_standard_output(tracked):
    assert json.loads(tracked[1].stdout)["tuned_loss"] > 0


@pytest.mark.long
def test_the_speed_is_logged_with_every_loss(tracked):
    rows = [json.loads(line) for line in (tracked[0] / "run" / "history.jsonl").read_text().splitlines()]
    assert all(("tokens_per_second" in row) == ("loss" in row) for row in rows)
    speeds = [row["tokens_per_second"] for row in rows if "loss" in row]
    assert min(speeds) > 0
    tokens = max(row["num_tokens"] for row in rows if "loss" in row)
    runtime = next(row["train_runtime"] for row in rows if "train_runtime" in row)
    # Evaluating and saving do not count as training.
    assert json.loads((tracked[0] / "run" / "metrics.json").read_text())["tokens_per_second"] > tokens / runtime


def test_where_the_user_says_is_where_it_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", "mine")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    with tracking(["wandb"], tmp_path, "id"):
        assert os.environ["WANDB_DIR"] == "mine"
        assert os.environ["TRACKIO_DIR"] == str(tmp_path / "tracking" / "trackio")
    assert os.environ["WANDB_DIR"] == "mine"
    assert "TRACKIO_DIR" not in os.environ


def arguments(tmp_path: Path, **training: object):
    return sft_config(Recipe("m", ("d",), training={"bf16": False, **training}), tmp_path, held_out=True)


def test_nothing_is_tracked_unless_it_is_asked_for(tmp_path):
    assert arguments(tmp_path).report_to == []
    assert arguments(tmp_path, report_to="none").report_to == []


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A home without any key, and none in the environment."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_wandb_without_a_key_is_one_line_before_the_folder_is_made(nobody, monkeypatch, shared):
    rows = (json.dumps(example_row(example(i))) + "\n" for i in range(4))
    (nobody / "train.jsonl").write_text("".join(rows))
    with pytest.raises(UserError, match=r"W&B has no key; run  wandb login, set WANDB_API_KEY, or WANDB_MODE=off"):
        finetune(
            out=nobody / "run", model=str(shared / "models" / "stories260k"), data=[str(nobody)],
            set=["training.report_to=[wandb]", "training.max_length=512"],
        )  # fmt: skip
    assert not (nobody / "run").exists()
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_API_KEY", SECRET)):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            check_trackers(["wandb"])
    (nobody / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
    check_trackers(["wandb"])


def test_a_tracker_that_is_not_known_or_not_there_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no tracker 'wanbd': did you mean 'wandb'"):
        arguments(tmp_path, report_to="wanbd")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(UserError, match=r"report_to: trackio needs an extra: run  pip install 'sailkit\[track\]'"):
        arguments(tmp_path, report_to="trackio")


def test_a_token_in_a_recipe_is_refused():
    with pytest.raises(UserError, match=r"hub_token cannot be set: .*manifest"):
        read_recipe(None, {"model": "m", "data": ["d"]}, ["training.hub_token=hf_x"])
