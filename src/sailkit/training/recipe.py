"""A recipe: model, data and every setting of a training run, as YAML; flags change it, unknown keys are errors."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sailkit.errors import UserError, missing_extra, nearest
from sailkit.files.yaml_files import parse_yaml, read_yaml
from sailkit.prompts.chat_template import check_date
from sailkit.prompts.sail import check_style

# Settings of TRL that the rest of sailkit depends on -> why they cannot be set.
_OURS = {
    "output_dir": "`out` is where everything goes",
    "completion_only_loss": "the completion alone is supervised, always",
    "assistant_only_loss": "the completion alone is supervised, always",
    "dataset_text_field": "rows are structured",
    "dataset_kwargs": "rows are rendered to token ids here",
    "truncation_mode": "nothing but search results is ever cut",
    "chat_template_path": "the model's own template is used",
    "eos_token": "the tokenizer's own is used",
    "pad_token": "padding is masked, whatever stands there",
    "resume_from_checkpoint": "the same command goes on where it stopped",
    "model_init_kwargs": "use the recipe's own keys",
    "trust_remote_code": "code that a model carries is not run in training",
    "push_to_hub": "use `push`",
    "hub_token": "a recipe is copied into the run's manifest; set HF_TOKEN or log in",
    "save_only_model": "a stopped run could not go on",
    "ddp_timeout": "processes wait two hours for each other",
    "remove_unused_columns": "rows are rendered to token ids here",
    "include_num_input_tokens_seen": "tokens are counted as num_tokens",
    "disable_tqdm": "progress is shown by sailkit",
}
# The same of peft.
_NOT_OF_LORA = {
    "inference_mode": "adapters are here to be trained",
    "lora_bias": "a base without biases could not take it in, and every use of a model here merges its adapters",
}
_DTYPES = ("auto", "float32", "bfloat16", "float16")
# Numbers that TRL would stumble over later, or take for another meaning -> the least that they can be.
_LEAST = {
    "max_length": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1e-6,
    "dataloader_num_workers": 0,
}
_ORDERS = ("random", "sequential", "group_by_length")
_STEP = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
_REST_OF_STEP = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
_TOP = (
    "extends",
    "about",
    "model",
    "data",
    "held_out",
    "style",
    "dtype",
    "date",
    "lora",
    "quantization",
    "patience",
    "training",
)


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and how.

    Attributes:
        model: As `--model` of evaluate.
        data: Run folders of build, or files of training examples.
        held_out: The same, for evaluation; where there is none, `held_out.jsonl` beside the data.
        style: Render every row in this style; None for each row's own.
        dtype: Number format of a frozen base (LoRA); `auto`, `float32`, `bfloat16` or `float16`.
        lora: Passed to peft's LoraConfig; None trains all weights.
        quantization: Passed to transformers' BitsAndBytesConfig, for a frozen base.
        patience: Evaluations without a lower held-out loss before training stops early.
        training: Passed to TRL's SFTConfig.
        about: A sentence for people.
        date: The day, as YYYY-MM-DD, for chat templates that read the clock; None for today.
    """

    model: str
    data: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    style: str | None = None
    dtype: str = "auto"
    lora: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    patience: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    date: str | None = None

    def settings(self) -> dict[str, Any]:
        """All that decides the result, for the manifest."""
        row = dataclasses.asdict(self)
        del row["about"]
        return row if self.date else {name: value for name, value in row.items() if name != "date"}

    @property
    def max_length(self) -> int:
        """Tokens of a row, prompt and completion together."""
        return int(self.training.get("max_length", 1024))

    @property
    def step(self) -> dict[str, Any]:
        """TRL's settings of how many rows a process takes at once, and how many times for a step.

        Where the recipe gives neither, four times four; where it gives one of them, the other is 1 or 16.
        """
        given = {name: self.training[name] for name in _STEP if name in self.training}
        return {**(_REST_OF_STEP if given else _STEP), **given}


def read_recipe(path: Path | None, changes: Mapping[str, Any], assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe and change it.

    Args:
        path: The YAML file, which may extend another; None for flags alone.
        changes: Key -> value; what is None or empty changes nothing.
        assignments: `key=value`, such as `training.learning_rate=1e-4`; values are YAML.

    Raises:
        UserError: Not found, not a recipe, or a key that nobody knows; the nearest known one is named.
    """
    return checked(read_settings(path, changes, assignments), where_of(path))


def where_of(path: Path | None) -> str:
    """What a recipe is called in an error."""
    return str(path) if path is not None else "the flags"


def read_settings(path: Path | None, changes: Mapping[str, Any], assignments: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a recipe, changed as in `read_recipe`, and not yet checked."""
    told = _read(path, ()) if path is not None else {}
    told = _merged(told, {key: value for key, value in changes.items() if value not in (None, [], ())})
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"`set` {text!r}: write KEY=VALUE, such as training.learning_rate=1e-4")
        tree: Any = parse_yaml(value, f"`set` {text}")
        for part in reversed(name.strip().split(".")):
            tree = {part: tree}
        told = _merged(told, tree)
    return told


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise UserError(f"{path}: extends itself")
    told: Any = read_yaml(path)
    if not isinstance(told, dict):
        raise UserError(f"{path}: a recipe is a mapping, such as  model: smollm2-135m")
    if base := told.pop("extends", None):
        told = _merged(_read(path.parent / str(base), (*above, path.resolve())), told)
    return dict(told)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, those above winning; mappings are merged, and null takes one away."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        found[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


