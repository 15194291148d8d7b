"""Reports on training runs, plans and merged models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.data.exports import DROPPED
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.rendering import model
from sailkit.rendering.commands import command_blocks
from sailkit.rendering.model import (
    Cell,
    Facts,
    Figures,
    Flags,
    Group,
    Headline,
    Plots,
    Report,
    Row,
    Section,
    Table,
    Text,
)  # fmt: skip
from sailkit.rendering.numbers import change, fact, figure, machine, signed
from sailkit.stats.intervals import LEAST_ROWS, LEAST_UNITS, read_estimates
from sailkit.training import facts, plots
from sailkit.training.data_cards import read_cards
from sailkit.training.held_out import hardest_rows
from sailkit.training.results import HISTORY, MergedModel, TrainingPlan, TrainingRun
from sailkit.training.samples_file import sample_blocks

ALL_SETTINGS = "Defaults included; manifest.json has every one."
_MOST_DROPPED = 20  # rows that are listed
_MORE_MEMORY = {  # what a dry run does not count
    "CPU": "more: about 1 GB for libraries, and what the allocator keeps, in time as much again or more",
    "GPU": "more: what CUDA and its allocator reserve",
}
_HEADLINE_FIGURES = {
    "loss": "Held-out loss for each token",
    "flagging_mcc": "Flagging: MCC",
    "flagging_auroc": "Flagging: AUROC",
}
PROVENANCE = {
    "weights_sha256": "Weights of the base (sha256)",
    "tokenizer_sha256": "Tokenizer (sha256)",
    "train_sha256": "Training rows (sha256)",
    "held_out_sha256": "Held-out rows (sha256)",
    "seed": "Seed",
    "git_revision": "Git revision",
    "versions": "Versions",
    "platform": "Platform",
    "started_at": "Started",
}


def report_on(folder: Path, title: str | None = None) -> Report:
    """A report on a training run.

    Args:
        folder: The run folder.
        title: Title of the report; derived from the model's name by default.

    Raises:
        UserError: The run is not finished, or its files are damaged.
    """
    manifest = runs.read_finished(folder, runs.METRICS)
    figures = jsonl.read_json(folder / runs.METRICS)
    verdict = headline(figures)
    how = machine(figures)
    about = [str(figures.get("about") or ""), f"Trained in {how}." if how else ""]
    try:
        if start := manifest["settings"]["recipe"].get("adapters"):
            about.append(f"Training continued from the adapters {start}: 'before' is the base model with them.")
        sections = _sections(folder, manifest, figures, verdict)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} does not hold what finetune writes ({type(error).__name__}: {error})") from None
    return Report(title or f"Fine-tuning of {figures['model']}", " ".join(filter(None, about)), sections, verdict)


def _sections(folder: Path, manifest: Mapping[str, Any], figures: Mapping[str, Any], verdict: str) -> list[Section]:
    cards = read_cards(folder)
    settings = manifest["settings"]
    origin = {**settings, **manifest["environment"]}
    effective = facts.effective_rows(manifest)
    held_out, results = figures.get("held_out_rows", 0), figures.get("tuned_flagging_results")
    rows = facts.before_and_after(figures)
    what = f"Of {held_out} held-out rows" + (f" with {results} search results" if results else "")
    sections: dict[str, list[model.Block]] = {
        "Verdict": [Headline(verdict), Figures(_headline_figures(figures))],
        "Limits of these figures": [facts.sentences(facts.limits(figures))],
        "Reasons to doubt the data": [*facts.doubts(cards)],
        "Curves": curves([folder]),
        "Figures": [Table(["before", "after"], [Group(what, rows)])] if rows else [],
        "Samples before and after": sample_blocks(folder),
        "Hardest held-out rows": [*_hardest(folder)],
        "Training data": [
            facts.column("the run", facts.trained_on(figures)),
            *facts.card_facts((str(card["data"]), card["card"]) for card in cards),
        ],
        "Rows left out": [*_dropped(folder)],
        "Recipe": [facts.column("value", facts.recipe_rows(settings["recipe"]), literal=True)],
        "Settings in effect": [
            Text(ALL_SETTINGS), facts.column("value", effective, literal=True)
        ] if effective else [],
        "Command": [*command_blocks({"the run": manifest})],
        "Provenance": [Facts(["the run"], [(name, [fact(key, origin)]) for key, name in PROVENANCE.items()])],
    }  # fmt: skip
    return [Section(heading, blocks) for heading, blocks in sections.items() if blocks]


def headline(figures: Mapping[str, Any]) -> str:
    """State whether the held-out loss fell, and whether flagging is better than chance, in one sentence.

    Args:
        figures: The figures of metrics.json.
    """
    before, after = figures.get("base_loss"), figures.get("tuned_loss")
    if before is None or after is None:
        return "Nothing was held out: what the model learnt is not known"
    loss = _loss_sentence(figures, change(before, after))
    results, mcc, mcc_before = (figures.get(name) for name in ("tuned_flagging_results", "tuned_flagging_mcc",
                                                               "base_flagging_mcc"))  # fmt: skip
    if not results or mcc is None:
        return f"{loss}; flagging cannot be measured on these rows"
    words = f"MCC {figure(mcc)}" if mcc_before is None else f"MCC {figure(mcc_before)} → {figure(mcc)}"
    if results < LEAST_UNITS:
        few = f"{results} search results are too few to tell whether they are flagged as the labels do"
        return f"{loss}; {few} ({words})"
    if mcc > facts.chance_level(results):
        return f"{loss}; search results are flagged as the labels do, better than by chance ({words})"
    if mcc < -facts.chance_level(results):
        return f"{loss}; search results are flagged against the labels ({words})"
    return f"{loss}; it cannot be told whether search results are flagged better than by chance ({words})"


def _loss_sentence(figures: Mapping[str, Any], words: str) -> str:
    """State whether the held-out loss fell, if its interval over rows allows it."""
    gap = read_estimates(figures).get("loss_change")
    if gap is None:
        rows = figures.get("held_out_rows", 0)
        few = f"{rows} held-out rows are too few" if rows < LEAST_ROWS else "No losses of single rows are kept"
        return f"{few} to tell whether held-out loss fell ({words})"
    size = f"{words}; change {signed(gap.value)}, {signed(gap.low)} to {signed(gap.high)}"
    verdicts = {-1: "Held-out loss fell", 0: "It cannot be told whether held-out loss fell", 1: "Held-out loss rose"}
    return f"{verdicts[gap.sign]} ({size})"


def _headline_figures(figures: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    pairs = [(title, [figures.get(f"{when}_{name}") for when in ("base", "tuned")])
             for name, title in _HEADLINE_FIGURES.items()]  # fmt: skip
    known = [(title, Cell(change(*values))) for title, values in pairs if any(value is not None for value in values)]
    return [*known, ("Trained", Cell(steps_of(figures)))]


def steps_of(figures: Mapping[str, Any]) -> str:
    """The length of the training, and the step whose weights were kept."""
    kept = f", step {figures['best_step']:,} kept" if figures.get("best_step") is not None else ""
    return f"{figures['steps']:,} steps{kept}"


def curves(folders: Sequence[Path], names: Sequence[str] = ()) -> list[model.Block]:
    """The curves that training logged; of several runs, all in the same plots.

    Args:
        folders: The folders of the training runs.
        names: Their names, for the legends of several runs.
    """
    logged = [_logged(folder, name) for folder, name in zip(folders, names or [""] * len(folders), strict=True)]
    if len(logged) > 1:
        drawn, note = plots.plots_of_runs(logged), ""
    else:
        drawn, note = plots.plots_of(logged[0].history, logged[0].figures), plots.logged_once(logged[0].history)
    return [*([Plots(drawn)] if drawn else []), *([Text(note)] if note else [])]


def learning_curves(folder: Path) -> list[model.Block]:
    """What a training run learnt, as curves for a notebook.

    Args:
        folder: The folder of the training run.
    """
    logged = _logged(folder, "")
    learnt = [
        plot for plot in plots.plots_of(logged.history, logged.figures) if plot.file in ("loss", "kl", "flagging")
    ]
    return [Plots(learnt, described=False)] if learnt else []


def _logged(folder: Path, name: str) -> plots.Logged:
    history = [row for _, row in jsonl.read_rows(folder / HISTORY)] if (folder / HISTORY).exists() else []
    metrics = folder / runs.METRICS
    return plots.Logged(history, jsonl.read_json(metrics) if metrics.exists() else {}, name)


def _hardest(folder: Path) -> list[Text | Table]:
    rows = [Row(row_id, [Cell(before), Cell(after)]) for row_id, before, after in hardest_rows(folder)]
    note = Text("The rows with the highest loss after training. A row may be hard, or its label wrong.")
    return [note, Table(["before", "after"], [Group("Loss for each supervised token", rows)])] if rows else []


def _dropped(folder: Path) -> list[Text | Facts]:
    rows = [row for _, row in jsonl.read_rows(folder / DROPPED)] if (folder / DROPPED).exists() else []
    if not rows:
        return [Text("None.")]
    first = f"; the first {_MOST_DROPPED} of them" if len(rows) > _MOST_DROPPED else ""
    reasons = [(str(row["id"]), str(row["reason"])) for row in rows[:_MOST_DROPPED]]
    return [Text(f"{len(rows):,} rows, training and held out{first}."), facts.column("reason", reasons, literal=True)]


def short_report(result: TrainingRun | TrainingPlan | MergedModel) -> Report:
    """The report that `finetune` and `merge` print.

    Args:
        result: Their result.
    """
    if isinstance(result, MergedModel):
        return model.short("", f"merged into {result.base}: {result.model}")
    if isinstance(result, TrainingPlan):
        return plan_report(result)
    figures = result.to_json()
    how = f" in {machine(figures)}" if machine(figures) else ""
    rows = facts.before_and_after(figures)
    blocks: list[model.Block] = [Table(["before", "after"], [Group("held out", rows)])] if rows else []
    if "loss_change" in result.figures:
        title = "change of the loss (95 % interval over held-out rows)"
        blocks.append(Figures([(title, Cell(result.figures["loss_change"], signed=True))]))
    blocks += [*learning_curves(result.folder), Text(f"model: {result.saved}")]
    if result.pushed is not None:
        blocks.append(Text(f"pushed: {result.pushed}"))
    about = (
        f"{result.steps} steps on {result.rows} examples ({result.supervised_tokens} supervised tokens), "
        f"{result.dropped} dropped"
    )
    return model.short(f"{result.base}{how}", about, *blocks)


def plan_report(plan: TrainingPlan, *more: model.Block) -> Report:
    """The report that a dry run prints.

    Args:
        plan: The plan.
        more: Blocks to append.
    """
    about = "about " if plan.tokens_estimated else ""
    blocks: list[model.Block] = [
        Text(f"{plan.rows:,} rows, {plan.dropped} dropped; {about}{plan.tokens:,} tokens a pass, "
             f"{plan.supervised_tokens:,} of them supervised; the longest row has {about}{plan.longest:,}"),
        Text(f"{plan.steps:,} steps of {plan.rows_per_step} rows, {plan.epochs:.2f} epochs, "
             f"{about}{plan.tokens_in_all:,} tokens in all; {plan.held_out_rows:,} rows held out"),
    ]  # fmt: skip
    if plan.memory and plan.parameters and plan.trainable_parameters:
        share = f"{plan.trainable_parameters / plan.parameters:.2%}"
        blocks.append(Text(f"{plan.parameters:,} parameters, {plan.trainable_parameters:,} of them trained ({share})"))
        device = "GPU" if plan.device == "cuda" else "CPU"
        blocks.append(memory_table(f"a step on {'each' if plan.processes > 1 else 'a'} {device}", plan.memory))
        blocks.append(Text(_MORE_MEMORY[device]))
    if plan.seconds:
        blocks.append(Text(f"time: {duration(plan.seconds)}"))
    if plan.missing:
        blocks.append(Flags("", {"": plan.missing}))
    return model.short(f"{plan.model}, dry run", "nothing was loaded or trained", *blocks, *more)


def memory_table(what: str, memory: Mapping[str, int]) -> Table:
    """A table of an estimate of memory by part, in GB.

    Args:
        what: What needs the memory.
        memory: Part -> bytes.
    """
    return Table(
        ["GB"], [Group(f"memory of {what}", [Row(n, [Cell(f"{size / 1e9:.2f}")]) for n, size in memory.items()])]
    )


def duration(seconds: float) -> str:
    """A duration in hours, or below one in minutes."""
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
