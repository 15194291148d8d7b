"""A model on a task: predictions, figures and flags in a run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sailkit import jsonl, predictions, runs
from sailkit.answers import RULES_VERSION, read_answer
from sailkit.errors import UserError
from sailkit.models import SCORE_RESERVE, Model, ModelOptions, Reply, load_model
from sailkit.predictions import PREDICTIONS
from sailkit.prompts import Message, Part, Prompt, frames, step_prompt
from sailkit.records import Example, Prediction
from sailkit.reference import announce_cost, collect_reference, load_reference
from sailkit.summary import Flag, summarise, with_flags
from sailkit.tasks import Question, Task, load_task

METRICS = "metrics.json"
CALIBRATION = "calibration.json"  # log-probability of each label when nothing is asked about
AnswerMode = Literal["logprob", "generate"]


@dataclass(frozen=True)
class Plan:
    """What an evaluation asks, and how its answers are understood.

    Attributes:
        question: Protocol and wording.
        mode: Score the labels or generate an answer in the last step.
        shots: Worked examples as earlier turns, the same for every item.
        bias: Log-probability of each label when nothing is asked about; subtracted from the scores.
    """

    question: Question
    mode: AnswerMode
    shots: tuple[Message, ...] = ()
    bias: Mapping[str, float] | None = None


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
    few_shot: Path | None = None,
    shots: int = 4,
    calibrate: bool = False,
    chat: Literal["auto", "on", "off"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    batch_tokens: int = 0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    reference: str | None = None,
    repeats: int = 1,
    price: str | None = None,
    max_requests: int = 0,
    concurrency: int = 8,
    timeout: float = 60.0,
    api_key_env: str = "OPENAI_API_KEY",
    reference_api_key_env: str | None = None,
    trust_remote_code: bool = False,
    csv_out: Path | None = None,
) -> dict[str, Any]:
    """Measure a model on a task.

    Writes predictions.jsonl, metrics.json and manifest.json to a run folder. A run that was stopped goes on
    where it stopped when the same command is given again.

    Args:
        model: smollm2-135m, a hub id, a local folder, a GGUF file, a LoRA adapter folder, or endpoint:MODEL@BASE_URL.
        task: A built-in task (climate-fever, hsd, sample-claims, sample-statements) or your own YAML file.
        out: The run folder.
        data: The task's data: a file or folder.
        answer: Score the labels' answer words (logprob), or generate an answer and read it (generate).
        protocol: direct (one question), fair ("is it fair to say"), think-twice (three calls).
        wording: One of the protocol's wordings; the first by default.
        labels: Labels to use, repeated or separated by commas; "all" for all of the task.
        limit: Only the first so many examples.
        few_shot: A file or folder with worked examples in the task's own form.
        shots: How many of them to show.
        calibrate: Subtract each label's score on an empty input (Zhao et al. 2021).
        chat: Use the model's chat template: auto (where it has one), on, off.
        dtype: Number format; auto takes bfloat16 where the machine has it.
        device: Where to run: auto, cpu, cuda:0, mps.
        batch_tokens: Most tokens in a batch; 0 chooses.
        max_new_tokens: Longest generated answer; the protocol's own by default.
        seed: Seed of the bootstrap.
        reference: A second model whose answers serve as ground truth beside the data set's labels.
        repeats: How often to ask the reference, to measure how often it changes its mind.
        price: USD per million tokens of an endpoint, as IN/OUT, for the estimate of cost.
        max_requests: Most requests to an endpoint, retries included; 0 for no limit.
        concurrency: Most requests at a time.
        timeout: Seconds for one request.
        api_key_env: Environment variable with the key; it is sent to the endpoint that you name.
        reference_api_key_env: The same for an endpoint as reference; needed where both are endpoints.
        trust_remote_code: Run code that the model's repository carries.
        csv_out: Also write the predictions as CSV to this file.

    Returns:
        The figures, as in metrics.json.

    Raises:
        UserError: Anything that the user can mend; nothing is overwritten.
    """
    chosen = load_task(task, _split(labels))
    question = chosen.question(protocol, wording)
    if max_new_tokens is not None:
        question = replace(question, max_new_tokens=_positive("--max-new-tokens", max_new_tokens))
    if calibrate and answer != "logprob":
        raise UserError("--calibrate needs --answer logprob")
    dataset = chosen.load(data)
    examples = dataset.examples[: _positive("--limit", limit) if limit is not None else None]
    if csv_out is not None and csv_out.exists() and not csv_out.read_bytes().startswith(b"id,text,gold,reference,"):
        raise UserError(f"{csv_out} exists and is no CSV of predictions; choose another --csv-out")
    turns, shots_fingerprint = _shots(chosen, question, few_shot, shots, examples)
    options = ModelOptions(
        chat, dtype, device, batch_tokens, trust_remote_code, concurrency, max_requests, timeout, api_key_env
    )
    loaded = load_model(model, options)
    plan = Plan(question, answer, turns)
    if calibrate and answer != "logprob":
        raise UserError("--calibrate needs --answer logprob")
    judge = None
    if reference is not None:
        if model.startswith("endpoint:") and reference.startswith("endpoint:") and reference_api_key_env is None:
            raise UserError(
                "two endpoints, and a key goes to the server it is for: give --reference-api-key-env as well"
            )
        judge = load_reference(reference, replace(options, api_key_env=reference_api_key_env or api_key_env), repeats)
    calls = [[_prompt(plan, example, step) for example in examples] for step in range(len(question.steps))]
    generates = answer == "generate" or len(question.steps) > 1
    reserve = question.max_new_tokens if generates else SCORE_RESERVE
    # Later steps hold what earlier ones wrote; the longest of them says how much fits into a batch.
    longest = max(calls, key=lambda prompts: sum(len(turn.text) for prompt in prompts for turn in prompt))
    room = reserve + (question.max_new_tokens if len(question.steps) > 1 else 0)
    batches = loaded.plan(longest, room, [f"item {example.id}" for example in examples])
    settings = {
        **loaded.describe(),
        "task": chosen.name,
        "task_sha256": jsonl.fingerprint(chosen.spec.model_dump()),
        "labels": chosen.labels,
        "protocol": protocol,
        "wording": question.wording,
        "answer": answer,
        "search": "evidence" if any("{evidence}" in step for step in question.steps) else "none",
        "shots": shots_fingerprint,
        "calibrate": calibrate,
        "max_new_tokens": question.max_new_tokens if generates else None,
        "data_sha256": dataset.fingerprint,
        "n": len(examples),
        "left_out": dataset.left_out,
        "rules_version": RULES_VERSION,
        "prompts_sha256": jsonl.fingerprint([question.steps, question.answers, frames()]),
        "seed": seed,
    }
    with runs.open_run(out, "evaluate", settings) as run:
        announce_cost(loaded, calls, question.max_new_tokens, price=price, scored=answer == "logprob")
        if calibrate:
            plan = replace(plan, bias=_kept_bias(run, loaded, plan))
        _answer_all(run, loaded, plan, examples, batches)
        more = collect_reference(run, judge, chosen, examples, repeats, price) if judge else []
        figures = _finish(run, seed, more)
        if csv_out is not None:
            jsonl.write_atomic(csv_out, predictions.as_csv(predictions.load_run(run.folder).predictions))
        return figures


def _kept_bias(run: runs.Run, model: Model, plan: Plan) -> dict[str, float]:
    """The bias of a run: measured once, kept in its folder, and the same when it goes on."""
    path = run.path(CALIBRATION)
    if not path.exists():
        jsonl.write_json(path, _content_free_bias(model, plan))
    return jsonl.read_json(path)


def _answer_all(run: runs.Run, model: Model, plan: Plan, examples: Sequence[Example], batches: list[list[int]]) -> None:
    log = runs.BatchLog(run.path(PREDICTIONS), [[examples[i].id for i in batch] for batch in batches])
    try:
        with runs.progress(f"asking {model.name}", len(examples), log.rows_done) as tick:
            for batch in batches[log.done :]:
                try:
                    found = answer_batch(model, plan, [(i, examples[i]) for i in batch])
                except UserError as error:
                    raise UserError(
                        f"{error} (batch of items {examples[batch[0]].id} to {examples[batch[-1]].id})"
                    ) from None
                log.append([predictions.to_row(p) for p in found])
                tick(len(batch))
    finally:
        log.close()


def answer_batch(model: Model, plan: Plan, batch: Sequence[tuple[int, Example]]) -> list[Prediction]:
    """Ask a model about one batch of examples, through all steps of the protocol.

    Args:
        model: Who is asked.
        plan: What is asked.
        batch: Index and example of each item.

    Returns:
        One prediction for each item, in order.
    """
    question = plan.question
    previous = [""] * len(batch)
    turns: list[list[dict[str, Any]]] = [[] for _ in batch]
    last = len(question.steps) - 1
    for step in range(last):
        replies = model.generate(_step(plan, batch, step, previous), question.max_new_tokens, lambda _: False)
        previous = [reply.text or "" for reply in replies]
        for turn, reply in zip(turns, replies, strict=True):
            turn.append(
                {
                    "prompt": reply.prompt,
                    "raw_output": reply.text,
                    "completion_tokens": reply.completion_tokens,
                }
            )
    prompts = _step(plan, batch, last, previous)
    if plan.mode == "logprob":
        replies = model.score(prompts, question.answers)
    else:
        replies = model.generate(prompts, question.max_new_tokens, lambda text: _complete(text, question.words))
    return [
        _understand(plan, index, example, reply, tuple(turn))
        for (index, example), reply, turn in zip(batch, replies, turns, strict=True)
    ]


def _step(plan: Plan, batch: Sequence[tuple[int, Example]], step: int, previous: Sequence[str]) -> list[Prompt]:
    return [_prompt(plan, example, step, before) for (_, example), before in zip(batch, previous, strict=True)]


def _prompt(plan: Plan, example: Example, step: int, previous: str = "") -> Prompt:
    answers = list(plan.question.answers.values())
    return step_prompt(plan.question.steps[step], example.text, answers, example.evidence, previous, plan.shots)


def _complete(text: str, words: Mapping[str, str]) -> bool:
    """An answer is complete with its sentence or line, as soon as that gives a label."""
    ended = (
        text.rstrip().endswith((".", "!", "?"))
        or "\n" in text.strip("\n ")
        or (text.strip() != "" and text.endswith("\n"))
    )
    return ended and read_answer(text, words)[1] == "answered"


def _understand(
    plan: Plan, index: int, example: Example, reply: Reply, turns: tuple[dict[str, Any], ...]
) -> Prediction:
    scores: dict[str, float] = {}
    if reply.answers:
        bias = plan.bias or {}
        logs = {a.label: a.logprob - bias.get(a.label, 0.0) for a in reply.answers.values()}
        scores = _softmax(logs)
        label, outcome = max(logs, key=lambda name: logs[name]), "answered"
    else:
        label, outcome = read_answer(reply.text or "", plan.question.words)  # type: ignore[assignment]
    return Prediction(
        id=example.id,
        index=index,
        text=example.text,
        gold=example.label,
        label=label,
        outcome=outcome,  # type: ignore[arg-type]
        answered_by="logprob" if reply.answers else "text",
        scores=scores,
        answers=reply.answers,
        raw_output=reply.text,
        prompt=reply.prompt,
        prompt_fingerprint=reply.prompt_fingerprint,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        cut_tokens=reply.cut_tokens,
        turns=turns,
    )


def _softmax(logs: Mapping[str, float]) -> dict[str, float]:
    top = max(logs.values())
    total = sum(math.exp(v - top) for v in logs.values())
    return {name: math.exp(v - top) / total for name, v in logs.items()}


def _content_free_bias(model: Model, plan: Plan) -> dict[str, float]:
    """Log of each label's mean probability on inputs that say nothing (Zhao et al. 2021, contextual calibration)."""
    empty = [(i, Example(f"content-free-{i}", text, None)) for i, text in enumerate(frames()["content_free"])]
    found = answer_batch(model, plan, empty)
    if not all(p.scores for p in found):
        raise UserError("--calibrate needs log-probabilities, and this endpoint gives none")
    return {label: math.log(sum(p.scores[label] for p in found) / len(found)) for label in plan.question.answers}


