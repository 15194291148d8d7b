"""A model on a task: predictions, figures and flags in a run folder."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from sailkit import runs
from sailkit.errors import UserError
from sailkit.evaluation import predictions
from sailkit.evaluation.ask import AnswerMode, Plan, answer_batch, content_free_bias, places_evidence, prompt_for
from sailkit.evaluation.evidence import Form, Search, form_for, shown
from sailkit.evaluation.few_shot import worked_examples
from sailkit.evaluation.figures import Flag
from sailkit.evaluation.noise import MEASURED, measured_noise
from sailkit.evaluation.predictions import NOISE, PREDICTIONS
from sailkit.evaluation.reference import announce_cost, collect_reference, load_reference
from sailkit.evaluation.results import SETTINGS, Evaluation
from sailkit.evaluation.summary import summarise
from sailkit.files import jsonl
from sailkit.files.batch_log import write_batches
from sailkit.models.base import SCORE_RESERVE, Model, ModelOptions, check_scorable, is_endpoint
from sailkit.models.load import load_model
from sailkit.prompts.parse import ANSWER_RULES_VERSION
from sailkit.prompts.render import frames
from sailkit.prompts.sail import wording as styles
from sailkit.records import Example
from sailkit.tasks.task import Half, Question, in_half, load_task

CALIBRATION = "calibration.json"  # log-probability of each label when nothing is asked about


def evaluate(
    *,
    model: str,
    task: str,
    out: Path,
    data: Path | None = None,
    answer: AnswerMode = "logprob",
    protocol: str = "direct",
    wording: str | None = None,
    labels: list[str] | None = None,
    limit: int | None = None,
    half: Half | None = None,
    search: Search | None = None,
    results: int = 3,
    style: Literal["auto", "sail", "sail-fixed", "chat"] = "auto",
    verify: Literal["auto", "on", "off"] = "auto",
    few_shot: Path | None = None,
    shots: int = 4,
    calibrate: bool = False,
    options: Annotated[ModelOptions, Parameter(name="*")] = ModelOptions(),
    max_new_tokens: int | None = None,
    seed: int = 0,
    reference: str | None = None,
    repeats: int = 1,
    price: str | None = None,
    reference_api_key_env: str | None = None,
    csv_out: Path | None = None,
) -> Evaluation:
    """Measure a model on a task.

    Writes predictions.jsonl, metrics.json and manifest.json to a run folder. A run that was stopped goes on
    where it stopped when the same command is given again.

    Args:
        model: smollm2-135m, a hub id, a local folder, a GGUF file, a LoRA adapter folder, or endpoint:MODEL@BASE_URL.
        task: A built-in task (climate-fever, hsd, sample-claims, sample-statements) or your own YAML file.
        out: The run folder.
        data: The task's data: a file, a folder, or OWNER/NAME[:SPLIT] on the hub.
        answer: Score the labels' answer words (logprob), or generate an answer and read it (generate).
        protocol: direct (one question), fair ("is it fair to say"), think-twice (several calls).
        wording: One of the protocol's wordings; the first by default. climate-fever and hsd have the published ones.
        labels: Labels to use, repeated or separated by commas; "all" for all of the task.
        limit: Only the first so many examples.
        half: Only the examples of this half; build-task trains on the other.
        search: Which search results to show, in the form of training: the item's own (evidence), those of other items
            (random), or none. Where the wording places {evidence}, they are shown there. By default as the wording has
            it.
        results: Most search results of an item, with --search.
        style: The form of training: the model's own, else chat where it has a template, else sail-fixed.
        verify: Have the model say first which search results are informative, and answer behind that; auto for models
            that were trained to.
        few_shot: A file or folder with worked examples in the task's own form; for a wording with {examples}, a table
            of `text` and `answer`.
        shots: How many of them to show.
        calibrate: Subtract each label's score on an empty input (Zhao et al. 2021).
        options: How to load and run the model.
        max_new_tokens: Longest generated answer; the protocol's own by default.
        seed: Seed of the bootstrap.
        reference: A second model whose answers serve as ground truth beside the data set's labels.
        repeats: How often to ask the reference, to measure how often it changes its mind.
        price: USD per million tokens of an endpoint, as IN/OUT, for the estimate of cost.
        reference_api_key_env: Environment variable with the key of an endpoint as reference; needed where both are
            endpoints.
        csv_out: Also write the predictions as CSV to this file.

    Returns:
        The figures with their intervals, the flags and the predictions.

    Raises:
        UserError: Anything that the user can mend; nothing is overwritten.
    """
    chosen = load_task(task, _split(labels))
    question = chosen.question(protocol, wording)
    if max_new_tokens is not None:
        limits = (_positive("`max_new_tokens`", max_new_tokens),) * len(question.steps)
        question = replace(question, new_tokens=limits)
    formed = _in_form_of_training(question, search, style, verify)
    if calibrate and answer != "logprob":
        raise UserError("`calibrate` needs `answer='logprob'`")
    dataset = chosen.load(data)
    inside = [one for one in dataset.examples if half is None or in_half(one, half)]
    asked = inside[: _positive("`limit`", limit) if limit is not None else None]
    if not asked:
        raise UserError(f"task {chosen.name}: no examples in the {half} half")
    examples = shown(asked, search, _positive("`results`", results), seed, inside) if search else asked
    if csv_out is not None and csv_out.exists() and not csv_out.read_bytes().startswith(b"id,text,gold,reference,"):
        raise UserError(f"{csv_out} exists and is no CSV of predictions; choose another `csv_out`")
    worked = worked_examples(chosen, question, few_shot, _positive("`shots`", shots), examples)
    first_date = runs.setting_of(out, "date") or runs.setting_of(out / predictions.REFERENCE_FOLDER, "date")
    options = replace(options, date=options.date or first_date)
    loaded, form = load_model(model, options), None
    if formed:
        form = form_for(loaded, style, verify, max(len(one.evidence) for one in examples))
        loaded = _in_form(loaded, form, model, options)
        if worked.fingerprint or len(question.steps) > 1 or any(question.systems):
            what = "`few_shot`" if worked.fingerprint else f"wording {question.wording} of protocol {protocol}"
            raise UserError(f"{what} does not go with `search`, which asks as in training; leave one of them out")
    if answer == "logprob":
        check_scorable(loaded)
    plan = Plan(question, answer, worked.turns, form=form, examples=worked.parts)
    judge = _judge(reference, model, loaded, options, reference_api_key_env, repeats) if reference is not None else None
    calls = [[prompt_for(plan, example, step) for example in examples] for step in range(len(question.steps))]
    generates = answer == "generate" or len(question.steps) > 1
    new_tokens = max(question.new_tokens)
    reserve = new_tokens if generates else SCORE_RESERVE
    # Later steps hold what earlier ones wrote; the longest of them says how much fits into a batch.
    longest = max(calls, key=lambda prompts: sum(len(turn.text) for prompt in prompts for turn in prompt))
    reserve += (form.bound if form and form.verify else 0) + (new_tokens if len(question.steps) > 1 else 0)
    batches = loaded.plan(longest, reserve, [f"item {example.id}" for example in examples])
    settings = {
        **loaded.describe(),
        "task": chosen.name,
        "task_sha256": jsonl.fingerprint(chosen.spec.model_dump()),
        "labels": chosen.labels,
        "protocol": protocol,
        "wording": question.wording,
        "answer": answer,
        "search": search or ("evidence" if places_evidence(question) else "none"),
        "results": results if search in ("evidence", "random") else None,
        "style": form.style if form else None,
        "verify": bool(form and form.verify),
        "half": half,
        "shots": worked.fingerprint,
        "calibrate": calibrate,
        "max_new_tokens": _same_or_each(question.new_tokens) if generates else None,
        "data_sha256": dataset.fingerprint,
        "n": len(examples),
        "left_out": dataset.left_out,
        "rules_version": ANSWER_RULES_VERSION,
        "prompts_sha256": jsonl.fingerprint([*question.literals, frames(), styles() if form else None]),
        "seed": seed,
    }
    with runs.open_run(out, "evaluate", settings) as run:
        announce_cost(loaded, calls, question.new_tokens, price=price, scored=answer == "logprob")
        if calibrate:
            plan = replace(plan, bias=_kept_bias(run, loaded, plan))
        _answer_all(run, loaded, plan, examples, batches)
        more = collect_reference(run, judge, chosen, asked, repeats, price) if judge else []
        figures = _finish(run, seed, more)
        if csv_out is not None:
            jsonl.write_atomic(csv_out, predictions.as_csv(predictions.load_run(run.folder).predictions))
        return figures


def _kept_bias(run: runs.Run, model: Model, plan: Plan) -> dict[str, float]:
    """The bias of a run: measured once, kept in its folder, and the same when it goes on."""
    path = run.path(CALIBRATION)
    if not path.exists():
        jsonl.write_json(path, content_free_bias(model, plan))
    return jsonl.read_json(path)


def _keep_noise(
    run: runs.Run, model: Model, plan: Plan, examples: Sequence[Example], batches: Sequence[Sequence[int]]
) -> None:
    """Measure once how far margins move with the batch, where the number format makes that much."""
    path = run.path(NOISE)
    if run.manifest["settings"].get("dtype") in MEASURED and plan.mode == "logprob" and not path.exists():
        answered = [predictions.from_row(row, PREDICTIONS) for _, row in jsonl.read_rows(run.path(PREDICTIONS))]
        together = {i for batch in batches if len(batch) > 1 for i in batch}  # the others were alone in the first place
        jsonl.write_json(path, measured_noise(model, plan, examples, [p for p in answered if p.index in together]))


def _answer_all(run: runs.Run, model: Model, plan: Plan, examples: Sequence[Example], batches: list[list[int]]) -> None:
    def compute(remaining: Sequence[Sequence[int]]) -> Generator[list[jsonl.JsonObject], None, None]:
        for batch in remaining:
            try:
                answered = answer_batch(model, plan, [(i, examples[i]) for i in batch])
            except UserError as error:
                items = f"{examples[batch[0]].id} to {examples[batch[-1]].id}"
                raise UserError(f"{error} (batch of items {items})") from None
            yield [*map(predictions.to_row, answered)]

    write_batches(run.path(PREDICTIONS), batches, lambda i: examples[i].id, compute, f"asking {model.name}")
    _keep_noise(run, model, plan, examples, batches)


def _in_form_of_training(question: Question, search: Search | None, style: str, verify: str) -> bool:
    """Whether search results are shown in the form of training; what is only for that is refused elsewhere."""
    formed = search is not None and not places_evidence(question)
    if not formed and (style != "auto" or verify == "on"):
        flag = f"`style` {style}" if style != "auto" else "`verify='on'`"
        raise UserError(f"{flag} needs `search`, and a `wording` that does not place {{evidence}} itself")
    return formed


def _judge(name: str, model: str, loaded: Model, options: ModelOptions, key_env: str | None, repeats: int) -> Model:
    """The reference model, with its own key and on the day of the model that is measured."""
    if is_endpoint(model) and is_endpoint(name) and key_env is None:
        raise UserError("two endpoints, and a key goes to the server it is for: give `reference_api_key_env` as well")
    day = options.date or loaded.describe().get("date")
    return load_reference(name, replace(options, api_key_env=key_env or options.api_key_env, date=day), repeats)


def _in_form(loaded: Model, form: Form, model: str, options: ModelOptions) -> Model:
    """The model as the form needs it: without its chat template for the text styles."""
    templated = bool(loaded.describe().get("chat_template"))
    if form.style != "chat" and templated and options.chat == "auto":
        return load_model(model, replace(options, chat="off"))
    if form.style == "chat" and not templated and options.chat != "off":
        raise UserError(f"`style='chat'`: {model} has no chat template; use `style='sail-fixed'`")
    if (form.style == "chat") != templated:
        mend = "`chat='on'`" if form.style == "chat" else "`chat='off'`"
        raise UserError(f"`style` {form.style} needs {mend}, or another `style`")
    return loaded


def _same_or_each(new_tokens: Sequence[int]) -> int | list[int]:
    """The limit of every step, or the limit of each where they differ."""
    return new_tokens[0] if len(set(new_tokens)) == 1 else list(new_tokens)


def _finish(run: runs.Run, seed: int, more: Sequence[Flag]) -> Evaluation:
    """The figures of a run whose predictions are complete, also written to its folder."""
    answered = predictions.load_run(run.folder)
    summary = summarise(
        answered.predictions, answered.labels, answered.provenance.get("dtype"), seed,
        scored=answered.provenance.get("answer") == "logprob", noise=answered.noise,
    )  # fmt: skip
    settings = {name: run.manifest["settings"].get(name) for name in SETTINGS}
    fields = vars(summary) | {"flags": (*summary.flags, *more)}
    evaluation = Evaluation(folder=run.folder, **settings, **fields)
    jsonl.write_json(run.path(runs.METRICS), evaluation.to_json())
    return evaluation


def _split(labels: Sequence[str] | None) -> list[str] | None:
    return [part.strip() for label in labels for part in label.split(",")] if labels else None


def _positive(flag: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{flag} should be at least 1, not {value}")
    return value
