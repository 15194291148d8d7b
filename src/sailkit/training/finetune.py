"""The verb `finetune`: train a model to judge search results informative or distracting before it answers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sailkit import runs
from sailkit.arguments import checked
from sailkit.data.exports import DROPPED
from sailkit.distributed import Processes, process_group
from sailkit.errors import UserError, at_least_one
from sailkit.files import jsonl
from sailkit.models.sources import Source, resolve
from sailkit.prompts.chat_template import reads_clock, today
from sailkit.rendering import html
from sailkit.training import data_cards, plots, publish
from sailkit.training.checks import check_rows, require_gpu, resolve_adapters
from sailkit.training.effective import EFFECTIVE, effective_settings, with_format_as_begun
from sailkit.training.estimate import check_schedule, plan_training
from sailkit.training.held_out import loss_change
from sailkit.training.recipe import Recipe, read_recipe
from sailkit.training.results import HISTORY, MODEL, TrainingPlan, TrainingRun
from sailkit.training.saving import save_model
from sailkit.training.seeds import TrainingGroup, check_group, seed_folders
from sailkit.training.tokenise import Prepared, held_out_paths, no_held_out_warning, prepare_data
from sailkit.training.tracking import tracking

BASE_FIGURES = "base.json"  # held-out figures of the model before training
PLOTS = "plots"


@dataclass(frozen=True)
class Objective:
    """The training objective; by default cross-entropy on the completions.

    Attributes:
        trainer: Creates the trainer, from the arguments of `sailkit.training.trainer.Trainer`.
        settings: Everything that decides the objective, for the manifest.
    """

    trainer: Callable[..., Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@checked
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
    for_gpu: bool = False,
    seeds: int | None = None,
    push: str | None = None,
) -> TrainingRun | TrainingGroup | TrainingPlan:
    """Fine-tune a model on the training data of build.

    The best checkpoint by held-out loss is written to OUT/model, as adapters if the recipe has lora, else as full
    weights. The same command continues a stopped run from its last checkpoint.

    A single run can be lucky: `seeds` trains several models, and evaluate and compare take their folder.

    Args:
        recipe: A YAML file, or the name of a recipe that comes with the package; flags override it.
        out: The run folder.
        model: smollm2-135m, a hub id, a local folder or a GGUF file.
        data: Run folders of build, or files of training examples; repeated.
        held_out: The same for evaluation; by default the held-out rows of build.
        style: Render all rows in this style instead of their own.
        date: The day, as YYYY-MM-DD, for chat templates that read the clock; today by default. A
            continued run keeps its day.
        set: KEY=VALUE for any key of the recipe, such as training.learning_rate=1e-4; repeated.
        dry_run: Check recipe and data, and estimate steps and memory, without loading or fetching weights.
        tokens_per_second: With --dry-run: throughput from which to estimate the time.
        for_gpu: With --dry-run: estimate the memory on a GPU, also where there is none.
        seeds: Train that many models, with seeds 0, 1 ... (or from training.seed on), in OUT/seed-0, OUT/seed-1 ...
        push: Upload OUT/model to this repository (OWNER/NAME) on the Hugging Face hub; a new one is private.

    Returns:
        The training run; with seeds, all of them; with dry_run, the plan (with seeds, of each run).

    Raises:
        UserError: Any error that the user can fix; nothing is overwritten.
    """
    changes = {"model": model, "data": data, "held_out": held_out, "style": style, "date": date}
    settings = read_recipe(recipe, changes, set or ())
    at_least_one(seeds=seeds)
    if seeds is not None and push is not None:
        raise UserError("`push` uploads a single model: leave out `seeds`, or upload one of the models later")
    if dry_run:
        return plan_training(settings, tokens_per_second, for_gpu=for_gpu)
    out = publish.check_target("finetune", out, push)
    if not held_out_paths(settings) and not (out / runs.METRICS).exists():
        runs.notice(no_held_out_warning(settings))
    if seeds is not None:
        return _train_seeds(settings, out, seeds)
    run = train(settings, out)
    return replace(run, pushed=publish.push(run.model, push))


def _train_seeds(recipe: Recipe, out: Path, seeds: int) -> TrainingGroup:
    """Train models that differ only in their seed, one after the other."""
    if out.is_dir() and any(out.iterdir()) and not seed_folders(out):
        raise UserError(f"{out} exists and has no runs of several seeds; choose another `out`")
    first = int(recipe.training.get("seed", 0))
    trained = []
    with process_group() as processes:  # one for all seeds: accelerate does not connect twice
        dates = (runs.setting_of(folder, "recipe", "date") for folder in seed_folders(out))
        date = processes.broadcast(recipe.date or next(filter(None, dates), None) or today())
        check_group(recipe, out)
        for seed in range(first, first + seeds):
            of_seed = replace(recipe, date=date, training={**recipe.training, "seed": seed})
            trained.append(train(of_seed, out / f"seed-{seed}"))
    return TrainingGroup(out, tuple(trained))


@dataclass(frozen=True)
class _Setup:
    """Everything that is read and checked before the run folder is opened."""

    recipe: Recipe
    objective: Objective
    processes: Processes
    source: Source
    adapters: Source | None
    tokenizer: Any
    train: Prepared
    held_out: Prepared | None
    args: Any


def train(recipe: Recipe, out: Path, objective: Objective = Objective()) -> TrainingRun:
    """Train a model in a run folder, from its last checkpoint if there is one.

    Args:
        recipe: The recipe.
        out: The run folder.
        objective: The training objective.

    Returns:
        The run, the same in all processes; a finished run is read from its folder.

    Raises:
        UserError: Any error that the user can fix.
    """
    from sailkit.models.weights import free_memory

    with process_group() as processes:
        # Broadcast the date: processes that start around midnight would render different prompts.
        date = processes.broadcast(recipe.date or runs.setting_of(out, "recipe", "date") or today())
        with processes.raise_together():
            setup = _set_up(recipe, date, out, objective, processes)
        with _open_run(setup, out) as run:
            metrics = run.path(runs.METRICS)
            values = processes.broadcast(jsonl.read_json(metrics) if processes.is_main and metrics.exists() else None)
            if values is None:
                values = _train(setup, run).to_json()
            free_memory()  # held by model and optimizer, before the caller loads another model
            return TrainingRun.from_json(out, values)


def _set_up(recipe: Recipe, date: str, out: Path, objective: Objective, processes: Processes) -> _Setup:
    require_gpu(recipe)
    source = resolve(recipe.model)
    from transformers import AutoTokenizer

    from sailkit.models.weights import pretrained
    from sailkit.training.arguments import sft_config

    tokenizer = pretrained(AutoTokenizer, source.tokenizer_folder)
    recipe = replace(recipe, date=date if reads_clock(tokenizer) else None)
    args = sft_config(with_format_as_begun(recipe, out), out, held_out=bool(held_out_paths(recipe)))
    adapters = resolve_adapters(recipe, source, args.seed)  # before minutes of tokenising
    train, held_out = prepare_data(recipe, tokenizer)
    check_rows(recipe, source, (train, held_out))
    check_schedule(args, len(train.ids))
    return _Setup(recipe, objective, processes, source, adapters, tokenizer, train, held_out, args)


@contextlib.contextmanager
def _open_run(setup: _Setup, out: Path) -> Iterator[runs.Run]:
    """Open the run folder; the main process holds its lock for all processes."""
    processes, train, held_out, adapters = setup.processes, setup.train, setup.held_out, setup.adapters
    with contextlib.ExitStack() as stack:
        with processes.raise_together():
            run = runs.Run(out, {})
            if processes.is_main:
                files = setup.source.files()
                settings = {
                    "recipe": setup.recipe.settings(),
                    "weights_sha256": jsonl.file_fingerprint(files["weights"]),
                    "tokenizer_sha256": jsonl.file_fingerprint(files["tokenizer"]),
                    "train_sha256": train.fingerprint(),
                    "held_out_sha256": held_out.fingerprint() if held_out else None,
                    "seed": setup.args.seed,
                    **setup.objective.settings,
                    # Left out where they are not needed, as in older manifests.
                    **({"processes": processes.count} if processes.count > 1 else {}),
                    **({"adapters_sha256": adapters.own_weights()} if adapters else {}),
                }
                run = stack.enter_context(runs.open_run(out, "finetune", settings))
                if not run.path(runs.METRICS).exists():
                    dropped = [*train.dropped, *(held_out.dropped if held_out else ())]
                    jsonl.write_rows(run.path(DROPPED), dropped)
        yield run


def _train(setup: _Setup, run: runs.Run) -> TrainingRun:
    from sailkit.training import callbacks, checkpoints
    from sailkit.training.samples import sampler

    recipe, processes, args = setup.recipe, setup.processes, setup.args
    start = time.monotonic()
    with tracking(args.report_to, run.folder, run.identity):
        with processes.raise_together():
            trainer = _trainer(setup, run)
            if processes.is_main:
                data_cards.write_cards(run, (*recipe.curriculum, *recipe.data))
                run.describe(EFFECTIVE, effective_settings(trainer, recipe, processes.count))
        sample = sampler(trainer, run.folder, recipe, setup.tokenizer)
        around = callbacks.BeforeAndAfter(trainer, run.path(BASE_FIGURES), sample)
        if setup.held_out is not None:  # before other callbacks, which close the trackers
            trainer.callback_handler.callbacks.insert(0, around)
        steps = trainer.planned_steps() if processes.is_main else 0
        with contextlib.ExitStack() as bar:

            def show(done: int) -> runs.Ticker:
                return bar.enter_context(runs.progress(f"training {recipe.model}", steps, done))

            trainer.add_callback(callbacks.Progress(show, trainer.speed))
            checkpoint = None
            with processes.raise_together():
                if processes.is_main and (checkpoint := checkpoints.newest(run.path(checkpoints.CHECKPOINTS))):
                    checkpoints.find_best_again(checkpoint)
            trainer.train_from(processes.broadcast(checkpoint))
    seconds = time.monotonic() - start
    weights = trainer.full_weights()  # collective, so it must not be called by the main process alone
    result = _result(setup, run, trainer, seconds)
    with processes.raise_together():
        if processes.is_main:
            if setup.held_out is not None:
                figures = jsonl.read_json(run.path(BASE_FIGURES)) | around.tuned | loss_change(run.folder, args.seed)
                result = TrainingRun.from_json(run.folder, result.to_json() | figures)
            _write(setup, run, trainer, weights, result)
    return processes.broadcast(result)


def _trainer(setup: _Setup, run: runs.Run) -> Any:
    from sailkit.models.attention import with_masks
    from sailkit.models.base import ModelOptions
    from sailkit.models.halving import BatchHalver
    from sailkit.models.local import LocalModel
    from sailkit.training import callbacks, loading
    from sailkit.training.answering import answering
    from sailkit.training.flagging import flagging
    from sailkit.training.trainer import Trainer

    recipe, processes, held_out = setup.recipe, setup.processes, setup.held_out
    halver = BatchHalver()  # one evaluation remembers what did not fit in an earlier one

    def measure(model: Any) -> dict[str, float | None]:
        """Metrics of flagging and of the answers of the model in training, for an evaluation."""
        assert held_out is not None
        options = ModelOptions(chat="off", date=recipe.date)
        with with_masks(model):
            wrapped = LocalModel(recipe.model, model, setup.tokenizer, options, {}, halver)
            how = held_out.examples, recipe.max_length, processes, recipe.order
            figures, answers = flagging(wrapped, *how), answering(wrapped, *how)
        named = {"flagging": figures, "answer": answers}
        return {f"{kind}_{name}": value for kind, values in named.items() for name, value in values.items()}

    trainer = (setup.objective.trainer or Trainer)(
        model=loading.load_for_training(setup.source, recipe, loading.device_to_load_on(setup.args)),
        tokenizer=setup.tokenizer,
        args=setup.args,
        train=setup.train,
        held_out=held_out,
        measure=measure,
        lora=loading.lora_config(recipe),
        loss_weights=recipe.loss_weights,
        patience=recipe.patience,
        attn_implementation=recipe.attn_implementation,
        callbacks=[callbacks.History(run.path(HISTORY))],
        processes=processes,
    )
    if setup.adapters:
        loading.load_adapters(trainer.model, setup.adapters, str(recipe.adapters))
    return trainer


def _result(setup: _Setup, run: runs.Run, trainer: Any, seconds: float) -> TrainingRun:
    """The result of this process, without held-out figures."""
    from sailkit.training.loading import number_format

    args, processes = setup.args, setup.processes
    return TrainingRun(
        folder=run.folder,
        base=setup.recipe.model,
        about=setup.recipe.about,
        dtype=number_format(args, trainer.model),
        device=args.device.type,
        **setup.train.figures(),
        held_out_rows=len(setup.held_out.examples) if setup.held_out else 0,
        processes=processes.count,
        global_batch=args.train_batch_size * args.gradient_accumulation_steps * processes.count,
        steps=trainer.state.global_step,
        best_step=trainer.state.best_global_step if args.load_best_model_at_end else None,
        epochs=trainer.state.epoch,
        seconds=seconds,
        tokens_per_second=trainer.speed(),
        saved=str(run.path(MODEL)),
    )


def _write(setup: _Setup, run: runs.Run, trainer: Any, weights: Mapping[str, Any] | None, result: TrainingRun) -> None:
    """Write the model folder, plots, and finally metrics.json, which marks the run as finished."""
    recipe, figures = setup.recipe, result.to_json()
    cards = data_cards.read_cards(run.folder)
    save_model(
        run.path(MODEL),
        trainer.accelerator.unwrap_model(trainer.model),
        setup.tokenizer,
        recipe,
        weights=weights,
        styles=sorted({example.style for example in setup.train.examples}),
        tasks=data_cards.trained_tasks(cards, (setup.source, setup.adapters)),
        base_sha256=run.manifest["settings"]["weights_sha256"],
        card=publish.model_card(recipe, setup.source, figures, cards, run.manifest),
    )
    run.path(PLOTS).mkdir(exist_ok=True)
    for plot in plots.plots_of(result.history, figures):
        jsonl.write_atomic(run.path(PLOTS) / f"{plot.file}.svg", html.svg(plot))
    jsonl.write_json(run.path(runs.METRICS), figures)
