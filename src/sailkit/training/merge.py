"""The verb `merge`: merge LoRA adapters into their base, and save plain safetensors that any program loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal

import yaml

from sailkit.arguments import checked, renamed
from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.folders import atomic_folder
from sailkit.models.sources import ADAPTER, TRAINED, resolve
from sailkit.prompts.border import Border
from sailkit.training.publish import MODEL_CARD
from sailkit.training.results import MergedModel


@checked
def merge(
    adapter: Path,
    *,
    out: Path,
    save_dtype: Annotated[Literal["float32", "bfloat16", "float16"], renamed("dtype")] = "float32",
) -> MergedModel:
    """Merge LoRA adapters into their base.

    Args:
        adapter: The adapter's folder, such as RUN/model; or the name of one that comes with the package.
        out: The new model folder.
        save_dtype: Number format of the merged weights; float32 is lossless.

    Raises:
        UserError: The folder has no adapters, or they do not fit their base.
    """
    adapter, out = Path(adapter), Path(out)  # accept strings
    if out.exists():
        raise UserError(f"{out} exists; choose another `out`")
    source = resolve(str(adapter))
    if source.base is None:
        raise UserError(f"{adapter} has no adapters to merge: it is a model already")
    base = jsonl.read_json(source.folder / ADAPTER)["base_model_name_or_path"]
    from sailkit.models.weights import DTYPES, load_pretrained, stop_at

    model, tokenizer = load_pretrained(source, DTYPES[save_dtype], trust_remote_code=False)
    if "chat" in source.trained().get("trained_styles", ()):
        stop_at(model, Border(tokenizer, chat=True).closing_id)
    with atomic_folder(out) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if (source.folder / TRAINED).exists():
            shutil.copy(source.folder / TRAINED, unfinished)
            if (source.folder / MODEL_CARD).exists():
                _copy_card(source.folder / MODEL_CARD, unfinished / MODEL_CARD)
    return MergedModel(out, base)


def _copy_card(card: Path, to: Path) -> None:
    """Copy the adapter's card, changed to that of a full model."""
    from huggingface_hub import ModelCard

    try:
        copied = ModelCard.load(card, ignore_metadata_errors=True)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # edited by hand
        raise UserError(f"{card}: its front matter cannot be read ({type(error).__name__})") from None
    copied.data.library_name, copied.data.base_model_relation = "transformers", "finetune"
    copied.text = copied.text.replace("\nAdapters on ", "\nAdapters merged into ", 1)
    copied.save(to)
