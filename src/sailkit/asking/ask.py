"""The verb `ask`: answer one question or judge one claim with search results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from sailkit.arguments import checked
from sailkit.asking.model import SearchAugmentedModel
from sailkit.asking.results import Answer
from sailkit.asking.retrieve import GivenResults, check_k, given_results, open_retrieval
from sailkit.errors import UserError, at_least_one
from sailkit.models.base import Model, ModelOptions
from sailkit.models.load import check_unloaded
from sailkit.models.sources import default_model
from sailkit.records import Instruction, Searched
from sailkit.tasks.task import Question, Task, load_task

PROTOCOL = "direct"


@checked
def ask(
    question: str,
    *,
    model: str | Path | Model | None = None,
    compare_with: str | Path | Model | None = None,
    corpus: list[Path] | None = None,
    engine: str = "bm25",
    search_run: Path | str | None = None,
    results: Annotated[GivenResults | None, Parameter(parse=False)] = None,
    k: int = 3,
    searxng_url: str | None = None,
    task: str | Path | Task | None = None,
    wording: str | None = None,
    style: Literal["auto", "sail", "sail-fixed", "chat"] = "auto",
    verify: Literal["auto", "on", "off"] = "auto",
    max_new_tokens: int = 256,
    options: Annotated[ModelOptions, Parameter(name="*")] = ModelOptions(),
    stream: Annotated[Callable[[Answer], None] | None, Parameter(parse=False)] = None,
) -> Answer:
    """Answer a question, or judge a claim, with search results.

    Prints each search result with the model's flag (informative or distracting) and the probability of informative,
    then the answer. Nothing is written.

    Args:
        question: The question or claim; with a search run, also the id of one of its rows.
        model: A model, as in evaluate; by default smollm2-135m, and for claims of a task smollm2-135m-sail.
        compare_with: A second model that gets the same question and results, such as the base model.
        corpus: Tables of documents, texts, folders of both, .tar.gz of .txt, .md and .json files; repeated.
        engine: bm25, dense, hybrid, searxng, web, or none to answer without search; see search.
        search_run: A run folder of search, or its results file: the question's recorded results.
        results: Search results instead of a search: texts, mappings with `body` and optionally `title` and `url`, or
            `SearchResult` objects.
        k: Maximum results of each engine, at most 6 together.
        searxng_url: For searxng: the server, such as http://localhost:8080.
        task: Judge the question as a claim of this task: a built-in task, your own YAML file, or module:attribute.
        wording: One of the task's wordings; by default the first that leaves the search results to the style.
        style: The style in which search results are shown: by default that of the model's training, else chat if it has
            a template, else sail-fixed.
        verify: Have the model judge the search results before it answers; auto for models that were trained to.
        max_new_tokens: Longest answer to a free question.
        options: How to load and run the models.
        stream: Called with the answer so far: first with the judged search results, then as the answer grows. Not
            for a claim of a task, and not with `compare_with`.

    Returns:
        The search results with their judgements, and the answer.

    Raises:
        UserError: An option cannot be used, the engine gave no answer, or the question does not fit into the context.
    """
    at_least_one(k=k, max_new_tokens=max_new_tokens)
    check_k(k)
    if not question.strip():
        raise UserError("`question` is empty; write the question or claim in quotes")
    template = claim_question(load_task(task), wording) if task is not None else None
    if wording is not None and task is None:
        raise UserError("`wording` is one of a task's; give `task` as well")
    if results is not None:
        if corpus or search_run is not None:
            raise UserError("give either `results`, or `corpus` or `search_run` to search in")
        searched = Searched(Instruction("question", question), given_results(results))
    else:
        with open_retrieval(engine, k, corpus, search_run, searxng_url) as retrieve:
            searched = retrieve(question)

    def answered_by(name: str | Path | Model, stream: Callable[[Answer], None] | None) -> Answer:
        check_unloaded(name, options)
        augmented = SearchAugmentedModel.load(
            name, options, len(searched.results), style=style, verify=verify, question=template
        )
        return augmented.answer(searched, max_new_tokens, stream)

    try:
        name = default_model(claims=task is not None) if model is None else model
        first = answered_by(name, stream if compare_with is None else None)
        return first if compare_with is None else replace(first, compared_with=answered_by(compare_with, None))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the answer is incomplete") from None


def claim_question(task: Task, wording: str | None) -> Question:
    """A wording with one step and no system text; by default one without search results, which the style shows.

    Args:
        task: The task.
        wording: The name of the wording, or None.

    Raises:
        UserError: There is no such wording.
    """
    protocol = PROTOCOL if PROTOCOL in task.spec.protocols else next(iter(task.spec.protocols))
    names = [wording] if wording else list(task.spec.protocols[protocol].wordings)
    questions = [task.question(protocol, name) for name in names]
    usable = [q for q in questions if len(q.steps) == 1 and not any(q.systems) and not q.shows_examples]
    if not usable:
        what = f"wording {wording}" if wording else f"protocol {protocol}"
        raise UserError(f"{what} of task {task.name} has several steps, a system text or worked examples; use evaluate")
    return min(usable, key=lambda q: any("{evidence}" in step for step in q.steps))
