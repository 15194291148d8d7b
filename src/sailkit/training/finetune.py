"""The stage `finetune`: a model learns to say which search results are informative, and to answer with their help."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sailkit import runs
from sailkit.data.exports import DROPPED, HELD_OUT
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.rope import rope_lengths
from sailkit.models.sources import ADAPTER, TRAINED, Source, resolve
from sailkit.prompts.border import Border
from sailkit.prompts.chat_template import reads_clock, today
from sailkit.training import plots, publish
from sailkit.training.distributed import Processes, is_main_process, process_group
from sailkit.training.effective import EFFECTIVE, effective_settings
from sailkit.training.estimate import plan_training, require_gpu
from sailkit.training.held_out import loss_change, measure_held_out
from sailkit.training.recipe import Recipe, read_recipe
from sailkit.training.tokenise import Prepared, held_out_paths, no_held_out_warning, prepare, read_data
from sailkit.training.tracking import tracking

HISTORY = "history.jsonl"
BASE = "base.json"  # the model as it was
MODEL = "model"
PLOTS = "plots"
DATA_CARDS = "data.json"  # the data cards of what was trained on, as they were


@dataclass(frozen=True)
class Objective:
    """What is learnt; by default the words of the data.

    Attributes:
        trainer: Makes the trainer; takes what `sailkit.training.trainer.Trainer` takes.
        settings: What decides the goal, for the manifest.
    """

    trainer: Callable[..., Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def finetune(
    recipe: Path | None = None,
    *,
    out: Path | None = None,
    model: str | None = None,
    data: list[str] | None = None,
    held_out: list[str] | None = None,
    style: Literal["sail", "sail-fixed", "chat"] | None = None,
    date: str | None = None,
    set: list[str] | None = None,
    dry_run: bool = False,
    tokens_per_second: float | None = None,
    push: str | None = None,
) -> dict[str, Any]:
    """Fine-tune a model on what build wrote.

    The best checkpoint by held-out loss is kept in OUT/model; adapters where the recipe has lora, else all weights. A
    run that was stopped goes on from its last checkpoint when the same command is given again.

    Args:
        recipe: A YAML file; flags win over it.
        out: The run folder.
        model: smollm2-135m, a hub id, a local folder or a GGUF file.
        data: Run folders of build, or files of training examples; repeated.
        held_out: The same, to evaluate on; by default what build held out of the data.
        style: Render every row in this style instead of its own.
        date: The day, as YYYY-MM-DD, for chat templates that read the clock; today by default. A run that goes on keeps
            its day.
        set: KEY=VALUE for any key of the recipe, such as training.learning_rate=1e-4; repeated.
        dry_run: Check recipe and data and say what the run would take, without loading or fetching weights.
        tokens_per_second: With --dry-run: the throughput to reckon the time with.
        push: OWNER/NAME on the Hugging Face hub: upload OUT/model there when all is saved; a new repository is private.

    Returns:
        The figures of metrics.json; of a dry run, those of `plan_training`.

    Raises:
        UserError: Anything that the user can mend; nothing is overwritten.
    """
    told = read_recipe(
        recipe, {"model": model, "data": data, "held_out": held_out, "style": style, "date": date}, set or ()
    )
    if dry_run:
        return plan_training(told, tokens_per_second)
    if out is None:
        raise UserError("finetune needs `out`, the run folder (or `dry_run`)")
    if push is not None:
        publish.check_repository(push)
    if not held_out_paths(told) and is_main_process() and not (out / runs.METRICS).exists():
        runs.notice(no_held_out_warning(told))
    figures = train(told, out)
    if push is None or not is_main_process():
        return figures
    return {**figures, "pushed": publish.push(out / MODEL, push)}


def train(told: Recipe, out: Path, objective: Objective = Objective()) -> dict[str, Any]:
    """Train a model in a run folder, from its last checkpoint where there is one; see `finetune`."""
    with process_group() as processes:
        date = processes.broadcast(told.date or runs.setting_of(out, "recipe", "date") or today())
        with processes.raise_together():
            require_gpu(told)
            source = resolve(told.model)
            from transformers import AutoTokenizer

            from sailkit.models.weights import free_memory, pretrained
            from sailkit.training import trainer as trl

            tokenizer = pretrained(AutoTokenizer, source.tokenizer_folder)
            told = replace(told, date=date if reads_clock(tokenizer) else None)
            rows = prepare(read_data(told.data, style=told.style), tokenizer, told.max_length, told.date)
            apart = held_out_paths(told)
            aside = None
            if apart:
                rest = read_data(apart, HELD_OUT, told.style)
                aside = prepare(rest, tokenizer, told.max_length, told.date, held_out=True)
            check_rows(told, source, (rows, aside))
            args = trl.arguments(told, out, held_out=aside is not None)
        with _opened(processes, out, told, source, rows, aside, args.seed, objective) as run:
            metrics = run.path(runs.METRICS)
            done = processes.broadcast(metrics.exists())  # written last: the run is finished
            figures = {} if done else _train(run, processes, told, source, tokenizer, rows, aside, args, objective)
            free_memory()  # of the model and its optimizer: others may be loaded next
            return processes.broadcast(jsonl.read_json(metrics) if done and processes.is_main else figures)


@contextlib.contextmanager
def _opened(
    processes: Processes,
    out: Path,
    told: Recipe,
    source: Source,
    train: Prepared,
    aside: Prepared | None,
    seed: int,
    objective: Objective,
) -> Iterator[runs.Run]:
    """The run folder, which the first process holds for all."""
    with contextlib.ExitStack() as stack:
        with processes.raise_together():
            run = runs.Run(out, {})
            if processes.is_main:
                files = source.files()
                settings = {
                    "recipe": told.settings(),
                    "weights_sha256": jsonl.file_fingerprint(files["weights"]),
                    "tokenizer_sha256": jsonl.file_fingerprint(files["tokenizer"]),
                    "train_sha256": train.fingerprint(),
                    "held_out_sha256": aside.fingerprint() if aside else None,
                    "seed": seed,
                    **objective.settings,
                }
                if processes.count > 1:  # one is what every manifest without it means
                    settings["processes"] = processes.count
                run = stack.enter_context(runs.open_run(out, "finetune", settings))
                if not run.path(runs.METRICS).exists():
                    dropped = [*train.dropped, *(aside.dropped if aside else ())]
                    jsonl.write_atomic(run.path(DROPPED), "".join(jsonl.dumps(row) + "\n" for row in dropped))
        yield run


def check_rows(told: Recipe, source: Source, parts: Sequence[Prepared | None]) -> None:
    """Refuse rows that the model would not read as they are.

    Args:
        told: The recipe.
        source: The model's files.
        parts: What is learnt; then what is evaluated on, if anything.

    Raises:
        UserError: Rows are longer than anything the model can take, hold tokens that it does not have, or would change
            how the model reads those beside them.
    """
    from transformers import AutoConfig

    from sailkit.models.weights import pretrained

    config = pretrained(AutoConfig, (source.base or source).folder).get_text_config()
    rows = [(one.id, ids) for part in parts if part for one, ids in zip(part.examples, part.ids, strict=True)]
    if strange := next((name for name, ids in rows if max(ids) >= config.vocab_size), None):
        raise UserError(
            f"example {strange!r} has a token that {told.model} has no row for ({config.vocab_size}); resize its "
            "embeddings to its tokenizer, or use the tokenizer that it was trained with"
        )
    most = getattr(config, "max_position_embeddings", None)
    longest = max(len(ids) for _, ids in rows)
    if most is not None and longest > most:
        raise UserError(
            f"a row has {longest} tokens, and {told.model} takes {most}; set training.max_length to {most} or less, "
            "and search results will be shortened to fit"
        )
    rope = rope_lengths(config)
    together = told.step["per_device_train_batch_size"] > 1 or told.training.get("packing")
    if together and parts[0] and len(rope.groups([len(ids) for ids in parts[0].ids])) > 1:
        raise UserError(
            f"{told.model} reads rows of more than {rope.threshold} tokens with other position frequencies, and in one "
            f"batch it would read the shorter rows so too; set training.max_length to {rope.threshold}, or "
            "training.per_device_train_batch_size to 1 without packing"
        )


def _train(
    run: runs.Run,
    processes: Processes,
    told: Recipe,
    source: Source,
    tokenizer: Any,
    train: Prepared,
    aside: Prepared | None,
    args: Any,
    objective: Objective,
) -> dict[str, Any]:
    from sailkit.models.base import ModelOptions
    from sailkit.models.local import LocalModel
    from sailkit.training import callbacks, checkpoints, loading
    from sailkit.training import trainer as trl
    from sailkit.training.flagging import flagging

    def measure(now: Any) -> dict[str, float | None]:
        assert aside is not None
        wrapped = LocalModel(told.model, now, tokenizer, ModelOptions(chat="off", date=told.date), {})
        found = flagging(wrapped, aside.examples, told.max_length, processes)
        return {f"flagging_{name}": value for name, value in found.items()}

    def before() -> None:
        """Measure the model as it was, once."""
        figures = processes.broadcast(jsonl.read_json(base) if processes.is_main and base.exists() else None)
        if figures is not None:
            trainer.log(figures)
        elif aside is not None:
            figures = measure_held_out(trainer, run.folder, "base")
            if processes.is_main:
                jsonl.write_json(base, figures)

    def after() -> None:
        if aside is not None:
            tuned.update(measure_held_out(trainer, run.folder, "tuned"))

    base = run.path(BASE)
    tuned: dict[str, Any] = {}
    begun = time.monotonic()
    with tracking(args.report_to, run.folder, run.identity):
        with processes.raise_together():
            trainer = (objective.trainer or trl.Trainer)(
                model=loading.load_for_training(source, told),
                tokenizer=tokenizer,
                args=args,
                train=train,
                held_out=aside,
                measure=measure,
                lora=loading.lora_config(told),
                patience=told.patience,
                callbacks=[callbacks.History(run.path(HISTORY))],
                processes=processes,
            )
            if processes.is_main:
                run.describe(EFFECTIVE, effective_settings(trainer, told, processes.count))
        # Before the trackers close.
        trainer.callback_handler.callbacks.insert(0, callbacks.Around(before, after))
        steps = trainer.planned_steps() if processes.is_main else 0
        with contextlib.ExitStack() as bar:

            def show(done: int) -> runs.Ticker:
                return bar.enter_context(runs.progress(f"training {told.model}", steps, done))

            trainer.add_callback(callbacks.Progress(show, trainer.speed))
            trainer.train_on(processes.broadcast(checkpoints.newest(run.path(checkpoints.CHECKPOINTS))))
    seconds = time.monotonic() - begun
    weights = trainer.weights()
    figures = {
        "model": told.model,
        "about": told.about,
        "dtype": loading.number_format(args, trainer.model),
        "device": args.device.type,
        **train.figures(),
        "held_out_rows": len(aside.examples) if aside else 0,
        "processes": processes.count,
        "global_batch": args.train_batch_size * args.gradient_accumulation_steps * processes.count,
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "epochs": trainer.state.epoch,
        "seconds": seconds,
        "tokens_per_second": trainer.speed(),
        "saved": str(run.path(MODEL)),
    }
    with processes.raise_together():
        if processes.is_main:
            figures |= jsonl.read_json(base) | tuned | loss_change(run.folder, args.seed) if aside else {}
            cards = publish.data_cards(told.data)
            jsonl.write_json(run.path(DATA_CARDS), {"data": cards})
            card = publish.model_card(told, source, figures, cards, run.manifest)
            whole = trainer.accelerator.unwrap_model(trainer.model)
            base_sha256 = run.manifest["settings"]["weights_sha256"]
            _save(run.path(MODEL), whole, weights, tokenizer, told, train, card, base_sha256)
            run.path(PLOTS).mkdir(exist_ok=True)
            for plot in plots.plots_of([row for _, row in jsonl.read_rows(run.path(HISTORY))], figures):
                jsonl.write_atomic(run.path(PLOTS) / f"{plot.file}.svg", plots.draw(plot, alone=True))
            jsonl.write_json(run.path(runs.METRICS), figures)
    return processes.broadcast(figures)


def _save(
    folder: Path,
    model: Any,
    weights: dict[str, Any] | None,
    tokenizer: Any,
    told: Recipe,
    train: Prepared,
    card: str,
    base_sha256: str,
) -> None:
    """Write a model folder whole or not at all."""
    from sailkit.models.weights import BASE_WEIGHTS, saved_whole, stop_at

    styles = sorted({one.style for one in train.examples})
    trained: dict[str, Any] = {"styles": styles, "max_length": told.max_length, "base": told.model}
    if told.date is not None:
        trained["date"] = told.date
    with saved_whole(folder) as unfinished:
        if "chat" in styles:  # where others load it too, an answer ends with the turn
            stop_at(model, Border(tokenizer, chat=True, date=told.date).closing_id)
        model.save_pretrained(unfinished, state_dict=weights)
        tokenizer.save_pretrained(unfinished)
        if told.lora is not None:
            trained[BASE_WEIGHTS] = base_sha256
            # The name that the user gave is found on other machines too; the folder behind it is not. Written
            # afterwards: peft looks the name up on the hub when it saves.
            adapter = jsonl.read_json(unfinished / ADAPTER)
            jsonl.write_json(unfinished / ADAPTER, {**adapter, "base_model_name_or_path": told.model})
        jsonl.write_json(unfinished / TRAINED, trained)
        jsonl.write_atomic(unfinished / publish.MODEL_CARD, card)  # instead of peft's
