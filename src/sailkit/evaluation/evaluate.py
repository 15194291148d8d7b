"""The verb `evaluate`: measures a model on a task, and writes predictions, figures and flags to a run folder."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from cyclopts import Parameter

from sailkit import runs
from sailkit.arguments import checked, renamed
from sailkit.distributed import Processes, joined_processes
from sailkit.errors import UserError, at_least_one
from sailkit.evaluation import predictions
from sailkit.evaluation.ask import AnswerMode, Plan, answer_batch, content_free_bias, prompt_for, shows_evidence
from sailkit.evaluation.evidence import (
    Search,
    evidence_style_for,
    results_fingerprint,
    with_matching_template,
    with_results_of,
    with_search_results,
)
from sailkit.evaluation.few_shot import WorkedExamples, worked_examples
from sailkit.evaluation.figures import Flag
from sailkit.evaluation.noise import measure_noise_once
from sailkit.evaluation.predictions import PREDICTIONS
from sailkit.evaluation.processes import check_shared, warn_of_unused, write_batches
from sailkit.evaluation.reference import announce_cost, collect_reference, load_reference, reference_flags
from sailkit.evaluation.results import SETTINGS, Evaluation
from sailkit.evaluation.seeds import for_each_seed
from sailkit.evaluation.summary import summarise_predictions
from sailkit.evaluation.trained_items import trained_items_flag
from sailkit.files import jsonl
from sailkit.models.base import (
    SCORE_RESERVE,
    Model,
    ModelOptions,
    check_scorable,
    is_endpoint,
    scoring_threads,
)
from sailkit.models.load import check_unloaded, load_model
from sailkit.prompts.parse import ANSWER_RULES_VERSION
from sailkit.prompts.render import Prompt, frames
from sailkit.prompts.styles import wording as styles
from sailkit.records import Example
from sailkit.tasks.rows import Examples
from sailkit.tasks.task import Dataset, Half, Question, Task, in_half, load_task

CALIBRATION = "calibration.json"  # log-probability of each label on an empty input


@checked
@for_each_seed
def evaluate(
    *,
    model: str | Path | Model,
    task: str | Path | Task,
    out: Annotated[Path | str | None, Parameter(required=True)] = None,
    data: Path | str | None = None,
    examples: Annotated[Examples | None, Parameter(parse=False)] = None,
    answer: AnswerMode = "logprob",
    protocol: str = "direct",
    wording: str | None = None,
    label_set: Annotated[list[str] | None, renamed("labels")] = None,
    limit: int | None = None,
    half: Half | None = None,
    first_share: float = 0.5,
    search: Search | None = None,
    search_run: Path | str | None = None,
    max_results: Annotated[int, renamed("results")] = 3,
    style: Literal["auto", "sail", "sail-fixed", "chat"] = "auto",
    verify: Literal["auto", "on", "off"] = "auto",
    few_shot: Path | str | None = None,
    shots: int = 4,
    calibrate: bool = False,
    options: Annotated[ModelOptions, Parameter(name="*")] = ModelOptions(),
    max_new_tokens: int | None = None,
    seed: int = 0,
    reference: str | Model | None = None,
    repeats: int = 1,
    price: str | None = None,
    reference_api_key_env: str | None = None,
    csv_out: Path | str | None = None,
) -> Evaluation:
    """Measure a model on a task.

    Writes predictions.jsonl, metrics.json and manifest.json to a run folder. A run that was stopped continues where it
    stopped when the same command is given again. The models of a folder of finetune --seeds are each measured in a run
    folder of OUT, and give a group, for compare. Under accelerate launch, the processes share the examples.

    Args:
        model: smollm2-135m, smollm2-135m-sail, a hub id, a local folder, a GGUF file, a LoRA adapter folder, the run
            folder of finetune, with or without seeds, vllm:MODEL to generate with vLLM, endpoint:MODEL@BASE_URL, or
            module:attribute.
        task: A built-in task (climate-fever, factcheck, fever, hsd, sample-claims, sample-facts, sample-statements,
            scifact), your own YAML file, or module:attribute.
        out: The run folder.
        data: The task's data: a file, a folder, or OWNER/NAME[:SPLIT] on the hub.
        examples: Examples instead of data: a list of mappings with the fields of the task's data or with `text`,
            `label` and optionally `id`, `group` and `evidence`; a pandas data frame of the same; or `Example` objects.
        answer: Score the labels' answer words (logprob), or generate an answer and read it (generate).
        protocol: direct (one question), fair ("is it fair to say"), think-twice (several calls).
        wording: One of the protocol's wordings; the first by default. climate-fever and hsd have the published ones.
        label_set: Labels to use, repeated or separated by commas; "all" for all of the task.
        limit: Evaluate at most this many examples, the first ones.
        half: Evaluate one half of the examples; build-task trains on the other.
        first_share: Share of the examples in the first half, from 0.5; as build-task took it.
        search: Which search results to show, as in training: the item's own (evidence), those of other items on the
            same subject (near) or on any (random), or none. A wording with {evidence} shows them there. By default the
            wording decides.
        search_run: A run folder of search, or its results file: its results, joined by id, replace the search results
            of the data.
        max_results: Most search results of an item, with --search.
        style: The style in which search results are shown: by default that of the model's training, else chat if it has
            a template, else sail-fixed.
        verify: Have the model judge the search results before it answers; auto for models that were trained to.
        few_shot: A file or folder with worked examples, laid out like the task's data; for a wording with {examples}, a
            table with the fields text and answer.
        shots: Number of worked examples to show.
        calibrate: Subtract each label's score on an empty input (Zhao et al. 2021).
        options: How to load and run the model.
        max_new_tokens: Longest generated answer; the protocol's own by default.
        seed: Random seed of the bootstrap and of --search random.
        reference: A second model whose answers serve as ground truth beside the data set's labels.
        repeats: Number of reference answers for each item, to measure how often the label changes.
        price: USD per million tokens of an endpoint, as IN/OUT, for the estimate of cost.
        reference_api_key_env: Environment variable with the key of the reference's endpoint; required if both models
            are endpoints.
        csv_out: Also write the predictions as CSV to this file.

    Returns:
        The figures with their intervals, the flags and the predictions. Without `out`, they are in a temporary folder
        that is removed together with the result.

    Raises:
        UserError: The input cannot be used; nothing is overwritten.
    """
    model = str(model) if isinstance(model, Path) else model
    processes = joined_processes()
    with processes.raise_together():
        at_least_one(
            limit=limit, max_results=max_results if search else None, shots=shots, max_new_tokens=max_new_tokens
        )
        chosen = load_task(task, _split(label_set))
        question = _question(chosen, protocol, wording, max_new_tokens)
        styled = _shows_results_as_in_training(question, search, style, verify)
        _check_answer(answer, model, calibrate)
        if data is not None and examples is not None:
            raise UserError("give either `data` or `examples`, not both")
        dataset = _loaded(chosen, data if examples is None else examples, search_run, search)
        pool = [example for example in dataset.examples if in_half(example, half, first_share)]
        selected = pool[:limit]
        if not selected:
            raise UserError(f"task {chosen.name}: no examples in the {half} half")
        items = (
            with_search_results(selected, search, max_results, seed, pool, chosen.groups_share_subject)
            if search
            else selected
        )
        predictions.check_csv(csv_out)
        worked = worked_examples(chosen, question, few_shot, shots, items)
        if reference is None:
            check_unloaded(model, options)
        options = _with_first_date(options, out)
        check_shared(processes, options, model, reference)
        loaded, evidence_style = load_model(model, options), None
        warn_of_unused(processes, options, model, loaded)
        if styled:
            evidence_style = evidence_style_for(loaded, style, verify, max(len(item.evidence) for item in items))
            loaded = with_matching_template(loaded, evidence_style, model, options)
            _check_styled(question, worked)
        if answer == "logprob":
            check_scorable(loaded)
        plan = Plan(question, answer, worked.turns, evidence_style=evidence_style, examples=worked.parts)
        judge = (
            None
            if reference is None
            else load_reference(reference, loaded, chosen, options, reference_api_key_env, repeats, price)
        )
        calls = [[prompt_for(plan, item, step) for item in items] for step in range(len(question.steps))]
        generates = answer == "generate" or len(question.steps) > 1
        settings = {
            "model": loaded.name,
            **loaded.describe(),
            "task": chosen.name,
            "task_sha256": jsonl.fingerprint(chosen.spec.model_dump()),
            "labels": chosen.labels,
            "protocol": protocol,
            "wording": question.wording,
            "answer": answer,
            "search": search or ("evidence" if shows_evidence(question) else "none"),
            "results": max_results if search not in (None, "none") else None,
            **({} if search_run is None else {"searched_sha256": results_fingerprint(search_run)}),
            "style": evidence_style.style if evidence_style else None,
            "verify": bool(evidence_style and evidence_style.verify),
            "half": half,
            **({} if first_share == 0.5 else {"first_share": first_share}),
            "shots": worked.fingerprint,
            "calibrate": calibrate,
            "max_new_tokens": _same_or_each(question.new_tokens) if generates else None,
            "data_sha256": dataset.fingerprint,
            "n": len(items),
            "left_out": dataset.left_out,
            "rules_version": ANSWER_RULES_VERSION,
            "prompts_sha256": jsonl.fingerprint([*question.literals, frames(), styles() if evidence_style else None]),
            "seed": seed,
        }
        batches = loaded.plan(*_longest_call(plan, calls, generates), [f"item {item.id}" for item in items])
    with ExitStack() as temporary:
        folder = out or Path(temporary.enter_context(TemporaryDirectory(prefix="sailkit-")), _short_name(loaded))
        with runs.open_shared_run(processes, folder, "evaluate", settings) as run:
            announce_cost(loaded, calls, question.new_tokens, price=price, scored=answer == "logprob")
            if calibrate:
                plan = replace(plan, bias=processes.from_main(lambda: _stored_bias(run, loaded, plan)))
            _answer_all(processes, run, loaded, plan, items, batches)
            if judge:
                collect_reference(processes, run, judge, chosen, selected, repeats, price)
            flags = trained_items_flag(settings, chosen.name, dataset.fingerprint, selected)
            evaluation = processes.from_main(lambda: _finish(run, seed, flags, csv_out))
        if out is None:
            weakref.finalize(evaluation, temporary.pop_all().close)
        return evaluation


def _loaded(
    task: Task, data: str | Path | Examples | None, search_run: str | Path | None, search: Search | None
) -> Dataset:
    dataset = task.load(data)
    if search_run is None:
        return dataset
    if search == "near":
        raise UserError("`search='near'` needs the data's own judged results, and `search_run` replaces them")
    return replace(dataset, examples=with_results_of(search_run, dataset.examples))


def _with_first_date(options: ModelOptions, out: str | Path | None) -> ModelOptions:
    """The options with the date of the run that is continued."""
    folders = [] if out is None else [Path(out), Path(out, predictions.REFERENCE_FOLDER)]
    dates = (runs.setting_of(folder, "date") for folder in folders)
    return replace(options, date=options.date or next(filter(None, dates), None))


def _check_styled(question: Question, worked: WorkedExamples) -> None:
    """Refuse what would change the prompts of training."""
    if worked.fingerprint or len(question.steps) > 1 or any(question.systems):
        what = "`few_shot`" if worked.fingerprint else f"wording {question.wording} of protocol {question.protocol}"
        raise UserError(f"{what} does not go with `search`, which asks as in training; leave one of them out")


def _question(task: Task, protocol: str, wording: str | None, max_new_tokens: int | None) -> Question:
    question = task.question(protocol, wording)
    if max_new_tokens is None:
        return question
    return replace(question, new_tokens=(max_new_tokens,) * len(question.steps))


def _check_answer(answer: AnswerMode, model: str | Model, calibrate: bool) -> None:
    """Refuse an answer mode before the model is loaded."""
    if answer == "logprob" and isinstance(model, str):
        check_scorable(model)
    if calibrate and answer != "logprob":
        raise UserError("`calibrate` needs `answer='logprob'`")


def _longest_call(plan: Plan, calls: Sequence[Sequence[Prompt]], generates: bool) -> tuple[Sequence[Prompt], int]:
    """The prompts by which batches are planned, and the tokens to reserve after them.

    Every step uses the same batches. A later step quotes earlier replies, which are not known yet: its prompts are
    planned with empty quotes, and the longest possible reply is reserved.
    """
    longest = max(calls, key=lambda prompts: sum(len(turn.text) for prompt in prompts for turn in prompt))
    new_tokens = max(plan.question.new_tokens)
    reserve = new_tokens if generates else SCORE_RESERVE
    reserve += plan.evidence_style.bound if plan.evidence_style and plan.evidence_style.verify else 0
    return longest, reserve + (new_tokens if len(calls) > 1 else 0)


def _stored_bias(run: runs.Run, model: Model, plan: Plan) -> dict[str, float]:
    """The bias of a run, measured once and stored in its folder, so that a resumed run has the same."""
    path = run.path(CALIBRATION)
    if not path.exists():
        jsonl.write_json(path, content_free_bias(model, plan))
    return jsonl.read_json(path)


def _answer_all(
    processes: Processes, run: runs.Run, model: Model, plan: Plan, examples: Sequence[Example], batches: list[list[int]]
) -> None:
    def answer(batch: Sequence[int]) -> list[jsonl.JsonObject]:
        try:
            answered = answer_batch(model, plan, [(i, examples[i]) for i in batch])
        except UserError as error:
            items = f"{examples[batch[0]].id} to {examples[batch[-1]].id}"
            raise UserError(f"{error} (batch of items {items})") from None
        return [*map(predictions.to_row, answered)]

    # While a text is generated, little else is left to do, and ctrl-C would wait for every text that has begun.
    activity, threads = f"asking {model.name}", scoring_threads(model) if plan.mode == "logprob" else 1
    write_batches(processes, run.path(PREDICTIONS), batches, lambda i: examples[i].id, answer, activity, threads)
    processes.from_main(lambda: measure_noise_once(run, model, plan, examples, batches))


def _shows_results_as_in_training(question: Question, search: Search | None, style: str, verify: str) -> bool:
    """Whether search results are shown as in training, instead of at the wording's {evidence}."""
    styled = search is not None and not shows_evidence(question)
    if not styled and (style != "auto" or verify == "on"):
        argument = f"`style` {style}" if style != "auto" else "`verify='on'`"
        raise UserError(f"{argument} needs `search`, and a `wording` without {{evidence}}")
    return styled


