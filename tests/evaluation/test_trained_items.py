"""The warning of an evaluation on items from which training data were drawn, and its advice."""

from __future__ import annotations

import pytest

from sailkit.evaluation.trained_items import trained_items_flag
from sailkit.records import Example

EXAMPLES = [Example(f"claim-{number}", f"Claim {number}", "SUPPORTS", group=f"claim-{number}") for number in range(40)]


@pytest.mark.parametrize(
    ("parts", "advice"),
    [
        ([("first", 0.5)], "evaluate with --half second"),
        ([("first", 0.5), ("first", 0.9)], "evaluate with --half second --first-share 0.9"),
        ([("second", 0.9), ("second", 0.5)], "evaluate with --half first"),
        ([("first", 0.5), ("second", 0.5)], "no part of these data is unseen"),
        ([("first", 0.5), (None, 0.5)], "no part of these data is unseen"),
    ],
)
def test_the_advice_names_a_part_that_no_training_data_were_drawn_from(parts, advice):
    tasks = [{"task": "fever", "data_sha256": "abc", "half": half, "first_share": share} for half, share in parts]
    (flag,) = trained_items_flag({"trained_tasks": tasks}, "fever", "abc", EXAMPLES)
    assert flag.code == "trained-items"
    assert flag.message.endswith(f"training data were drawn from: {advice}")


def test_other_data_and_other_items_raise_no_flag():
    tasks = [{"task": "fever", "data_sha256": "abc", "half": "first", "first_share": 0.5}]
    assert trained_items_flag({"trained_tasks": tasks}, "fever", "other", EXAMPLES) == []
    assert trained_items_flag({}, "fever", "abc", EXAMPLES) == []
