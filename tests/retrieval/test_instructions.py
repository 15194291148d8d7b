"""Instructions are read in the forms in which people keep them; what cannot be read is named."""

from __future__ import annotations

import json
import time

import pytest

from sailkit.errors import UserError
from sailkit.records import Instruction
from sailkit.retrieval.instructions import read_instructions

ALPACA = "Below is an instruction that describes a task. Write a response.\n\n### Instruction:\n"


def read(tmp_path, *rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_instructions(path, **options)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}]},
        {"prompt": f"{ALPACA}Add.\n\n### Input:\n1 1\n\n### Response:", "completion": "2"},
        {"prompt": "### Instruction: Add.\n### Input: 1 1\n### Response:\n", "completion": "2"},
        {"instruction": "Add.", "input": "1 1", "output": 2, "id": 1},
        {"prompt": f"{ALPACA}Add.\n\n### Input:\n1 1\n\n### Response:", "output": "2"},
    ],
)
def test_each_form_says_the_same(tmp_path, row):
    assert read(tmp_path, row) == [Instruction("1", "Add.", "1 1", "2")]


@pytest.mark.parametrize(
    ("prompt", "instruction", "given"),
    [
        (f"{ALPACA}Add.\n\n### Response:", "Add.", ""),
        (f"{ALPACA}Say\n### Response:\ntwice.\n\n### Response:\n\n", "Say\n### Response:\ntwice.", ""),
        ("### Instruction:\n\n### Input:\n1 1\n\n### Response:", "", "1 1"),
        ("What is 1 + 1?", "What is 1 + 1?", ""),
        ("Why ### Instruction: x\n### Response:", "Why ### Instruction: x\n### Response:", ""),
        ("### Instruction: x\n### Response: y", "### Instruction: x\n### Response: y", ""),
    ],
)
def test_a_prompt_has_alpacas_headings_or_is_the_instruction(tmp_path, prompt, instruction, given):
    (one,) = read(tmp_path, {"prompt": prompt, "completion": None})
    assert (one.instruction, one.input, one.output) == (instruction, given, "")


@pytest.mark.parametrize("filling", ["\n", "### Input:\n", "\n### Input:\n", "\n### Response:x"])
def test_a_prompt_of_a_million_characters_is_read_at_once(tmp_path, filling):
    prompt = "### Instruction:\n" + filling * (1_000_000 // len(filling))
    start = time.process_time()
    (one,) = read(tmp_path, {"prompt": prompt, "completion": "x"})
    assert one.instruction == prompt
    assert time.process_time() - start < 20


def test_several_answers_are_listed_and_fields_may_have_other_names(tmp_path):
    row = {"question": "When?", "answers": ["1 May", "in May"], "n": 7}
    found = read(tmp_path, row, fields=["instruction=question,output=answers", "id=n"])
    assert found == [Instruction("7", "When?", "", "1 May; in May")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"instruction": "a", "id": "x"}, {"instruction": "b", "id": "x"}],
            r"line 2: id 'x' was used before, .*line 1",
        ),
        ([{"instruction": "a", "id": 2}, {"instruction": "b"}], r"line 2: id '2' was used before"),
        ([{"text": "a"}], r"line 1: no field 'instruction' \(found: text\)"),
        ([{"instruction": {"a": 1}}], r"line 1: field 'instruction' should be text, found dict"),
        ([{"instruction": "\ud800"}], "half a surrogate pair"),
        ([], "no instructions"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, *rows)


def test_only_the_first_are_read_where_a_limit_is_given(tmp_path):
    assert [one.id for one in read(tmp_path, {"instruction": "a"}, {"instruction": "b"}, {"broken": 1}, limit=2)] == [
        "1",
        "2",
    ]