def _same_or_each(new_tokens: Sequence[int]) -> int | list[int]:
    """The common limit of all steps, or the limit of each step if they differ."""
    return new_tokens[0] if len(set(new_tokens)) == 1 else list(new_tokens)


def _short_name(model: Model) -> str:
    """A folder name derived from the model's name; comparisons and reports use it for the evaluation."""
    name = model.name if is_endpoint(model.name) else Path(model.name).name
    return re.sub(r"[^\w.-]+", "-", name)


def _finish(run: runs.Run, seed: int, flags: Sequence[Flag], csv_out: str | Path | None) -> Evaluation:
    """Compute the figures of a run with complete predictions, and write them to its folder."""
    answered = predictions.load_run(run.folder)
    summary = summarise_predictions(
        answered.predictions, answered.labels, answered.provenance.get("dtype"), seed,
        scored=answered.provenance.get("answer") == "logprob", noise=answered.noise,
    )  # fmt: skip
    settings = {name: run.manifest["settings"].get(name) for name in SETTINGS}
    fields = vars(summary) | {"flags": (*summary.flags, *flags, *reference_flags(run.folder))}
    evaluation = Evaluation(folder=run.folder, **settings, **fields)
    jsonl.write_json(run.path(runs.METRICS), evaluation.to_json())
    if csv_out is not None:
        jsonl.write_atomic(csv_out, predictions.as_csv(answered.predictions))
    return evaluation


def _split(labels: Sequence[str] | None) -> list[str] | None:
    return [part.strip() for label in labels for part in label.split(",")] if labels else None
