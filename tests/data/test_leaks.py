"""A task's test items inside training rows are found, changed a little or not; what is merely alike is not."""

from __future__ import annotations

import pytest

from sailkit.data.leaks import LeakCheck
from sailkit.records import Instruction

CLAIM = "Sea ice in the Arctic has shrunk by half since the year 1979."
TEXTS = [("climate", "long", CLAIM), ("climate", "run", "The sun drives climate."), ("climate", "short", "Ice melts.")]


@pytest.fixture(scope="module")
def check() -> LeakCheck:
    return LeakCheck(TEXTS)


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
@pytest.mark.parametrize(
    ("text", "example", "kind"),
    [
        (CLAIM, "long", "exact"),
        ("  sea ICE, in the arctic has shrunk by half\nsince the year 1979", "long", "exact"),
        (f"Is this right? {CLAIM} Say why.", "long", "exact"),
        (CLAIM.replace("shrunk", "diminished"), "long", "near"),
        (f"They say: {CLAIM.replace('half', 'much')} I doubt it.", "long", "near"),
        ("We know that the sun drives climate, mostly.", "run", "exact"),
        ("Ice melts!", "short", "exact"),
    ],
)
def test_a_test_item_is_found_in_every_field(check, field, text, example, kind):
    row = {"instruction": "Say something.", "output": "Done.", field: text}
    found = check.find(Instruction("1", **row))
    assert found is not None
    assert (found.task, found.example, found.kind, found.field) == ("climate", example, kind, field)
    assert (found.overlap == 1) if kind == "exact" else (0.5 <= found.overlap < 1)


@pytest.mark.parametrize(
    "text",
    [
        "Since the year 1979 much has changed in the Arctic, and the sea is one of those things.",
        "When it is warm, ice melts.",  # two words are in everything
        "The sun drives the climate.",
        "",
        "...",
    ],
)
def test_what_is_merely_alike_is_left(check, text):
    assert check.find(Instruction("1", "Tell me about the sea.", text, "It is wide.")) is None


def test_a_text_is_not_pieced_together_from_several_fields(check):
    assert check.find(Instruction("1", "Say: the sun", "drives climate.", "Yes.")) is None


def test_an_excerpt_of_a_long_test_item_is_near():
    long = " ".join(f"word{i}" for i in range(200))
    found = LeakCheck([("t", "1", long)]).find(Instruction("1", " ".join(long.split()[50:80]), "", "x"))
    assert found is not None
    assert found.kind == "near"


def test_texts_without_words_match_nothing():
    assert LeakCheck([("t", "1", "..."), ("t", "2", "")]).find(Instruction("1", "!", "", "?")) is None
