"""Tokenise training examples; search results are shortened to fit, what still does not fit is dropped and listed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.data.exports import HELD_OUT, TRAIN, read_examples
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.prompts.sail import ExampleRenderer, Order, TooLongError, UnfitExampleError
from sailkit.records import TrainingExample
from sailkit.training.recipe import Recipe

IGNORED = -100  # the label of a token that is not supervised
MANY = 1000  # examples whose tokenisation takes so long that progress is shown
NO_TOKENS = "the tokenizer makes no token of its completion"


@dataclass(frozen=True)
class Prepared:
    """Tokenised examples.

    Attributes:
        examples: The examples that fit.
        ids: Token ids of each example.
        labels: Labels of each example: the token id if supervised, else -100; not shifted, as transformers expects.
        dropped: Examples that are left out, with the reason.
        cut_tokens: Total tokens cut from search results.
        headings_left: Total lines of search results that look like headings of the prompt.
        verification: Start and end of the tokens of each example's verification sentence.
        curriculum: How many of the examples, at the start, are a curriculum.
        too_long: Ids of the dropped examples that do not fit into the maximum of tokens.
    """

    examples: tuple[TrainingExample, ...]
    ids: tuple[tuple[int, ...], ...]
    labels: tuple[tuple[int, ...], ...]
    dropped: tuple[dict[str, str], ...]
    cut_tokens: int
    headings_left: int
    verification: tuple[tuple[int, int], ...] = ()
    curriculum: int = 0
    too_long: frozenset[str] = frozenset()

    @property
    def tokens(self) -> int:
        """Tokens of one epoch."""
        return sum(map(len, self.ids))

    @property
    def supervised(self) -> int:
        """Supervised tokens of one epoch."""
        return sum(label != IGNORED for row in self.labels for label in row)

    def dataset(self) -> Any:
        """The ids and labels as a dataset of the library datasets."""
        from datasets import Dataset

        return Dataset.from_dict({"input_ids": [*map(list, self.ids)], "labels": [*map(list, self.labels)]})

    def figures(self) -> dict[str, Any]:
        """Counts for metrics.json."""
        return {
            "rows": len(self.examples),
            "dropped": len(self.dropped),
            "tokens": self.tokens,
            "supervised_tokens": self.supervised,
            "cut_tokens": self.cut_tokens,
            "headings_left": self.headings_left,
        }

    def fingerprint(self) -> str:
        """sha256 over ids, tokens and labels of all rows, 64 hex digits."""
        rows = zip(self.examples, self.ids, self.labels, strict=True)
        return jsonl.fingerprint([[example.id, ids, labels] for example, ids, labels in rows])


def read_data(paths: Sequence[str], file: str = TRAIN, style: str | None = None) -> list[TrainingExample]:
    """Read the training examples of several data sets, concatenated.

    Args:
        paths: Run folders of build, or files in any format of `read_examples`.
        file: File to read from a run folder.
        style: Style for all examples instead of their own.

    Raises:
        UserError: A file is missing, or has no training examples.
    """
    examples: list[TrainingExample] = []
    for path in map(Path, paths):
        examples += read_examples(path / file if path.is_dir() else path)
    return unique_ids([replace(example, style=style) for example in examples] if style else examples)


def unique_ids(examples: Sequence[TrainingExample]) -> list[TrainingExample]:
    """Make ids unique: different data sets may use the same id for different rows."""
    seen: Counter[str] = Counter()
    renamed = []
    for example in examples:
        name = example.id
        while seen[name]:
            name = f"{example.id}#{seen[example.id] + 1}"
            seen[example.id] += 1
        seen[name] += 1
        renamed.append(replace(example, id=name))
    return renamed


def held_out_of(paths: Sequence[str]) -> tuple[str, ...]:
    """The data sets that have a held-out part."""
    files = {path: Path(path) / HELD_OUT for path in paths}
    return tuple(path for path, file in files.items() if file.is_file() and file.stat().st_size)


def held_out_paths(recipe: Recipe) -> tuple[str, ...]:
    """The data sets for evaluation: those that the recipe names, or else the held-out parts of its training data."""
    return recipe.held_out or held_out_of(recipe.data)


def no_held_out_warning(recipe: Recipe) -> str:
    """A warning about what a run without held-out rows cannot do."""
    stop = ", patience has no loss to compare" if recipe.patience else ""
    return (
        f"no rows are held out: nothing will tell what the model learns{stop}, and the last step is kept, whatever its "
        "loss; give `held_out`, or build with a share that gives a row"
    )


def prepare_data(recipe: Recipe, tokenizer: Any) -> tuple[Prepared, Prepared | None]:
    """Read and tokenise the data of a recipe.

    Args:
        recipe: The recipe.
        tokenizer: The model's tokenizer.

    Returns:
        The training rows, and the held-out rows if there are any.

    Raises:
        UserError: See `read_data` and `prepare`.
    """
    rows, curriculum = _ordered_rows(recipe)
    train = prepare(rows, tokenizer, recipe.max_length, recipe.date, order=recipe.order)
    first = {row.id for row in rows[:curriculum]}
    train = replace(train, curriculum=sum(example.id in first for example in train.examples))
    paths = held_out_paths(recipe)
    if not paths:
        return train, None
    examples = read_data(paths, HELD_OUT, recipe.style)
    return train, prepare(examples, tokenizer, recipe.max_length, recipe.date, order=recipe.order, held_out=True)


def training_rows(recipe: Recipe) -> list[TrainingExample]:
    """Read the training rows; after those of a curriculum, the others in an order that depends on the seed.

    Raises:
        UserError: See `read_data`.
    """
    return _ordered_rows(recipe)[0]


def _ordered_rows(recipe: Recipe) -> tuple[list[TrainingExample], int]:
    """The training rows, and how many of them are the curriculum."""
    rows = read_data(recipe.data, style=recipe.style)
    if not recipe.curriculum:
        return rows, 0
    training = recipe.training
    seed = training.get("data_seed")
    seed = training.get("seed", 0) if seed is None else seed
    random.Random(seed).shuffle(rows)  # noqa: S311 - not for cryptography
    curriculum = read_data(recipe.curriculum, style=recipe.style)
    return unique_ids([*curriculum, *rows]), len(curriculum)


def _with_progress(examples: Sequence[TrainingExample]) -> Iterator[TrainingExample]:
    """Show progress while many examples are tokenised."""
    with runs.progress("tokenising", len(examples) if len(examples) >= MANY else 0) as tick:
        for example in examples:
            yield example
            tick()


def prepare(
    examples: Sequence[TrainingExample],
    tokenizer: Any,
    max_length: int,
    date: str | None = None,
    *,
    order: Order = "verify-first",
    held_out: bool = False,
    may_be_empty: bool = False,
) -> Prepared:
    """Render and tokenise examples.

    Args:
        examples: The examples; each is rendered in its own style.
        tokenizer: The model's tokenizer.
        max_length: Maximum tokens of an example; only search results are shortened to fit.
        date: For chat templates that read the clock, as YYYY-MM-DD; today by default.
        order: Order of verification sentence and response.
        held_out: Whether they are held out, for the error.
        may_be_empty: Whether to accept that no example fits.

    Raises:
        UserError: No example is left, or the tokenizer lacks what the style needs.
    """
    renderer = ExampleRenderer(tokenizer, date, order)
    kept, ids, labels, verification, dropped, too_long = [], [], [], [], [], []
    cut_tokens = headings_left = 0
    for example in _with_progress(examples):
        if not example.response.strip():
            dropped.append({"id": example.id, "reason": "no response"})
            continue
        try:
            rendered = renderer.render(example, max_length)
        except UnfitExampleError as error:
            dropped.append({"id": example.id, "reason": str(error)})
            too_long += [example.id] if isinstance(error, TooLongError) else []
            continue
        if not any(rendered.completion_mask):
            dropped.append({"id": example.id, "reason": NO_TOKENS})
            continue
        kept.append(example)
        ids.append(rendered.ids)
        masked = zip(rendered.ids, rendered.completion_mask, strict=True)
        labels.append(tuple(token if supervised else IGNORED for token, supervised in masked))
        verification.append(rendered.verification)
        cut_tokens += rendered.cut_tokens
        headings_left += rendered.headings_left
    if not kept and not may_be_empty:
        reason = f": {dropped[0]['reason']}" if dropped else ""
        purpose = "held-out example is left to measure on" if held_out else "example is left to train on"
        raise UserError(f"no {purpose}{reason}")
    rows = tuple(kept), tuple(ids), tuple(labels), tuple(dropped)
    return Prepared(*rows, cut_tokens, headings_left, tuple(verification), too_long=frozenset(too_long))
