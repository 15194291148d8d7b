"""A local model that vLLM runs: it generates, and computes the log-probabilities of prompts."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sailkit.distributed import process_count
from sailkit.errors import UserError
from sailkit.models.base import VLLM, Finished, ModelOptions, Reply, check_scorable
from sailkit.models.checks import memory_for
from sailkit.models.local import LocalModel, reply_to
from sailkit.models.parity import PARITY_TOKENS, first_difference, next_logprobs, parity_prompts, same_logprobs
from sailkit.models.selftest import TOLERANCE
from sailkit.models.sources import resolve
from sailkit.models.vllm_engine import continue_greedily, prompt_logprobs, start_engine, stop_engine, vllm_version
from sailkit.models.weights import free_memory
from sailkit.prompts.render import Prompt

_COMPARED = 8  # likeliest tokens at each position whose log-probabilities are compared with those of transformers
_BATCH_TOKENS = 2**17  # vLLM divides a batch by itself; answers are written, and a run is resumed, batch by batch


class VllmModel:
    """A local model that vLLM runs.

    Prompts are rendered as for transformers and passed as token ids, so that no text becomes a special token. The
    engine starts with the first answer, and is used only if it continues a few prompts as transformers does.

    Attributes:
        name: `vllm:` and the name of the model.
        local: The model in transformers, which renders and decodes; without weights once the engine has started.
    """

    def __init__(self, name: str, options: ModelOptions, engine_args: Mapping[str, Any] | None = None) -> None:
        """Load a model with transformers; the engine starts with the first answer.

        Args:
            name: The name of a local model.
            options: How to load and run it; vLLM uses the number format that they select.
            engine_args: Further arguments of vLLM's engine.

        Raises:
            UserError: vLLM is not installed, an option has no effect on it, or the model cannot be loaded; or a
                launcher started this process.
        """
        self.name = VLLM + name
        if process_count() > 1:
            raise UserError(f"{self.name}: vLLM runs in one process; start without a launcher")
        for option in ("device", "attn_implementation"):
            if (value := getattr(options, option)) != "auto":
                raise UserError(f"`{option}` {value} has no effect on vLLM, which chooses its own; leave it out")
        self._version = vllm_version(self.name)
        self._trust_remote_code = options.trust_remote_code
        self._engine_args = engine_args or {}
        self._source = resolve(name)
        self._engine: Any = None
        self._unchecked: list[tuple[tuple[int, ...], list[torch.Tensor]]] = []  # prompts, with what follows them
        self.local = LocalModel.from_name(name, replace(options, batch_tokens=options.batch_tokens or _BATCH_TOKENS))

    @classmethod
    def from_name(cls, name: str, options: ModelOptions) -> VllmModel:
        """The model of `vllm:MODEL`; see `sailkit.models.load.load_model`."""
        return cls(name.removeprefix(VLLM), options)

    def describe(self) -> dict[str, Any]:
        """Everything that determines the answers, with the check that the engine passes before the first of them."""
        described = {**self.local.describe(), "model": self.name, "engine": f"vllm {self._version}"}
        for of_transformers in ("attention", "shared_passes"):
            del described[of_transformers]
        near_tie = TOLERANCE[self.local.dtype]
        parity = {"prompts": len(parity_prompts()), "tokens": PARITY_TOKENS, "near_tie": near_tie}
        return {**described, "equals_transformers": parity}

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a text."""
        return self.local.count_tokens(text)

    def plan(self, prompts: Sequence[Prompt], reserve: int, names: Sequence[str] = ()) -> list[list[int]]:
        """Batches of prompts of similar length, longest first, within the token budget."""
        return self.local.plan(prompts, reserve, names)

    def forget_prompts(self) -> None:
        """Drop the cached prompts; a server calls it after each request."""
        self.local.forget_prompts()

    def score(self, prompts: Sequence[Prompt], answers: Mapping[str, str]) -> list[Reply]:
        """Raise a UserError; see `check_scorable`."""
        check_scorable(self)
        return []

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, finished: Finished, likely: Sequence[str] = ()
    ) -> list[Reply]:
        """Greedy answers; see `Model.generate`. `likely` is not used."""
        engine = self._running_engine()
        rendered = [self.local.render(prompt, max_new_tokens) for prompt in prompts]
        written = continue_greedily(
            engine,
            [prompt.ids for prompt in rendered],
            max_new_tokens,
            self.local.stop_ids,
            lambda i, ids: finished(self.local.text_of(rendered[i], ids)),
        )
        replies = []
        for prompt, ids in zip(rendered, written, strict=True):
            text = self.local.text_of(prompt, ids)
            cut_off = len(ids) == max_new_tokens and not finished(text)
            replies.append(replace(reply_to(prompt), text=text, completion_tokens=len(ids), cut_off=cut_off))
        return replies

    def prompt_logprobs(
        self, prompts: Sequence[tuple[int, ...]], k: int
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        """Log-probabilities of the tokens of prompts; see `sailkit.models.vllm_engine.prompt_logprobs`.

        Raises:
            UserError: vLLM cannot run the model, or does not compute the log-probabilities that transformers computes.
        """
        engine = self._running_engine()
        with memory_for(f"{self.name} reads prompts", "use `dtype='bfloat16'` or more memory"):
            if self._unchecked:
                self._check_logprobs(engine)
            return prompt_logprobs(engine, prompts, k)

    def _check_logprobs(self, engine: Any) -> None:
        # The greedy answers of transformers as a part of the prompt, whatever vLLM writes.
        rows = [row + tuple(int(step.argmax()) for step in steps) for row, steps in self._unchecked]
        vocabulary = len(self._unchecked[0][1][0])
        read = prompt_logprobs(engine, rows, min(_COMPARED, vocabulary))
        for (_, steps), (tokens, logprobs) in zip(self._unchecked, read, strict=True):
            if not same_logprobs(tokens, logprobs, steps, self.local.dtype):
                raise self._differs("the log-probabilities of its prompts are others")
        self._unchecked = []

    def _running_engine(self) -> Any:
        """The engine, which is started first if need be.

        Raises:
            UserError: vLLM cannot run the model, or does not continue prompts as transformers does.
        """
        if self._engine is not None:
            return self._engine
        rows = [self.local.render(prompt, PARITY_TOKENS).ids for prompt in parity_prompts()]
        expected = [next_logprobs(self.local, row) for row in rows]
        with tempfile.TemporaryDirectory(prefix="sailkit-") as merged:
            if self._source.adapters:
                self.local.model.save_pretrained(merged)
            self.local.model.to("meta")  # the engine needs the memory
            free_memory()
            folder = merged if self._source.adapters else str(self._source.folder)
            dtype, trust_remote_code = self.local.describe()["dtype"], self._trust_remote_code
            try:
                engine = start_engine(folder, dtype, trust_remote_code, self._engine_args)
                weakref.finalize(self, stop_engine, engine)
                written = continue_greedily(engine, rows, PARITY_TOKENS, self.local.stop_ids, lambda i, ids: False)
            except Exception as error:  # too little memory, an unknown architecture ...: without a common base class
                why = " ".join(str(error).split())[:300]
                raise UserError(f"{self.name}: vLLM cannot run it: {why}; leave out {VLLM!r}") from None
        for ids, logprobs in zip(written, expected, strict=True):
            difference = first_difference(ids, logprobs, self.local.stop_ids)
            if difference and difference.behind > TOLERANCE[self.local.dtype]:
                tokens = self.local.tokenizer.convert_ids_to_tokens([difference.token, difference.likeliest])
                raise self._differs(
                    f"after {difference.index} tokens it writes {tokens[0]!r}, whose log-probability is "
                    f"{difference.behind:.3g} below that of {tokens[1]!r}"
                )
        self._engine = engine
        self._unchecked = list(zip(rows, expected, strict=True))
        return engine

    def _differs(self, how: str) -> UserError:
        return UserError(
            f"{self.name}: vLLM does not compute what transformers computes: {how}; leave out {VLLM!r}, or use another "
            "version of vLLM"
        )
