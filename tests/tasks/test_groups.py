"""Groups of examples: what belongs together stays together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from sailkit.data.leaks import words_of
from sailkit.records import Example
from sailkit.tasks.groups import grouped_with_same_text

CLAIMS = ["Ice floats.", "ice floats", "ICE, floats!", "Ice sinks.", "ice sinks", "Snow melts."]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(CLAIMS)), min_size=1, max_size=12))
def test_examples_are_in_one_group_if_their_words_or_groups_link_them(drawn):
    before = [Example(str(i), text, None, group=group) for i, (group, text) in enumerate(drawn)]
    after = grouped_with_same_text(before, words_of)
    linked = [[a.group == b.group or words_of(a.text) == words_of(b.text) for b in before] for a in before]
    _, components = connected_components(np.array(linked))
    pairs = {*zip(components, (each.group for each in after), strict=True)}
    assert len(pairs) == len({*components}) == len({each.group for each in after})
    assert [replace(new, group=old.group) for new, old in zip(after, before, strict=True)] == before