def _shots(
    task: Task, question: Question, path: Path | None, count: int, examples: Sequence[Example]
) -> tuple[tuple[Message, ...], str | None]:
    """Worked examples as turns, and their fingerprint."""
    if path is None:
        return (), None
    if len(question.steps) > 1:
        raise UserError(f"--few-shot works with protocols of one step, not with {question.protocol}")
    worked = task.load(path).examples[: _positive("--shots", count)]
    asked = {example.text.strip(): example.id for example in examples}
    for example in worked:
        if example.text.strip() in asked:
            raise UserError(
                f"{path}: worked example {example.id!r} is also asked about, as {asked[example.text.strip()]!r}"
            )
    turns: list[Message] = []
    for example in worked:
        turns += step_prompt(question.steps[0], example.text, list(question.answers.values()), example.evidence)
        turns.append(Message("assistant", (Part(question.answers[str(example.label)]),)))
    return tuple(turns), jsonl.fingerprint([asdict(turn) for turn in turns])


def _finish(run: runs.Run, seed: int, more: Sequence[Flag]) -> dict[str, Any]:
    found = predictions.load_run(run.folder)
    figures, flags = summarise(found.predictions, found.labels, found.provenance.get("dtype"), seed)
    asked = ("model", "task", "protocol", "wording", "answer", "dtype", "left_out")
    figures = with_flags({k: run.manifest["settings"][k] for k in asked} | figures, [*flags, *more])
    jsonl.write_json(run.path(METRICS), figures)
    return figures


def _split(labels: Sequence[str] | None) -> list[str] | None:
    return [part.strip() for label in labels for part in label.split(",")] if labels else None


def _positive(flag: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{flag} should be at least 1, not {value}")
    return value
