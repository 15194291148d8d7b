"""The data cards of a training run, and shortcuts of a mixture of data sets."""

from __future__ import annotations

import pytest

from sailkit import runs
from sailkit.data.build_task import build_task
from sailkit.models.sources import resolve
from sailkit.training import data_cards


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three data sets: every result informative; most distracting, with "Undecided" as an answer; half of each."""
    folder = tmp_path_factory.mktemp("data")
    common = {"task": "sample-facts", "shares": "0,1", "distractors": ["random"]}
    build_task(**common, supported=1, out=folder / "decided")
    build_task(**common, supported=0.1, unsupported="undecided", seed=1, out=folder / "undecided")
    build_task(**common, supported=0.5, out=folder / "both")
    return folder


def test_a_shortcut_of_the_mixture_is_kept_and_printed_once(data, tmp_path, capsys):
    paths = [str(data / "decided"), str(data / "undecided")]
    with runs.open_run(tmp_path / "run", "finetune", {}) as run:
        data_cards.write_cards(run, paths)
        (message,) = data_cards.read_cards(run.folder)[-1]["card"]["flag_messages"]["shortcut"]
        assert message.startswith("the question alone tells the judgement with AUROC ")
        assert capsys.readouterr().err.count(f"shortcut in the mixture of the training data: {message}") == 1
        data_cards.write_cards(run, paths)  # of a resumed run
        assert "shortcut" not in capsys.readouterr().err


def test_no_shortcut_where_the_question_tells_nothing(data):
    assert data_cards.mixture_flags([str(data / "decided"), str(data / "both")]) == {}
    assert data_cards.mixture_flags([str(data / "undecided")]) == {}  # its own card covers it


def test_folders_that_are_no_runs_are_left_out(data, tmp_path):
    """A data set that was published without its manifest can be trained on."""
    copy = tmp_path / "published"
    copy.mkdir()
    for name in ("card.json", "train.jsonl"):
        (copy / name).write_bytes((data / "undecided" / name).read_bytes())
    assert data_cards.mixture_flags([str(data / "decided"), str(copy)]) == {}


def test_files_without_a_card_are_left_out(data):
    file = data / "undecided" / "train.jsonl"
    assert data_cards.mixture_flags([str(data / "decided"), str(file)]) == {}
    assert data_cards.data_cards([str(file)]) == [{"data": str(file), "card": None}]


def test_the_tasks_behind_the_data_are_listed_once(data):
    cards = data_cards.data_cards([str(data / name) for name in ("decided", "undecided", "both")])
    (task,) = data_cards.trained_tasks(cards, ())
    assert (task["task"], task["half"], task["first_share"]) == ("sample-facts", None, 0.5)


def test_what_a_model_was_trained_on_before_counts_too(data):
    """Its items are no less known to the model after another training."""
    sail = resolve("smollm2-135m-sail")
    cards = data_cards.data_cards([str(data / "both")])
    tasks = data_cards.trained_tasks(cards, (sail, None, sail))
    assert [task["task"] for task in tasks] == ["fever", "climate-fever", "sample-facts"]
