"""Train with TRL's SFTTrainer on tokenised rows, with an exact evaluation and only supervised logits on CPUs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer

from sailkit.distributed import Processes
from sailkit.errors import UserError, nearest
from sailkit.models.checks import memory_for
from sailkit.models.rope import rope_lengths
from sailkit.training.arguments import scheduler_kwargs
from sailkit.training.batch_log import BatchLog
from sailkit.training.batches import CurriculumFirst, SeededByEpoch, regroup_by_length
from sailkit.training.callbacks import EarlyStopping, FreedMemory, Speed
from sailkit.training.checkpoints import stopped_at, writing_failed
from sailkit.training.inference import inference
from sailkit.training.loading import number_format, prepare_for_autocast
from sailkit.training.loss_weights import LossWeights, check_loss
from sailkit.training.packing import prepare_packing
from sailkit.training.segments import mark_verification, unmark
from sailkit.training.token_loss import token_losses
from sailkit.training.tokenise import IGNORED, Prepared

ALONE = Processes()
_MOST_UNREAD = 64  # batches on a GPU; at most so many are lost on a loss that is not finite
_LESS_MEMORY = (
    "set training.per_device_train_batch_size lower and training.gradient_accumulation_steps higher (the step is then "
    "the same), training.max_length lower, training.gradient_checkpointing: true, or lora; `dry_run` shows an estimate"
)


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on tokenised rows.

    Attributes:
        held_out: The held-out rows, or None.
        processes: The process group.
    """

    control: Any
    _total_train_tokens: int  # TRL's count, which restarts at 0 on resumption

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
        loss_weights: LossWeights | None = None,
        patience: int | None = None,
        attn_implementation: str = "auto",
        callbacks: Sequence[TrainerCallback] = (),
        processes: Processes = ALONE,
    ) -> None:
        """Initialise the trainer.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer; EOS and padding token stay unchanged.
            args: See `sailkit.training.arguments.sft_config`.
            train: The training rows.
            held_out: The held-out rows.
            measure: Computes further figures of the model at each evaluation.
            lora: A LoraConfig, or None to train all weights.
            loss_weights: Weights of the completion's segments in the training loss; None for the plain mean.
            patience: Evaluations without a lower loss before training stops.
            attn_implementation: The recipe's; with `auto`, the model's may be changed.
            callbacks: Additional callbacks.
            processes: The process group.
        """
        self.processes = processes
        self._speed = Speed()
        self._curriculum = train.curriculum
        splits = [split for split in (held_out, train) if split]
        ids_of = {ids: row.id for split in splits for row, ids in zip(split.examples, split.ids, strict=True)}
        self._batches = BatchLog(processes, ids_of)
        self._figures: dict[str, torch.Tensor] = {}  # sums of the current batch, by their names in the log
        self._most_unread = 1 if args.device.type == "cpu" else _MOST_UNREAD
        self._throughput = 0.0
        self._weights = loss_weights
        if loss_weights is not None:
            check_loss(vars(args), "loss_weights")
            train = replace(train, labels=mark_verification(train))
            held_out = replace(held_out, labels=mark_verification(held_out)) if held_out else None
        self.held_out = held_out
        self._measure, self._deciding = measure, (args.metric_for_best_model or "loss").removeprefix("eval_")
        padding = tokenizer.pad_token, model.config.get_text_config().pad_token_id
        early = [EarlyStopping(patience)] if patience and held_out else []
        try:
            with memory_for(f"moving the model to {args.device}", _LESS_MEMORY):
                super().__init__(
                    model=model,
                    args=args,
                    train_dataset=train.dataset(),
                    eval_dataset=held_out.dataset() if held_out else None,
                    processing_class=tokenizer,
                    peft_config=lora,
                    callbacks=[*callbacks, *early, FreedMemory()],
                )
        except (ValueError, ImportError) as error:  # for example target modules without a match
            raise UserError(f"the recipe does not fit the model: {' '.join(str(error).split())[:300]}") from None
        if loss_weights is not None and self.aux_loss_enabled:
            raise UserError("loss_weights: not for a mixture of experts that balances its router by a loss of its own")
        if not self.is_sharded:  # sharding needs a uniform dtype
            prepare_for_autocast(self.model, args, attn_implementation)
        if args.packing:
            dtype = getattr(torch, number_format(args, self.model)) if attn_implementation == "auto" else None
            with self.compute_loss_context_manager():
                prepare_packing(self.model, self.data_collator, train.ids, dtype, check=not self.is_sharded)
        if not len(self.get_train_dataloader()):
            raise UserError(f"training.dataloader_drop_last: {len(self.train_dataset)} rows are no whole batch")
        args.lr_scheduler_kwargs = scheduler_kwargs(args, self.planned_steps())
        # Undo TRL's default of EOS as the padding token: saved with the tokenizer, it would make other programs mask
        # EOS in training, and the model would never learn to stop.
        tokenizer.pad_token, self.model.config.get_text_config().pad_token_id = padding
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps: int = self.args.max_steps
        per_epoch = math.ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
        return steps if steps > 0 else math.ceil(self.args.num_train_epochs * per_epoch)

    def train_from(self, checkpoint: Path | None) -> None:
        """Train, from a checkpoint if there is one.

        Raises:
            UserError: The loss is not finite, memory is exhausted, or a checkpoint cannot be written; earlier
                checkpoints are kept.
        """
        # The checkpoint restores all state, that of random numbers too: a resumed run ends with the same bytes.
        if checkpoint and (steps := stopped_at(checkpoint)) is not None:
            self.args.max_steps = steps
        try:
            with memory_for("training", _LESS_MEMORY):
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception as error:  # exceptions of safetensors, torch and the system have no common base class
            if failure := writing_failed(Path(self.args.output_dir), self.state.global_step, error):
                raise failure from None
            raise

    def get_train_dataloader(self) -> Any:
        """The batches, which stay on the CPU until their turn: to count and regroup them on a GPU is to wait for it."""
        loader = super().get_train_dataloader()
        loader.device = None
        return loader

    def _prepare_input(self, data: Any) -> Any:
        """Move tensors to a GPU from pinned memory, because the copy of other memory waits for the GPU."""
        if torch.is_tensor(data) and data.device.type == "cpu" and self.args.device.type == "cuda":
            return data.pin_memory().to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if self._curriculum:
            self.add_callback(sampler := CurriculumFirst(len(self.train_dataset), self._curriculum, seed))
        elif isinstance(sampler, LengthGroupedSampler):
            self.add_callback(sampler := SeededByEpoch(sampler, seed))
        return sampler

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The batches of a step, regrouped by length; rows repeated to fill an epoch's last batch are masked."""
        if self.state.global_step >= self.state.max_steps:  # resumed from the final checkpoint, within an epoch
            self.control.should_training_stop = True
            return [], None
        self._total_train_tokens = self._total_train_tokens or self.state.num_input_tokens_seen  # from a checkpoint
        self._speed.start(self._total_train_tokens)
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        size = self._train_batch_size
        # Accelerate fills the last batch with rows from the start of the epoch, so that all processes get the same
        # number. Mask these rows here: in a resumed epoch, accelerate does not know how many they are.
        remaining = 0 if self.args.dataloader_drop_last else len(self.train_dataset) % (size * self.processes.count)
        if self.processes.count > 1 and batches and self.accelerator.gradient_state.end_of_dataloader and remaining:
            in_this_process = remaining - self.processes.rank * size
            batches[-1]["labels"][max(in_this_process, 0) :] = IGNORED
            items = self._get_num_items_in_batch(batches, device)
        # The load-balancing loss of a mixture of experts is a mean over each batch, so regrouping would change it.
        fixed = self.args.pad_to_multiple_of or self.aux_loss_enabled
        return (batches if fixed else regroup_by_length(batches)), items

    def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> Any:
        """The supervised tokens of a step, over all processes; with loss weights, the sum of their weights."""
        distributed = self.args.average_tokens_across_devices and self.args.world_size > 1
        items = super()._get_num_items_in_batch(batch_samples, device if distributed else torch.device("cpu"))
        if self._weights is None or items is None:
            return self._prepare_input(items)
        sums = [unmark(batch["labels"][:, 1:], self._weights)[1].sum() for batch in batch_samples]
        items = self._prepare_input(torch.stack(sums).sum())
        if distributed:
            items = self.accelerator.gather(items).sum()
        return items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the throughput since the last logged loss too."""
        self.read_batches()
        self.speed()
        if "loss" in logs:
            logs["tokens_per_second"] = self._speed.since_last(self._total_train_tokens)
        super().log(logs, start_time)
        if self.model.training:
            self._batches.sums.clear()

    def speed(self) -> float:
        """Tokens per second of this run so far; with unread batches, as of the last log."""
        if not len(self._batches):
            self._throughput = self._speed.overall(self._total_train_tokens)
        return self._throughput

    def full_weights(self) -> dict[str, Any] | None:
        """The full weights if they are sharded, else None; a collective call."""
        return self.accelerator.get_state_dict(self.model_wrapped) if self.is_sharded else None

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are divided among processes."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.read_batches()
        self.state.num_input_tokens_seen = self._total_train_tokens
        with self._speed.pause():
            super()._save_checkpoint(model, trial)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Do nothing: `sailkit.training.publish.model_card` writes the card."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch, divided by the supervised tokens of the step; NaN or infinity stops the run."""
        self._figures = {}
        loss = self._loss(model, inputs, return_outputs, num_items_in_batch)
        value = loss[0] if return_outputs else loss
        self._batches.note(self.state.global_step, self.model.training, value, inputs, self._figures)
        if len(self._batches) >= self._most_unread:
            self.read_batches()
        return loss

    def read_batches(self) -> None:
        """Read losses and counts of the last batches from the device, for the log; a collective call.

        Raises:
            UserError: A loss is NaN or infinite.
        """
        self._batches.read(self.accelerator.gather)
        tokens = self._batches.sums.pop("tokens", None)
        if tokens is not None:  # TRL counts where it computes the loss
            self._total_train_tokens += int(tokens)
            figures = self._batches.figures(self._total_train_tokens)
            self._metrics["train"].update({name: [value] for name, value in figures.items()})

    def _loss(self, model: Any, inputs: Any, return_outputs: bool, items: Any) -> Any:
        special = self.aux_loss_enabled or self.args.loss_type != "nll" or self.label_smoother is not None
        if self._weights is None and ((special and self.model.training) or return_outputs):
            return super().compute_loss(model, inputs, return_outputs, items)
        batch = token_losses(model, inputs, self._weights)
        self._note(inputs, inputs["labels"][:, 1:], batch.sums)
        total, count = batch.losses.sum(), batch.sums["predicted"]
        if batch.weights is not None:
            weighted = torch.stack([(batch.losses * batch.weights).sum(), batch.weights.sum()])
            self._weighted_sums = weighted.detach()
            total, count = weighted if self.model.training else (total, count)  # held-out loss is the plain mean
        return self._for_each_token(total, count, items)

    def _note(self, inputs: Any, next_labels: torch.Tensor, figures: dict[str, torch.Tensor]) -> None:
        """Note figures of a training batch for the log: sums, including `predicted` and `correct`."""
        if not self.model.training:
            return
        counted = (next_labels != IGNORED).any(1, keepdim=True)  # excludes masked rows; see `get_batch_samples`
        tokens = (inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])) * counted).sum()
        self._figures = {"tokens": tokens, **figures}

    def _for_each_token(self, total: torch.Tensor, count: torch.Tensor, items: Any) -> torch.Tensor:
        """Divide a summed loss by the supervised tokens of the step, or of the batch if those are unknown.

        Gradients accumulate over the batches of a step. Divided by the count of the step, they are the gradient of its
        mean loss, however it is split into batches; means over batches would overweight short completions.
        """
        loss = total / torch.as_tensor(count if items is None else items).clamp(min=1)
        if self.args.average_tokens_across_devices and items is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients
        return loss

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Mean loss per supervised held-out token, and further figures of the model.

        Transformers averages over batches, which overweights short completions. With loss weights, the weighted mean
        is another figure.
        """
        with inference(self) as model:
            losses = self._held_out_figures(model)
            further = self._measure(model) if self._measure else {}
        known, best = {**losses, **further}, self._deciding
        if best not in known:
            self.processes.raise_if_any(f"training.metric_for_best_model: no figure {best!r}; {nearest(best, known)}")
        figures = {f"{metric_key_prefix}_{name}": value for name, value in known.items() if value is not None}
        self._metrics["eval"].clear()
        with inference(self):  # or the log would take the figures of the training steps since its last line
            self.log(dict(figures))
        if metric_key_prefix == "eval":  # hide the evaluations before and after training from early stopping
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _determine_best_metric(self, metrics: Mapping[str, float], trial: Any) -> bool:
        """Whether an evaluation is the best so far; one at which the deciding figure is undefined is not."""
        return f"eval_{self._deciding}" in metrics and bool(super()._determine_best_metric(metrics, trial))

    def _held_out_figures(self, model: Any) -> dict[str, float]:
        """Mean loss per supervised held-out token, over all processes."""
        assert self.held_out is not None
        rows = self.held_out.dataset()
        sums: Any = 0
        size = self.args.per_device_eval_batch_size
        batches = rope_lengths(model.config).batches([len(row["input_ids"]) for row in rows], size)
        for indices, counts in self.processes.shard(batches):
            batch = self._prepare_inputs(self.data_collator([rows[i] for i in indices]))
            sums += self._held_out_sums(model, batch).double() * counts
        self.read_batches()
        return self._held_out_means(self.accelerator.reduce(sums).tolist())

    def _held_out_sums(self, model: Any, batch: Any) -> torch.Tensor:
        """The sums of a batch from which held-out figures are computed; shape (sums,)."""
        count = (batch["labels"][:, 1:] != IGNORED).sum()
        sums = torch.stack([self.compute_loss(model, batch, num_items_in_batch=None) * count, count])
        return sums if self._weights is None else torch.cat([sums, self._weighted_sums])

    def _held_out_means(self, sums: list[float]) -> dict[str, float]:
        """The held-out figures, from sums over all batches."""
        total, count, *rest = sums
        weighted = {"weighted_loss": rest[0] / max(rest[1], 1)} if rest else {}
        return {"loss": total / max(count, 1), **weighted}
