"""A teacher's probabilities in the student's tokens, against exact conditionals of a small grammar."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from sailkit.distillation.align import ByteStream, Vocabulary, byte_stream
from sailkit.distillation.project import Projection, RowTargets, Target, collect
from sailkit.distillation.records import ALIGNED, CONDITIONED, NONE, TeacherRow
from slow_projection import SlowProjection

SLOTS = [
    ["The glacier", "Scientists", "The information", "An unbelievable hypothesis", "Dr. Okonkwo", "北京的科学家"],
    [
        " reported",
        " is reporting",
        " informs",
        " informed us of",
        " reconfirmed",
        " couldn't explain",
        " overestimated",
    ],
    [
        *(" the temperature", " temperatures of 14.7 degrees", " a 3.5% rise", " unprecedented warming"),
        *(" the misinformation", " antidisestablishmentarianism", " CO2 emissions", " 気候変動"),
    ],
    [".", " in 2009.", " in 2019!", "; nobody knew.", " (see Figure 12).", " 😀.", "...", "\n\nAnd yet"],
]


class Side(NamedTuple):
    """One tokenizer's view of the grammar."""

    tokenizer: Any
    vocabulary: Vocabulary
    end: int
    rows: list[tuple[int, ...]]  # tokens of every sentence, with the end
    following: dict[tuple[int, ...], dict[int, float]]  # beginning -> next token -> probability


