"""What goes out with a trained model: its card, and the way to the hub."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sailkit import __version__
from sailkit.data.build import CARD
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.sources import EMBEDDED, EMBEDDED_HUB, Source
from sailkit.rendering import page
from sailkit.training.effective import EFFECTIVE, main_settings
from sailkit.training.recipe import Recipe

MODEL_CARD = "README.md"
# Figure of an evaluation -> what a person reads.
FIGURE_TITLES = {
    "loss": "Loss for each supervised token",
    "flagging_mcc": "Flagging: Matthews correlation",
    "flagging_auroc": "Flagging: AUROC of P(distracting)",
    "flagging_accuracy": "Flagging: accuracy",
    "flagging_precision": "Flagging: precision for distracting",
    "flagging_recall": "Flagging: recall for distracting",
}
_TRAINED = {
    "rows": "training rows",
    "dropped": "rows left out",
    "supervised_tokens": "supervised tokens of a pass",
    "cut_tokens": "tokens of search results cut to fit",
    "headings_left": "headings in search results",
    "held_out_rows": "held-out rows",
    "steps": "steps",
    "best_step": "step that was kept",
    "epochs": "epochs",
}
_QUOTED = ("judgement_shares", "rows_by_results", "style", "threshold", "seed")  # of a data card, in this order
Fact = tuple[str, str]


def data_cards(paths: Sequence[str]) -> list[dict[str, Any]]:
    """The data cards of what is trained on, as build wrote them; None for data that have none."""
    found = []
    for path in paths:
        card = Path(path) / CARD
        found.append({"data": path, "card": jsonl.read_json(card) if card.is_file() else None})
    return found


def quoted(card: Mapping[str, Any] | None) -> list[Fact]:
    """The figures of a data card that a reader of a model needs: counts, shares, settings and flags."""
    if card is None:
        return []
    names = [name for name in card if name.startswith("n_")] + [name for name in _QUOTED if name in card]
    return [(_title(name), page.fact(name, card) or "none") for name in names]


def doubts(cards: Iterable[Mapping[str, Any]]) -> list[str]:
    """What data cards warn of."""
    messages = (one["card"].get("flag_messages", {}) for one in cards if one["card"])
    return [str(text) for found in messages for texts in found.values() for text in texts]


def trained_on(figures: Mapping[str, Any]) -> list[Fact]:
    """Counts of a run, in words."""
    return [
        (title, f"{value:.2f}" if isinstance(value, float) else f"{value:,}")
        for name, title in _TRAINED.items()
        if (value := figures.get(name)) is not None
    ]


def before_and_after(figures: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str] | None]]]:
    """Held-out figures of the model as it was and as it is; what neither has is left out."""
    rows = []
    for name, title in FIGURE_TITLES.items():
        values = [figures.get(f"{prefix}_{name}") for prefix in ("base", "tuned")]
        if any(value is not None for value in values):
            rows.append((title, [None if value is None else (page.figure(value), "") for value in values]))
    return rows


def chance_level(results: int) -> float:
    """How far from 0 the MCC of judgements that have nothing to do with the labels lies at most, 19 times in 20.

    The squared MCC of a two by two table times its count is chi-squared with one degree of freedom.
    """
    return 1.96 / math.sqrt(results)


def limits(figures: Mapping[str, Any]) -> list[str]:
    """What the figures of a run do not show, in sentences."""
    found = [
        "Held-out rows come from the same source as the training rows, and the labels from the same labeler: the "
        "figures say how well its judgements were learnt, not how right they are.",
        "Flagging is scored by comparing every possible verification sentence; what the model writes by itself can "
        "differ.",
        "Nothing here says whether answers are right, or better with search results than without; measure that with "
        "sailkit evaluate and compare.",
        "It was one run with one seed.",
    ]
    if results := figures.get("tuned_flagging_results"):
        luck = f"an MCC up to {chance_level(results):.2f} can be luck"
        found.insert(0, f"Flagging was measured on {results:,} results; {luck}.")
    if not figures.get("held_out_rows"):
        found = ["There were no held-out rows: nothing is known of what the model learnt.", *found[2:]]
    return found


def recipe_rows(settings: Mapping[str, Any]) -> list[Fact]:
    """A recipe as dotted keys and values; what is not set is left out."""
    found: list[Fact] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += [(f"{name}.{key}", rest) for key, rest in recipe_rows(value)]
        elif value not in (None, "", [], ()):
            found.append((name, value if isinstance(value, str) else jsonl.dumps(value)))
    return found


def effective_rows(manifest: Mapping[str, Any]) -> list[Fact]:
    """The settings that a run had in effect, defaults included; none of a run that is older than their record."""
    rows = recipe_rows(main_settings(manifest.get(EFFECTIVE, {})))
    changes = manifest.get(f"{EFFECTIVE}_when_resumed", ())
    return [*rows, *(("when it was resumed", str(change)) for change in changes)]


def model_card(
    told: Recipe,
    source: Source,
    figures: Mapping[str, Any],
    cards: Sequence[Mapping[str, Any]],
    manifest: Mapping[str, Any],
) -> str:
    """The model card, with front matter for the hub. Folders of this machine are named by their last part only.

    Args:
        told: The recipe.
        source: The base.
        figures: Those of metrics.json.
        cards: See `data_cards`.
        manifest: The run's.
    """
    from huggingface_hub import ModelCardData
    from markupsafe import Markup

    base = EMBEDDED_HUB if told.model == EMBEDDED else told.model
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()
    license_ = _license(told, source)
    front = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation="adapter" if told.lora is not None else "finetune",
        library_name="peft" if told.lora is not None else "transformers",
        license=license_,
        pipeline_tag="text-generation",
        tags=["sailkit", "search-augmented", "retrieval-augmented-generation", "trl", "sft"],
        ignore_metadata_errors=True,
    )
    recipe = {k: v for k, v in manifest["settings"]["recipe"].items() if k not in ("model", "data", "held_out")}
    return page.markdown(
        "model_card",
        {
            "front": Markup(front.to_yaml()),  # noqa: S704
            "version": __version__,
            "base": _public(base),
            "about": told.about,
            "license": license_,
            "adapter": told.lora is not None,
            "trained": trained_on(figures),
            "data": [(_public(one["data"]), quoted(one["card"])) for one in cards],
            "doubts": doubts(cards),
            "recipe": recipe_rows(recipe),
            "effective": effective_rows(manifest),
            "versions": page.fact("versions", manifest["environment"]),
            "figures": before_and_after(figures),
            "results": figures.get("tuned_flagging_results"),
            "held_out": figures.get("held_out_rows", 0),
            "limits": limits(figures),
        },
    )


def _title(name: str) -> str:
    return f"rows {name[2:]}".replace("_", " ") if name.startswith("n_") else name.replace("_", " ")


def _public(name: str) -> str:
    """A name that says nothing about the folders of this machine."""
    path = Path(name)
    return path.name if path.is_absolute() or ".." in path.parts or name.startswith("~") else name


def _license(told: Recipe, source: Source) -> str | None:
    """The base's licence, where its own card names one."""
    from huggingface_hub import ModelCard

    if told.model == EMBEDDED:
        return "apache-2.0"
    card = (source.base or source).folder / MODEL_CARD
    try:
        found = ModelCard.load(card, ignore_metadata_errors=True).data.license if card.is_file() else None
    except (yaml.YAMLError, ValueError, OSError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def check_target(verb: str, out: Path | None, push: str | None) -> Path:
    """Find out before anything is loaded that a result cannot be kept, or not be uploaded.

    Args:
        verb: The command, for the error.
        out: The run folder, if any.
        push: OWNER/NAME of the repository on the hub, if any.

    Returns:
        The run folder.

    Raises:
        UserError: There is no run folder, or the hub would not take the name.
    """
    if out is None:
        raise UserError(f"{verb} needs `out`, the run folder (or `dry_run`)")
    if push is not None:
        check_repository(push)
    return out


def check_repository(name: str) -> None:
    """Raise a UserError for what the hub would not take as the name of a repository."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"`push` {name!r}: write OWNER/NAME")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"`push` {name!r}: {' '.join(str(error).split())[:200]}") from None


def push(folder: Path, repository: str) -> str:
    """Upload a model folder to the hub; a repository that is new is private. The token is the hub library's to find.

    Args:
        folder: The model's.
        repository: OWNER/NAME.

    Returns:
        The repository's address.

    Raises:
        UserError: The hub cannot be reached or refuses; the folder is kept as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Trained with sailkit {__version__}")
    except HfHubHTTPError as error:
        code = error.response.status_code
        mend = "; set HF_TOKEN to a token that may write there" if code in (401, 403, 404) else ""
        reason = f"the hub answers {code}{mend}"
    except Exception as error:  # those of the library's HTTP client, which changes, have no common ancestor
        # Its own words may quote headers; the kind of error is all that is told.
        reason = f"cannot reach the hub ({type(error).__name__})"
    else:
        return str(address)
    raise UserError(f"{folder} is saved, but was not pushed to {repository}: {reason}; the same command tries again")
