"""The one module that knows TRL: SFTTrainer on token ids and labels, with our loss on the CPU and our evaluation."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.nn import functional
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer

from sailkit.errors import UserError, nearest
from sailkit.models.checks import memory_for
from sailkit.models.rope import rope_lengths
from sailkit.training.arguments import arguments
from sailkit.training.batches import SeededByEpoch, example_ids, regroup_by_length
from sailkit.training.callbacks import EarlyStopping, Speed
from sailkit.training.checkpoints import newest, stopped_at, whole
from sailkit.training.distributed import Processes
from sailkit.training.loading import keep_adapters_in_float32
from sailkit.training.packing import check_packing
from sailkit.training.tokenise import IGNORED, Prepared

__all__ = ["ALONE", "Trainer", "arguments"]
ALONE = Processes()
_LESS_MEMORY = (
    "set training.per_device_train_batch_size lower and training.gradient_accumulation_steps higher (the step is then "
    "the same), training.max_length lower, training.gradient_checkpointing: true, or lora; `dry_run` shows an estimate"
)


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on rows that are token ids and labels already."""

    control: Any
    _total_train_tokens: int  # TRL's own count, which it begins anew in each process

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
        processes: Processes = ALONE,
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
            processes: Those that train it together.
        """
        self._processes = processes
        self._speed = Speed()
        self._sums: Counter[str] = Counter()  # since the line before, of all processes
        parts = [part for part in (held_out, train) if part]
        self._known = {ids: one.id for part in parts for one, ids in zip(part.examples, part.ids, strict=True)}
        self._held_out = held_out
        self._measure = measure
        padding = tokenizer.pad_token, model.config.get_text_config().pad_token_id
        early = [EarlyStopping(patience)] if patience and held_out else []
        try:
            with memory_for(f"moving the model to {args.device}", _LESS_MEMORY):
                super().__init__(
                    model=model,
                    args=args,
                    train_dataset=_dataset(train),
                    eval_dataset=_dataset(held_out) if held_out else None,
                    processing_class=tokenizer,
                    peft_config=lora,
                    callbacks=[*callbacks, *early],
                )
        except (ValueError, ImportError) as error:  # such as target modules that match nothing
            raise UserError(f"the recipe does not fit the model: {' '.join(str(error).split())[:300]}") from None
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # those shard weights, of one number format alone
            keep_adapters_in_float32(self.model)
            if args.packing:
                with self.compute_loss_context_manager():
                    check_packing(self.model, self.data_collator, train.ids)
        if not len(self.get_train_dataloader()):
            raise UserError(f"training.dataloader_drop_last: {len(self.train_dataset)} rows are no whole batch")
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
            UserError: A loss that is no number, no more memory, or a checkpoint that cannot be written; earlier ones
                are kept.
        """
        if checkpoint and (steps := stopped_at(checkpoint)) is not None:
            self.args.max_steps = steps
        try:
            with memory_for("training", _LESS_MEMORY):
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception as error:  # those of safetensors, torch and the system have no common ancestor
            folder = Path(self.args.output_dir)
            torn = folder / f"checkpoint-{self.state.global_step}"
            if not torn.is_dir() or whole(torn):
                raise
            shutil.rmtree(torn, ignore_errors=True)
            kept = newest(folder)
            raise UserError(
                f"cannot write {torn}: {' '.join(str(error).split())[:200]}; "
                f"{kept.name if kept else 'no checkpoint'} is kept, and the same command goes on from there"
            ) from None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        found = super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if isinstance(found, LengthGroupedSampler):
            self.add_callback(found := SeededByEpoch(found, seed))
        return found

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The batches of a step, like rows together; rows that fill up the last batch of an epoch count only once."""
        if self.state.global_step >= self.state.max_steps:  # the checkpoint was the last one, within an epoch
            self.control.should_training_stop = True
            return [], None
        self._total_train_tokens = self._total_train_tokens or self.state.num_input_tokens_seen  # of a checkpoint
        self._speed.start(self._total_train_tokens)
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        size = self._train_batch_size
        # Accelerate knows this too, but not in an epoch that goes on behind a checkpoint.
        left = 0 if self.args.dataloader_drop_last else len(self.train_dataset) % (size * self._processes.count)
        if self._processes.count > 1 and batches and self.accelerator.gradient_state.end_of_dataloader and left:
            mine = left - self._processes.rank * size
            batches[-1]["labels"][max(mine, 0) :] = IGNORED
            items = self._get_num_items_in_batch(batches, device)
        whole = self.args.pad_to_multiple_of or self.aux_loss_enabled  # experts' loss is a mean for each batch
        return (batches if whole else regroup_by_length(batches)), items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the speed since the line of losses before."""
        if "loss" in logs:
            logs["tokens_per_second"] = self._speed.since_last(self._total_train_tokens)
        super().log(logs, start_time)
        if self.model.training:
            self._sums.clear()

    def speed(self) -> float:
        """Tokens per second of this run so far."""
        return self._speed.overall(self._total_train_tokens)

    def weights(self) -> dict[str, Any] | None:
        """The weights in one piece where they are in several, which all processes have to ask for; else None."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return self.accelerator.get_state_dict(self.model_wrapped) if sharded else None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.state.num_input_tokens_seen = self._total_train_tokens
        with self._speed.pause():
            super()._save_checkpoint(model, trial)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Ours is written elsewhere."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch over the supervised tokens of the whole step; one that is no number stops the run."""
        loss = self._loss(model, inputs, return_outputs, num_items_in_batch)
        value = (loss[0] if return_outputs else loss).detach()
        finite = torch.isfinite(value)
        if not bool(self.accelerator.gather(finite.int()).all()):
            step = self.state.global_step
            which = f"loss of step {step + 1}" if self.model.training else f"held-out loss behind step {step}"
            said = (
                f"the {which} is {value.item()}, in the batch of {', '.join(example_ids(inputs, self._known))}; "
                "try a lower learning_rate, max_grad_norm, or bf16: false"
            )
            self._processes.raise_if_any(None if finite else said)
        return loss

    def _loss(self, model: Any, inputs: Any, return_outputs: bool, items: Any) -> Any:
        plain = self.args.loss_type == "nll" and self.label_smoother is None and not self.aux_loss_enabled
        if plain and not return_outputs and inputs["input_ids"].device.type == "cpu":
            return self._supervised_only(model, inputs, items)
        return super().compute_loss(model, inputs, return_outputs, items)

    def _supervised_only(self, model: Any, inputs: Any, items: Any) -> torch.Tensor:
        """Cross-entropy where there is something to predict; off CUDA, TRL's kernel predicts every token."""
        following = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
        keep = following != IGNORED
        wanted = following[keep]
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits.float()  # of those places alone
        total = functional.cross_entropy(logits, wanted, reduction="sum")
        count = keep.sum()
        correct = (logits.detach().argmax(-1) == wanted).sum()
        self._note(inputs, following, {"predicted": count, "correct": correct})
        return self._for_each_token(total, count, items)

    def _note(self, inputs: Any, following: torch.Tensor, figures: dict[str, torch.Tensor]) -> None:
        """Add a batch of training to what is logged; `figures` are sums, `predicted` and `correct` among them."""
        if not self.model.training:
            return
        learnt = (following != IGNORED).any(1, keepdim=True)
        seen = (inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])) * learnt).sum()
        sums = torch.stack([seen.double(), *(one.double() for one in figures.values())])
        tokens, *added = self.accelerator.gather(sums[None]).sum(0).tolist()
        self._sums.update(dict(zip(figures, added, strict=True)))
        self._metrics["train"]["mean_token_accuracy"] = [self._sums["correct"] / max(self._sums["predicted"], 1)]
        self._total_train_tokens += int(tokens)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    def _for_each_token(self, total: torch.Tensor, count: torch.Tensor, items: Any) -> torch.Tensor:
        """A summed loss over the supervised tokens of the step, or of the batch where those are not known."""
        loss = total / torch.as_tensor(count if items is None else items).clamp(min=1)
        if self.args.average_tokens_across_devices and items is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return loss

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Loss for each supervised token of the held-out rows, and what else is measured of the model.

        Transformers takes the mean over batches, which weighs short rows more.
        """
        assert self._held_out is not None
        model = self.model
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), self._speed.pause(), self.compute_loss_context_manager():
                found = self._held_out_figures(model)
                more = self._measure(model) if self._measure else {}
        finally:
            model.train(was_training)
        figures = {f"{metric_key_prefix}_{k}": v for k, v in {**found, **more}.items() if v is not None}
        best = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if f"{metric_key_prefix}_{best}" not in figures:
            known = [name.removeprefix(f"{metric_key_prefix}_") for name in figures]
            self._processes.raise_if_any(f"training.metric_for_best_model: no figure {best!r}; {nearest(best, known)}")
        self._metrics["eval"].clear()
        self.log(dict(figures))
        if metric_key_prefix == "eval":  # what decides when to stop hears of nothing else
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _held_out_figures(self, model: Any) -> dict[str, float]:
        """Loss for each supervised token of the held-out rows, over all processes."""
        rows = _dataset(self._held_out)
        sums: Any = 0
        size = self.args.per_device_eval_batch_size
        planned = rope_lengths(model.config).batches([len(row["input_ids"]) for row in rows], size)
        for places, counts in self._processes.shard(planned):
            batch = self._prepare_inputs(self.data_collator([rows[i] for i in places]))
            sums += self._held_out_sums(model, batch).double() * counts
        return self._held_out_means(self.accelerator.reduce(sums).tolist())

    def _held_out_sums(self, model: Any, batch: Any) -> torch.Tensor:
        """What a batch adds to the figures; shape (sums,)."""
        count = (batch["labels"][:, 1:] != IGNORED).sum()
        return torch.stack([self.compute_loss(model, batch, num_items_in_batch=None) * count, count])

    def _held_out_means(self, sums: list[float]) -> dict[str, float]:
        """The figures that come of those sums."""
        total, count = sums
        return {"loss": total / max(count, 1)}


def _dataset(prepared: Prepared | None) -> Any:
    assert prepared is not None
    rows = zip(prepared.ids, prepared.labels, strict=True)
    return datasets.Dataset.from_list([{"input_ids": list(ids), "labels": list(labels)} for ids, labels in rows])
