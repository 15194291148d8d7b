"""Read a training recipe from YAML: model, data and settings; flags override it, unknown keys are errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from sailkit.errors import UserError, nearest
from sailkit.files.yaml_files import parse_yaml, read_yaml
from sailkit.models.base import ATTN_IMPLEMENTATIONS
from sailkit.packaged import recipe_path
from sailkit.prompts.chat_template import check_date
from sailkit.prompts.sail import Order, check_style
from sailkit.training.library_settings import check_keys, check_lora, check_quantization, check_training
from sailkit.training.loss_weights import LossWeights, read_loss_weights

_MAPPINGS = ("training", "lora", "quantization", "loss_weights")
_ORDERS: tuple[Order, ...] = get_args(Order)
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_STEP = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
_REST_OF_STEP = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
_KEYS = (
    "extends",
    "about",
    "needs",
    "model",
    "data",
    "curriculum",
    "held_out",
    "style",
    "dtype",
    "attn_implementation",
    "date",
    "lora",
    "adapters",
    "quantization",
    "patience",
    "loss_weights",
    "order",
    "training",
)


@dataclass(frozen=True)
class Recipe:
    """The model, data and settings of a training run.

    Attributes:
        model: As `--model` of evaluate.
        data: Run folders of build, or files of training examples.
        curriculum: The same for the start of training: these rows come first, in the order of their file, and `data`
            follows in random order (curriculum learning, Bengio et al. 2009).
        held_out: The same for evaluation; by default `held_out.jsonl` of the data.
        style: Render every row in this style; None for each row's own.
        dtype: Number format of a frozen base (LoRA); `auto`, `float32`, `bfloat16` or `float16`.
        attn_implementation: How transformers computes attention: `eager`, `sdpa`, `flash_attention_2` ...; `auto` is
            FlashAttention for packed rows if it is installed, and else transformers' choice.
        lora: Passed to peft's LoraConfig; None trains all weights.
        adapters: Adapters whose training goes on, of the model and of the same form as `lora`: a folder of adapters or
            of finetune (of several seeds, each run goes on with its own); None for new ones.
        quantization: Passed to transformers' BitsAndBytesConfig, for a frozen base.
        patience: Evaluations without a lower held-out loss before training stops early.
        training: Passed to TRL's SFTConfig.
        about: A description for people.
        needs: Data and hardware that it needs, for people.
        date: The day, as YYYY-MM-DD, for chat templates that read the clock; None for today.
        loss_weights: Weights of the completion's segments in the training loss; None if they are equal.
        order: Whether the completion has the verification sentence first, or the answer.
    """

    model: str
    data: tuple[str, ...]
    curriculum: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    style: str | None = None
    dtype: str = "auto"
    attn_implementation: str = "auto"
    lora: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    patience: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    needs: str = ""
    date: str | None = None
    loss_weights: LossWeights | None = None
    order: Order = "verify-first"
    adapters: str | None = None

    def settings(self) -> dict[str, Any]:
        """Everything that affects the result, for the manifest."""
        row = dataclasses.asdict(self)
        del row["about"], row["needs"]
        # Left out if unset, as in older manifests.
        optional = ("date", "loss_weights", "curriculum", "adapters")
        for name, default in (("attn_implementation", "auto"), ("order", "verify-first")):
            if row[name] == default:
                del row[name]
        return {name: value for name, value in row.items() if value or name not in optional}

    @property
    def max_length(self) -> int:
        """Maximum tokens of a row, prompt and completion together."""
        return int(self.training.get("max_length", 1024))

    @property
    def step(self) -> dict[str, Any]:
        """TRL's batch size per device and gradient accumulation steps.

        By default 4 and 4; if the recipe sets only one of them, the other defaults to 1 or 16.
        """
        given = {name: self.training[name] for name in _STEP if name in self.training}
        return {**(_REST_OF_STEP if given else _STEP), **given}


def read_recipe(path: str | Path | None, changes: Mapping[str, Any], assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply changes.

    Args:
        path: The YAML file, which may extend another; None for flags alone.
        changes: Key -> value; None and empty values change nothing.
        assignments: `key=value`, such as `training.learning_rate=1e-4`; values are YAML.

    Raises:
        UserError: The file is missing or not a recipe, or a key is unknown; the nearest known key is named.
    """
    return check_recipe(read_settings(path, changes, assignments), recipe_name(path))


def recipe_name(path: str | Path | None) -> str:
    """Name of a recipe, for errors."""
    return str(path) if path is not None else "the flags"


