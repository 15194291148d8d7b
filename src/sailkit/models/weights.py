"""Loads transformers models safely, and reads the properties that determine how to run them."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.attention import check_attention
from sailkit.models.checks import check_complete, out_of_memory
from sailkit.models.rope import forget_lengths
from sailkit.models.sources import ADAPTER_WEIGHTS, TRAINED, Source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Weights of an adapter on embeddings or an output layer -> their axis of tokens.
_EMBEDDINGS = {"weight": 0, "token_adapter.base_layer.weight": 0, "lora_embedding_A": 1, "lora_B.weight": 0}
BASE_WEIGHTS = "base_weights_sha256"  # in an adapter's sailkit.json: fingerprint of the base that it was trained on


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-text ids: the tokenizer's, and those of the model's generation config."""
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])]
    return frozenset(i for i in ids if i is not None)


def stop_at(model: Any, token_id: int | None) -> None:
    """Add a stop token to a model's generation config."""
    config = getattr(model, "generation_config", None)
    if config is None or token_id is None:
        return
    known = config.eos_token_id if config.eos_token_id is not None else model.config.get_text_config().eos_token_id
    ids = known if isinstance(known, list) else [] if known is None else [known]
    if token_id not in ids:
        config.eos_token_id = [*ids, token_id]


def context_length(model: Any, tokenizer: Any) -> int:
    """The context length of a model in tokens; 2048 if neither config nor tokenizer has one."""
    return context_of(model.config, tokenizer)


def context_of(config: Any, tokenizer: Any) -> int:
    """The context length of a model that is not loaded; config is None for a model on a server."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None) if config else None
    limits = [most, tokenizer.model_max_length]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return min(known) if known else 2048


def pick_device(name: str) -> torch.device:
    """The device with a name; `auto` is a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=name)
        probe.item()
        return probe.device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"`device` {name}: {str(error).splitlines()[0]}") from None


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype with a name; `auto` is bfloat16 if the device is fast in it."""
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise UserError(f"`dtype` takes auto, {', '.join(DTYPES)}, not {name!r}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_fast_bf16() else torch.float32


def fast_in_bfloat16(device: torch.device) -> bool:
    """Whether training under autocast to bfloat16 is faster than in float32 on a device.

    On CPUs, AVX-512's instructions for bfloat16 suffice: a step of many rows spends its time in matrix products.
    """
    if device.type == "cpu":
        return cpu_has_fast_bf16() or bool(torch.cpu._is_avx512_bf16_supported())
    return pick_dtype("auto", device) is torch.bfloat16


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU has bfloat16 matrix tiles (AMX); with AVX-512 alone float32 is faster."""
    return bool(torch.cpu._is_amx_tile_supported())


def compute_dtype(model: Any) -> torch.dtype:
    """The number format of a model's computation: that of its weights, or of autocast in training."""
    weight = next(model.parameters())
    kind = weight.device.type
    dtype: torch.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return dtype


