"""A student made from its teacher: the same model with fewer layers."""

from __future__ import annotations

from pathlib import Path

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.folders import atomic_folder
from sailkit.models.sources import Source

MADE_OF = "made_of.json"


def evenly_spaced_layers(layers: int, keep: int) -> list[int]:
    """Which of so many layers are kept: the first, the last, and between them at even distances.

    Raises:
        UserError: There are not so many.
    """
    if not 1 <= keep <= layers:
        raise UserError(f"the teacher has {layers} layers; student_layers should be from 1 to {layers}, not {keep}")
    return [round(i * (layers - 1) / (keep - 1)) for i in range(keep)] if keep > 1 else [0]


def with_fewer_layers(source: Source, keep: int, out: Path) -> list[int]:
    """Write a model folder with some of a model's layers, whole or not at all.

    Args:
        source: The model.
        keep: How many layers.
        out: The new folder; one that holds the same already is left as it is.

    Returns:
        The layers that were kept, from 0.

    Raises:
        UserError: There are not so many layers, or the model keeps them in another way.
    """
    import torch

    from sailkit.models.weights import load_pretrained

    made = {"weights_sha256": jsonl.file_fingerprint(source.files()["weights"]), "layers": keep}
    if (out / MADE_OF).exists() and (found := jsonl.read_json(out / MADE_OF)).items() >= made.items():
        return list(found["kept"])
    model, tokenizer = load_pretrained(source, torch.float32, trust_remote_code=False)
    inner = model.base_model
    layers = getattr(inner, "layers", None)
    config = model.config.get_text_config()
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) != config.num_hidden_layers:
        raise UserError(f"{type(model).__name__} does not keep its layers in a list; choose a student with `model`")
    kept = evenly_spaced_layers(len(layers), keep)
    inner.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for place, layer in enumerate(inner.layers):
        if hasattr(layer, "self_attn"):
            layer.self_attn.layer_idx = place  # where its keys and values are cached
    config.num_hidden_layers = keep
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    with atomic_folder(out) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        jsonl.write_json(unfinished / MADE_OF, {**made, "kept": kept})
    return kept
