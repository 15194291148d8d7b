"""Chooses the search results that an evaluation shows, and renders them in the style of training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.base import Model, ModelOptions, answers_first
from sailkit.models.load import load_model
from sailkit.prompts.render import Message, Part, Prompt
from sailkit.prompts.sail import (
    MOST_VERIFIED,
    check_style,
    conversation,
    every_judgement,
    read_verification,
    trained_style,
    verification,
)
from sailkit.records import Example, SearchResult, TrainingExample, Verdict
from sailkit.retrieval.instructions import RESULTS, read_searched
from sailkit.retrieval.near_misses import near_misses

Search = Literal["evidence", "near", "random", "none"]


@runtime_checkable
class Templated(Protocol):
    """A model with a chat template that can be left out without loading the weights again."""

    def without_template(self) -> Model:
        """The same model without its chat template."""


@dataclass(frozen=True)
class EvidenceStyle:
    """How search results are rendered, and whether the model verifies them first.

    Attributes:
        style: The style of training data: `sail`, `sail-fixed` or `chat`.
        verify: Whether the model first generates the verification sentence and answers after it.
        most: Most search results of an item.
        bound: Most tokens of a verification sentence.
    """

    style: str
    verify: bool
    most: int
    bound: int = 0

    def prompt(self, question: str, example: Example) -> Prompt:
        """The conversation that asks a question about an example, rendered as in training."""
        return conversation(TrainingExample(example.id, question, "", example.evidence, (), "", self.style))

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """Every verification sentence of up to `most` search results."""
        return tuple(sentence for n in range(1, self.most + 1) for sentence in self.sentences_of(n))

    def sentences_of(self, n: int) -> tuple[str, ...]:
        """Every verification sentence of n search results."""
        return tuple(verification(verdicts, self.style) for verdicts in every_judgement(n))

    def verified(self, text: str) -> bool:
        """Whether a text begins with a whole verification sentence."""
        return text.lstrip().startswith(self.sentences)

    def sentence(self, text: str, n: int) -> tuple[str, tuple[Verdict, ...] | None]:
        """Split off the verification sentence at the beginning of a text: the sentence and its verdicts.

        Without a sentence: the whole text and None.
        """
        text = text.strip()
        sentence = next((sentence for sentence in self.sentences_of(n) if text.startswith(sentence)), None)
        return (sentence, read_verification(sentence, n)) if sentence else (text, None)

    @staticmethod
    def behind(prompt: Prompt, sentence: str) -> Prompt:
        """A prompt whose answer begins with a sentence; the sentence was generated, so it is untrusted text."""
        return (*prompt, Message("assistant", (Part(sentence, trusted=False),), begun=True)) if sentence else prompt


def evidence_style_for(model: Model, style: str, verify: str, most: int) -> EvidenceStyle:
    """The evidence style of a model.

    Args:
        model: The model.
        style: `auto` selects the style of the model's training, else `chat` if it has a template.
        verify: `auto` selects verification for models that were trained to verify first.
        most: Most search results of an item.

    Raises:
        UserError: The style does not exist, the model is a server and cannot verify, or there are too many search
            results to verify.
    """
    described = model.describe()
    trained = trained_style(described)
    if style == "auto":
        style = trained or ("chat" if described.get("chat_template") else "sail-fixed")
    check_style(style)
    server = "served_model" in described
    if answers_first(described) and verify == "on":
        raise UserError("`verify='on'`: the model was trained to answer before it judges its search results")
    verifies = bool(trained) and not answers_first(described) if verify == "auto" else verify == "on"
    if verifies and server:
        raise UserError("`verify='on'`: a server does not go on with an answer that is begun here; leave it out")
    if verifies and (thought := described.get("open_thought")):
        raise UserError(f"`verify='on'`: {model.name}'s chat template opens a thought, {thought.strip()}; leave it out")
    if verifies and most > MOST_VERIFIED:
        raise UserError(f"`max_results` {most}: at most {MOST_VERIFIED} search results are verified")
    evidence_style = EvidenceStyle(style, verifies and most > 0, most)
    if not evidence_style.verify:
        return evidence_style
    # Counted after a space, which is a separate token for some tokenizers, and with room for the token that ends it.
    lengths = [model.count_tokens(f" {sentence}") for sentence in evidence_style.sentences]
    return replace(evidence_style, bound=max(lengths) + 2)


def with_matching_template(
    loaded: Model, evidence_style: EvidenceStyle, model: str | Model, options: ModelOptions
) -> Model:
    """The model as the style requires it: without its chat template for plain-text styles.

    Args:
        loaded: The model.
        evidence_style: How search results are shown.
        model: The name that it was loaded by, or the model itself.
        options: How it was loaded.

    Raises:
        UserError: The style does not go with `chat`, or with the model.
    """
    template = loaded.describe().get("chat_template")
    templated, style = bool(template), evidence_style.style
    if style != "chat" and template == "server":
        raise UserError(f"`style` {style}: the server of {loaded.name} applies its chat template; use `style='chat'`")
    if style != "chat" and templated and options.chat == "auto" and isinstance(model, str):
        if isinstance(loaded, Templated):
            return loaded.without_template()
        return load_model(model, replace(options, chat="off"))
    if style == "chat" and not templated and options.chat != "off":
        raise UserError(f"`style='chat'`: {loaded.name} has no chat template; use `style='sail-fixed'`")
    if (style == "chat") != templated:
        mend = "`chat='on'`" if style == "chat" else "`chat='off'`"
        raise UserError(f"`style` {style} needs {mend}, or another `style`")
    return loaded


def with_results_of(search_run: str | Path, examples: Sequence[Example]) -> tuple[Example, ...]:
    """Examples with the results of a search instead of those of the data.

    Args:
        search_run: A run folder of `search`, or its results file; its ids are those of the examples.
        examples: The examples.

    Raises:
        UserError: The file cannot be read, an example was not searched for, or its results are those of another.
    """
    searched = {row.instruction.id: row for row in read_searched(search_run)}
    if missing := [example.id for example in examples if example.id not in searched]:
        raise UserError(
            f"`search_run` {search_run}: no results for {len(missing)} of {len(examples)} items, such as "
            f"{missing[0]!r}; search for the task's own data, with their ids (`fields` id=COLUMN)"
        )
    # A query may be worded differently from its item, but it is not the text of another item, and no other query is.
    queries = {
        name: (row.instruction.instruction.strip(), row.instruction.input.strip()) for name, row in searched.items()
    }
    items = {example.text.strip(): example.id for example in examples}
    query_of = {text: name for name, texts in queries.items() for text in texts}
    for example in examples:
        text, texts = example.text.strip(), queries[example.id]
        other = next((items[query] for query in texts if query in items), None)
        if text not in texts and (other is not None or text in query_of):
            what = (
                f"item {other!r}" if other is not None else f"another text, and its own are those of {query_of[text]!r}"
            )
            raise UserError(
                f"`search_run` {search_run}: the results of {example.id!r} are those of {what}; search "
                "with the ids of the task's items (`fields` id=COLUMN)"
            )
    return tuple(replace(example, evidence=searched[example.id].results, stances=()) for example in examples)


def results_fingerprint(search_run: str | Path) -> str:
    """sha256 of the results of a search."""
    path = Path(search_run)
    return jsonl.file_fingerprint([path / RESULTS if path.is_dir() else path])


def with_search_results(
    examples: Sequence[Example],
    search: Search,
    results: int,
    seed: int,
    pool: Sequence[Example],
    groups_share_subject: bool = False,
) -> list[Example]:
    """Examples with the search results that the model is shown.

    Args:
        examples: The examples to be evaluated.
        search: `evidence` (their own), `near` (as many of other examples, on the same subject by BM25, that do not
            decide this one; random ones fill up), `random` (as many, each of another example) or `none`.
        results: Most search results of an example.
        seed: Seeds the random draw, together with the example's id.
        pool: The examples from which the search results of others are drawn.
        groups_share_subject: Whether `near` may take results of an example's own group, see `near_misses`.

    Raises:
        UserError: There are no search results to show.
    """
    if search == "none":
        return [replace(example, evidence=(), stances=()) for example in examples]
    if not any(example.evidence for example in examples):
        raise UserError(
            f"`search` {search}: the data have no search results; give `search_run`, or the task an `evidence` field"
        )
    if search == "evidence":
        return [replace(e, evidence=e.evidence[:results], stances=e.stances[:results]) for e in examples]
    near = near_misses(pool, same_group=groups_share_subject) if search == "near" else {}
    candidates = [(example.group, result) for example in pool for result in example.evidence]
    shown = []
    for example in examples:
        nearest = near.get(example.id, [])[:results]
        drawn = _random_results(example, candidates, results, seed, nearest)
        shown.append(replace(example, evidence=drawn, stances=(None,) * len(drawn)))
    return shown


def judgements_of(example: Example) -> tuple[Verdict, ...]:
    """Whether each search result shown is informative, as people judged; empty if nobody did."""
    return tuple("distracting" if stance is None else "informative" for stance in example.stances)


def _random_results(
    example: Example,
    candidates: Sequence[tuple[str, SearchResult]],
    results: int,
    seed: int,
    first: Sequence[SearchResult],
) -> tuple[SearchResult, ...]:
    """As many search results as the example has, of others: some that are given, then random ones of other groups."""
    rng = random.Random(runs.seed_for(seed, "random results", example.id))  # noqa: S311 - a draw, not a secret
    number = len(example.evidence[:results])
    drawn = list(first[:number])
    seen = {result.body for result in (*example.evidence, *drawn)}
    for _ in range(200):
        if len(drawn) == number:
            break
        group, result = rng.choice(candidates)
        if group != example.group and result.body not in seen:
            seen.add(result.body)
            drawn.append(result)
    if len(drawn) < number:  # most results are of the example's own group
        others = {result.body: result for group, result in candidates if group != example.group}
        eligible = [result for body, result in others.items() if body not in seen]
        if len(eligible) < number - len(drawn):
            raise UserError(f"`search`: item {example.id}: the other items have too few search results")
        drawn += rng.sample(eligible, number - len(drawn))
    return tuple(drawn)
