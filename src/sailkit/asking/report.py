"""The report of an answer: its judged search results, the answer, and what limits it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from sailkit.asking.results import Answer
from sailkit.models.base import is_endpoint
from sailkit.rendering.model import Block, Bullets, Cell, Flags, Group, Report, Row, SideBySide, Table, Text, short

_SHOWN = 300  # characters of a search result


def short_report(answer: Answer) -> Report:
    """The whole answer, or the answers of two models side by side."""
    return short("", "", *head(answer), *_answers(answer), *tail(answer))


def head(answer: Answer) -> Iterator[Block]:
    """The question and its search results, with each model's flag and its probability of informative."""
    yield Text(f"Question: {answer.question}" if not answer.is_claim else f"Claim: {answer.question}")
    if not answer.results:
        yield Text("No search results.")
    yield Bullets([(_flags(answer, i), _text(answer, i)) for i in range(len(answer.results))])


def _flags(answer: Answer, index: int) -> str:
    words = []
    for each in answer.both:
        flag = "not judged"
        if each.judgements:
            judgement = each.judgements[index]
            flag = f"{judgement.verdict}, {judgement.score:.2f}"
        words.append(f"{short_name(each.model)} {flag}" if answer.compared_with else flag)
    return f"({index + 1}) [{'; '.join(words)}]"


def short_name(model: str) -> str:
    """A model's name; of a folder's path, the last two parts."""
    return model if is_endpoint(model) else "/".join(Path(model).parts[-2:])


def _text(answer: Answer, index: int) -> str:
    result = answer.results[index]
    text = textwrap.shorten(result.text, _SHOWN, placeholder=" ...")
    return f"{text} <{result.url}>" if result.url else text


def _answers(answer: Answer) -> Iterator[Block]:
    if answer.is_claim and any(each.labels for each in answer.both):
        labels = dict.fromkeys(label for each in answer.both for label in each.labels)
        rows = [Row(label, [Cell(each.labels.get(label)) for each in answer.both]) for label in labels]
        yield Table([short_name(each.model) for each in answer.both], [Group("probability of", rows)])
    if answer.compared_with:
        yield SideBySide([(short_name(each.model), _shown(each)) for each in answer.both])
    else:
        yield Text(f"Answer: {_shown(answer)}")


def _shown(answer: Answer) -> str:
    if answer.is_claim:
        return f"{answer.answer} ({answer.label or 'unreadable'})"
    return answer.answer or "(none)"


def tail(answer: Answer) -> Iterator[Block]:
    """What limits the answers, in sentences."""
    notes = []
    for each in answer.both:
        name = f"{short_name(each.model)}: " if answer.compared_with else ""
        if each.judgements and not each.verification:
            notes.append(f"{name}the flags are scores alone; the model answered without judging the results first")
        if each.is_unsupported:
            notes.append(f"{name}the model called no result informative")
        if each.results and not each.judgements:
            notes.append(f"{name}no flags, because the model gives no log-probabilities")
        if each.cut_tokens:
            notes.append(f"{name}{each.cut_tokens} tokens of search results did not fit into the context")
        if each.cut_off:
            notes.append(f"{name}the answer was cut off after {each.completion_tokens} tokens")
    if notes:
        yield Flags("", {"": notes})
