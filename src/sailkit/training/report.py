"""What a training run did, as one HTML file and the same as Markdown: the verdict, curves, figures, recipe and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sailkit import __version__, runs
from sailkit.data.exports import DROPPED
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.rendering import numbers, page
from sailkit.stats.intervals import LEAST_ROWS, LEAST_UNITS, Estimate
from sailkit.training import plots, publish
from sailkit.training.finetune import DATA_CARDS
from sailkit.training.results import HISTORY

_MOST_DROPPED = 20  # that are shown
_FACTS = {
    "weights_sha256": "weights of the base (sha256)",
    "tokenizer_sha256": "tokenizer (sha256)",
    "train_sha256": "training rows (sha256)",
    "held_out_sha256": "held-out rows (sha256)",
    "seed": "seed",
    "git_revision": "git revision",
    "versions": "versions",
    "platform": "platform",
    "started_at": "started",
}


def is_tuned(folder: Path) -> bool:
    """Whether a folder is a run of finetune."""
    return (folder / runs.MANIFEST).is_file() and jsonl.read_json(folder / runs.MANIFEST).get("stage") == "finetune"


def write(folder: Path, out: Path, title: str | None = None) -> dict[str, Any]:
    """Write the page of a training run.

    Args:
        folder: The run's.
        out: See `page.places`.
        title: Made from the model's name by default.

    Returns:
        Where the HTML and the Markdown are, and the verdict in words.

    Raises:
        UserError: The run is not finished, or its files are damaged.
    """
    places = page.places(out)
    manifest = runs.read_manifest(folder)
    if not (folder / runs.METRICS).exists():
        raise UserError(f"{folder} is not finished; the same finetune command goes on where it stopped")
    figures = jsonl.read_json(folder / runs.METRICS)
    try:
        content = _content(folder, manifest, figures)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} does not hold what finetune writes ({type(error).__name__}: {error})") from None
    heading = title or f"Fine-tuning of {figures['model']}"
    page.write(places, "tuned", {"title": heading, "version": __version__, **content})
    return {"html": str(places[0]), "markdown": str(places[1]), "verdict": content["headline"]}


def _content(folder: Path, manifest: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    history = [row for _, row in jsonl.read_rows(folder / HISTORY)] if (folder / HISTORY).exists() else []
    dropped = [row for _, row in jsonl.read_rows(folder / DROPPED)] if (folder / DROPPED).exists() else []
    cards = jsonl.read_json(folder / DATA_CARDS)["data"] if (folder / DATA_CARDS).exists() else []
    settings = manifest["settings"]
    facts = {**settings, **manifest["environment"]}
    return {
        "about": str(figures.get("about") or ""),
        "machine": numbers.machine(figures),
        "headline": headline(figures),
        "leads": _leads(figures),
        "limits": publish.limits(figures),
        "results": figures.get("tuned_flagging_results"),
        "held_out": figures.get("held_out_rows", 0),
        "plots": [(plot.title, plots.draw(plot)) for plot in plots.plots_of(history, figures)],
        "figures": publish.before_and_after(figures),
        "trained": [(name, [value]) for name, value in publish.trained_on(figures)],
        "data": [(str(one["data"]), [(n, [v]) for n, v in publish.quoted(one["card"])]) for one in cards],
        "doubts": publish.doubts(cards),
        "dropped": [(str(row["id"]), [str(row["reason"])]) for row in dropped[:_MOST_DROPPED]],
        "dropped_in_all": len(dropped),
        "recipe": [(name, [value]) for name, value in publish.recipe_rows(settings["recipe"])],
        "effective": [(name, [value]) for name, value in publish.effective_rows(manifest)],
        "facts": [(title, [page.fact(name, facts)]) for name, title in _FACTS.items()],
    }


def headline(figures: Mapping[str, Any]) -> str:
    """Whether the held-out loss fell and whether flagging is better than chance, in one sentence.

    Args:
        figures: Those of metrics.json.
    """
    before, after = figures.get("base_loss"), figures.get("tuned_loss")
    if before is None or after is None:
        return "Nothing was held out: what the model learnt is not known"
    said = _loss_sentence(figures, numbers.change(before, after))
    results, found = figures.get("tuned_flagging_results"), figures.get("tuned_flagging_mcc")
    if not results or found is None:
        return f"{said}; flagging cannot be measured on these rows"
    first = figures.get("base_flagging_mcc")
    mcc = f"MCC {page.figure(found)}" if first is None else f"MCC {page.figure(first)} → {page.figure(found)}"
    if results < LEAST_UNITS:
        return f"{said}; {results} search results are too few to tell whether they are flagged as the labels do ({mcc})"
    if found > publish.chance_level(results):
        return f"{said}; search results are flagged as the labels do, better than by chance ({mcc})"
    if found < -publish.chance_level(results):
        return f"{said}; search results are flagged against the labels ({mcc})"
    return f"{said}; it cannot be told whether search results are flagged better than by chance ({mcc})"


def _loss_sentence(figures: Mapping[str, Any], words: str) -> str:
    """Whether the held-out loss fell, as far as its interval over rows tells."""
    if figures.get("loss_change") is None:
        rows = figures.get("held_out_rows", 0)
        few = f"{rows} held-out rows are too few" if rows < LEAST_ROWS else "No losses of single rows are kept"
        return f"{few} to tell whether held-out loss fell ({words})"
    change = Estimate(*(figures[f"loss_change{end}"] for end in ("", "_low", "_high")))
    size = f"{words}; change {page.signed(change.value)}, {page.signed(change.low)} to {page.signed(change.high)}"
    verdicts = {-1: "Held-out loss fell", 0: "It cannot be told whether held-out loss fell", 1: "Held-out loss rose"}
    return f"{verdicts[change.sign]} ({size})"


def _leads(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    wanted = {
        "loss": "Held-out loss for each token",
        "flagging_mcc": "Flagging: MCC",
        "flagging_auroc": "Flagging: AUROC",
    }
    found = []
    for name, title in wanted.items():
        values = [figures.get(f"{prefix}_{name}") for prefix in ("base", "tuned")]
        if any(value is not None for value in values):
            found.append((title, numbers.change(*values)))
    kept = f", step {figures['best_step']:,} kept" if figures.get("best_step") is not None else ""
    return [*found, ("Trained", f"{figures['steps']:,} steps{kept}")]