def load_pretrained(
    source: Source,
    dtype: torch.dtype,
    trust_remote_code: bool,
    quantization: Any = None,
    device: torch.device | None = None,
    attn_implementation: str = "auto",
) -> tuple[Any, Any]:
    """Load a model and its tokenizer; an adapter is merged into its base.

    Args:
        source: The model's files.
        dtype: Number format of the weights.
        trust_remote_code: Run code that its repository carries.
        quantization: A quantization config of transformers, or None.
        device: The device on which each weight is placed as it is read, so that the host never holds them all; by
            default the CPU (of quantised weights, what the quantisation needs).
        attn_implementation: See `sailkit.models.attention`.

    Raises:
        UserError: The files cannot be loaded, do not belong together, or need code or pickles to be executed.
    """
    for adapter in source.adapters:
        check_base(adapter)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    weights = source.model
    unmatched: set[str] = set()
    placed = {} if device is None or device.type == "cpu" else {"device_map": {"": device}}
    attention = {} if attn_implementation == "auto" else {"attn_implementation": attn_implementation}
    check_attention(attn_implementation)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            weights.folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            quantization_config=quantization,
            **placed,
            **attention,
        )
        for adapter in source.adapters:
            model, names = _merged(model, adapter.folder)
            unmatched |= names
        tokenizer = AutoTokenizer.from_pretrained(source.tokenizer_folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # damaged files raise errors without a common base class
        if out_of_memory(error):
            mend = "use a smaller model, or fewer bits: a `dtype` of 16, or a recipe with quantization"
            raise UserError(f"out of memory while loading {weights.folder}; {mend}") from None
        raise _not_loaded(source.folder, error) from None
    check_complete(weights.folder, report)
    if unmatched:
        raise UserError(f"{source.folder}: the adapter does not fit its base {weights.folder} ({min(unmatched)}...)")
    if tokenizer.vocab_size > (rows := model.get_input_embeddings().num_embeddings):
        raise UserError(
            f"{source.folder}: a tokenizer of {tokenizer.vocab_size} pieces does not belong to a model of {rows}"
        )
    forget_lengths(model)
    return model, tokenizer


def pretrained(kind: Any, folder: Path) -> Any:
    """Load a tokenizer or config from a model's folder for training; code in the folder is not executed.

    Args:
        kind: A class of transformers with `from_pretrained`.
        folder: The model's folder.

    Raises:
        UserError: It cannot be loaded, or needs the repository's code.
    """
    try:
        return kind.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # damaged files raise errors without a common base class
        raise _not_loaded(folder, error) from None


def _not_loaded(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    needs_code = "trust_remote_code" in str(error) or "custom code" in str(error)
    mend = "; it is run with `trust_remote_code` alone, which evaluate and teacher-cache have, and never in training"
    return UserError(f"cannot load {folder}: {reason} ({type(error).__name__}){mend if needs_code else ''}")


def free_memory() -> None:
    """Free the memory of deleted models: trainers hold reference cycles, and torch caches freed memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def saveable(model: Any, name: str) -> Any:
    """Reset a generation config that transformers would refuse to save, with a warning, and return the model.

    A published config may set a temperature without sampling. transformers refuses to save such a config after a
    trainer has changed it, which would stop the run at the first checkpoint.

    Args:
        model: A loaded model.
        name: The model's name in the warning.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return model
    try:
        config.validate(strict=True)
    except ValueError as error:
        why = " ".join(str(error).split())
        flags = re.findall(r"- `(\w+)`:", why)
        what = ", ".join(flags) or why[:200]
        warnings.warn(
            f"{name}: its generation config cannot be saved ({what}); only its special tokens are kept",
            RuntimeWarning,
            stacklevel=2,
        )
        kept = {key: value for key, value in config.to_diff_dict().items() if key.endswith("_token_id")}
        model.generation_config = type(config)(**kept)
    return model


def check_base(source: Source) -> None:
    """Refuse an adapter whose base has changed since its training; an adapter without a fingerprint is not checked.

    Args:
        source: The adapter.

    Raises:
        UserError: The base has other weights than in the training.
    """
    path = source.folder / TRAINED
    if source.base is None or not path.is_file():
        return
    known = jsonl.read_json(path).get(BASE_WEIGHTS)
    if known is not None and known != jsonl.file_fingerprint(source.base.files()["weights"]):
        raise UserError(
            f"{source.folder}: its base {source.base.folder} has other weights than when the adapter was trained; "
            f"put those back, train again, or remove {BASE_WEIGHTS} from {path} to take these"
        )


def _merged(model: Any, adapter: Path) -> tuple[Any, set[str]]:
    """Merge a LoRA adapter into a model; also return the adapter weights without a counterpart in model or file."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(adapter / ADAPTER_WEIGHTS, "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    rows = _embeddings_of(model, stored)
    if rows not in (None, model.get_input_embeddings().weight.shape[0]):  # tokens were added before training
        model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft; keys that do not match are checked below
        tuned = PeftModel.from_pretrained(model, adapter)
    unmatched = stored.keys() ^ get_peft_model_state_dict(tuned, save_embedding_layers=False).keys()
    _untie(tuned.get_base_model())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of untied weights
        merged = tuned.merge_and_unload()
    return merged, {name for name in unmatched if ".lora_" in name}


def _embeddings_of(model: Any, stored: Mapping[str, tuple[int, ...]]) -> int | None:
    """The number of embeddings that a model had when an adapter was trained; None if the adapter does not show it.

    Args:
        model: The base.
        stored: Shapes of the adapter's weights.
    """
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    for name in [name for name, module in model.named_modules() if any(module is end for end in ends)]:
        for suffix, axis in _EMBEDDINGS.items():
            if shape := stored.get(f"base_model.model.{name}.{suffix}"):
                return shape[axis]
    return None


def _untie(model: Any) -> None:
    """Copy the matrix that the output layer shares with the embeddings, if one of the two has an adapter.

    Merging into a shared matrix would change the other layer too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    into, out = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in ends)
    if any(isinstance(layer, BaseTunerLayer) for layer in ends) and out.weight is into.weight:
        out.weight = torch.nn.Parameter(out.weight.detach().clone(), requires_grad=False)
