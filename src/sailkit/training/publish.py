"""Publish a trained model: write its model card, and upload it to the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sailkit import __version__
from sailkit.distributed import is_main_process
from sailkit.errors import UserError
from sailkit.models.sources import EMBEDDED, EMBEDDED_HUB, Source, shipped
from sailkit.rendering import markdown
from sailkit.rendering.model import Block, Group, Report, Section, Table, Text
from sailkit.rendering.numbers import fact
from sailkit.training import facts
from sailkit.training.recipe import Recipe

MODEL_CARD = "README.md"
_NO_LICENSE = (
    "No licence is stated: that of the base could not be read, and the data have their own. Add the key license above "
    "before you share the model."
)
_INTENDED_USE = (
    "Answering instructions with search results in the prompt, in the form of the training data. Render prompts with "
    "sailkit, or exactly as its documentation says; in another form the verification is not to be expected. Search "
    "results are untrusted text, and a model of this kind can be misled by them."
)
_USE = """
## Use

```python
import sailkit

answer = sailkit.ask("Who makes honey?", model="FOLDER OR OWNER/NAME OF THIS MODEL", corpus="YOUR FILES")
print(answer)  # the search results with the model's flags and their probabilities, then its answer
```
"""


def model_card(
    recipe: Recipe,
    source: Source,
    figures: Mapping[str, Any],
    cards: Sequence[Mapping[str, Any]],
    manifest: Mapping[str, Any],
) -> str:
    """Write the model card, with front matter for the hub; local folders appear by their last part only.

    Args:
        recipe: The recipe.
        source: The base model.
        figures: The figures of metrics.json.
        cards: See `data_cards`.
        manifest: The manifest of the run.
    """
    from huggingface_hub import ModelCardData

    base = EMBEDDED_HUB if recipe.model == EMBEDDED else recipe.model
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()
    license_ = _license(recipe, source)
    front = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation="adapter" if recipe.lora is not None else "finetune",
        library_name="peft" if recipe.lora is not None else "transformers",
        license=license_,
        pipeline_tag="text-generation",
        tags=["sailkit", "search-augmented", "retrieval-augmented-generation", "trl", "sft"],
        ignore_metadata_errors=True,
    )
    base = _public(base)
    which = "Adapters on" if recipe.lora is not None else "All weights of"
    tuned = "given search results, the model first says which of them are informative and which are distracting, then"
    texts = [f"{which} {base}, fine-tuned with sailkit {__version__}: {tuned} answers."]
    if recipe.adapters:
        start = _public(recipe.adapters)
        texts.append(f"Their training went on from {start}: 'before' means with these adapters, not the base alone.")
    texts += [] if license_ else [_NO_LICENSE]
    report = Report(
        f"{base}, tuned to use search results",
        recipe.about,
        [Section("", list(map(Text, texts))), *_card_sections(figures, cards, manifest)],
    )
    return f"---\n{front.to_yaml()}\n---\n\n{markdown.body(report)}{_USE}"


def _card_sections(
    figures: Mapping[str, Any], cards: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]
) -> list[Section]:
    elsewhere = ("model", "data", "curriculum", "held_out", "adapters")  # in other sections, without local folders
    settings = {k: v for k, v in manifest["settings"]["recipe"].items() if k not in elsewhere}
    effective = facts.effective_rows(manifest)
    rows, results = facts.before_and_after(figures), figures.get("tuned_flagging_results")
    cards = [{**card, "data": Path(str(card["data"])).name} for card in cards]
    held_out = f"{figures.get('held_out_rows', 0)} held-out rows" + (f", {results} search results" if results else "")
    sections: dict[str, list[Block]] = {
        "Intended use": [Text(_INTENDED_USE)],
        "Held-out figures, before and after": [Table(["before", "after"], [Group(held_out, rows)])] if rows else [],
        "Limits of these figures": [facts.sentences(facts.limits(figures))],
        "Training data": [
            facts.column("the run", facts.trained_on(figures)),
            *facts.card_facts((card["data"], card["card"]) for card in cards),
            *facts.doubts(cards),
        ],
        "Recipe": [facts.column("value", facts.recipe_rows(settings), literal=True)],
        "Settings in effect": [
            Text("Defaults included."), facts.column("value", effective, literal=True)
        ] if effective else [],
        "Versions": [Text(f"Trained with {fact('versions', manifest['environment'])}.")],
    }  # fmt: skip
    return [Section(heading, blocks) for heading, blocks in sections.items() if blocks]


def _public(name: str) -> str:
    """A name without local folders."""
    path = Path(name)
    return path.name if path.is_absolute() or ".." in path.parts or name.startswith("~") else name


def _license(recipe: Recipe, source: Source) -> str | None:
    """The licence of the base, if its card names one."""
    from huggingface_hub import ModelCard

    if recipe.model == EMBEDDED or recipe.model in shipped():
        return "apache-2.0"
    card = source.model.folder / MODEL_CARD
    try:
        name = ModelCard.load(card, ignore_metadata_errors=True).data.license if card.is_file() else None
    except (yaml.YAMLError, ValueError, OSError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def check_target(verb: str, out: str | Path | None, push: str | None) -> Path:
    """Check, before anything is loaded, that a result can be saved and uploaded.

    Args:
        verb: The verb, for errors.
        out: The run folder, if any.
        push: OWNER/NAME of the repository on the hub, if any.

    Returns:
        The run folder.

    Raises:
        UserError: The run folder is missing, or the name is not valid on the hub.
    """
    if out is None:
        raise UserError(f"{verb} needs `out`, the run folder (or `dry_run`)")
    if push is not None:
        check_repository(push)
    return Path(out)


def check_repository(name: str) -> None:
    """Raise a UserError for a repository name that is not valid on the hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"`push` {name!r}: write OWNER/NAME")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"`push` {name!r}: {' '.join(str(error).split())[:200]}") from None


def push(folder: Path, repository: str | None) -> str | None:
    """Upload a model folder to the hub; a new repository is private. huggingface_hub looks up the token.

    Args:
        folder: The model folder.
        repository: OWNER/NAME, or None to upload nothing.

    Returns:
        The repository's URL; None without a repository, and outside of the main process.

    Raises:
        UserError: The hub is unreachable or refuses; the folder is kept.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if repository is None or not is_main_process():
        return None
    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Trained with sailkit {__version__}")
    except HfHubHTTPError as error:
        code = error.response.status_code
        mend = "; set HF_TOKEN to a token that may write there" if code in (401, 403, 404) else ""
        reason = f"the hub answers {code}{mend}"
    except Exception as error:  # exceptions of the library's HTTP clients have no common base class
        # Report only the type: messages may quote headers, and with them the token.
        reason = f"cannot reach the hub ({type(error).__name__})"
    else:
        return str(address)
    raise UserError(f"{folder} is saved, but was not pushed to {repository}: {reason}; the same command tries again")
