"""The verb `ask`: where results come from, how they are judged, the answer, and what a terminal shows."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sailkit
from sailkit.asking.live import GrowingText
from sailkit.asking.model import SearchAugmentedModel
from sailkit.asking.results import judged_results
from sailkit.distributed import Processes
from sailkit.evaluation.evidence import evidence_style_for
from sailkit.models.base import ModelOptions, Reply
from sailkit.models.local import LocalModel
from sailkit.records import Instruction, Judgement, Searched, SearchResult, TrainingExample
from sailkit.text import clean
from sailkit.training.flagging import _flags_of

RESULTS = ["Bees make honey in a hive.", {"title": "Paris", "body": "The tower was finished in 1889."}]


@pytest.fixture(scope="module")
def model(shared) -> LocalModel:
    return sailkit.load_model(shared / "models" / "stories260k")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))


def test_a_claim_gets_the_label_and_probabilities_of_an_evaluation(model):
    rows = [{"text": "Bees make honey.", "label": "SUPPORTS", "evidence": ["Bees make honey in a hive."]}]
    how = {"task": "sample-claims", "model": model, "verify": "on"}
    measured = sailkit.evaluate(**how, examples=rows, wording="bare", search="evidence").predictions[0]
    answer = sailkit.ask("Bees make honey.", **how, results=["Bees make honey in a hive."])
    assert answer.labels == measured.scores
    assert answer.label == measured.label
    assert answer.answer in ("Correct", "Wrong")
    assert answer.prompt == measured.prompt
    written = measured.turns[0]["raw_output"].strip()
    assert written in answer.prompt
    assert answer.verification == "", "this model writes something, but no verification sentence"
    other = sailkit.ask("Bees make honey.", **how, results=["The tower was finished in 1889."])
    assert other.labels != answer.labels


def test_flags_have_the_probabilities_that_finetune_measures(model):
    answer = sailkit.ask("Who makes honey?", model=model, results=RESULTS, max_new_tokens=1)
    example = TrainingExample(
        "question", "Who makes honey?", "", answer.results, ("informative", "distracting"), "x", "sail-fixed"
    )
    flags = _flags_of(model, [example], 10_000, Processes())
    assert [1 - judgement.score for judgement in answer.judgements] == pytest.approx([f.probability for f in flags])
    assert [judgement.verdict == "distracting" for judgement in answer.judgements] == [f.predicted for f in flags]
    assert [result.title for result in answer.results] == ["", "Paris"]


def test_the_verdicts_are_those_of_the_sentence_that_the_answer_follows(model, monkeypatch):
    augmented = SearchAugmentedModel(model, evidence_style_for(model, "auto", "on", 2))
    searched = Searched(Instruction("1", "Who makes honey?"), tuple(map(SearchResult, ("Bees.", "A tower."))))
    before = augmented.answer(searched, 1).judgements
    sentence = augmented.style.sentences_of(2)[1]
    assert sentence.startswith("Search result (1) is informative, and search result (2) is distracting.")
    reply = model.generate

    def generate(prompts, new, finished, likely=()):  # as a model that was trained to verify
        return (
            [replace(r, text=sentence) for r in reply(prompts, new, finished)]
            if likely
            else reply(prompts, new, finished)
        )

    monkeypatch.setattr(model, "generate", generate)
    seen = []
    answer = augmented.answer(searched, 4, seen.append)
    assert seen[0].judgements == answer.judgements
    assert [judgement.verdict for judgement in answer.judgements] == ["informative", "distracting"]
    assert [judgement.score for judgement in answer.judgements] == [judgement.score for judgement in before]
    assert answer.verification == sentence
    assert sentence in answer.prompt
    assert sentence not in answer.answer


def test_what_is_no_verification_sentence_is_no_verification(model):
    """A model that was not trained to verify writes something else: its answer is then that of a model without."""
    how = {"model": model, "results": RESULTS, "max_new_tokens": 8}
    alone, verified = sailkit.ask("Who makes honey?", **how), sailkit.ask("Who makes honey?", **how, verify="on")
    assert (verified.verification, verified.answer) == ("", alone.answer)
    assert not verified.is_unsupported
    assert "the flags are scores alone" in str(verified)


def test_the_answer_grows_from_the_judged_results_on_and_can_be_stopped(model):
    seen = []
    answer = sailkit.ask("Who makes honey?", model=model, results=RESULTS, max_new_tokens=20, stream=seen.append)
    assert len(seen[0].judgements) == 2
    assert seen[0].answer == ""
    assert all(b.answer.startswith(a.answer) for a, b in pairwise([*seen, answer]))
    assert answer.answer
    assert answer.cut_off
    assert answer.completion_tokens == 20
    augmented = SearchAugmentedModel(model, evidence_style_for(model, "auto", "auto", 2))
    searched = Searched(Instruction("1", "Who makes honey?"), answer.results)
    stopped = augmented.answer(searched, 20, stop=lambda: True)
    assert stopped.completion_tokens == 1
    assert stopped.cut_off


def test_a_corpus_a_recorded_run_or_no_search_at_all(model, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "bees.md").write_text("Bees make honey in a hive.")
    (tmp_path / "notes" / "tower.md").write_text("The tower was finished in 1889.")
    rows = [{"id": "q7", "instruction": "Who makes", "input": "honey?"}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = {"model": model, "max_new_tokens": 1}
    answer = sailkit.ask("Who makes honey?", corpus=tmp_path / "notes", k=1, **how)
    assert [(result.title, result.source) for result in answer.results] == [("bees", "bm25")]
    run = sailkit.search(instructions=tmp_path / "questions.jsonl", corpus=tmp_path / "notes", out=tmp_path / "run")
    for question in ("q7", "Who makes  honey?"):
        recorded = sailkit.ask(question, search_run=run.folder, **how)
        assert [result.body for result in recorded.results] == ["Bees make honey in a hive."]
        assert recorded.question == "Who makes\nhoney?"
    with pytest.raises(sailkit.UserError, match=r"no results for this question.*id, .*q7"):
        sailkit.ask("Who keeps goats?", search_run=run.folder, **how)
    assert sailkit.ask("Who makes honey?", engine="none", **how).results == ()
    assert "No search results" in str(sailkit.ask("Xylophone?", corpus=tmp_path / "notes", **how))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no search results: give `corpus` FILES, `search_run` RUN or `engine='web'`"),
        ({"k": 7, "engine": "none"}, "`k` should be at most 6"),
        ({"results": ["x"] * 7}, "7 search results: a model judges at most 6; give at most 6"),
        ({"results": "honey"}, "`results` should be a list of search results, even of one"),
        ({"results": {"body": "honey"}}, "`results` should be a list of search results, even of one"),
        ({"results": [{"title": "x"}]}, "entry 1: give a text, or a mapping with `body`"),
        ({"results": [{"body": "x", "link": "y"}]}, "entry 1: unknown field 'link'"),
        ({"results": ["x"], "corpus": "notes"}, "either `results`, or `corpus`"),
        ({"engine": "recorded"}, "give its run folder as `search_run`"),
        ({"engine": "none", "wording": "bare"}, "give `task` as well"),
        ({"engine": "none", "task": "sample-claims", "wording": "bear"}, "did you mean 'bare'"),
        ({"engine": "none", "options": ModelOptions(dtype="float32")}, "this one is loaded"),
        ({"results": ["x"], "max_new_tokens": 5000}, "for the answer; ask for a shorter answer"),
        ({"results": ["x"], "question": "Who? " * 300}, "for the answer; shorten it"),
    ],
)
def test_mistakes_are_one_line_with_the_mend(model, arguments, message):
    with pytest.raises(sailkit.UserError) as error:
        sailkit.ask(**{"question": "Who makes honey?", "model": model, **arguments})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_engine_that_does_not_answer_is_an_error(capsys):
    with pytest.raises(sailkit.UserError, match="searxng gave no answer; try again later, or search a `corpus`"):
        sailkit.ask("Who makes honey?", engine="searxng", searxng_url="http://127.0.0.1:1")
    assert "searxng: no answer:" in capsys.readouterr().err


def test_two_models_side_by_side_as_text_and_html(model, shared):
    path = shared / "models" / "stories260k"
    how = {"results": ["Bees make <b>honey</b>."], "model": model, "compare_with": path, "verify": "off"}
    answer = sailkit.ask("Bees make honey.", task="sample-claims", **how)
    assert answer.compared_with.labels == answer.labels
    assert answer.to_json()["compared_with"]["labels"] == answer.labels
    text, page = str(answer), answer._repr_html_()
    assert text.count("informative, ") + text.count("distracting, ") == 2
    assert text.count("models/stories260k ") >= 2
    assert str(path) not in text
    assert f"{answer.labels['SUPPORTS']:.4f}" in text
    assert "&lt;b&gt;" in page
    assert "<b>honey" not in page
    free = replace(
        answer, is_claim=False, labels={}, answer="left words", compared_with=replace(answer, answer="right")
    )
    line = next(line for line in str(free).splitlines() if "left words" in line)
    assert "right" in line


def test_results_without_judgements_have_no_flags():
    answer = sailkit.Answer("q", "m", results=(SearchResult("body"),))
    assert judged_results(answer)[0]["verdict"] is None
    assert "not judged" in str(answer)
    assert "informative, 0.75" in str(replace(answer, judgements=(Judgement(0.75, "informative"),)))


def test_an_answer_without_an_informative_result_says_so():
    good, bad = Judgement(0.75, "informative"), Judgement(0.1, "distracting")
    results, sentence = (SearchResult("body"), SearchResult("more")), "All search results are distracting."
    answer = sailkit.Answer("q", "m", results=results, judgements=(bad, bad), verification=sentence)
    note = "the model called no result informative"
    assert note in str(answer)
    assert answer.to_json()["is_unsupported"] is True
    scores_alone = replace(answer, verification="")
    for other in (replace(answer, judgements=(bad, good)), scores_alone, sailkit.Answer("q", "m")):
        assert note not in str(other)
        assert other.to_json()["is_unsupported"] is False


# What a terminal gets


@given(st.lists(st.text(st.sampled_from("ab \n\r\t\x1b[]0;\x07\x9b\u202e\ufffdé"), max_size=6), max_size=8))
def test_a_text_that_grows_is_printed_clean_and_whole_however_it_was_cut(pieces):
    growing, text, printed = GrowingText(), "", ""
    for piece in pieces:
        text += piece
        printed += growing.piece(text)
        assert clean(text, layout=True).startswith(printed) or text.endswith("\r")
    printed += growing.piece(text, last=True)
    assert printed == clean(text, layout=True)
    assert not set(printed) & set("\x1b\x07\x9b\u202e\r")


class Thinker:
    """A model of a plug-in that thinks, and whose marks have several tokens."""

    name = "thinker"

    def __init__(self, reply):
        self.reply = reply

    def describe(self):
        return {"model": "thinker"}

    def count_tokens(self, text):
        return len(text)

    def plan(self, prompts, reserve, names=()):
        return [[0]]

    def score(self, prompts, answers):
        raise NotImplementedError

    def generate(self, prompts, max_new_tokens, finished, likely=()):
        for end in range(1, len(self.reply) + 1):
            finished(self.reply[:end])
        return [Reply("", "", 1, text=self.reply)]


@pytest.mark.parametrize(
    "reply",
    [
        "<think>Six sevens.</think>It is 42 < 43.",
        "\n<seed:think>a</seed:think>\nIt is 42 < 43.",
        "[THINK]Six [x] seven.[/THINK]It is 42 < 43.",
        "◁think▷a◁/think▷It is 42 < 43.",
        "<unused94>thought\nSix.<unused95>It is 42 < 43.",
        "Here is my thought process: six. Here is my response: It is 42 < 43.",
        "analysisWe count.assistantfinalIt is 42 < 43.",
        "<|channel|>final<|message|>It is 42 < 43.",
        "<|channel|>final <|constrain|>json<|message|>It is 42 < 43.",
        "<|channel|>analysis<|message|>Six.<|end|><|start|>assistant<|channel|>final<|message|>It is 42 < 43.",
        "It is 42 < 43.",
    ],
)
def test_no_piece_of_a_thought_is_streamed(reply):
    growing, pieces = GrowingText(cleaned=False), []

    def stream(so_far):
        pieces.append(growing.piece(so_far.answer))

    answer = sailkit.ask("6 x 7?", model=Thinker(reply), engine="none", stream=stream)
    assert len(list(filter(None, pieces))) > 5
    pieces.append(growing.piece(answer.answer, last=True))
    assert "".join(pieces) == answer.answer == "It is 42 < 43."


def in_terminal(words, cwd, env, stop_at=None):
    """Run a command in a pseudo-terminal: what it shows, and how it exits; interrupt it at a text."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "sailkit", *map(str, words)]
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, cwd=cwd, env=env)
    os.close(child)
    shown = b""
    while True:
        try:
            shown += os.read(parent, 4096)
        except OSError:  # the other side is closed
            break
        if stop_at and stop_at in shown:
            process.send_signal(signal.SIGINT)
            stop_at = None
    os.close(parent)
    return shown.decode(), process.wait()


