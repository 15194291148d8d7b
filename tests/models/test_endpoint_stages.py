"""Stages that ask a server, end to end: what it says becomes the outcome of the item it said it of, and of no other."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from sailkit.data.exports import example_row, read_examples
from sailkit.distillation.teacher_answers import teacher_answers
from sailkit.errors import UserError
from sailkit.evaluation.evaluate import evaluate
from sailkit.labeling.label import label
from sailkit.labeling.options import LabelerOptions
from sailkit.labeling.results import Labeling
from sailkit.models.base import ModelOptions
from sailkit.models.http import ChatClient
from sailkit.models.load import load_model
from sailkit.prompts.sail import completion
from sailkit.records import TrainingExample
from sailkit.testing import MisbehavingServer

TASK = """
name: claims
data: {file: items.jsonl, fields: {id: id, text: text, label: label}}
labels: {SUPPORTS: {answer: Correct}, REFUTES: {answer: Wrong}}
protocols:
  direct:
    wordings:
      plain: "Correct or wrong? {answers}: {text}"
  think-twice:
    wordings:
      plain: ["Doubt: {text}", "{text} Beside: {previous} {answers}?"]
"""
FILTERED = {"error": {"message": "The prompt was filtered.", "code": "content_filter"}}


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(ChatClient, "backoff", 0.005)


def says(text: str | None, top: dict[str, float] | None = None, finish_reason: str = "stop", **message):
    """A chat completion, with the probabilities of its first token."""
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    if top is not None:
        listed = [{"token": token, "logprob": math.log(share)} for token, share in top.items()]
        choice["logprobs"] = {"content": [{"top_logprobs": listed}]}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}


def replies(by_text: dict[str, tuple]):
    """A server that answers, or refuses, by what the last message holds."""

    def reply(asked: dict):
        content = asked["messages"][-1]["content"]
        return next((answer for text, answer in by_text.items() if text in content), says("Correct", {"Correct": 0.9}))

    return MisbehavingServer(refuse=reply)


def run_task(folder: Path, server: MisbehavingServer, items: list[str], out: str = "run", **options):
    rows = [{"id": str(n), "text": text, "label": "SUPPORTS"} for n, text in enumerate(items)]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "claims.yaml").write_text(TASK)
    figures = evaluate(
        model=f"endpoint:m@{server.url}",
        task=str(folder / "claims.yaml"),
        out=folder / out,
        options=ModelOptions(concurrency=1),
        **options,
    ).to_json()
    written = (folder / out / "predictions.jsonl").read_text().splitlines()
    return figures, [json.loads(line) for line in written]


def test_each_answer_is_scored_read_or_refused_by_itself(tmp_path):
    with replies(
        {
            "scored": says("Wrong", {"Wrong": 0.98}),
            "blank": says("\n\nWrong", {"\n\n": 0.9, "Correct": 0.06, "Wrong": 0.01}),
            "quoted": says('"Wrong"', {'"': 0.97, "Correct": 0.02}),
            "closed": says("<think>It is correct.</think> Wrong", {"<think>": 0.9999, "Correct": 1e-9}),
            "open": says("<think>It may be correct", {"<think>": 0.9999, "Correct": 1e-9}, "length"),
            "apart": says(None, {"Correct": 0.9}, "length", reasoning_content="It may be correct"),
            "parts": says([{"type": "text", "text": "Wr"}, {"type": "text", "text": "ong"}]),
            "filter": (400, FILTERED),
            "policy": says("", None, "content_filter"),
            "refusal": says(None, {"Correct": 0.9}, refusal="I won't say."),
        }
    ) as server:
        names = ["scored", "blank", "quoted", "closed", "open", "apart", "parts", "filter", "policy", "refusal", "last"]
        with pytest.warns(RuntimeWarning, match="gives no log-probabilities"):
            figures, rows = run_task(tmp_path, server, names)
        found = {
            name: (row["label"], row["outcome"], row["answered_by"]) for name, row in zip(names, rows, strict=True)
        }
        assert found == {
            "scored": ("REFUTES", "answered", "logprob"),
            **dict.fromkeys(("blank", "quoted", "closed", "parts"), ("REFUTES", "answered", "text")),
            **dict.fromkeys(("open", "apart"), (None, "unreadable", "text")),
            **dict.fromkeys(("filter", "policy", "refusal"), (None, "refused", "text")),
            "last": ("SUPPORTS", "answered", "logprob"),
        }
        kept = dict(zip(names, rows, strict=True))
        assert [kept[name]["raw_output"] for name in ("blank", "closed")] == [
            "\n\nWrong",
            "<think>It is correct.</think> Wrong",
        ]
        assert kept["apart"]["thought"] == "It may be correct"
        assert [kept[name]["reason"] for name in ("filter", "policy", "refusal")] == [
            "status 400: The prompt was filtered.",
            "content_filter",
            "I won't say.",
        ]
        assert "reason" not in kept["scored"]
        assert kept["scored"]["scores"]["REFUTES"] == pytest.approx(0.98)
        assert kept["scored"]["answers"]["Correct"]["bound"]
        assert (figures["refused"], figures["unreadable"]) == (3, 2)
        messages = figures["flag_messages"]
        assert messages["read-from-text"][0].startswith("6 of 11 answers were read from the text, without scores")
        assert messages["open-thoughts"][0].startswith("2 of 11 answers end within a thought")
        again, _ = run_task(tmp_path, server, names)
        assert again == figures


def test_a_run_with_scores_throughout_has_no_word_of_it(tmp_path):
    with replies({}) as server:
        figures, rows = run_task(tmp_path, server, ["a", "b"])
        assert {"read-from-text", "open-thoughts"}.isdisjoint(figures["flags"])
        assert not {"reason", "thought"} & set(rows[0])
        figures, rows = run_task(tmp_path, server, ["a", "b"], out="generated", answer="generate")
        assert "read-from-text" not in figures["flags"]


def test_a_refusal_ends_the_item_at_the_step_where_it_comes(tmp_path):
    with replies({"Doubt: bad": (400, FILTERED), "Doubt: ": says("<think>Hm.</think>The part.")}) as server:
        _, rows = run_task(tmp_path, server, ["good", "bad", "fine"], protocol="think-twice")
        asked = [request.body["messages"][-1]["content"] for request in server.requests]
    assert [row["outcome"] for row in rows] == ["answered", "refused", "answered"]
    assert rows[1]["reason"] == "status 400: The prompt was filtered."
    assert rows[1]["prompt"] == "user: Doubt: bad"
    assert [len(row["turns"]) for row in rows] == [1, 0, 1]
    assert rows[0]["turns"][0]["raw_output"] == "<think>Hm.</think>The part."
    assert asked[3:] == [f"{text} Beside: The part. Correct or Wrong?" for text in ("good", "fine")]


def test_an_earlier_reply_that_ends_within_a_thought_is_flagged(tmp_path):
    with replies(
        {
            "Doubt: open": says("<think>Hm", finish_reason="length"),
            "Doubt: apart": says(None, finish_reason="length", reasoning_content="Hm"),
            "Doubt: closed": says("<think>Hm.</think>The part."),
            "Doubt: beside": says("The part.", reasoning_content="Hm."),
        }
    ) as server:
        items = ["open", "apart", "closed", "beside"]
        figures, rows = run_task(tmp_path, server, items, protocol="think-twice")
    assert [row["outcome"] for row in rows] == ["answered"] * 4
    assert [row["turns"][0].get("thought") for row in rows] == [None, "Hm", None, "Hm."]
    (message,) = figures["flag_messages"]["open-thoughts"]
    assert message.startswith("2 of 4 items have an earlier reply that ends within a thought")


def test_a_bound_that_calibration_lifts_decides_nothing(tmp_path):
    empty = {"Correct": 0.999, "Wrong": 0.0005}  # the bias: Correct is likely whatever is asked
    with replies({"item": says("Correct", {"Correct": 0.99}), "": says("Correct", empty)}) as server:
        _, (row,) = run_task(tmp_path, server, ["item"], calibrate=True)
    assert (row["label"], row["answered_by"], row["scores"]) == ("SUPPORTS", "text", {})


def test_the_same_refusal_by_a_reference_is_counted(tmp_path):
    with (
        replies({}) as server,
        replies({"bad": (400, FILTERED)}) as other,
    ):
        name = f"endpoint:judge@{other.url}"
        options = {"reference": name, "reference_api_key_env": "OTHER_KEY", "wording": "plain"}
        figures, _ = run_task(tmp_path, server, ["bad", "good"], **options)
    assert figures["reference_n"] == 1
    (row, _) = (tmp_path / "run" / "reference" / "predictions.jsonl").read_text().splitlines()
    (answer,) = json.loads(row)["answers"]
    assert (answer["outcome"], answer["reason"]) == ("refused", "status 400: The prompt was filtered.")


def test_three_times_no_is_three_times_distracting(tmp_path):
    bodies = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf"]
    row = {
        "id": "q",
        "instruction": "Why?",
        "output": "So.",
        "results": [{"title": "", "body": body} for body in bodies],
    }
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    no = {"No": 0.98}
    with replies(
        {
            "alpha": says("No", no),
            "bravo": says("\nNo", {"\n": 0.9, "Yes": 0.05}),
            "charlie": says("<think>Yes?</think>No", {"<think>": 0.999, "Yes": 1e-8}),
            "delta": (400, FILTERED),
            "echo": says("<think>Yes", {"<think>": 0.999}),
            "foxtrot": says("Yes", {"Yes": 0.98}),
            "golf": says(None, {"Is": 0.9}, "length", reasoning_content="Is it?"),
        }
    ) as server:
        figures = label(results=tmp_path / "results.jsonl", out=tmp_path / "run",
                        labeler=f"judge:endpoint:m@{server.url}", options=LabelerOptions(concurrency=1))  # fmt: skip
    (written,) = (tmp_path / "run" / "labels.jsonl").read_text().splitlines()
    found = json.loads(written)["judgements"]
    assert [one["verdict"] for one in found] == ["distracting"] * 3 + [None, None, "informative", None]
    assert [one["outcome"] for one in found] == ["judged"] * 3 + ["refused", "unreadable", "judged", "unreadable"]
    assert found[0]["score"] == pytest.approx(0.02, abs=1e-6)
    assert [one["raw_output"] for one in found] == [
        None, "\nNo", "<think>Yes?</think>No", "status 400: The prompt was filtered.", "<think>Yes", None,
        "<think>Is it?",
    ]  # fmt: skip
    counts = {"informative": 1, "distracting": 3, "unreadable": 2, "refused": 1, "failed": 0, "no_response": 0}
    assert figures.counts == counts
    assert Labeling.load(tmp_path / "run") == replace(figures, machine={})
    assert figures.flag_messages["read-from-text"][0].startswith("2 of 7 judgements were read from a judge's text")
    assert figures.flag_messages["open-thoughts"][0].startswith("2 of 7 replies end within a thought")


def test_what_a_teacher_refuses_is_dropped_with_its_reason(tmp_path):
    rows = [TrainingExample(name, f"Tell of {name}.", "", (), (), "A bear.", "chat") for name in ("bad", "ice", "sun")]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(example_row(one)) + "\n" for one in rows))
    with replies({"bad": (400, FILTERED), "": says("<think>Hm.</think>\n\nIt melts.")}) as server:
        figures = teacher_answers(load_model(f"endpoint:m@{server.url}"), [str(tmp_path / "data")], tmp_path / "run")
    assert [completion(one) for one in read_examples(tmp_path / "run")] == ["It melts."] * 2
    assert figures.dropped == {"the teacher's server refused": 1}
    (dropped,) = (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()
    assert json.loads(dropped) == {
        "id": "bad",
        "reason": "the teacher's server refused: status 400: The prompt was filtered.",
    }


def test_what_concerns_all_stops_the_run(tmp_path):
    with replies({"": (404, {"error": {"message": "no such model"}})}) as server:
        with pytest.raises(UserError, match="refused with status 404: no such model; check the model's name"):
            run_task(tmp_path, server, ["a", "b"])
        assert len(server.requests) == 1
