"""The protocols that SAIL and UniLC published: their words to the letter, and recordings in these words."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from sailkit.errors import UserError
from sailkit.evaluation.evaluate import evaluate
from sailkit.evaluation.rescore import rescore
from sailkit.models.base import ModelOptions
from sailkit.tasks.task import builtin_tasks, load_task

FACTUAL = "Analysis if the claim is factual and fair."
SUSPICIOUS = (
    "Find the most suspicious information of the statement and check scientific or social fact as the examples."
)
RESPECTFUL = (
    "Analyze if the statement is fair according to the fact and context. If the claim is unfactual or biased, "
    "the answer is no; if the claim is factual and respectful, the answer is yes."
)
FAIR_LABELS = {"climate-fever": ("SUPPORTS", "REFUTES"), "hsd": ("noHate", "hate")}
SPOKEN = "Someone said: {text}\nQuestion: Is it fair to say that?\nAnswer:"


def rescored(*files: Path, **settings: object) -> list[dict]:
    return [result.to_json() for result in rescore(*files, **settings)]


@pytest.mark.parametrize("name", FAIR_LABELS)
def test_the_published_wordings_are_to_the_letter(name):
    task = load_task(name)
    fair, unfair = FAIR_LABELS[name]
    zero = task.question("fair", "published")
    assert (zero.steps, zero.systems, zero.new_tokens) == ((SPOKEN,), (FACTUAL,), (128,))
    twice = task.question("think-twice", "published")
    assert twice.steps == (
        "{examples}" + SPOKEN,
        "Someone said: {text}\n{previous}\nYes/no question: Is it fair to say that?",
    )
    assert (twice.systems, twice.new_tokens) == ((SUSPICIOUS, RESPECTFUL), (128, 128))
    sail = task.question("think-twice", "published-sail")
    assert sail.steps == (
        "Find the most suspicious part of the statement: {text}",
        "Given the statement: {text} The most suspicious part is: {reply_1} "
        "Provide a relevant social or scientific fact to verify it:",
        "Claim: {text} The claim mentions that {reply_1}. Fact: {reply_2} Question: Is it fair to say that? Answer:",
    )
    assert (sail.new_tokens, sail.systems) == ((20, 30, 5), ("", "", ""))
    for question in (zero, twice, sail):
        assert question.answers == {fair: "Yes", unfair: "No"}
        assert question.words == {"Yes": fair, "fair": fair, "No": unfair, "unfair": unfair, "not fair": unfair}
        assert not question.train


def test_the_published_question_on_climate_claims_is_to_the_letter():
    question = load_task("climate-fever").question("direct", "published")
    assert question.steps == (
        "Is the claim about climate correct or wrong based on your judgement? Please only answer 'correct' or 'wrong'. "
        "One word, no sentence.\nClaim: {text}\nAnswer:",
    )


@pytest.mark.parametrize("name", builtin_tasks())
def test_yes_is_fair_in_every_task_and_wording(name):
    task = load_task(name)
    good = {"SUPPORTS", "noHate", "respectful"}
    for wording in task.spec.protocols["fair"].wordings:
        question = task.question("fair", wording)
        (fair,) = (label for label, word in question.answers.items() if word == "Yes")
        assert fair in good
        assert {question.words[word] for word in ("Yes", "fair")} == {fair}
        assert "fair to" in " ".join(question.steps).lower()


@pytest.fixture(scope="module")
def tiny(shared: Path) -> str:
    return str(shared / "models" / "stories260k")


def posts(folder: Path) -> Path:
    (folder / "sampled_test").mkdir()
    texts = {"a": "The cat sat on the mat.", "b": "A bird sang a song."}
    for name, text in texts.items():
        (folder / "sampled_test" / f"{name}.txt").write_text(text)
    (folder / "annotations_metadata.csv").write_text("file_id,label\na,noHate\nb,hate\n")
    return folder


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def test_sails_three_calls_see_what_the_earlier_two_wrote(tiny, tmp_path):
    evaluate(
        model=tiny, task="hsd", data=posts(tmp_path), out=tmp_path / "run", protocol="think-twice",
        wording="published-sail", options=ModelOptions(dtype="float32"), answer="generate",
    )  # fmt: skip
    for row in rows_of(tmp_path / "run"):
        first, second = (turn["raw_output"].strip() for turn in row["turns"])
        assert (first != second, second != "") == (True, True)
        assert row["prompt"] == (
            f"Claim: {row['text']} The claim mentions that {first}. Fact: {second} "
            "Question: Is it fair to say that? Answer:"
        )
        lengths = [turn["completion_tokens"] for turn in row["turns"]]
        assert lengths == [20, 30]
        assert row["completion_tokens"] <= 5
    settings = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert settings["max_new_tokens"] == [20, 30, 5]


def test_unilcs_two_calls_show_four_worked_examples_and_the_fact(tiny, tmp_path):
    worked = [{"text": f"Claim {n}.", "answer": f"Fact {n}."} for n in range(4)]
    (tmp_path / "four.jsonl").write_text("".join(json.dumps(row) + "\n" for row in worked))
    how = {
        "model": tiny, "task": "hsd", "data": posts(tmp_path), "protocol": "think-twice", "wording": "published",
        "options": ModelOptions(dtype="float32"), "max_new_tokens": 6,
    }  # fmt: skip
    with pytest.raises(UserError, match="wording 'published' shows worked examples; bring 4 with `few_shot` FILE"):
        evaluate(**how, out=tmp_path / "none")
    evaluate(**how, out=tmp_path / "run", few_shot=tmp_path / "four.jsonl")
    shown = "".join(SPOKEN.format(text=row["text"]) + f" {row['answer']}\n\n" for row in worked)
    for row in rows_of(tmp_path / "run"):
        (turn,) = row["turns"]
        assert turn["prompt"] == f"{SUSPICIOUS}\n\n{shown}{SPOKEN.format(text=row['text'])}"
        system, prompt = row["prompt"].split("\n\n", 1)
        assert "if the claim is factual and respectful, the answer is yes." in system
        fact = turn["raw_output"].strip()
        assert prompt == f"Someone said: {row['text']}\n{fact}\nYes/no question: Is it fair to say that?\nAnswer:"
    labels = "".join(json.dumps(row | {"answer": "No."}) + "\n" for row in worked)
    (tmp_path / "labels.jsonl").write_text(labels)
    with pytest.raises(
        UserError, match=r"the worked answers are labels \('No.' ...\).*first call, which asks for a text"
    ):
        evaluate(**how, out=tmp_path / "few", few_shot=tmp_path / "labels.jsonl")
    with pytest.raises(UserError, match=r"a folder; tables of text and answer.*for wordings with {examples}"):
        evaluate(**how | {"protocol": "fair"}, out=tmp_path / "few", few_shot=tmp_path / "labels.jsonl")
    (tmp_path / "four.jsonl").write_text(json.dumps(worked[0]) + "\n")
    with pytest.raises(UserError, match="1 worked examples, 4 are to be shown"):
        evaluate(**how, out=tmp_path / "few", few_shot=tmp_path / "four.jsonl")
    (tmp_path / "four.jsonl").write_text(json.dumps({"text": "A bird sang a song.", "answer": "x"}) + "\n")
    with pytest.raises(UserError, match="is also asked about, as 'b'"):
        evaluate(**how, out=tmp_path / "few", few_shot=tmp_path / "four.jsonl", shots=1)


def test_a_system_text_does_not_go_with_the_form_of_training(tiny, tmp_path):
    with pytest.raises(UserError, match="wording published of protocol fair does not go with `search`"):
        evaluate(
            model=tiny, task="hsd", data=posts(tmp_path), out=tmp_path / "run", protocol="fair", wording="published",
            search="none", options=ModelOptions(dtype="float32"),
        )  # fmt: skip


def hsd_rows(predicted: str = "unfair", fair: str = "fair", unfair: str = "unfair") -> list[dict]:
    """A recording whose model never says yes: of 200 items 18 are fair, and one answer is predicted for all."""
    return [
        {
            "id": f"post-{n}", "text": f"Post {n}", "label": "noHate" if n % 2 else "hate",
            "reference_recorded": fair if n < 18 else unfair, "output": " No, it is not fair to say that.",
            "prediction_recorded": predicted,
        }
        for n in range(200)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words", [("unfair", "fair", "unfair"), ("no", "yes", "no"), ("No", "Yes ", "NO"), (" No.", "Yes.", "*no*")]
)
def test_a_recording_of_hate_speech_without_a_yes_comes_out_so(tmp_path, words):
    (tmp_path / "llama.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hsd_rows(*words)))
    (found,) = rescored(tmp_path / "llama.jsonl", task="hsd")
    assert (found["against"], found["recorded_accuracy"], found["recorded_f1_noHate"]) == ("reference", 0.91, 0.0)
    assert (found["accuracy"], found["f1_noHate"], found["unreadable"]) == (0.91, 0.0, 0)
    assert found["human_accuracy"] == 0.5
    assert "constant-predictor" in found["flags"]
    assert "the recorded predictions are hate for 200 of 200 items" in found["flag_messages"]["constant-predictor"][0]


def test_a_recording_in_the_words_of_fair_is_read_in_them(tmp_path):
    row = {
        "id": 1, "text": "x", "label": "noHate", "reference_recorded": "fair", "output": " Yes, it is fair",
        "prediction_recorded": "unfair",
    }  # fmt: skip
    rows = [{**row, "id": n} for n in range(8)] + [{**row, "id": 8, "label": "hate", "output": "It is unfair."}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = rescored(tmp_path / "r.jsonl", task="hsd")
    assert (found["human_accuracy"], found["recorded_accuracy"], found["recorded_disagrees"]) == (1.0, 0.0, 8)
    assert "default-class-parser" in found["flags"]


def test_answers_alone_are_read_in_the_words_that_they_use(tmp_path, capsys):
    """Where no parser's word says which words the answers use, those are taken that read the most of them."""
    rows = [{"id": n, "label": "noHate", "output": ("Yes, it is fair.", "No.")[n % 2]} for n in range(10)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = rescored(tmp_path / "r.jsonl", task="hsd")
    assert (found["unreadable"], found["accuracy"]) == (0, 0.5)
    # Whoever asked "Is it hate speech?" sees here that Yes was taken for its opposite.
    assert "they are read with No for hate and Yes for noHate" in capsys.readouterr().err


def test_a_table_of_responses_is_read_without_a_field_map(tmp_path, capsys):
    with (tmp_path / "hsd.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["claim", "openai_response", "openai_label", "llama_response", "llama_label"])
        for n in range(200):
            writer.writerow([f"Post {n}", *(("Yes.", "yes") if n < 18 else ("No.", "no")), "No, it is unfair.", "no"])
    (found,) = rescored(tmp_path / "hsd.csv", task="hsd")
    assert (found["n"], found["against"], found["recorded_accuracy"]) == (200, "reference", 0.91)
    assert (found["recorded_f1_noHate"], found["f1_noHate"]) == (0.0, 0.0)
    assert "constant-predictor" in found["flags"]
    assert capsys.readouterr().err == (
        f"{tmp_path / 'hsd.csv'}: no field 'id'; the number of each row, from 1, is its id\n"
    )


def test_a_table_of_responses_of_two_models_wants_a_choice(tmp_path):
    path = tmp_path / "hsd.csv"
    path.write_text(
        "claim,openai_response,openai_label,llama_response,llama_label,sail_response,sail_label\nx,Yes,yes,No,no,Yes,yes\n"
    )
    with pytest.raises(UserError, match="responses of several models"):
        rescore(path, task="hsd")
    fields = ["output=sail_response,prediction=sail_label,reference=openai_label,text=claim"]
    (found,) = rescored(path, task="hsd", fields=fields)
    assert (found["accuracy"], found["recorded_accuracy"]) == (1.0, 1.0)
