"""A causal language model on this machine: scores answers and generates, in planned batches."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import tokenizers
import torch
import transformers

from sailkit import jsonl
from sailkit.errors import UserError
from sailkit.models import SCORE_RESERVE, Finished, ModelOptions, Reply
from sailkit.models.checks import finite, out_of_memory
from sailkit.models.loading import compute_dtype, context_length, load, pick_device, pick_dtype, stop_ids
from sailkit.models.passes import Passes
from sailkit.models.sources import resolve
from sailkit.prompts import Prompt, Rendered, Renderer
from sailkit.records import AnswerScore

_BATCH_TOKENS = {"cpu": 2048}  # more adds padding and cache misses, less reads the weights too often
_BATCH_TOKENS_ELSEWHERE = 32768
_TREE_TOKENS = 4096  # of likely answers in a pass: each of them costs a row of logits
_AGREE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}  # and a tenth of it of larger values


class LocalModel:
    """A transformers causal language model.

    Prompts of one wording share their beginning: it goes through the model once. The answers of one prompt share
    the prompt: they hang behind it as a tree, in the same pass. The vocabulary head sees scored positions only.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, options: ModelOptions, facts: dict[str, Any]) -> None:
        """Wrap a loaded model.

        Args:
            name: What the user called it.
            model: A transformers causal language model in evaluation mode.
            tokenizer: Its tokenizer.
            options: How to run it.
            facts: Fingerprints and the like, for the manifest.

        Raises:
            UserError: `--chat on` for a model without a chat template.
        """
        templated = bool(getattr(tokenizer, "chat_template", None))
        if options.chat == "on" and not templated:
            raise UserError(f"{name} has no chat template; use --chat auto or off")
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.dtype = compute_dtype(model)
        self.batch_tokens = options.batch_tokens or _BATCH_TOKENS.get(self.device.type, _BATCH_TOKENS_ELSEWHERE)
        self.renderer = Renderer(
            tokenizer, chat=templated and options.chat != "off", context=context_length(model, tokenizer)
        )
        self._facts = facts
        self._stop_ids = stop_ids(model, tokenizer)
        self.passes = Passes(model, self.dtype)
        self._render = lru_cache(maxsize=65536)(self.renderer.render)
        self.shared = self._sharing_agrees()

    @classmethod
    def from_name(cls, name: str, options: ModelOptions) -> LocalModel:
        """Load a model by name; see `sailkit.models.load_model`."""
        source = resolve(name)
        device = pick_device(options.device)
        dtype = pick_dtype(options.dtype, device)
        model, tokenizer = load(source, dtype, options.trust_remote_code)
        facts = {**source.trained(), "revision": source.revision, **source.digests()}
        return cls(name, model.to(device).eval(), tokenizer, options, facts)

    def describe(self) -> dict[str, Any]:
        """Everything about the model that decides its answers."""
        return {
            "model": self.name,
            **self._facts,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "chat_template": jsonl.fingerprint(self.tokenizer.chat_template)[:16] if self.renderer.chat else None,
            "attention": self.model.config._attn_implementation,
            "shared_passes": self.shared,
            "batch_tokens": self.batch_tokens,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        }

    def count_tokens(self, text: str) -> int:
        """How many tokens a text takes."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def plan(self, prompts: Sequence[Prompt], reserve: int, names: Sequence[str] = ()) -> list[list[int]]:
        """Batches of prompts of like length, longest first, within the token budget."""
        rendered = []
        for i, prompt in enumerate(prompts):
            try:
                rendered.append(self._render(prompt, reserve))
            except UserError as error:
                raise UserError(f"{names[i] if names else f'prompt {i}'}: {error}") from None
        head = min((prompt.head for prompt in rendered), default=0) if self.shared else 0
        lengths = [len(prompt.ids) - head + reserve for prompt in rendered]
        batches: list[list[int]] = []
        longest = 0
        for i in sorted(range(len(prompts)), key=lambda i: (-lengths[i], i)):
            if not batches or (len(batches[-1]) + 1) * longest > self.batch_tokens:
                batches.append([])
                longest = lengths[i]
            batches[-1].append(i)
        return batches

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt], answers: Mapping[str, str]) -> list[Reply]:
        """Log-probability of each label's answer word behind each prompt; see `Model.score`."""
        rendered = [self._render(prompt, SCORE_RESERVE) for prompt in prompts]
        ids = {label: self.renderer.answer_ids(rendered[0], word) for label, word in answers.items()}
        if (longest := max(map(len, ids.values()))) > SCORE_RESERVE:
            rendered = [self._render(prompt, longest) for prompt in prompts]
        values = self.halving(rendered, lambda part: self._score_batch(part, list(ids.values())))
        return [
            replace(
                _reply(prompt),
                answers={
                    word: AnswerScore(label, ids[label], value)
                    for (label, word), value in zip(answers.items(), row, strict=True)
                },
            )
            for prompt, row in zip(rendered, values, strict=True)
        ]

    @torch.inference_mode()
    def score_ids(self, prompts: Sequence[tuple[int, ...]], answers: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Summed log-probability of token sequences behind prompts of token ids, shape (prompts, answers)."""
        rendered = [Rendered(ids, (), 0, 0) for ids in prompts]
        return self.halving(rendered, lambda part: self._score_batch(part, answers))

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, finished: Finished, likely: Sequence[str] = ()
    ) -> list[Reply]:
        """Greedy answers; see `Model.generate`. What is likely is followed as a tree, in a single pass."""
        rendered = [self._render(prompt, max_new_tokens) for prompt in prompts]
        found: list[Any] = [None] * len(rendered)
        if likely and self.shared:
            answers = [self.renderer.answer_ids(rendered[0], text) for text in likely]
            rows = max(1, _TREE_TOKENS // sum(map(len, answers)))
            parts = [rendered[i : i + rows] for i in range(0, len(rendered), rows)]
            found = [ids for part in parts for ids in self.halving(part, lambda p: self._follow_batch(p, answers))]
        rest = [i for i, ids in enumerate(found) if ids is None]
        more = [rendered[i] for i in rest]
        written = self.halving(more, lambda part: self._generate_batch(part, max_new_tokens, finished)) if more else []
        for i, ids in zip(rest, written, strict=True):
            found[i] = ids
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in found]
        # An answer that ended has a token fewer than the limit: the one that ended it is not counted.
        limit = max_new_tokens
        return [
            replace(
                _reply(prompt),
                text=text,
                completion_tokens=len(ids),
                cut_off=i in rest and len(ids) == limit and not finished(text),
            )
            for i, (prompt, ids, text) in enumerate(zip(rendered, found, texts, strict=True))
        ]

    def halving(self, batch: Sequence[Any], work: Any) -> list[Any]:
        """Do a batch; where memory runs out, do its halves."""
        try:
            return list(work(batch))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise UserError(
                    "out of memory with a single prompt; use a smaller model, --dtype bfloat16 or more memory"
                ) from None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory with {len(batch)} prompts; going on with half of them",
            RuntimeWarning,
            stacklevel=2,
        )
        middle = len(batch) // 2
        return self.halving(batch[:middle], work) + self.halving(batch[middle:], work)

    def _score_batch(self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Summed log-probabilities, shape (prompts, answers)."""
        if not self.shared:
            return self._score_rows(batch, answers)
        logits, place = self.passes.tree(batch, answers)
        logits = logits.float()
        normal = torch.logsumexp(logits, -1)
        finite(normal)
        columns = []
        for answer in answers:
            steps = [(place[answer[:n]], token) for n, token in enumerate(answer)]
            columns.append(torch.stack([logits[:, at, token] - normal[:, at] for at, token in steps]).sum(0))
        return torch.stack(columns, 1).tolist()

    def _follow_batch(
        self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...] | None]:
        """The answer that greedy generation would write first behind each prompt, or None where it is none of these."""
        logits, place = self.passes.tree(batch, answers)
        finite(logits.amax(-1))
        found: list[tuple[int, ...] | None] = []
        for tokens in logits.argmax(-1).tolist():
            said: tuple[int, ...] = ()
            while said in place:
                said += (tokens[place[said]],)
            found.append(said if said in answers else None)
        return found

    def _score_rows(self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """The same, one answer at a time, for models whose cache or attention is of another kind."""
        columns = []
        for answer in answers:
            rows = [prompt.ids + answer[:-1] for prompt in batch]
            inputs, keep, positions = self.passes.left_pad(rows)
            logits = self.model(
                input_ids=inputs, attention_mask=keep, position_ids=positions,
                use_cache=False, logits_to_keep=len(answer),
            ).logits.float()  # fmt: skip
            normal = torch.logsumexp(logits, -1)
            finite(normal)
            columns.append(sum(logits[:, n, token] - normal[:, n] for n, token in enumerate(answer)))
        return torch.stack(columns, 1).tolist()

    def _generate_batch(self, batch: Sequence[Rendered], max_new_tokens: int, finished: Finished) -> list[list[int]]:
        """New token ids of each prompt, without the end-of-text token."""
        made: list[list[int]] = [[] for _ in batch]
        alive = list(range(len(batch)))
        if self.shared:
            cache, inputs, positions, mask = self.passes.open(batch, [])
            keep = mask[:, 0, -1] == 0
        else:
            inputs, keep, positions = self.passes.left_pad([prompt.ids for prompt in batch])
            cache, mask = None, keep
        for _ in range(max_new_tokens):
            out = self.model(
                input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            cache = out.past_key_values
            finite(out.logits.amax(-1))
            tokens = out.logits[:, -1].argmax(-1).tolist()
            stay = []
            for row, (i, token) in enumerate(zip(alive, tokens, strict=True)):
                if token in self._stop_ids:
                    continue
                made[i].append(token)
                if not finished(self.tokenizer.decode(made[i], skip_special_tokens=True)):
                    stay.append(row)
            if not stay:
                break
            rows = torch.tensor(stay, device=self.device)
            if len(stay) < len(alive):
                cache.batch_select_indices(rows)
            alive = [alive[row] for row in stay]
            inputs = torch.tensor([[made[i][-1]] for i in alive], device=self.device)
            positions = positions[rows, -1:] + 1
            keep = torch.cat([keep[rows], keep.new_ones(len(stay), 1)], 1)
            mask = keep.long()
        return made

    @torch.inference_mode()
    def _sharing_agrees(self) -> bool:
        """Try shared and padded passes against plain ones on a few tokens; architectures differ in caches and masks."""
        from transformers.cache_utils import DynamicLayer

        ids = tuple(range(3, 11))
        batch = [Rendered(ids, (), 4, 0), Rendered(ids[:6], (), 4, 0)]
        answers = [ids[:1], ids[2:4], ids[2:3] + ids[5:7]]
        alone = torch.tensor([self._score_rows([prompt], answers)[0] for prompt in batch])

        def agrees(found: list[list[float]]) -> bool:
            most = _AGREE[self.dtype]  # a tuned model can be at -70, and rounding grows with that
            return torch.allclose(torch.tensor(found), alone, rtol=most / 10, atol=most)

        layers = getattr(self.passes.run_prefix(ids[:4]), "layers", None)
        if not layers or not agrees(self._score_rows(batch, answers)):
            kind = type(self.model).__name__
            raise UserError(f"{self.name} ({kind}) is no causal transformer that answers alike alone and in a batch")
        known = self.model.config._attn_implementation in ("sdpa", "eager")
        if not known or not all(type(layer) is DynamicLayer for layer in layers):
            return False
        self.shared = True
        try:
            return agrees(self._score_batch(batch, answers))
        except (TypeError, ValueError, RuntimeError, UserError):
            return False  # its masks are of another kind


def _reply(prompt: Rendered) -> Reply:
    return Reply(prompt.text, jsonl.fingerprint(prompt.ids)[:16], len(prompt.ids), cut_tokens=prompt.cut_tokens)