class Grammar:
    """All sentences of a small grammar with their probabilities; each slot depends on the one before."""

    def __init__(self, seed: int = 0) -> None:
        chance = random.Random(seed)

        def weights(n: int) -> list[float]:
            found = [chance.random() ** 2 + 0.02 for _ in range(n)]
            return [one / sum(found) for one in found]

        sentences = {(word,): p for word, p in zip(SLOTS[0], weights(len(SLOTS[0])), strict=True)}
        for slot in SLOTS[1:]:
            by_word = {said[-1]: weights(len(slot)) for said in sentences}
            sentences = {
                (*said, word): p * q
                for said, p in sentences.items()
                for word, q in zip(slot, by_word[said[-1]], strict=True)
            }
        self.texts = ["".join(said) for said in sentences]
        self.probs = list(sentences.values())

    def side(self, tokenizer: Any) -> Side:
        end = tokenizer.eos_token_id
        before = tokenizer("x\n", add_special_tokens=False)["input_ids"]
        rows = []
        for text in self.texts:
            ids = tokenizer("x\n" + text, add_special_tokens=False)["input_ids"]
            assert ids[: len(before)] == before
            rows.append((*ids[len(before) :], end))
        counts: defaultdict[tuple[int, ...], defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
        for row, p in zip(rows, self.probs, strict=True):
            for n, token in enumerate(row):
                counts[row[:n]][token] += p
        following = {
            begun: {token: p / sum(found.values()) for token, p in found.items()} for begun, found in counts.items()
        }
        return Side(tokenizer, Vocabulary(tokenizer), end, rows, following)

    def draw(self, n: int, seed: int) -> list[int]:
        return random.Random(seed).choices(range(len(self.texts)), weights=self.probs, k=n)


def teacher_row(side: Side, i: int) -> TeacherRow:
    """What a teacher that knows the grammar thinks of sentence i."""
    row = side.rows[i]
    every = [sorted(side.following[row[:n]].items(), key=lambda item: -item[1]) for n in range(len(row))]
    return TeacherRow(
        tokens=np.array(row),
        starts=np.cumsum([0, *map(len, every)]),
        ids=np.array([token for found in every for token, _ in found]),
        logprobs=np.log([p for found in every for _, p in found]),
        tail=np.zeros(len(row)),
        observed=np.array([math.log(side.following[row[:n]][token]) for n, token in enumerate(row)]),
    )


def both(grammar: Grammar, teacher: Side, student: Side, i: int) -> tuple[ByteStream, ByteStream]:
    text = grammar.texts[i]
    return byte_stream(teacher.vocabulary, teacher.rows[i], text), byte_stream(
        student.vocabulary, student.rows[i], text
    )


def variation(grammar: Grammar, teacher: Side, student: Side, projection: Projection, places: Sequence[int]) -> float:
    """Mean total variation between targets and what an ideal student would think."""
    found = []
    for i in places:
        targets = projection.targets(teacher_row(teacher, i), *both(grammar, teacher, student, i))
        for n, target in enumerate(targets.unpack()):
            if target.kind != NONE:
                ideal = student.following[student.rows[i][:n]]
                keys = ideal.keys() | target.probs.keys()
                apart = sum(abs(ideal.get(key, 0.0) - target.probs.get(key, 0.0)) for key in keys)
                found.append((apart + target.tail) / 2)
    return float(np.mean(found))


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar()


@pytest.fixture(scope="module")
def llama(shared, grammar) -> Side:
    return grammar.side(LlamaTokenizer.from_pretrained(shared / "tokenizers" / "llama"))


@pytest.fixture(scope="module")
def qwen(shared, grammar) -> Side:
    return grammar.side(AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen"))


@pytest.fixture(scope="module")
def small(shared, grammar) -> Side:
    return grammar.side(AutoTokenizer.from_pretrained(shared / "models" / "stories260k"))


@pytest.fixture(params=["llama to qwen", "qwen to llama", "llama to stories260k"])
def pair(request) -> tuple[Side, Side]:
    teacher, student = request.param.split(" to ")
    names = {"llama": "llama", "qwen": "qwen", "stories260k": "small"}
    return request.getfixturevalue(names[teacher]), request.getfixturevalue(names[student])


def test_targets_are_near_those_of_an_ideal_student(grammar, pair):
    teacher, student = pair
    places = grammar.draw(150, seed=1)
    alone = Projection(teacher.vocabulary, student.vocabulary, frozenset([teacher.end]), expand=False)
    followed = Projection(teacher.vocabulary, student.vocabulary, frozenset([teacher.end]))
    learned = Projection(teacher.vocabulary, student.vocabulary, frozenset([teacher.end]))
    learned.learn_habits(both(grammar, teacher, student, i) for i in grammar.draw(300, seed=2))
    apart = [variation(grammar, teacher, student, one, places) for one in (alone, followed, learned)]
    assert apart[0] > apart[1] >= apart[2]
    assert apart[2] < 0.04


def test_the_real_pair_goes_from_first_tokens_to_nearly_ideal(grammar, llama, qwen):
    places = grammar.draw(150, seed=1)
    alone = Projection(llama.vocabulary, qwen.vocabulary, frozenset([llama.end]), expand=False)
    learned = Projection(llama.vocabulary, qwen.vocabulary, frozenset([llama.end]))
    learned.learn_habits(both(grammar, llama, qwen, i) for i in grammar.draw(300, seed=2))
    assert variation(grammar, llama, qwen, alone, places) > 0.12
    assert variation(grammar, llama, qwen, learned, places) < 0.03


def test_the_same_tokenizer_gets_the_very_same_distribution(grammar, qwen):
    projection = Projection(qwen.vocabulary, qwen.vocabulary, frozenset([qwen.end]))
    assert variation(grammar, qwen, qwen, projection, grammar.draw(50, seed=1)) < 1e-9


def test_all_targets_are_distributions_and_end_with_the_students_end(grammar, pair):
    teacher, student = pair
    projection = Projection(teacher.vocabulary, student.vocabulary, frozenset([teacher.end]))
    for i in grammar.draw(40, seed=3):
        found = projection.targets(teacher_row(teacher, i), *both(grammar, teacher, student, i)).unpack()
        for target in found:
            assert sum(target.probs.values()) + target.tail == pytest.approx(1, abs=1e-9)
            assert all(0 <= p <= 1 + 1e-9 for p in target.probs.values())
        last = found[-1]
        assert last.kind == ALIGNED
        assert last.probs[student.end] == pytest.approx(teacher.following[teacher.rows[i][:-1]][teacher.end])


def _truncated(row: TeacherRow, k: int) -> TeacherRow:
    """A row with its k likeliest tokens in half precision, as a cache keeps it."""
    kept = np.arange(len(row.ids)) - np.repeat(row.starts[:-1], np.diff(row.starts)) < k
    positions = np.repeat(np.arange(len(row.tokens)), np.diff(row.starts))
    tail = np.bincount(positions[~kept], np.exp(row.logprobs[~kept]), len(row.tokens))
    starts = np.concatenate([[0], np.cumsum(np.bincount(positions[kept], minlength=len(row.tokens)))])
    return TeacherRow(row.tokens, starts, row.ids[kept], row.logprobs[kept].astype(np.float16),
                      tail.astype(np.float32), row.observed.astype(np.float32))  # fmt: skip


@pytest.mark.parametrize("k", [1, 3, 1000])
@pytest.mark.parametrize("options", [{}, {"min_mass": 0.6}, {"expand": False}])
def test_arrays_give_the_bits_of_one_entry_after_the_other(grammar, pair, k, options):
    teacher, student = pair
    ends = frozenset([teacher.end])
    projection = Projection(teacher.vocabulary, student.vocabulary, ends, **options)
    learned = [both(grammar, teacher, student, i) for i in grammar.draw(50, seed=2)]
    projection.learn_habits(learned)
    reference = SlowProjection(teacher.vocabulary, student.vocabulary, ends, **options)
    reference.learn_habits(learned)
    kinds = set()
    for i in grammar.draw(12, seed=4):
        arguments = _truncated(teacher_row(teacher, i), k), *both(grammar, teacher, student, i)
        result, expected = projection.targets(*arguments).unpack(), reference.targets(*arguments)
        assert result == expected
        assert [list(target.probs) for target in result] == [list(target.probs) for target in expected]  # their order
        kinds |= {target.kind for target in result}
    assert ALIGNED in kinds


def _row(tokens: Sequence[int], lists: Sequence[dict[int, float]], end: int) -> TeacherRow:
    """A teacher's word, given for each token as token -> probability."""
    every = [*lists, {end: 1.0}]
    row = [*tokens, end]
    listed = [sorted(one.items(), key=lambda item: -item[1]) for one in every]
    return TeacherRow(
        tokens=np.array(row),
        starts=np.cumsum([0, *map(len, listed)]),
        ids=np.array([token for one in listed for token, _ in one]),
        logprobs=np.log([p for one in listed for _, p in one]),
        tail=np.array([1 - sum(one.values()) for one in every]),
        observed=np.log([one.get(token, 1e-6) for one, token in zip(every, row, strict=True)]),
    )


def _targets(
    teacher: Side, student: Side, text: str, ours: Sequence[int], lists: Sequence[dict[int, float]], **options: Any
) -> list[Target]:
    ids = teacher.tokenizer("x\n" + text, add_special_tokens=False)["input_ids"]
    tokens = ids[len(teacher.tokenizer("x\n", add_special_tokens=False)["input_ids"]) :]
    projection = Projection(teacher.vocabulary, student.vocabulary, frozenset([teacher.end]), **options)
    theirs = byte_stream(teacher.vocabulary, [*tokens, teacher.end], text)
    mine = byte_stream(student.vocabulary, [*ours, student.end], text)
    return projection.targets(_row(tokens, lists, teacher.end), theirs, mine).unpack()


def test_within_a_teacher_token_what_disagrees_is_dropped(qwen, llama):
    know, knife, no = (qwen.vocabulary.ids[word] for word in (b"know", b"knife", b"no"))
    kn, ow, ife = (llama.vocabulary.first_token(word) for word in (b"kn", b"ow", b"ife"))
    lists = [{know: 0.5, knife: 0.1, no: 0.3}]
    first, second, _ = _targets(qwen, llama, "know", [kn, ow], lists)
    assert first.kind == ALIGNED
    assert second.kind == CONDITIONED
    # Half and a tenth agree with `kn`; the tail keeps its share.
    assert second.probs[ow] == pytest.approx(0.9 * 0.5 / 0.6, rel=1e-6)
    assert second.probs[ife] == pytest.approx(0.9 * 0.1 / 0.6, rel=1e-6)
    assert second.tail == pytest.approx(0.1 / 1.0, rel=1e-6)


def test_little_agreement_leaves_a_position_to_cross_entropy(qwen, llama):
    know, no = (qwen.vocabulary.ids[word] for word in (b"know", b"no"))
    kn, ow = (llama.vocabulary.ids[word] for word in (b"kn", b"ow"))
    lists = [{know: 0.05, no: 0.95}]
    assert [one.kind for one in _targets(qwen, llama, "know", [kn, ow], lists)] == [ALIGNED, NONE, ALIGNED]
    kinds = [one.kind for one in _targets(qwen, llama, "know", [kn, ow], lists, min_mass=0.01)]
    assert kinds == [ALIGNED, CONDITIONED, ALIGNED]


def test_the_observed_token_counts_even_where_it_is_not_listed(qwen):
    yes, no = (qwen.vocabulary.ids[word] for word in (b"Yes", b"No"))
    first, _ = _targets(qwen, qwen, "Yes", [yes], [{no: 0.9}])
    assert first.probs[no] == pytest.approx(0.9)
    assert first.probs[yes] == pytest.approx(1e-6)
    assert first.tail == pytest.approx(0.1 - 1e-6)


def test_special_tokens_of_the_teacher_go_to_the_tail(qwen, llama):
    start = qwen.tokenizer.convert_tokens_to_ids("<|im_start|>")
    yes = qwen.vocabulary.ids[b"Yes"]
    first, _ = _targets(qwen, llama, "Yes", [llama.vocabulary.ids[b"Yes"]], [{yes: 0.7, start: 0.3}])
    assert first.probs == {llama.vocabulary.ids[b"Yes"]: pytest.approx(0.7)}
    assert first.tail == pytest.approx(0.3)


def test_what_a_student_cannot_spell_goes_to_the_tail(qwen):
    words = [("<unk>", 0.0), ("<end>", 0.0), *((letter, -5.0) for letter in ("Y", "e", "s", "Yes"))]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(words, 0))
    own = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<unk>")
    student = Side(own, Vocabulary(own), own.eos_token_id, [], {})
    yes, no, yesno = (qwen.vocabulary.ids[word] for word in (b"Yes", b"No", b"Yesterday"))
    y, es = (student.vocabulary.ids[word] for word in (b"Y", b"e"))
    lists = [{yes: 0.5, no: 0.2, yesno: 0.3}]
    # At its beginning, and within the teacher's token: `No` has no spelling, nor has what follows in `Yesterday`.
    first, second, _, _ = _targets(qwen, student, "Yes", [y, es, student.vocabulary.ids[b"s"]], lists)
    assert first.probs == {student.vocabulary.ids[b"Yes"]: pytest.approx(0.8)}
    assert first.tail == pytest.approx(0.2)
    assert second.kind == CONDITIONED
    lists = [{yes: 0.5, qwen.vocabulary.ids[b"Yo"]: 0.5}]
    _, second, _, _ = _targets(qwen, student, "Yes", [y, es, student.vocabulary.ids[b"s"]], lists)
    assert second.probs == {es: pytest.approx(0.5)}
    assert second.tail == pytest.approx(0.5)


def test_rows_are_collected_one_behind_the_other():
    rows = [
        RowTargets(*map(np.array, ([1, 0], [5], [0.75], [0.25, 1.0], [ALIGNED, NONE]))),
        RowTargets(*map(np.array, ([2], [1, 2], [0.5, 0.5], [0.0], [CONDITIONED]))),
    ]
    assert rows[0].unpack() == [Target({5: 0.75}, 0.25, ALIGNED), Target({}, 1.0, NONE)]
    found = collect(rows)
    assert found.rows.tolist() == [0, 2, 3]
    assert found.starts.tolist() == [0, 1, 1, 3]
    assert found.ids.tolist() == [5, 1, 2]
    assert found.probs.tolist() == [0.75, 0.5, 0.5]
    assert found.tail.tolist() == [0.25, 1.0, 0.0]
    assert found.kind.tolist() == [ALIGNED, NONE, CONDITIONED]


def _pieces(side: Side, *pieces: bytes) -> list[int]:
    return [side.vocabulary.ids[piece] for piece in pieces]


def test_a_tail_on_the_way_counts_for_the_token_that_was_begun(llama, qwen):
    """` inform` and `ative` of the teacher are one token of the student's; what else comes behind begins ` inform`."""
    a, inform, ative = _pieces(llama, b"a", b" inform", b"ative")
    lists = [{a: 1.0}, {inform: 0.8}, {ative: 0.75}]
    ours = _pieces(qwen, b"a", b" informative")
    _, second, _ = _targets(llama, qwen, "a informative", ours, lists)
    begun, whole = _pieces(qwen, b" inform", b" informative")
    assert second.probs == {whole: pytest.approx(0.8 * 0.75), begun: pytest.approx(0.8 * 0.25)}
    assert second.tail == pytest.approx(0.2)


def test_tokens_that_end_together_are_followed_into_what_comes_behind(llama, qwen):
    """Both end at ` inform`; still the teacher's next distribution decides between ` inform` and ` informative`."""
    a, inform, ative, us = _pieces(llama, b"a", b" inform", b"ative", b" us")
    lists = [{a: 1.0}, {inform: 0.8}, {ative: 0.75, us: 0.25}]
    ours = _pieces(qwen, b"a", b" inform", b" us")
    _, second, *_ = _targets(llama, qwen, "a inform us", ours, lists)
    begun, whole = _pieces(qwen, b" inform", b" informative")
    assert second.probs == {whole: pytest.approx(0.8 * 0.75), begun: pytest.approx(0.8 * 0.25)}


def test_a_teacher_token_that_ends_where_the_student_begins_says_nothing_of_what_follows(qwen, llama):
    know, kn, no = _pieces(qwen, b"know", b"kn", b"no")
    _, second, _ = _targets(qwen, llama, "know", _pieces(llama, b"kn", b"ow"), [{know: 0.5, kn: 0.3, no: 0.2}])
    assert second.kind == CONDITIONED
    assert second.probs == {llama.vocabulary.ids[b"ow"]: pytest.approx(1)}
    # Nor does it agree: `know` alone is less than `min_mass`.
    lists = [{know: 0.05, kn: 0.75, no: 0.2}]
    _, second, _ = _targets(qwen, llama, "know", _pieces(llama, b"kn", b"ow"), lists)
    assert second.kind == NONE


def test_unlikely_tokens_stay_listed(qwen, llama):
    yes, no, maybe = _pieces(qwen, b"Yes", b"No", b"Maybe")
    first, _ = _targets(qwen, llama, "Yes", _pieces(llama, b"Yes"), [{yes: 0.99, no: 0.00999, maybe: 1e-5}])
    expected = {b"Yes": 0.99, b"No": 0.00999, b"Maybe": 1e-5}
    assert first.probs == {llama.vocabulary.ids[piece]: pytest.approx(p) for piece, p in expected.items()}
    assert first.tail == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("theirs", "ours", "kinds"),
    [
        ((), (), [ALIGNED, ALIGNED]),
        ((), (b"\n",), [ALIGNED, NONE, NONE]),
        ((b"\n",), (), [ALIGNED, NONE]),
        ((b"\n",), (b"\n",), [ALIGNED, NONE, NONE]),
    ],
)
def test_white_space_of_a_template_behind_the_completion_is_not_predicted(llama, qwen, theirs, ours, kinds):
    yes, *space = _pieces(llama, b"Yes", *theirs)
    teacher = byte_stream(llama.vocabulary, [yes, *space, llama.end], "Yes")
    student = byte_stream(qwen.vocabulary, [*_pieces(qwen, b"Yes", *ours), qwen.end], "Yes")
    row = _row([yes, *space], [{yes: 0.9}, *({token: 1.0} for token in space)], llama.end)
    projection = Projection(llama.vocabulary, qwen.vocabulary, frozenset([llama.end]))
    targets = projection.targets(row, teacher, student).unpack()
    assert [target.kind for target in targets] == kinds
    assert targets[-1].probs == ({qwen.end: pytest.approx(1)} if kinds[-1] == ALIGNED else {})


