"""The one module that knows TRL: SFTTrainer on token ids and labels, with our loss on the CPU and our evaluation."""

from __future__ import annotations

import importlib.util
import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.nn import functional
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sailkit import jsonl, runs
from sailkit.errors import UserError, missing_extra
from sailkit.finetune.data import IGNORED, Prepared
from sailkit.finetune.recipe import Recipe
from sailkit.models.loading import cpu_has_fast_bf16, load, pick_device, pick_dtype
from sailkit.models.sources import Source

CHECKPOINTS = "checkpoints"
STATE = "trainer_state.json"  # what Transformers writes last
# What a user need not say; anything in the recipe wins.
_DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    "logging_first_step": True,
    "eval_strategy": "epoch",
    "save_total_limit": 2,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 16,
}


def arguments(recipe: Recipe, folder: Path, *, held_out: bool) -> Any:
    """TRL's own configuration.

    Args:
        recipe: The recipe.
        folder: Where checkpoints go.
        held_out: Whether there is anything to evaluate on.

    Raises:
        UserError: TRL refuses a value.
    """
    told = {**_DEFAULTS, **recipe.training}
    if not held_out:
        told["eval_strategy"] = "no"
    told.setdefault("save_strategy", told["eval_strategy"] if held_out else "epoch")
    if "eval_steps" in told:
        told.setdefault("save_steps", told["eval_steps"])
    best = held_out and told["save_strategy"] == told["eval_strategy"] != "no"
    told.setdefault("load_best_model_at_end", best)
    if best:
        told.setdefault("metric_for_best_model", "eval_loss")
    if not told.keys() & {"gradient_checkpointing", "activation_checkpointing"}:
        told["activation_checkpointing"] = False
    if "fp16" not in told and "bf16" not in told:
        told["bf16"] = _has_bf16()
    try:
        return SFTConfig(
            **told,
            output_dir=str(folder / CHECKPOINTS),
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataset_kwargs=None if told.get("packing") else {"skip_prepare_dataset": True},
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from None


def _has_bf16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_fast_bf16()


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on rows that are token ids and labels already."""

    control: Any

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        args: Any,
        train: Prepared,
        held_out: Prepared | None,
        measure: Callable[[Any], Mapping[str, float | None]] | None = None,
        lora: Any = None,
        patience: int | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Prepare to train.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer; neither its end-of-text nor its padding token is changed.
            args: See `arguments`.
            train: What is learned.
            held_out: What is evaluated on.
            measure: Further figures of the model as it is, at each evaluation.
            lora: A LoraConfig, or None to train all weights.
            patience: Evaluations without a lower loss before training stops.
            callbacks: More of them.
        """
        self._known = {ids: one.id for one, ids in zip(train.examples, train.ids, strict=True)}
        self._held_out = held_out
        self._measure = measure
        padding = tokenizer.pad_token, model.config.get_text_config().pad_token_id
        early = [EarlyStoppingCallback(patience)] if patience and held_out else []
        try:
            super().__init__(
                model=model,
                args=args,
                train_dataset=_dataset(train),
                eval_dataset=_dataset(held_out) if held_out else None,
                processing_class=tokenizer,
                peft_config=lora,
                callbacks=[*callbacks, *early],
            )
        except ValueError as error:  # target modules that match nothing, settings that exclude each other
            raise UserError(f"the recipe does not fit the model: {' '.join(str(error).split())[:300]}") from None
        # TRL lends the end of text as padding; a tokenizer saved like that teaches others to mask it.
        tokenizer.pad_token, self.model.config.get_text_config().pad_token_id = padding
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        per_epoch = math.ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
        return int(
            self.args.max_steps if self.args.max_steps > 0 else math.ceil(self.args.num_train_epochs * per_epoch)
        )

    def train_on(self, checkpoint: Path | None) -> None:
        """Train, from a checkpoint where there is one.

        Raises:
            UserError: A loss that is no number, or a checkpoint that cannot be written; earlier ones are kept.
        """
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception as error:  # those of safetensors, torch and the system have no common ancestor
            folder = Path(self.args.output_dir)
            torn = folder / f"checkpoint-{self.state.global_step}"
            if not torn.is_dir() or _whole(torn / STATE):
                raise
            shutil.rmtree(torn, ignore_errors=True)
            kept = newest_checkpoint(folder)
            raise UserError(
                f"cannot write {torn}: {' '.join(str(error).split())[:200]}; "
                f"{kept.name if kept else 'no checkpoint'} is kept, and the same command goes on from there"
            ) from None

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Ours is written elsewhere."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch over the supervised tokens of the whole step; one that is no number stops the run."""
        plain = self.args.loss_type == "nll" and self.label_smoother is None and not self.aux_loss_enabled
        if plain and not return_outputs and inputs["input_ids"].device.type == "cpu":
            loss = self._supervised_only(model, inputs, num_items_in_batch)
        else:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        value = loss[0] if return_outputs else loss
        if not bool(torch.isfinite(value)):
            step = self.state.global_step + 1
            raise UserError(
                f"the loss of step {step} is {value.item()}, in the batch of {self._names(inputs)}; "
                "try a lower learning_rate, max_grad_norm, or bf16: false"
            )
        return loss

    def _supervised_only(self, model: Any, inputs: Any, items: Any) -> torch.Tensor:
        """Cross-entropy where there is something to predict; off CUDA, TRL's kernel predicts every token."""
        following = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
        keep = (following != IGNORED).any(0).nonzero().flatten()
        wanted = following[:, keep]
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits.float()
        total = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")
        count = (wanted != IGNORED).sum()
        mode = "train" if self.model.training else "eval"
        with torch.no_grad():
            right = ((logits.argmax(-1) == wanted) & (wanted != IGNORED)).sum() / count.clamp(min=1)
        self._metrics[mode]["mean_token_accuracy"].append(float(right))
        if mode == "train":
            seen = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum()
            self._total_train_tokens += int(self.accelerator.gather_for_metrics(seen).sum())
            self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        loss = total / torch.as_tensor(count if items is None else items).clamp(min=1)
        if self.args.average_tokens_across_devices and items is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return loss

    def _names(self, inputs: Any) -> str:
        """Ids of the examples in a batch, found by their tokens: neither padding nor packing keeps them."""
        rows = inputs["input_ids"].tolist()
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        found = []
        for i, row in enumerate(rows):
            ends = [0, len(row)] if mask is None else [0, int(mask[i].sum())]
            if mask is None and positions is not None:
                ends = [*(positions[i] == 0).nonzero().flatten().tolist(), len(row)]
            found += [self._known.get(tuple(row[a:b]), "?") for a, b in itertools.pairwise(ends)]
        return ", ".join(found)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Loss for each supervised token of the held-out rows, and what else is measured of the model.

        Transformers takes the mean over batches, which weighs short rows more.
        """
        assert self._held_out is not None
        model = self.model
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                total, count = self._held_out_loss(model)
                more = self._measure(model) if self._measure else {}
        finally:
            model.train(was_training)
        figures = {f"{metric_key_prefix}_loss": total / max(count, 1)}
        figures |= {f"{metric_key_prefix}_{name}": value for name, value in more.items() if value is not None}
        self._metrics["eval"].clear()
        self.log(dict(figures))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _held_out_loss(self, model: Any) -> tuple[float, int]:
        """Summed loss and number of supervised tokens, over all processes."""
        rows = _dataset(self._held_out)
        mine = range(self.accelerator.process_index, len(rows), self.accelerator.num_processes)
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        size = self.args.per_device_eval_batch_size
        order = sorted(mine, key=lambda i: len(rows[i]["input_ids"]))
        for start in range(0, len(order), size):
            batch = self._prepare_inputs(self.data_collator([rows[i] for i in order[start : start + size]]))
            count = (batch["labels"][:, 1:] != IGNORED).sum()
            sums += torch.stack([self.compute_loss(model, batch, num_items_in_batch=None) * count, count]).double()
        total, count = self.accelerator.reduce(sums).tolist()
        return total, int(count)


def _dataset(prepared: Prepared | None) -> Any:
    assert prepared is not None
    rows = zip(prepared.ids, prepared.labels, strict=True)
    return datasets.Dataset.from_list([{"input_ids": list(ids), "labels": list(labels)} for ids, labels in rows])


class Progress(TrainerCallback):  # type: ignore[misc]
    """Counts steps, those of an earlier run included."""

    def __init__(self, tick: runs.Ticker) -> None:
        self._tick = tick
        self._done = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count what an earlier run did."""
        self._advance(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step."""
        self._advance(state)

    def _advance(self, state: Any) -> None:
        if state.global_step > self._done:
            self._tick(state.global_step - self._done)
            self._done = state.global_step


class History(TrainerCallback):  # type: ignore[misc]
    """Keeps what is logged as JSON Lines, with the speed since the line before."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the whole history: it is short, and that of a run that goes on begins in its checkpoint."""
        if state.is_world_process_zero:
            jsonl.write_atomic(self._path, "".join(jsonl.dumps(row) + "\n" for row in state.log_history))


def load_for_training(source: Source, recipe: Recipe) -> Any:
    """The model of a recipe: in float32, or frozen in its own number format below adapters.

    Raises:
        UserError: It cannot be loaded, or quantization lacks its library.
    """
    if recipe.lora is None:
        return load(source, torch.float32, trust_remote_code=False)[0]
    dtype = pick_dtype(recipe.dtype, pick_device("auto"))
    quantization = None
    if recipe.quantization is not None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise missing_extra("gpu", "quantization")
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(**recipe.quantization)
    model, _ = load(source, dtype, trust_remote_code=False, quantization=quantization)
    for module in model.modules():
        # On the CPU, bitsandbytes packs weights at the first evaluation and then trains through a kernel without
        # gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def lora_config(recipe: Recipe) -> Any:
    """Peft's own configuration, or None.

    Raises:
        UserError: Peft refuses a value.
    """
    if recipe.lora is None:
        return None
    from peft import LoraConfig

    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **recipe.lora})
    except (TypeError, ValueError) as error:
        raise UserError(f"lora: {' '.join(str(error).split())}") from None


def newest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end; see `STATE`."""
    steps: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.partition("-")[2]
        weights = any(path.glob("*.safetensors"))
        if number.isdigit() and weights and _whole(path / STATE):
            steps[int(number)] = path
    return steps[max(steps)] if steps else None


def _whole(path: Path) -> bool:
    try:
        return math.isfinite(jsonl.read_json(path)["global_step"])
    except (UserError, KeyError, TypeError):
        return False