def read_settings(
    path: str | Path | None, changes: Mapping[str, Any], assignments: Sequence[str] = ()
) -> dict[str, Any]:
    """Settings of a recipe with changes as in `read_recipe`, unchecked."""
    settings = _read(recipe_path(path), ()) if path is not None else {}
    if changes.get("data"):
        settings.pop("curriculum", None)  # it belongs to the recipe's own data
    settings = _merged(settings, {key: value for key, value in changes.items() if value not in (None, [], ())})
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"`set` {text!r}: write KEY=VALUE, such as training.learning_rate=1e-4")
        tree: Any = parse_yaml(value, f"`set` {text}")
        for part in reversed(name.strip().split(".")):
            tree = {part: tree}
        settings = _merged(settings, tree)
    return settings


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise UserError(f"{path}: extends itself")
    settings: Any = read_yaml(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: a recipe is a mapping, such as  model: smollm2-135m")
    if base := settings.pop("extends", None):
        settings = _merged(_read(path.parent / str(base), (*above, path.resolve())), settings)
    return dict(settings)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings: `above` overrides `below`, mappings are merged, null removes a setting of the top level."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def check_recipe(settings: Mapping[str, Any], where: str) -> Recipe:
    """Check settings, and turn them into a recipe.

    Args:
        settings: See `read_settings`.
        where: Name of the recipe, for errors.

    Raises:
        UserError: An unknown key or a wrong value.
    """
    check_keys(settings, _KEYS, where)
    settings = {name: value for name, value in settings.items() if value is not None}  # null removes a setting
    lists = {name: _texts(settings.get(name), f"{where}: {name}") for name in ("data", "curriculum", "held_out")}
    parts = {name: _mapping(settings.get(name), f"{where}: {name}") for name in _MAPPINGS}
    if not isinstance(settings.get("model"), str):
        raise UserError(f"{where}: no model; write  model: smollm2-135m  or give `model`")
    if not lists["data"]:
        raise UserError(f"{where}: no data; name a run folder of build, or give `data`")
    if (style := settings.get("style")) is not None:
        check_style(str(style))
    patience = settings.get("patience")
    if patience is not None and (not isinstance(patience, int) or isinstance(patience, bool) or patience < 1):
        raise UserError(f"{where}: patience should be a number of evaluations from 1, not {patience!r}")
    if (date := settings.get("date")) is not None:
        date = str(date)  # YAML parses it as a date
        check_date(date)
    if (dtype := str(settings.get("dtype", _DTYPES[0]))) not in _DTYPES:
        raise UserError(f"{where}: dtype: no number format {dtype!r}: {nearest(dtype, _DTYPES)}")
    attention = str(settings.get("attn_implementation", ATTN_IMPLEMENTATIONS[0]))
    if attention not in ATTN_IMPLEMENTATIONS:
        close = nearest(attention, ATTN_IMPLEMENTATIONS)
        raise UserError(f"{where}: attn_implementation: no implementation {attention!r}: {close}")
    order = settings.get("order", _ORDERS[0])
    if order not in _ORDERS:
        raise UserError(f"{where}: order: no order {order!r}: {nearest(str(order), _ORDERS)}")
    if parts["quantization"] is not None and parts["lora"] is None:
        raise UserError(f"{where}: quantization freezes the base; add lora to train adapters on it")
    check_training(parts["training"] or {}, f"{where}: training")
    if lists["curriculum"]:
        _check_curriculum(parts["training"] or {}, where)
    _check_adapters(settings.get("adapters"), parts["lora"], where)
    if parts["quantization"] is not None:
        check_quantization(parts["quantization"], f"{where}: quantization")
    return Recipe(
        model=settings["model"],
        data=lists["data"],
        curriculum=lists["curriculum"],
        held_out=lists["held_out"],
        style=style,
        dtype=dtype,
        attn_implementation=attention,
        lora=parts["lora"],
        quantization=parts["quantization"],
        patience=patience,
        training=parts["training"] or {},
        about=str(settings.get("about", "")),
        needs=str(settings.get("needs", "")),
        date=date,
        loss_weights=read_loss_weights(parts["loss_weights"], f"{where}: loss_weights"),
        order=order,
        adapters=settings.get("adapters"),
    )


def _check_adapters(adapters: Any, lora: dict[str, Any] | None, where: str) -> None:
    if lora is not None:
        check_lora(lora, f"{where}: lora")
    if adapters is not None and (not isinstance(adapters, str) or lora is None):
        raise UserError(f"{where}: adapters names trained adapters, and lora gives their form; both are needed")


def _check_curriculum(training: Mapping[str, Any], where: str) -> None:
    """Refuse settings that contradict training on some rows before others, once."""
    if training.get("train_sampling_strategy", "sequential") != "sequential":
        raise UserError(f"{where}: curriculum decides the order; leave out training.train_sampling_strategy")
    if training.get("num_train_epochs") != 1 and training.get("max_steps", -1) <= 0:
        raise UserError(f"{where}: curriculum is trained on once; set training.num_train_epochs: 1")
    if training.get("packing"):
        raise UserError(f"{where}: packing mixes the rows of curriculum with others; leave one of them out")


def _mapping(value: Any, where: str) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where} should be a mapping")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str | Path) else value or []
    if not isinstance(items, list | tuple) or not all(isinstance(item, str | Path) for item in items):
        raise UserError(f"{where} should be a path or a list of paths")
    return tuple(map(str, items))