def test_behind_the_space_of_a_template_habits_are_not_applied(qwen, llama):
    """The student's template writes a space before the answer: ` No` it is, whatever `No` became within a text."""
    yes, no = _pieces(qwen, b"Yes", b"No")
    projection = Projection(qwen.vocabulary, llama.vocabulary, frozenset([qwen.end]))
    texts = [("Yes", [yes], (b"Yes",)), ("No", [no], (b"No",))]
    projection.learn_habits(
        (
            byte_stream(qwen.vocabulary, [*tokens, qwen.end], text),
            byte_stream(llama.vocabulary, [*_pieces(llama, *pieces), llama.end], text),
        )
        for text, tokens, pieces in texts
    )
    for pieces, other in (((b"Yes",), b"No"), ((b" Yes",), b" No")):
        student = byte_stream(llama.vocabulary, [*_pieces(llama, *pieces), llama.end], "Yes")
        teacher = byte_stream(qwen.vocabulary, [yes, qwen.end], "Yes")
        first, _ = projection.targets(_row([yes], [{yes: 0.6, no: 0.4}], qwen.end), teacher, student).unpack()
        expected = {llama.vocabulary.ids[pieces[0]]: 0.6, llama.vocabulary.ids[other]: 0.4}
        assert first.probs == {token: pytest.approx(p) for token, p in expected.items()}
