"""Parses a label from a model's reply; an unreadable reply has no label, because there is no default class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from sailkit.prompts.thoughts import split_thoughts
from sailkit.records import Outcome

# Recorded by every run that parses replies: raise it whenever a rule below changes.
ANSWER_RULES_VERSION = 6

_CLOSERS = "\"'”»)]*_`"  # characters that may follow a sentence's final punctuation
_SENTENCE_END = re.compile(rf"(?<=[.!?？])\s+|(?<=[?？])[{re.escape(_CLOSERS)}]*\s+|\n+")
_CLAUSE_END = re.compile(r"[,;:–—]|\s-\s|(?=\b(?:but|yet|however|so|because|since|although|though|therefore|thus)\b)")
_WORD = re.compile(r"[^\W_]+(?:['\-][^\W_]+)*")  # an underscore is Markdown, not part of a word
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ＇´`", "'"))
# After one of these no label counts in the rest of the clause: "no evidence that the claim is true", "unclear whether".
_NEGATORS = frozenset(
    ["not", "no", "none", "nobody", "never", "neither", "nor", "cannot", "hardly", "barely", "without", "nothing"]
)
_DOUBTS = frozenset(["whether", "if", "unlikely", "unclear", "uncertain", "impossible", "doubtful", "doubt", "doubts"])
# Phrases that mean "not", with which they may form an answer phrase such as "not true"; phrases that deny the rest of
# their clause; and phrases that leave no doubt.
_NOT = re.compile(r"\b(?:far\s+from|anything\s+but|opposite\s+of)\b")
_NEVER = re.compile(
    r"\b(?:(?:lack(?:s|ing)?(?:\s+of)?|insufficient)(?:\s+\w+)?\s+(?:evidence|support|proof|information)\s+(?:that|for|to)"
    r"|fail(?:s|ed|ing)?\s+to\s+(?:show|prove|support|confirm|establish|demonstrate|indicate))\b"
)
_CERTAINTY = re.compile(r"\b(?:no|little|(?:beyond|without)(?:\s+(?:an?y?|all))?)(?:\s+reasonable)?\s+doubt\b")
# "partly correct" is no answer to a question that asks for one of the labels.
_HEDGES = frozenset(["partly", "partially", "half", "somewhat", "semi"])
_PRONOUNS = frozenset(["it", "this", "that", "i", "they"])
_REACH = 3  # words after a hedge in which no label counts; after a negation at least as many: "no, it is wrong"
_REFUSAL = re.compile(
    r"\b(?:i|we)(?:\s+am|'m|\s+are|'re)?\s+(?:unable|not\s+able|not\s+comfortable)\b"
    r"|\b(?:i|we)\s+(?:really\s+|simply\s+)?"
    r"(?:cannot|can't|can\s+not|won't|will\s+not|must\s+decline|decline|refuse|do\s+not\s+know|don't\s+know)\b"
)
# Polite openings that may still be followed by an answer.
_EVASION = re.compile(
    r"\bas\s+an?\s+(?:ai|artificial|language\s+model|assistant)\b"
    r"|^\s*(?:(?:i|we)(?:\s+am|'m|\s+are|'re)?\s+)?(?:\w+\s+)?(?:sorry|apologi[sz]e|apologies)\b"
)


def read_answer(text: str, words: Mapping[str, str]) -> tuple[str | None, Outcome]:
    """Read one label from newly generated text.

    The first sentence that mentions a label decides. Only whole words count ("incorrect" is not "correct"), and only if
    they are neither negated nor doubted ("not wrong", "no evidence that it is right"). A sentence with two labels has
    none, and questions are ignored. Thoughts are not part of the answer; after an unclosed thought there is no answer.

    Args:
        text: What the model generated, without the prompt.
        words: Answer word or phrase -> label.

    Returns:
        The label and `answered`, or None and `refused` or `unreadable`.
    """
    reading = read_with_reason(text, words)
    return reading.label, reading.outcome


class Reading(NamedTuple):
    """What was read in a reply.

    Attributes:
        label: The label, or None.
        outcome: `answered`, `refused` or `unreadable`.
        reason: Why there is no label, as a predicate of the reply; empty with a label.
        words: The words of the reply, or the labels, that are the reason; may be empty.
    """

    label: str | None
    outcome: Outcome
    reason: str = ""
    words: str = ""


def read_with_reason(text: str, words: Mapping[str, str]) -> Reading:
    """Read one label from newly generated text; if there is none, say why. See `read_answer`."""
    phrases = _phrases(tuple(words.items()))
    answer, thinking = split_thoughts(text)
    if thinking:
        return Reading(None, "unreadable", "ends within a thought")
    silent = Reading(None, "unreadable", "has no answer word" if answer.strip() else "is empty")
    for sentence in _SENTENCE_END.split(answer.translate(_APOSTROPHES).casefold()):
        # "I cannot say whether that is correct" mentions a label without giving it; only the text before it counts.
        refusal = _REFUSAL.search(sentence)
        question = _is_question(sentence)
        assertion = "" if question else sentence[: refusal.start()] if refusal else sentence
        labels, mentioned = _labels_in(assertion, phrases)
        if len(labels) == 1:
            return Reading(labels.pop(), "answered")
        if refusal:
            return Reading(None, "refused", "declines to answer", refusal.group())
        if evasion := _EVASION.search(sentence):
            silent = Reading(None, "refused", "evades the question", evasion.group().strip())
        elif labels:
            return Reading(None, "unreadable", "gives several labels in a sentence", ", ".join(sorted(labels)))
        elif mentioned:
            return Reading(None, "unreadable", "names a label only to deny or doubt it")
        elif question and silent.outcome == "unreadable" and _labels_in(sentence, phrases)[1]:
            silent = Reading(None, "unreadable", "names labels only in a question")
    return silent


def _is_question(sentence: str) -> bool:
    """Whether a sentence is a question: models repeat the question of the prompt, which contains the answer words."""
    text = sentence.rstrip(_CLOSERS + " \t")
    marks = text[len(text.rstrip("?？!！.")) :]
    return "?" in marks or "？" in marks


def _labels_in(sentence: str, phrases: Mapping[tuple[str, ...], str]) -> tuple[set[str], bool]:
    """The labels that a sentence asserts, and whether it mentions any label, negated or not."""
    tokens: list[str] = []
    ends: list[int] = []  # for each token, the index of the last token of its clause
    for clause in _CLAUSE_END.split(_NEVER.sub("never", _NOT.sub("not", _CERTAINTY.sub("", sentence)))):
        words = _WORD.findall(clause)
        tokens += words
        ends += [len(tokens) - 1] * len(words)
    longest = max(map(len, phrases), default=0)
    labels: set[str] = set()
    mentioned = False
    denied_until = -1
    i = 0
    while i < len(tokens):
        size = next((n for n in range(longest, 0, -1) if tuple(tokens[i : i + n]) in phrases), 0)
        negates = tokens[i] in _NEGATORS and tokens[i] != "none"
        if size == 1 and negates and i < ends[i] and tokens[i + 1] not in _PRONOUNS:
            size = 0  # "no" alone is an answer; in "no one knows" it is not
        if size:
            mentioned = True
            if i > denied_until:
                labels.add(phrases[tuple(tokens[i : i + size])])
            else:
                # "neither correct nor wrong": the denial extends to the next label
                denied_until = max(denied_until, i + size - 1 + _REACH)
        elif tokens[i] in _HEDGES:
            denied_until = max(denied_until, i + _REACH)
        elif tokens[i] in _NEGATORS or tokens[i] in _DOUBTS or tokens[i].endswith("n't"):
            denied_until = max(denied_until, i + _REACH, ends[i])
        if tokens[i] == "neither":
            denied_until = len(tokens)  # "neither, strictly speaking, correct nor wrong"
        i += size or 1
    return labels, mentioned


def tokens_of(phrase: str) -> tuple[str, ...]:
    """The words of an answer phrase as they are looked for in a text: without case, signs and punctuation."""
    return tuple(_WORD.findall(phrase.translate(_APOSTROPHES).casefold()))


@lru_cache(maxsize=64)
def _phrases(words: tuple[tuple[str, str], ...]) -> dict[tuple[str, ...], str]:
    """Words of a phrase -> label; without phrases that a text cannot tell apart, such as 1 and -1."""
    table: dict[tuple[str, ...], set[str]] = {}
    for phrase, label in words:
        table.setdefault(tokens_of(phrase), set()).add(label)
    return {tokens: labels.pop() for tokens, labels in table.items() if tokens and len(labels) == 1}
