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

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.base import SCORE_RESERVE, Finished, ModelOptions, Reply, check_scorable
from sailkit.models.batching import batch_by_length
from sailkit.models.checks import check_finite, check_tokens, memory_for, out_of_memory
from sailkit.models.decoding import AnswerDecoder
from sailkit.models.rope import forget_lengths, rope_lengths
from sailkit.models.selftest import sharing_agrees, try_lengths
from sailkit.models.shared_prefix import SharedPrefix
from sailkit.models.sources import resolve
from sailkit.models.weights import compute_dtype, context_length, load_pretrained, pick_device, pick_dtype, stop_ids
from sailkit.prompts.render import Prompt, Rendered, Renderer
from sailkit.records import AnswerScore

_BATCH_TOKENS = {"cpu": 2048}  # more adds padding and cache misses, less reads the weights too often
_BATCH_TOKENS_ELSEWHERE = 32768
_LESS_MEMORY = "use a smaller model, `dtype='bfloat16'` or more memory"
_TREE_TOKENS = 4096  # of likely answers in a pass: each of them costs a row of logits


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
            UserError: `--chat on` for a model without a chat template, or one whose template fails.
        """
        templated = bool(getattr(tokenizer, "chat_template", None))
        if options.chat == "on" and not templated:
            raise UserError(f"{name} has no chat template; use `chat='auto'` or `chat='off'`")
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.dtype = compute_dtype(model)
        self.batch_tokens = options.batch_tokens or _BATCH_TOKENS.get(self.device.type, _BATCH_TOKENS_ELSEWHERE)
        context = context_length(model, tokenizer)
        self.renderer = Renderer(
            tokenizer, chat=templated and options.chat != "off", context=context, date=options.date
        )
        self.date = options.date
        self._facts = {**facts, **self.renderer.border.describe()}
        self.decode = AnswerDecoder(tokenizer)
        # What ends a turn of the conversation is often another token than what ends a text.
        self._stop_ids = stop_ids(model, tokenizer) | ({self.renderer.border.closing_id} - {None})
        self.shared_prefix = SharedPrefix(model, self.dtype)
        self._rendered = lru_cache(maxsize=65536)(self.renderer.render)
        self.lengths = rope_lengths(model.config)
        forget_lengths(model)
        self.shared = sharing_agrees(self)
        try_lengths(self)

    @classmethod
    def from_name(cls, name: str, options: ModelOptions) -> LocalModel:
        """Load a model by name; see `sailkit.models.load.load_model`."""
        source = resolve(name)
        device = pick_device(options.device)
        dtype = pick_dtype(options.dtype, device)
        model, tokenizer = load_pretrained(source, dtype, options.trust_remote_code)
        facts = {**source.trained(), "revision": source.revision, **source.digests()}
        options = replace(options, date=options.date or source.trained_date())
        with memory_for(f"moving {name} to {device}", _LESS_MEMORY):
            model = model.to(device)
        return cls(name, model.eval(), tokenizer, options, facts)

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
            **self.lengths.describe(),
            "batch_tokens": self.batch_tokens,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        }

    def count_tokens(self, text: str) -> int:
        """How many tokens a text takes."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _render(self, prompt: Prompt, reserve: int) -> Rendered:
        rendered = self._rendered(prompt, reserve)
        self._check([rendered.ids])
        return rendered

    def _check(self, rows: Sequence[tuple[int, ...]]) -> None:
        embeddings = self.model.get_input_embeddings().weight.shape[0]
        check_tokens(rows, embeddings, self.tokenizer, self.name)

    def plan(self, prompts: Sequence[Prompt], reserve: int, names: Sequence[str] = ()) -> list[list[int]]:
        """Batches of prompts of like length, longest first, within the token budget."""
        rendered = []
        for i, prompt in enumerate(prompts):
            try:
                rendered.append(self._render(prompt, reserve))
            except UserError as error:
                raise UserError(f"{names[i] if names else f'prompt {i}'}: {error}") from None
        whole = [len(prompt.ids) + reserve for prompt in rendered]
        sharing = [self.shared and not self.lengths.regime(length) for length in whole]
        head = min((prompt.head for prompt, shares in zip(rendered, sharing, strict=True) if shares), default=0)
        lengths = [length - head * shares for length, shares in zip(whole, sharing, strict=True)]
        return batch_by_length(lengths, self.batch_tokens)

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt], answers: Mapping[str, str]) -> list[Reply]:
        """Log-probability of each label's answer word behind each prompt; see `Model.score`."""
        check_scorable(self)
        rendered = [self._render(prompt, SCORE_RESERVE) for prompt in prompts]
        # Behind what has begun, an answer's tokens may be others than at the border.
        kinds = {prompt.begun: prompt for prompt in reversed(rendered)}
        ids = {
            begun: tuple(self.renderer.answer_ids(prompt, word) for word in answers.values())
            for begun, prompt in kinds.items()
        }
        self._check([answer for kind in ids.values() for answer in kind])
        if (longest := max(len(answer) for kind in ids.values() for answer in kind)) > SCORE_RESERVE:
            rendered = [self._render(prompt, longest) for prompt in prompts]
        found: dict[int, Reply] = {}
        for words in dict.fromkeys(ids.values()):
            group = [i for i, prompt in enumerate(rendered) if ids[prompt.begun] == words]
            rows = self.halving([rendered[i] for i in group], lambda part, words=words: self._score_batch(part, words))
            for i, row in zip(group, rows, strict=True):
                scores = zip(answers.items(), words, row, strict=True)
                own = {word: AnswerScore(label, tokens, value) for (label, word), tokens, value in scores}
                found[i] = replace(_reply(rendered[i]), answers=own)
        return [found[i] for i in range(len(rendered))]

    @torch.inference_mode()
    def score_ids(self, prompts: Sequence[tuple[int, ...]], answers: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Summed log-probability of token sequences behind prompts of token ids, shape (prompts, answers)."""
        self._check([*prompts, *answers])
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
            self._check(answers)
            rows = max(1, _TREE_TOKENS // sum(map(len, answers)))
            sharing = self._sharing(rendered, answers)
            parts = [sharing[i : i + rows] for i in range(0, len(sharing), rows)]
            for part in parts:
                followed = self.halving([rendered[i] for i in part], lambda p: self._follow_batch(p, answers))
                for i, ids in zip(part, followed, strict=True):
                    found[i] = ids
        rest = [i for i, ids in enumerate(found) if ids is None]
        more = [rendered[i] for i in rest]
        written = self.halving(more, lambda part: self._generate_batch(part, max_new_tokens, finished)) if more else []
        for i, ids in zip(rest, written, strict=True):
            found[i] = ids
        texts = [self._text(prompt, ids) for prompt, ids in zip(rendered, found, strict=True)]
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

    def _text(self, prompt: Rendered, ids: Sequence[int]) -> str:
        """What a model wrote; a thought that the prompt opened for it is part of that."""
        return prompt.thought + self.decode(ids)

    def halving(self, batch: Sequence[Any], work: Any) -> list[Any]:
        """Do a batch; where memory runs out, do its halves."""
        try:
            return list(work(batch))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise UserError(f"out of memory with a single prompt; {_LESS_MEMORY}") from None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        text = f"out of memory with {len(batch)} prompts; going on with half of them"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        middle = len(batch) // 2
        return self.halving(batch[:middle], work) + self.halving(batch[middle:], work)

    def _sharing(self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]) -> list[int]:
        """The prompts behind which all answers are short enough to share a pass, whatever the others' lengths are."""
        longest = max(map(len, answers))
        return [i for i, prompt in enumerate(batch) if not self.lengths.regime(len(prompt.ids) + longest)]

    def _score_batch(self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Summed log-probabilities, shape (prompts, answers)."""
        sharing = self._sharing(batch, answers) if self.shared else []
        rest = sorted(set(range(len(batch))) - set(sharing))
        scores: dict[int, list[float]] = {}
        for part, score in ((sharing, self.score_shared), (rest, self.score_rows)):
            if part:
                scores |= zip(part, score([batch[i] for i in part], answers), strict=True)
        return [scores[i] for i in range(len(batch))]

    def score_shared(self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """The same in one pass: what prompts share is computed once, and answers hang behind them as a tree."""
        logits, place = self.shared_prefix.answer_tree(batch, answers)
        logits = logits.float()
        normal = torch.logsumexp(logits, -1)
        check_finite(normal)
        columns = []
        for answer in answers:
            steps = [(place[answer[:n]], token) for n, token in enumerate(answer)]
            columns.append(torch.stack([logits[:, at, token] - normal[:, at] for at, token in steps]).sum(0))
        return torch.stack(columns, 1).tolist()

    def _follow_batch(
        self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...] | None]:
        """The answer that greedy generation would write first behind each prompt, or None where it is none of these."""
        logits, place = self.shared_prefix.answer_tree(batch, answers)
        check_finite(logits.amax(-1))
        found: list[tuple[int, ...] | None] = []
        for tokens in logits.argmax(-1).tolist():
            said: tuple[int, ...] = ()
            while said in place:
                said += (tokens[place[said]],)
            found.append(said if said in answers else None)
        return found

    def score_rows(self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """The same, one answer at a time, for models whose cache or attention is of another kind."""
        scores = torch.zeros(len(batch), len(answers))
        for column, answer in enumerate(answers):
            for group in self.lengths.groups([len(prompt.ids) + len(answer) for prompt in batch]):
                # What comes last is not needed but for its position, where the length means something.
                last = 1 if self.lengths.regime(len(batch[group[0]].ids) + len(answer)) else 0
                rows = [batch[i].ids + answer[: len(answer) - 1 + last] for i in group]
                inputs, keep, positions = self.shared_prefix.left_pad(rows)
                logits = self.model(
                    input_ids=inputs, attention_mask=keep, position_ids=positions,
                    use_cache=False, logits_to_keep=len(answer) + last,
                ).logits.float()  # fmt: skip
                normal = torch.logsumexp(logits, -1)
                check_finite(normal)
                total = sum(logits[:, n, token] - normal[:, n] for n, token in enumerate(answer))
                scores[group, column] = torch.as_tensor(total).cpu()
        return scores.tolist()

    def _generate_batch(self, batch: Sequence[Rendered], max_new_tokens: int, finished: Finished) -> list[list[int]]:
        """New token ids of each prompt, without the end-of-text token."""
        made: list[list[int]] = [[] for _ in batch]
        waiting = list(range(len(batch)))
        while waiting:
            groups = self.lengths.groups([len(batch[i].ids) + len(made[i]) for i in waiting])
            parts = [[waiting[i] for i in group] for group in groups]
            waiting = [i for part in parts for i in self._write(batch, part, made, max_new_tokens, finished)]
        return made

    def _write(
        self, batch: Sequence[Rendered], alive: list[int], made: list[list[int]], limit: int, finished: Finished
    ) -> list[int]:
        """Write on behind some prompts of a batch, as long as the cache means what it meant.

        Returns:
            Those that are not finished: they have become so long that what is cached of them means something else.
        """
        rows = [replace(batch[i], ids=batch[i].ids + tuple(made[i])) for i in alive]
        regime = self.lengths.regime(len(rows[0].ids))
        waiting: list[int] = []
        if self.shared and not regime:
            cache, inputs, positions, mask = self.shared_prefix.prepare(rows, [])
            keep = mask[:, 0, -1] == 0
        else:
            inputs, keep, positions = self.shared_prefix.left_pad([row.ids for row in rows])
            cache, mask = None, keep
        while alive:
            out = self.model(
                input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            cache = out.past_key_values
            check_finite(out.logits.amax(-1))
            tokens = out.logits[:, -1].argmax(-1).tolist()
            stay = []
            for row, (i, token) in enumerate(zip(alive, tokens, strict=True)):
                if token in self._stop_ids:
                    continue
                made[i].append(token)
                if len(made[i]) == limit or finished(self._text(batch[i], made[i])):
                    continue
                if self.lengths.regime(len(batch[i].ids) + len(made[i])) == regime:
                    stay.append(row)
                else:
                    waiting.append(i)
            if not stay:
                break
            picked = torch.tensor(stay, device=self.device)
            if len(stay) < len(alive):
                cache.batch_select_indices(picked)
            alive = [alive[row] for row in stay]
            inputs = torch.tensor([[made[i][-1]] for i in alive], device=self.device)
            positions = positions[picked, -1:] + 1
            keep = torch.cat([keep[picked], keep.new_ones(len(stay), 1)], 1)
            mask = keep.long()
        return waiting


def _reply(prompt: Rendered) -> Reply:
    return Reply(prompt.text, jsonl.fingerprint(prompt.ids)[:16], len(prompt.ids), cut_tokens=prompt.cut_tokens)
