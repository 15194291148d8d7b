"""A local causal language model that scores and generates answers in planned batches."""

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
from sailkit.models.generation import generate_batch
from sailkit.models.rope import forget_lengths, rope_lengths
from sailkit.models.selftest import sharing_agrees, try_lengths
from sailkit.models.shared_prefix import SharedPrefix
from sailkit.models.sources import resolve
from sailkit.models.weights import compute_dtype, context_length, load_pretrained, pick_device, pick_dtype, stop_ids
from sailkit.prompts.render import Prompt, Rendered, Renderer
from sailkit.records import AnswerScore

_BATCH_TOKENS = {"cpu": 2048}  # larger batches add padding and cache misses, smaller ones reread the weights
_BATCH_TOKENS_ELSEWHERE = 32768
_LESS_MEMORY = "use a smaller model, `dtype='bfloat16'` or more memory"
_TREE_TOKENS = 4096  # most tree tokens of a forward pass: each costs a row of logits


class LocalModel:
    """A transformers causal language model.

    Prompts with a common prefix share its key-value cache, and the answers to a prompt are scored in one forward pass
    as a tree of tokens (see `SharedPrefix`). Logits are computed at scored positions only.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, options: ModelOptions, facts: dict[str, Any]) -> None:
        """Wrap a loaded model.

        Args:
            name: The name by which it was loaded.
            model: A transformers causal language model in evaluation mode.
            tokenizer: Its tokenizer.
            options: How to run it.
            facts: Fingerprints and revisions, for the manifest.

        Raises:
            UserError: `chat='on'` for a model without a chat template, or the template fails.
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
        # The token that ends a turn of a conversation is often another than the one that ends a text.
        self.stop_ids = stop_ids(model, tokenizer) | ({self.renderer.border.closing_id} - {None})
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
        attention = options.attn_implementation
        model, tokenizer = load_pretrained(
            source, dtype, options.trust_remote_code, device=device, attn_implementation=attention
        )
        facts = {**source.trained(), "revision": source.revision, **source.digests()}
        options = replace(options, date=options.date or source.trained_date())
        with memory_for(f"moving {name} to {device}", _LESS_MEMORY):
            model = model.to(device)  # what is not there yet, such as buffers
        return cls(name, model.eval(), tokenizer, options, facts)

    def describe(self) -> dict[str, Any]:
        """Everything that determines the answers."""
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
        """The number of tokens of a text."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _render(self, prompt: Prompt, reserve: int) -> Rendered:
        rendered = self._rendered(prompt, reserve)
        self._check([rendered.ids])
        return rendered

    def _check(self, rows: Sequence[tuple[int, ...]]) -> None:
        embeddings = self.model.get_input_embeddings().weight.shape[0]
        check_tokens(rows, embeddings, self.tokenizer, self.name)

    def plan(self, prompts: Sequence[Prompt], reserve: int, names: Sequence[str] = ()) -> list[list[int]]:
        """Batches of prompts of similar length, longest first, within the token budget."""
        rendered = []
        for i, prompt in enumerate(prompts):
            try:
                rendered.append(self._render(prompt, reserve))
            except UserError as error:
                raise UserError(f"{names[i] if names else f'prompt {i}'}: {error}") from None
        full_lengths = [len(prompt.ids) + reserve for prompt in rendered]
        # Beyond the RoPE threshold a prompt has other frequencies than the cached prefix, so it is encoded in full.
        sharing = [self.shared and not self.lengths.regime(length) for length in full_lengths]
        head = min((prompt.head for prompt, shares in zip(rendered, sharing, strict=True) if shares), default=0)
        lengths = [length - head * shares for length, shares in zip(full_lengths, sharing, strict=True)]
        return batch_by_length(lengths, self.batch_tokens)

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt], answers: Mapping[str, str]) -> list[Reply]:
        """Log-probability of each label's answer word after each prompt; see `Model.score`."""
        check_scorable(self)
        rendered = [self._render(prompt, SCORE_RESERVE) for prompt in prompts]
        # The tokens of an answer depend on the text before it: after a begun answer they differ from those at a border.
        kinds = {prompt.begun: prompt for prompt in reversed(rendered)}
        ids = {
            begun: tuple(self.renderer.answer_ids(prompt, word) for word in answers.values())
            for begun, prompt in kinds.items()
        }
        self._check([answer for kind in ids.values() for answer in kind])
        if (longest := max(len(answer) for kind in ids.values() for answer in kind)) > SCORE_RESERVE:
            rendered = [self._render(prompt, longest) for prompt in prompts]
        replies: dict[int, Reply] = {}
        for words in dict.fromkeys(ids.values()):
            group = [i for i, prompt in enumerate(rendered) if ids[prompt.begun] == words]
            rows = self.halving([rendered[i] for i in group], lambda part, words=words: self._score_batch(part, words))
            for i, row in zip(group, rows, strict=True):
                scores = zip(answers.items(), words, row, strict=True)
                by_word = {word: AnswerScore(label, tokens, value) for (label, word), tokens, value in scores}
                replies[i] = replace(_reply(rendered[i]), answers=by_word)
        return [replies[i] for i in range(len(rendered))]

    @torch.inference_mode()
    def score_ids(self, prompts: Sequence[tuple[int, ...]], answers: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Summed log-probability of token sequences after prompts of token ids, shape (prompts, answers)."""
        self._check([*prompts, *answers])
        rendered = [Rendered(ids, (), 0, 0) for ids in prompts]
        return self.halving(rendered, lambda part: self._score_batch(part, answers))

    def forget_prompts(self) -> None:
        """Drop the cached prompts; a server calls it after each request."""
        self._rendered.cache_clear()

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, finished: Finished, likely: Sequence[str] = ()
    ) -> list[Reply]:
        """Greedy answers; see `Model.generate`. Likely answers are tried first, as a tree in one forward pass."""
        rendered = [self._render(prompt, max_new_tokens) for prompt in prompts]
        written: list[Any] = [None] * len(rendered)
        if likely and self.shared:
            answers = [self.renderer.answer_ids(rendered[0], text) for text in likely]
            self._check(answers)
            rows = max(1, _TREE_TOKENS // sum(map(len, answers)))
            sharing = self._sharing(rendered, answers)
            parts = [sharing[i : i + rows] for i in range(0, len(sharing), rows)]
            for part in parts:
                followed = self.halving([rendered[i] for i in part], lambda p: self._follow_batch(p, answers))
                for i, ids in zip(part, followed, strict=True):
                    written[i] = ids
        rest = [i for i, ids in enumerate(written) if ids is None]
        if rest:
            batch = [rendered[i] for i in rest]
            generated = self.halving(batch, lambda part: generate_batch(self, part, max_new_tokens, finished))
            for i, ids in zip(rest, generated, strict=True):
                written[i] = ids
        texts = [self.text_of(prompt, ids) for prompt, ids in zip(rendered, written, strict=True)]
        # A complete answer has fewer tokens than the limit, because the stop token is not counted.
        limit = max_new_tokens
        return [
            replace(
                _reply(prompt),
                text=text,
                completion_tokens=len(ids),
                cut_off=i in rest and len(ids) == limit and not finished(text),
            )
            for i, (prompt, ids, text) in enumerate(zip(rendered, written, texts, strict=True))
        ]

    def text_of(self, prompt: Rendered, ids: Sequence[int]) -> str:
        """The generated text, after the opening of a thought if the prompt ends in one."""
        return prompt.thought + self.decode(ids)

    def halving(self, batch: Sequence[Any], work: Any) -> list[Any]:
        """Compute a batch; if memory runs out, compute its halves separately."""
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
        """The prompts that have the RoPE frequencies of short sequences with every answer."""
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
        """Scores in one forward pass, with a shared prefix and the answers as a tree; see `SharedPrefix`."""
        logits, nodes = self.shared_prefix.answer_tree(batch, answers)
        logits = logits.float()
        normalizer = torch.logsumexp(logits, -1)
        check_finite(normalizer)
        columns = []
        for answer in answers:
            # Each token is predicted at the node of the answer's preceding tokens.
            steps = [(nodes[answer[:n]], token) for n, token in enumerate(answer)]
            columns.append(torch.stack([logits[:, node, token] - normalizer[:, node] for node, token in steps]).sum(0))
        return torch.stack(columns, 1).tolist()

    def _follow_batch(
        self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...] | None]:
        """The given answer that greedy generation would write after each prompt, or None if it would write another.

        The likeliest tokens are followed from node to node until they leave the tree.
        """
        logits, nodes = self.shared_prefix.answer_tree(batch, answers)
        check_finite(logits.amax(-1))
        written: list[tuple[int, ...] | None] = []
        for likeliest in logits.argmax(-1).tolist():
            ids: tuple[int, ...] = ()
            while ids in nodes:
                ids += (likeliest[nodes[ids]],)
            written.append(ids if ids in answers else None)
        return written

    def score_rows(self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Scores from padded rows, one answer at a time: for models whose cache or attention cannot share a prefix."""
        scores = torch.zeros(len(batch), len(answers))
        for column, answer in enumerate(answers):
            for group in self.lengths.groups([len(prompt.ids) + len(answer) for prompt in batch]):
                # The last token is only predicted; it is an input only if the RoPE frequencies depend on the length.
                last = 1 if self.lengths.regime(len(batch[group[0]].ids) + len(answer)) else 0
                rows = [batch[i].ids + answer[: len(answer) - 1 + last] for i in group]
                inputs, keep, positions = self.shared_prefix.left_pad(rows)
                logits = self.model(
                    input_ids=inputs, attention_mask=keep, position_ids=positions,
                    use_cache=False, logits_to_keep=len(answer) + last,
                ).logits.float()  # fmt: skip
                normalizer = torch.logsumexp(logits, -1)
                check_finite(normalizer)
                total = sum(logits[:, n, token] - normalizer[:, n] for n, token in enumerate(answer))
                scores[group, column] = torch.as_tensor(total).cpu()
        return scores.tolist()


def _reply(prompt: Rendered) -> Reply:
    return Reply(prompt.text, jsonl.fingerprint(prompt.ids)[:16], len(prompt.ids), cut_tokens=prompt.cut_tokens)