@pytest.mark.long
def test_a_terminal_shows_the_flags_then_the_answer_and_obeys_no_escape_sequence(shared, tmp_path):
    hostile = "Honey\x1b]0;owned\x07 is \x1b[2Jsweet.\u202e [red]markup[/red]"
    results = [{"title": "a\x9b31mb", "body": hostile}]
    row = {"id": "1", "instruction": "Is honey sweet?", "results": results}
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    model = shared / "models" / "stories260k"
    words = ["ask", "Is honey sweet?", "--search-run", "results.jsonl", "--model", model, "--json", "out.json"]
    shown, status = in_terminal([*words, "--max-new-tokens", 12], tmp_path, {**os.environ, "TERM": "dumb"})
    assert status == 0, shown
    answer = json.loads((tmp_path / "out.json").read_text())
    assert answer["results"][0]["body"].startswith("Honey\x1b]0;owned")
    assert not set(shown) & set("\x1b\x07\x9b\u202e")
    assert "]0;owned" in shown
    assert "[red]markup[/red]" in shown
    flag = f"{answer['results'][0]['verdict']}, {answer['results'][0]['informative']:.2f}"
    assert shown.index(flag) < shown.index("Answer: ")
    assert shown.replace("\r\n", "\n").count(f"Answer: {answer['answer']}\n") == 1


@pytest.mark.long
def test_an_interrupted_answer_ends_its_line_and_says_so(shared, tmp_path):
    model = shared / "models" / "stories260k"
    words = ["ask", "Who makes honey?", "--engine", "none", "--model", model, "--max-new-tokens", 200]
    shown, status = in_terminal(words, tmp_path, {**os.environ, "TERM": "dumb"}, stop_at=b"Answer: ")
    assert status == 130, shown
    assert shown.replace("\r\n", "\n").endswith("\nsailkit: stopped; the answer is incomplete\n")
    assert "Traceback" not in shown
