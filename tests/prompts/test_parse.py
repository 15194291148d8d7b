"""What an answer says is read; what it does not say is never made up."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sailkit.evaluation.predictions import load_table
from sailkit.prompts.parse import read_answer, read_with_reason
from sailkit.prompts.render import step_prompt
from sailkit.prompts.thoughts import split_thoughts, thought_is_open
from sailkit.tasks.task import builtin_tasks, load_task

WORDS = load_task("climate-fever").words()
RIGHT, WRONG = ("SUPPORTS", "answered"), ("REFUTES", "answered")
UNREADABLE, REFUSED = (None, "unreadable"), (None, "refused")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Plain words, whatever stands around them.
        ("Correct", RIGHT),
        ("  Wrong.", WRONG),
        ("WRONG!!", WRONG),
        ("**Correct**", RIGHT),
        ("_Wrong_", WRONG),
        ("`correct`", RIGHT),
        ("“Wrong”", WRONG),
        ("'Correct.'", RIGHT),
        ("Answer: Correct", RIGHT),
        ("- Wrong", WRONG),
        ("1. Correct", RIGHT),
        ("<b>Wrong</b>", WRONG),
        ("### Verdict\n\n**Wrong**\n", WRONG),
        ("The claim is factual.", RIGHT),
        ("SUPPORTS", RIGHT),
        ("not_true", WRONG),
        ("Correct\u200b", RIGHT),
        # The first sentence that speaks of a label decides.
        ("Correct. Although some say it is wrong.", RIGHT),
        ("Let me think. It is wrong.", WRONG),
        ("Hmm...\nCorrect", RIGHT),
        # A word counts whole.
        ("incorrect", WRONG),
        ("Incorrectly phrased", UNREADABLE),
        ("rightly", UNREADABLE),
        ("copyright", UNREADABLE),
        ("non-factual", UNREADABLE),
        # Denied words give no label, but a listed phrase is a word of its own.
        ("not correct", WRONG),
        ("That is not true.", WRONG),
        ("not wrong", UNREADABLE),
        ("It isn't correct", UNREADABLE),
        ("It isn’t correct", UNREADABLE),
        ("It isnʼt correct", UNREADABLE),
        ("It isn`t correct", UNREADABLE),
        ("neither", UNREADABLE),
        ("neither correct nor wrong", UNREADABLE),
        ("The claim is neither correct nor wrong.", UNREADABLE),
        ("not at all wrong", UNREADABLE),
        ("never correct", UNREADABLE),
        ("Not wrong. Correct.", UNREADABLE),
        ("It's not wrong, it's correct", UNREADABLE),
        ("I don't think the claim is correct.", UNREADABLE),
        ("There is no evidence that the claim is correct.", UNREADABLE),
        ("It is not the case that this claim is correct.", UNREADABLE),
        ("It is unclear whether the claim is correct.", UNREADABLE),
        ("It is unlikely to be correct.", UNREADABLE),
        ("None of the search results show that the claim is correct.", UNREADABLE),
        ("Nobody has shown that the claim is correct.", UNREADABLE),
        ("The search results fail to show that the claim is correct.", UNREADABLE),
        ("There is insufficient evidence that the claim is correct.", UNREADABLE),
        ("There is a lack of evidence that it is correct.", UNREADABLE),
        ("Studies lack clear evidence that it is correct.", UNREADABLE),
        ("It lacks merit and is false.", WRONG),
        ("The claim fails to mention the year and is false.", WRONG),
        ("I doubt that the claim is correct.", UNREADABLE),
        ("The claim is far from true.", WRONG),
        ("It is anything but correct.", WRONG),
        ("It is far from wrong.", UNREADABLE),
        ("If the numbers hold the claim is correct", UNREADABLE),
        # A denial ends with its clause.
        ("No, the claim is correct.", RIGHT),
        ("The source does not say so, but the claim is correct.", RIGHT),
        ("It does not mention the year but the claim is wrong.", WRONG),
        ("There is no doubt that the claim is correct.", RIGHT),
        ("Without a doubt, wrong.", WRONG),
        ("The claim is beyond reasonable doubt correct.", RIGHT),
        ("There is little doubt that it is wrong.", WRONG),
        ("There is no reasonable doubt that it is correct.", RIGHT),
        # Hedges.
        ("partly correct", UNREADABLE),
        ("Partially true", UNREADABLE),
        ("It is half right.", UNREADABLE),
        ("somewhat misleading", UNREADABLE),
        ("semi-correct", UNREADABLE),
        # Both labels are none.
        ("Correct or Wrong", UNREADABLE),
        ("Correct/Wrong", UNREADABLE),
        ("It could be right and it could be wrong.", UNREADABLE),
        ("Answer with one word: Correct or Wrong. Correct", UNREADABLE),
        # Two words for one label are one.
        ("Wrong, that is false.", WRONG),
        ("true and correct", RIGHT),
        # Refusals.
        ("I cannot say whether that is correct.", REFUSED),
        ("I can't answer that.", REFUSED),
        ("I’m sorry, I can’t help.", REFUSED),
        ("We are unable to judge this.", REFUSED),
        ("I don't know.", REFUSED),
        ("As an AI language model, I have no opinions.", REFUSED),
        ("Sorry! I have no idea.", REFUSED),
        ("As an AI, I would say it is correct.", RIGHT),
        # A question gives no label, whoever asks it.
        ("Is the claim right? Wrong.", WRONG),
        ("Is the claim right?", UNREADABLE),
        ("Is the claim right?\nWrong", WRONG),
        ('"Is the claim right?" Wrong.', WRONG),
        ("**Is it correct?** It is false.", WRONG),
        ("Right?! Wrong!", WRONG),
        ("Correct?", UNREADABLE),
        ("Is it right or wrong? I cannot say.", REFUSED),
        ("Question: Is it correct?\nAnswer:", UNREADABLE),
        # Nothing.
        ("", UNREADABLE),
        (" \n\t", UNREADABLE),
        ("...", UNREADABLE),
        ("The moon.", UNREADABLE),
        ("\x00\ud83d", UNREADABLE),
    ],
)
def test_reading(text, expected):
    assert read_answer(text, WORDS) == expected


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("not enough information", "NOT_ENOUGH_INFO"),
        ("NOT_ENOUGH_INFO", "NOT_ENOUGH_INFO"),
        ("Undecided", "NOT_ENOUGH_INFO"),
        ("Mixed evidence", "DISPUTED"),
        ("mixed", None),
        ("Correct", "SUPPORTS"),
    ],
)
def test_phrases_of_several_words(text, label):
    assert read_answer(text, load_task("climate-fever", ["all"]).words())[0] == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Yes", "SUPPORTS"),
        ("Yes, it is fair.", "SUPPORTS"),
        ("Fair", "SUPPORTS"),
        ("No.", "REFUTES"),
        ("No, it is not fair to say so.", "REFUTES"),
        ("Not fair", "REFUTES"),
        ("yes and no", None),
        ("Correct", None),
    ],
)
def test_a_negation_that_is_itself_an_answer(text, label):
    question = load_task("climate-fever").question("fair")
    assert read_answer(text, question.words)[0] == label


THOUGHT = "The claim looks correct. Is it? It is right, I think."
CLOSED_THOUGHTS = [
    f"<think>{THOUGHT}</think>",
    f"<think>\n{THOUGHT}\n</think>\n\n",
    f"{THOUGHT}\n</think>\n\n",  # the prompt opened it
    "<think>\n\n</think>\n\n",
    f"<thinking>{THOUGHT}</thinking>",
    f"<reasoning>{THOUGHT}</reasoning>\n",
    f"<Thought>{THOUGHT}</Thought>",
    f"<seed:think>{THOUGHT}</seed:think>",
    f"◁think▷{THOUGHT}◁/think▷",
    f"[THINK]{THOUGHT}[/THINK]",
    f"{THOUGHT}[/THINK]",
    f"<|START_THINKING|>{THOUGHT}<|END_THINKING|>",
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>",
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>commentary<|message|>Correct so far."
    "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>",
    f"analysis{THOUGHT}assistantfinal",
    f"<|channel>thought\n{THOUGHT}<channel|>",
    f"Here is my thought process:\n{THOUGHT}\n\nHere is my response:\n",
    f"<think>{THOUGHT}</think> <think>{THOUGHT}</think>",
    f"<think>{THOUGHT} <think>{THOUGHT}</think> so correct</think>",
]


@pytest.mark.parametrize("thought", CLOSED_THOUGHTS)
def test_a_closed_thought_is_no_part_of_the_answer(thought):
    for text in (thought + "Wrong.", thought + "**Wrong**", thought + "\nIs it right? It is wrong.<|return|>"):
        assert read_answer(text, WORDS) == WRONG
        assert not thought_is_open(text)
    assert read_answer(thought, WORDS) == UNREADABLE


@pytest.mark.parametrize("thought", CLOSED_THOUGHTS)
def test_an_open_thought_leaves_no_answer(thought):
    """As it is where the limit comes before the end; a thought that only the prompt opened cannot be known as one."""
    if THOUGHT in thought and not thought.startswith(THOUGHT):
        text = thought[: thought.index(THOUGHT) + len(THOUGHT)]
        assert thought_is_open(text)
        assert read_answer(text, WORDS) == UNREADABLE
        if text[0] in "<[◁":
            assert read_answer(f"{thought}Wrong. {text}", WORDS) == UNREADABLE


def test_what_is_left_of_an_answer_is_the_answer():
    assert split_thoughts("  Wrong.\n") == ("  Wrong.\n", False)
    assert split_thoughts("I think [so]. <b>Analysis</b>") == ("I think [so]. <b>Analysis</b>", False)
    assert split_thoughts("<think>\nhm\n</think>\n\nA bear.\nIt waits.") == ("A bear.\nIt waits.", False)
    final = "<|start|>assistant<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>"
    assert split_thoughts(f"{final}A bear.<|return|>") == ("A bear.", False)


def test_a_repeated_wording_is_no_answer():
    """Models, base models above all, repeat what they were asked."""
    seen = 0
    for name in builtin_tasks():
        task = load_task(name)
        for protocol, spec in task.spec.protocols.items():
            for wording in spec.wordings:
                question = task.question(protocol, wording)
                for number, (step, system) in enumerate(zip(question.steps, question.systems, strict=True)):
                    answers = list(question.answers.values())
                    turns = step_prompt(step, "The lake is deep.", answers, previous=["Deep."] * number, system=system)
                    echo = turns[-1].text
                    whole = "\n".join(turn.text for turn in turns)
                    for text in (echo, f"{echo}\n", f"{echo}\nAnswer:", whole, system):
                        assert read_answer(text, question.words)[0] is None, text
                        seen += 1
    assert seen > 100


@pytest.mark.parametrize("name", builtin_tasks())
def test_every_word_of_every_task_reads_as_its_own_label(name):
    task = load_task(name, ["all"])
    tables = [task.words()]
    for protocol in task.spec.protocols:
        usable = load_task(name) if task.spec.protocols[protocol].answers else task
        tables.append(usable.question(protocol).words)
    for words in tables:
        for word, label in words.items():
            for text in (word, word.upper(), f"**{word.title()}**.", f"It is: {word}!"):
                assert read_answer(text, words) == (label, "answered"), text


@given(st.text(), st.dictionaries(st.text(min_size=1), st.sampled_from("ABC"), max_size=4))
def test_a_label_is_one_of_those_that_words_stand_for(text, words):
    label, outcome = read_answer(text, words)
    assert (label is not None) == (outcome == "answered")
    assert label is None or label in words.values()


PIECES = st.sampled_from([*WORDS, "not", "no", "isn't", "the", "claim", "I cannot", "partly", ",", ".", "but", "\n"])


@given(st.lists(PIECES, max_size=12))
def test_a_label_is_never_one_that_was_not_named(pieces):
    text = " ".join(pieces)
    label, _ = read_answer(text, WORDS)
    assert label is None or any(WORDS[piece] == label for piece in pieces if piece in WORDS) or "not" in pieces


@given(st.text(alphabet=st.characters(exclude_characters="cwrtasfvium"), max_size=200))
def test_text_without_any_of_the_words_is_never_answered(text):
    """All words begin with one of the letters left out."""
    assert {word[0].casefold() for word in WORDS if not word.startswith("not")} <= set("cwrtasfvium")
    assume(not set(text.casefold()) & set("cwrtasfvium"))  # capitals and ligatures fold to them
    assert read_answer(text, {w: label for w, label in WORDS.items() if not w.startswith("not")})[0] is None


@given(st.text(max_size=60))
def test_without_words_nothing_is_answered(text):
    assert read_answer(text, {})[0] is None
    assert read_answer(text, {"...": "A"})[0] is None


@pytest.mark.parametrize(
    "piece",
    [
        "a ",
        "i ",
        "i am ",
        "not ",
        "a-",
        ". ",
        "a. ",
        "a\n",
        "'",
        "\n",
        " ",
        "not correct ",
        ",",
        "without ",
        "_",
        "é’",
        "<think>",
        "?",
        '?" ',
        "</think>",
        "analysis",
        "Here is my ",
    ],
)
def test_time_grows_no_faster_than_the_text(piece):
    for text in (piece * (200_000 // len(piece)), "i" + piece * 50_000 + "x"):
        start = time.process_time()
        read_answer(text, WORDS)
        assert time.process_time() - start < 3  # one second at the most where nothing else runs


def test_a_million_characters_are_read():
    start = time.process_time()
    assert read_answer("word " * 200_000 + "correct", WORDS) == RIGHT
    assert time.process_time() - start < 10


@pytest.mark.parametrize("text", ["Correct. Here is my response: the sea is salty.", "Correct.\n\nassistantfinal"])
def test_plain_words_that_close_a_thought_close_only_one_that_is_open(text):
    assert read_answer(text, WORDS) == RIGHT
    opened = "Here is my thought process: it is wrong.\n"
    assert read_answer(f"{opened}Here is my response:\nCorrect.", WORDS) == RIGHT
    assert read_answer("analysisWe think it is wrong.assistantfinalCorrect.", WORDS) == RIGHT


def test_answer_words_that_only_signs_tell_apart_are_not_read():
    words = {"1": "positive", "0": "neutral", "-1": "negative"}
    assert [read_answer(text, words)[0] for text in ("1", "-1", "0")] == [None, None, "neutral"]


@pytest.mark.parametrize(("answer", "label"), [(" Wrong.", "REFUTES"), ("", None)])
def test_a_prompt_repeated_before_the_answer_is_not_read(tmp_path, answer, label):
    prompt = "Is the claim right? Say Correct.\nClaim: Ice floats.\n"
    row = {"id": "1", "text": "Ice floats.", "label": "SUPPORTS", "prompt": prompt, "output": prompt + answer}
    path = tmp_path / "recorded.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (read,) = load_table(path).predictions
    assert (read.label, read.raw_output) == (label, prompt + answer)


@pytest.mark.parametrize(
    ("text", "label"),
    [("Neither, strictly speaking, correct nor wrong.", None), ("I'm afraid that is wrong.", "REFUTES")],
)
def test_asides_and_regrets(text, label):
    assert read_answer(text, {"correct": "SUPPORTS", "wrong": "REFUTES"})[0] == label


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("", "is empty", ""),
        (" \n", "is empty", ""),
        ("<think>It is correct, or", "ends within a thought", ""),
        ("Nice weather today.", "has no answer word", ""),
        ("It is either correct or wrong.", "gives several labels in a sentence", "REFUTES, SUPPORTS"),
        ("It is not clear whether that is correct.", "names a label only to deny or doubt it", ""),
        ("Is it correct?", "names labels only in a question", ""),
        ("I cannot say whether it is correct.", "declines to answer", "i cannot"),
        ("As an AI, I have no opinion.", "evades the question", "as an ai"),
        ("Correct.", "", ""),
    ],
)
def test_a_reply_without_a_label_has_a_reason(text, reason, words):
    reading = read_with_reason(text, WORDS)
    assert (reading.reason, reading.words) == (reason, words)
    assert (reading.label, reading.outcome) == read_answer(text, WORDS)
    assert bool(reason) == (reading.outcome != "answered")
