"""A local causal language model that scores and generates answers in planned batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import tokenizers
import torch
import transformers

from sailkit.errors import UserError
from sailkit.files import jsonl
from sailkit.models.base import SCORE_RESERVE, Finished, ModelOptions, Reply, check_scorable
from sailkit.models.batching import batch_by_length, default_batch_tokens
from sailkit.models.checks import check_finite, check_tokens, memory_for
from sailkit.models.decoding import AnswerDecoder
from sailkit.models.generation import generate_batch
from sailkit.models.halving import LESS_MEMORY, BatchHalver
from sailkit.models.rope import forget_lengths, rope_lengths
from sailkit.models.scoring import log_normalizer, tree_logprobs
from sailkit.models.selftest import sharing_agrees, try_lengths
from sailkit.models.shared_prefix import SharedPrefix, tree_nodes
from sailkit.models.sources import resolve
from sailkit.models.weights import compute_dtype, context_length, load_pretrained, pick_device, pick_dtype, stop_ids
from sailkit.prompts.render import Prompt, Rendered, Renderer
from sailkit.records import AnswerScore

_TREE_TOKENS = 4096  # most tree tokens of a forward pass: each costs a row of logits
_GPU_THREADS = 3  # one waits for a pass, one renders, one reads replies
_PASS_LOGITS = 2**27  # most logits of a planned pass over token ids: 0.5 GB in float32


class LocalModel:
    """A transformers causal language model.

    Prompts with a common prefix share its key-value cache, and the answers to a prompt are scored in one forward pass
    as a tree of tokens (see `SharedPrefix`). Logits are computed at scored positions only.

    Attributes:
        scoring_threads: See `Model`. While one thread waits for the GPU, others render prompts and read replies. They
            make their forward passes in turn, so these need the memory of one.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        options: ModelOptions,
        facts: dict[str, Any],
        halver: BatchHalver | None = None,
    ) -> None:
        """Wrap a loaded model.

        Args:
            name: The name by which it was loaded.
            model: A transformers causal language model in evaluation mode.
            tokenizer: Its tokenizer.
            options: How to run it.
            facts: Fingerprints and revisions, for the manifest.
            halver: That of an earlier wrapper of the same model, which remembers what did not fit into memory.

        Raises:
            UserError: `chat='on'` for a model without a chat template, the template fails, or memory runs out.
        """
        templated = bool(getattr(tokenizer, "chat_template", None))
        if options.chat == "on" and not templated:
            raise UserError(f"{name} has no chat template; use `chat='auto'` or `chat='off'`")
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.dtype = compute_dtype(model)
        self.scoring_threads = _GPU_THREADS if self.device.type == "cuda" else 1
        self.batch_tokens = options.batch_tokens or default_batch_tokens(self.device.type)
        context = context_length(model, tokenizer)
        self.renderer = Renderer(
            tokenizer, chat=templated and options.chat != "off", context=context, date=options.date
        )
        self.date = options.date
        self._options, self._facts = options, facts
        self.decode = AnswerDecoder(tokenizer)
        # The token that ends a turn of a conversation is often another than the one that ends a text.
        closing = self.renderer.border.closing_id
        self.stop_ids = stop_ids(model, tokenizer) | (frozenset() if closing is None else {closing})
        self.shared_prefix = SharedPrefix(model, self.dtype)
        self._rendered = lru_cache(maxsize=65536)(self.renderer.render)
        self.lengths = rope_lengths(model.config)
        self.halver = halver or BatchHalver()
        forget_lengths(model)
        with memory_for(f"trying {name} on a few tokens", LESS_MEMORY):
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
        with memory_for(f"moving {name} to {device}", LESS_MEMORY):
            model = model.to(device)  # what is not there yet, such as buffers
        return cls(name, model.eval(), tokenizer, options, facts)

    def without_template(self) -> LocalModel:
        """The same model without its chat template, as if loaded with `chat='off'`; the weights are shared."""
        options = replace(self._options, chat="off")
        return LocalModel(self.name, self.model, self.tokenizer, options, self._facts, self.halver)

    def describe(self) -> dict[str, Any]:
        """Everything that determines the answers."""
        return {
            "model": self.name,
            **self._facts,
            **self.renderer.border.describe(),
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

    def render(self, prompt: Prompt, reserve: int) -> Rendered:
        """A prompt as token ids, with room for an answer; search results are shortened to fit."""
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
                rendered.append(self.render(prompt, reserve))
            except UserError as error:
                raise type(error)(f"{names[i] if names else f'prompt {i}'}: {error}") from None
        full_lengths = [len(prompt.ids) + reserve for prompt in rendered]
        # Beyond the RoPE threshold a prompt has other frequencies than the cached prefix, so it is encoded in full.
        sharing = [self.shared and not self.lengths.regime(length) for length in full_lengths]
        head = min((prompt.head for prompt, shares in zip(rendered, sharing, strict=True) if shares), default=0)
        lengths = [length - head * shares for length, shares in zip(full_lengths, sharing, strict=True)]
        return batch_by_length(lengths, self.batch_tokens)

    def plan_ids(self, lengths: Sequence[int], answers: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """Batches of prompts of similar length for `score_ids`, longest first.

        Each is within the token budget, of which the tree of the answers takes its nodes for every prompt, and within
        a budget of logits, because each node costs a row of them.

        Args:
            lengths: Tokens of each prompt.
            answers: What is scored after every prompt.
        """
        added = self._added_tokens(answers)
        logits = (added + 1) * self.model.config.get_text_config().vocab_size
        return batch_by_length(
            [length + added for length in lengths],
            self.batch_tokens,
            fits=lambda batch: len(batch) * logits <= _PASS_LOGITS,
        )

    def _added_tokens(self, answers: Sequence[tuple[int, ...]]) -> int:
        """Tokens that scoring appends to each prompt in a pass: the nodes of the tree, or the longest answer."""
        return len(tree_nodes(tuple(answers))) if self.shared else max(map(len, answers))

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt], answers: Mapping[str, str]) -> list[Reply]:
        """Log-probability of each label's answer word after each prompt; see `Model.score`."""
        check_scorable(self)
        rendered = [self.render(prompt, SCORE_RESERVE) for prompt in prompts]
        # The tokens of an answer depend on the text before it: after a begun answer they differ from those at a border.
        kinds = {prompt.begun: prompt for prompt in reversed(rendered)}
        ids = {
            begun: tuple(self.renderer.answer_ids(prompt, word) for word in answers.values())
            for begun, prompt in kinds.items()
        }
        self._check([answer for kind in ids.values() for answer in kind])
        if (longest := max(len(answer) for kind in ids.values() for answer in kind)) > SCORE_RESERVE:
            rendered = [self.render(prompt, longest) for prompt in prompts]
        replies: dict[int, Reply] = {}
        for words in dict.fromkeys(ids.values()):
            group = [i for i, prompt in enumerate(rendered) if ids[prompt.begun] == words]
            for i, row in zip(group, self._score([rendered[i] for i in group], words), strict=True):
                scores = zip(answers.items(), words, row, strict=True)
                by_word = {word: AnswerScore(label, tokens, value) for (label, word), tokens, value in scores}
                replies[i] = replace(reply_to(rendered[i]), answers=by_word)
        return [replies[i] for i in range(len(rendered))]

    @torch.inference_mode()
    def score_ids(self, prompts: Sequence[tuple[int, ...]], answers: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Summed log-probability of token sequences after prompts of token ids, shape (prompts, answers).

        `plan_ids` divides many prompts into calls.
        """
        self._check([*prompts, *answers])
        return self._score([Rendered(ids, (), 0, 0) for ids in prompts], answers)

    def forget_prompts(self) -> None:
        """Drop the cached prompts; a server calls it after each request."""
        self._rendered.cache_clear()

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, finished: Finished, likely: Sequence[str] = ()
    ) -> list[Reply]:
        """Greedy answers; see `Model.generate`. Likely answers are tried first, as a tree in one forward pass."""
        rendered = [self.render(prompt, max_new_tokens) for prompt in prompts]
        written: list[Any] = [None] * len(rendered)
        if likely and self.shared:
            answers = [self.renderer.answer_ids(rendered[0], text) for text in likely]
            self._check(answers)
            rows = max(1, _TREE_TOKENS // sum(map(len, answers)))
            sharing = self._sharing(rendered, answers)
            parts = [sharing[i : i + rows] for i in range(0, len(sharing), rows)]
            added = self._added_tokens(answers)
            length = partial(_tokens, added)
            for part in parts:
                batch = [rendered[i] for i in part]
                followed = self.halving(batch, lambda p: self._follow_batch(p, answers), ("follow", added), length)
                for i, ids in zip(part, followed, strict=True):
                    written[i] = ids
        rest = [i for i, ids in enumerate(written) if ids is None]
        if rest:
            batch = [rendered[i] for i in rest]
            kind, length = ("generate", max_new_tokens), partial(_tokens, max_new_tokens)
            generated = self.halving(batch, lambda p: generate_batch(self, p, max_new_tokens, finished), kind, length)
            for i, ids in zip(rest, generated, strict=True):
                written[i] = ids
        texts = [self.text_of(prompt, ids) for prompt, ids in zip(rendered, written, strict=True)]
        # A complete answer has fewer tokens than the limit, because the stop token is not counted.
        limit = max_new_tokens
        return [
            replace(
                reply_to(prompt),
                text=text,
                completion_tokens=len(ids),
                cut_off=i in rest and len(ids) == limit and not finished(text),
            )
            for i, (prompt, ids, text) in enumerate(zip(rendered, written, texts, strict=True))
        ]

    def text_of(self, prompt: Rendered, ids: Sequence[int]) -> str:
        """The generated text, after the opening of a thought if the prompt ends in one."""
        return prompt.thought + self.decode(ids)

    def halving(
        self, batch: Sequence[Any], work: Callable[[Sequence[Any]], Any], kind: Hashable, length: Callable[[Any], int]
    ) -> list[Any]:
        """Compute a batch, in halves where memory runs out; see `BatchHalver.run`. Threads do so in turn."""
        with self.halver.turn:
            return self.halver.run(self.model, batch, work, kind, length)

    def _sharing(self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]) -> list[int]:
        """The prompts that have the RoPE frequencies of short sequences with every answer."""
        longest = max(map(len, answers))
        return [i for i, prompt in enumerate(batch) if not self.lengths.regime(len(prompt.ids) + longest)]

    def _score(self, batch: Sequence[Rendered], answers: Sequence[tuple[int, ...]]) -> list[list[float]]:
        added = self._added_tokens(answers)
        work, length = partial(self._score_batch, answers=answers), partial(_tokens, added)
        return self.halving(batch, work, ("score", added), length)

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
        return tree_logprobs(logits, nodes, answers)

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
                ).logits  # fmt: skip
                normalizer = log_normalizer(logits)
                total = sum(logits[:, n, token].float() - normalizer[:, n] for n, token in enumerate(answer))
                scores[group, column] = torch.as_tensor(total).cpu()
        return scores.tolist()


def _tokens(added: int, prompt: Rendered) -> int:
    return len(prompt.ids) + added


def reply_to(prompt: Rendered) -> Reply:
    """A reply to a prompt, without text or scores yet."""
    return Reply(prompt.text, jsonl.fingerprint(prompt.ids)[:16], len(prompt.ids), cut_tokens=prompt.cut_tokens)