def checked(told: Mapping[str, Any], where: str) -> Recipe:
    """Settings as a recipe.

    Args:
        told: See `read_settings`.
        where: What to call them in an error.

    Raises:
        UserError: A key that nobody knows, or a value that cannot be.
    """
    known(told, _TOP, where)
    lists = {name: _texts(told.get(name), f"{where}: {name}") for name in ("data", "held_out")}
    parts = {name: _mapping(told.get(name), f"{where}: {name}") for name in ("training", "lora", "quantization")}
    if not isinstance(told.get("model"), str):
        raise UserError(f"{where}: no model; write  model: smollm2-135m  or give `model`")
    if not lists["data"]:
        raise UserError(f"{where}: no data; name a run folder of build, or give `data`")
    if (style := told.get("style")) is not None:
        check_style(str(style))
    patience = told.get("patience")
    if patience is not None and (not isinstance(patience, int) or isinstance(patience, bool) or patience < 1):
        raise UserError(f"{where}: patience should be a number of evaluations from 1, not {patience!r}")
    if (date := told.get("date")) is not None:
        date = str(date)  # YAML reads a day as one
        check_date(date)
    if (dtype := str(told.get("dtype", _DTYPES[0]))) not in _DTYPES:
        raise UserError(f"{where}: dtype: no number format {dtype!r}: {nearest(dtype, _DTYPES)}")
    if parts["quantization"] is not None and parts["lora"] is None:
        raise UserError(f"{where}: quantization freezes the base; add lora to train adapters on it")
    _check_training(parts["training"] or {}, f"{where}: training")
    if parts["lora"] is not None:
        _check_values(parts["lora"], _types_of_lora(), f"{where}: lora", _NOT_OF_LORA)
    if parts["quantization"] is not None:
        from transformers import BitsAndBytesConfig

        usual = {name: one.default for name, one in inspect.signature(BitsAndBytesConfig).parameters.items()}
        del usual["kwargs"]
        types = {name: Any if value is None else type(value) for name, value in usual.items()}  # none are declared
        _check_values(parts["quantization"], types, f"{where}: quantization")
    return Recipe(
        model=told["model"],
        data=lists["data"],
        held_out=lists["held_out"],
        style=style,
        dtype=dtype,
        lora=parts["lora"],
        quantization=parts["quantization"],
        patience=patience,
        training=parts["training"] or {},
        about=str(told.get("about", "")),
        date=date,
    )


def _check_training(training: Mapping[str, Any], where: str) -> None:
    try:
        from trl import SFTConfig
    except ImportError:
        raise missing_extra("finetune", "fine-tuning") from None
    _check_values(training, _types_of(SFTConfig) | {"max_length": int}, where, _OURS)
    for key, least in _LEAST.items():
        if training.get(key, least) < least:
            raise UserError(f"{where}.{key} should be {'above 0' if 0 < least < 1 else f'at least {least}'}")
    if (order := training.get("train_sampling_strategy", _ORDERS[0])) not in _ORDERS:
        raise UserError(f"{where}.train_sampling_strategy: no such order {order!r}; {nearest(order, _ORDERS)}")
    if training.get("packing_strategy", "bfd") != "bfd":
        raise UserError(f"{where}.packing_strategy should be bfd: the others cut rows, or let them see each other")


def _types_of_lora() -> dict[str, Any]:
    try:
        from peft import LoraConfig
    except ImportError:
        raise missing_extra("finetune", "fine-tuning with LoRA") from None
    return _types_of(LoraConfig)


def _types_of(kind: Any) -> dict[str, Any]:
    """The settings of a dataclass, and what each of them takes."""
    types = typing.get_type_hints(kind)
    return {one.name: types[one.name] for one in dataclasses.fields(kind) if one.init}


def _check_values(
    values: Mapping[str, Any], types: Mapping[str, Any], where: str, ours: Mapping[str, str] | None = None
) -> None:
    """Raise a UserError for an unknown key, or a value of the wrong kind, which would be found out much later.

    Args:
        values: What the recipe says.
        types: What each key takes.
        where: What to call them in an error.
        ours: Keys that cannot be set -> why.
    """
    known(values, types, where)
    for key, value in values.items():
        if ours and key in ours:
            raise UserError(f"{where}.{key} cannot be set: {ours[key]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}.{key} should be a finite number, not {value}")
        config = None if dataclasses.is_dataclass(types[key]) else ConfigDict(arbitrary_types_allowed=True)
        try:
            TypeAdapter(types[key], config=config).validate_python(value, strict=True)
        except ValidationError:
            given = "empty" if value is None else f"the text {value!r}" if isinstance(value, str) else repr(value)
            raise UserError(f"{where}.{key} should be {_in_words(types[key])}, not {given}") from None


def _in_words(kind: Any) -> str:
    """A type, for people."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a mapping"}
    parts = [one for one in typing.get_args(kind) if one is not type(None)]
    if typing.get_origin(kind) in (list, set, tuple, dict):
        return "a list" if typing.get_origin(kind) is not dict else "a mapping"
    # Sorted: `typing` gives the order in which the same union was first written anywhere.
    return " or ".join(sorted(set(map(_in_words, parts)))) if parts else words.get(kind, "one of its values")


def known(keys: Iterable[str], names: Iterable[str], where: str) -> None:
    """Raise a UserError for a key that is not among the names."""
    names = list(names)
    for key in keys:
        if key not in names:
            close = nearest(str(key), names)
            # All of TRL's keys would fill a screen.
            raise UserError(
                f"{where} has no key {str(key)!r}: {close if len(names) < 20 else close.split('(known')[0]}"
            )


def _mapping(value: Any, where: str) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where} should be a mapping")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value or []
    if not isinstance(items, list | tuple) or not all(isinstance(one, str) for one in items):
        raise UserError(f"{where} should be a path or a list of paths")
    return tuple(items)
