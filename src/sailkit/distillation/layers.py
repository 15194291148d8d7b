"""Creates a student from some of its teacher's layers."""

from __future__ import annotations

from pathlib import Path

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.files.folders import atomic_folder
from sailkit.models.sources import TRAINED, Source

ORIGIN = "made_of.json"  # the teacher and layers from which a folder's model was created

_OF_LAYERS = ("layer_types", "no_rope_layers", "mlp_layer_types")  # settings with an entry for each layer


def evenly_spaced_layers(layers: int, keep: int) -> list[int]:
    """Indices of `keep` evenly spaced layers, including the first and the last.

    Raises:
        UserError: `keep` is not between 1 and the number of layers.
    """
    if not 1 <= keep <= layers:
        raise UserError(f"the teacher has {layers} layers; student_layers should be from 1 to {layers}, not {keep}")
    return [round(i * (layers - 1) / (keep - 1)) for i in range(keep)] if keep > 1 else [0]


def with_fewer_layers(source: Source, keep: int, out: Path) -> list[int]:
    """Write a model folder with some of a model's layers, atomically.

    Args:
        source: The model.
        keep: Number of layers.
        out: The new folder; if it already holds the same model, it is left unchanged.

    Returns:
        Indices of the layers that were kept, from 0.

    Raises:
        UserError: There are fewer layers, or the model does not store them in a list.
    """
    import torch

    from sailkit.models.weights import load_pretrained

    origin = {"weights_sha256": jsonl.file_fingerprint(source.files()["weights"]), "layers": keep}
    if (out / ORIGIN).exists() and (earlier := jsonl.read_json(out / ORIGIN)).items() >= origin.items():
        return list(earlier["kept"])
    model, tokenizer = load_pretrained(source, torch.float32, trust_remote_code=False)
    inner = model.base_model
    layers = getattr(inner, "layers", None)
    config = model.config.get_text_config()
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) != config.num_hidden_layers:
        raise UserError(f"{type(model).__name__} does not keep its layers in a list; choose a student with `model`")
    kept = evenly_spaced_layers(len(layers), keep)
    inner.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for i, layer in enumerate(inner.layers):
        if hasattr(layer, "self_attn"):
            layer.self_attn.layer_idx = i  # its index in the key-value cache
    config.num_hidden_layers = keep
    for name in _OF_LAYERS:
        if of_layers := getattr(config, name, None):
            setattr(config, name, [of_layers[i] for i in kept])
    with atomic_folder(out) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if tasks := source.trained().get("trained_tasks"):  # what the teacher was trained on, the student was too
            jsonl.write_json(unfinished / TRAINED, {"tasks": tasks})
        jsonl.write_json(unfinished / ORIGIN, {**origin, "kept": kept})
    return kept
