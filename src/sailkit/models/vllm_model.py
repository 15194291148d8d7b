"""A local model that generates with vLLM, which also gives the log-probabilities of prompts."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sailkit.distributed import process_count
from sailkit.errors import UserError
from sailkit.models.base import VLLM, Finished, ModelOptions, Reply, check_scorable
from sailkit.models.local import LocalModel, reply_to
from sailkit.models.parity import (
    PARITY_TOKENS,
    Difference,
    first_difference,
    largest_difference,
    next_logprobs,
    parity_prompts,
)
from sailkit.models.selftest import TOLERANCE
from sailkit.models.sources import resolve
from sailkit.models.vllm_engine import continue_greedily, prompt_logprobs, start_engine, stop_engine, vllm_version
from sailkit.models.weights import free_memory
from sailkit.prompts.render import Prompt

_COMPARED = 8  # of the likeliest tokens at each position of a prompt, whose log-probabilities are compared
_BATCH_TOKENS = 2**17  # vLLM divides a batch by itself; answers are written, and a run is resumed, batch by batch


class VllmModel:
    """A local model that generates with vLLM.

    Prompts are rendered as for transformers and passed as token ids, so that no text becomes a special token. The
    engine starts with the first answer, and is used only if it continues a few prompts as transformers does.

    Attributes:
        name: `vllm:` and the name of the model.
        local: The model in transformers, which renders and decodes; without weights once the engine has started.
    """

    def __init__(self, name: str, options: ModelOptions, settings: Mapping[str, Any] | None = None) -> None:
        """Load a model with transformers; the engine starts with the first answer.

        Args:
            name: The name of a local model.
            options: How to load and run it; vLLM uses the number format that they select.
            settings: Further arguments of vLLM.

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
        self._settings = settings or {}
        self._source = resolve(name)
        self._engine: Any = None
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
        engine = self._started()
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
        """Log-probabilities of the tokens of prompts; see `sailkit.models.vllm_engine.prompt_logprobs`."""
        return prompt_logprobs(self._started(), prompts, k)

    def _started(self) -> Any:
        """The engine, which is started first if need be.

        Raises:
            UserError: vLLM cannot run the model, or does not compute what transformers computes.
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
                engine = start_engine(folder, dtype, trust_remote_code, self._settings)
                weakref.finalize(self, stop_engine, engine)
                written = continue_greedily(engine, rows, PARITY_TOKENS, self.local.stop_ids, lambda i, ids: False)
                # The greedy answers of transformers as prompts, whatever vLLM has written.
                answers = [tuple(int(step.argmax()) for step in steps) for steps in expected]
                k = min(_COMPARED, len(expected[0][0]))
                read = prompt_logprobs(engine, [row + answer for row, answer in zip(rows, answers, strict=True)], k)
            except Exception as error:  # too little memory, an unknown architecture ...: without a common base class
                why = " ".join(str(error).split())[:300]
                raise UserError(f"{self.name}: vLLM cannot run it: {why}; leave out {VLLM!r}") from None
        for ids, steps, (tokens, logprobs) in zip(written, expected, read, strict=True):
            self._check(first_difference(ids, steps, self.local.stop_ids), largest_difference(tokens, logprobs, steps))
        self._engine = engine
        return engine

    def _check(self, difference: Difference | None, largest: float) -> None:
        most = TOLERANCE[self.local.dtype]
        why = ""
        if difference and difference.behind > most:
            tokens = self.local.tokenizer.convert_ids_to_tokens([difference.token, difference.likeliest])
            why = (
                f"after {difference.index} tokens it writes {tokens[0]!r}, whose log-probability is "
                f"{difference.behind:.3g} below that of {tokens[1]!r}"
            )
        elif not largest <= most:
            why = f"a log-probability differs by {largest:.3g}"
        if why:
            raise UserError(
                f"{self.name}: vLLM does not compute what transformers computes: {why}; leave out {VLLM!r}, or use "
                "another version of vLLM"
            )
