"""Collects labels from a reference model at temperature 0, optionally with repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sailkit import runs
from sailkit.distributed import Processes
from sailkit.errors import UserError
from sailkit.evaluation.figures import Flag
from sailkit.evaluation.predictions import PREDICTIONS, REFERENCE_FOLDER
from sailkit.evaluation.processes import write_batches
from sailkit.files import jsonl
from sailkit.models.base import Model, ModelOptions, Reply, is_endpoint, is_vllm
from sailkit.models.load import load_model
from sailkit.prompts.parse import ANSWER_RULES_VERSION, read_answer
from sailkit.prompts.render import Prompt, frames, step_prompt
from sailkit.records import Example
from sailkit.tasks.task import Task


@runtime_checkable
class Paid(Protocol):
    """A model that sends a request for every answer."""

    def estimate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, repeats: int = 1, *, scored: bool = False
    ) -> dict[str, int]:
        """Uncached requests, their estimated prompt tokens, and the upper bound of their completion tokens."""

    def with_repeat(self, repeat: int) -> Model:
        """The same model with a separate cache of answers for a repeat."""


def announce_cost(
    model: Model,
    calls: Sequence[Sequence[Prompt]],
    new_tokens: Sequence[int],
    repeats: int = 1,
    price: str | None = None,
    *,
    scored: bool = False,
) -> None:
    """Write the expected cost of a model behind an endpoint to standard error, before the first request.

    Args:
        model: Any model; nothing is written for a local model.
        calls: The prompts of each call of the protocol, without the replies that later calls quote.
        new_tokens: Token limit of the answer of each call.
        repeats: Number of times that each prompt is sent.
        price: USD per million tokens, `IN/OUT`.
        scored: Whether the last call is scored instead of generated.
    """
    if not isinstance(model, Paid):
        return
    last = len(calls) - 1
    each = enumerate(zip(calls, new_tokens, strict=True))
    expected = [model.estimate(prompts, n, repeats, scored=scored and i == last) for i, (prompts, n) in each]
    sent, read, written = (
        sum(e[name] for e in expected) for name in ("requests", "prompt_tokens", "completion_tokens")
    )
    cost = "cost unknown without a price, IN/OUT in USD per million tokens"
    if price is not None:
        per_in, per_out = read_price(price)
        cost = f"about ${(read * per_in + written * per_out) / 1e6:.4f}"
    runs.notice(
        f"{model.name}: {sent} requests to send, about {read} prompt tokens, at most {written} generated; {cost}"
    )


def read_price(price: str) -> tuple[float, float]:
    """The price of a million prompt tokens and of a million generated ones.

    Raises:
        UserError: It is not `IN/OUT`.
    """
    try:
        per_in, per_out = (float(part) for part in price.split("/"))
    except ValueError:
        raise UserError(f"`price` takes IN/OUT in USD per million tokens, such as 0.15/0.60, not {price!r}") from None
    return per_in, per_out


def load_reference(
    reference: str | Model,
    evaluated: Model,
    task: Task,
    options: ModelOptions,
    key_env: str | None,
    repeats: int,
    price: str | None,
) -> Model:
    """Load the model that gives reference labels, unless it is loaded already, and check what it will be asked.

    Args:
        reference: The model or its name.
        evaluated: The model that is evaluated, whose date it takes.
        task: See `collect_reference`.
        options: How the evaluated model was loaded.
        key_env: Environment variable with the key of the reference's endpoint.
        repeats: Number of answers to each item.
        price: See `announce_cost`.

    Raises:
        UserError: The task has no direct protocol, `price` cannot be read, or the model cannot be loaded, or would give
            the same answer in every repeat.
    """
    if isinstance(reference, str) and is_vllm(reference):  # it needs the memory that the evaluated model still holds
        raise UserError(f"`reference`: {reference} cannot share a machine with the evaluated model; leave out 'vllm:'")
    task.question("direct")
    if price is not None:
        read_price(price)
    described = evaluated.describe()
    endpoints = "served_model" in described and isinstance(reference, str) and is_endpoint(reference)
    if endpoints and key_env is None:
        raise UserError("two endpoints, and a key goes to the server it is for: give `reference_api_key_env` as well")
    if repeats < 1:
        raise UserError(f"`repeats` should be at least 1, not {repeats}")
    key_env, day = key_env or options.api_key_env, options.date or described.get("date")
    model = load_model(reference, replace(options, api_key_env=key_env, date=day))
    if repeats > 1 and not isinstance(model, Paid):
        raise UserError(f"`repeats` asks an endpoint again; {model.name} runs here and always answers the same")
    return model


def collect_reference(
    processes: Processes,
    run: runs.Run,
    model: Model,
    task: Task,
    examples: Sequence[Example],
    repeats: int = 1,
    price: str | None = None,
) -> None:
    """Collect reference labels from a model, and write them to the run's `reference` folder, itself a run folder.

    Args:
        processes: The processes that share the examples.
        run: The evaluation to which the labels belong.
        model: The model; see `load_reference`.
        task: The task; the first wording of its direct protocol is used.
        examples: The examples to label.
        repeats: Number of answers for each example; the first is its label.
        price: See `announce_cost`.
    """
    question = task.question("direct")
    answers, limit = list(question.answers.values()), question.new_tokens[0]
    ask = partial(step_prompt, question.steps[0], answers=answers, system=question.systems[0])
    prompts = [ask(e.text, results=e.evidence) for e in examples]
    with processes.raise_together():
        batches = model.plan(prompts, limit, [f"item {e.id}" for e in examples])
    settings = {
        **model.describe(),
        "temperature": 0,
        "repeats": repeats,
        "task": task.name,
        "labels": task.labels,
        "items_sha256": jsonl.fingerprint([[e.id, e.text] for e in examples]),
        "prompts_sha256": jsonl.fingerprint([*question.literals, frames()]),
        "rules_version": ANSWER_RULES_VERSION,
    }

    def answer(batch: Sequence[int]) -> list[jsonl.JsonObject]:
        answers_of: list[list[dict[str, Any]]] = [[] for _ in batch]
        for repeat in range(repeats):
            repeated = model.with_repeat(repeat) if isinstance(model, Paid) else model
            replies = repeated.generate([prompts[i] for i in batch], limit, lambda _: False)
            for given, reply in zip(answers_of, replies, strict=True):
                given.append(_read(reply, question.words))
        return [
            {"id": examples[i].id, "label": given[0]["label"], "answers": given}
            for i, given in zip(batch, answers_of, strict=True)
        ]

    with runs.open_shared_run(processes, run.path(REFERENCE_FOLDER), "reference", settings) as nested:
        announce_cost(model, [prompts], [limit], repeats, price)
        path, activity = nested.path(PREDICTIONS), f"asking {model.name} for the reference"
        write_batches(processes, path, batches, lambda i: examples[i].id, answer, activity)


def _read(reply: Reply, words: Mapping[str, str]) -> dict[str, Any]:
    """The reference's answer and its label, or the reason for a refusal."""
    if reply.refusal is not None:
        return {"label": None, "outcome": "refused", "raw_output": reply.text, "reason": reply.refusal}
    label, outcome = read_answer(reply.text or "", words)
    return {"label": label, "outcome": outcome, "raw_output": reply.text}


def flip_rate(rows: Sequence[dict[str, Any]]) -> float:
    """Share of items whose repeats do not all have the same label."""
    flips = sum(len({answer["label"] for answer in row["answers"]}) > 1 for row in rows)
    return flips / max(len(rows), 1)


def reference_flags(folder: Path) -> list[Flag]:
    """Flags for items to which the reference gave different labels, or none; empty without reference labels.

    Args:
        folder: The run folder of the evaluation.
    """
    path = folder / REFERENCE_FOLDER / PREDICTIONS
    if not path.exists():
        return []
    settings, rows = runs.read_manifest(path.parent)["settings"], [row for _, row in jsonl.read_rows(path)]
    name, repeats, flags = settings.get("model", "the reference"), settings["repeats"], []
    if rate := flip_rate(rows):
        flags.append(
            Flag(
                "reference-flips",
                f"{name} changes its label on {rate:.1%} of the items within {repeats} repeats at temperature 0",
            )
        )
    if silent := sum(row["label"] is None for row in rows):
        flags.append(
            Flag(
                "reference-silent",
                f"{name} gives no label for {silent} items; figures against it leave them out",
            )
        )
    return flags
