"""Starts and runs vLLM's engine in this process; prompts go in and answers come out as token ids."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from sailkit.errors import UserError, required_extra

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in another process, requests would arrive while the first are computed
    "VLLM_NO_USAGE_STATS": "1",  # nothing is sent to anybody
    "VLLM_LOGGING_LEVEL": "ERROR",  # it warns, among others, that there is no tokenizer
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for results
}
# By default it compiles the model first, and takes 92 % of the memory; VLLM_CPU_KVCACHE_SPACE gives it more.
_ON_CPU: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 4 * 2**30}
_RUNNING: list[int] = []  # id of the engine; a second one would share, and end, its process group


def vllm_version(needed_for: str) -> str:
    """The version of vLLM.

    Args:
        needed_for: What needs it, for the error.

    Raises:
        UserError: vLLM is not installed.
    """
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    with required_extra("vllm", needed_for):
        import vllm
    return str(vllm.__version__)


def start_engine(folder: str, dtype: str, trust_remote_code: bool, engine_args: Mapping[str, Any]) -> Any:
    """Start an engine without a tokenizer; `stop_engine` stops it.

    Its context is the longest for which it has memory, at most that of the model.

    Args:
        folder: Folder of the model, with safetensors.
        dtype: Number format of the weights.
        trust_remote_code: Run code that the model's repository carries.
        engine_args: Further arguments of vLLM's engine.

    Raises:
        UserError: Another engine runs in this process.
    """
    if _RUNNING:
        gc.collect()  # of a model that is no longer used
    if _RUNNING:
        raise UserError("one model at a time in a process, and another is in use")
    # Libraries below vLLM keep the exceptions of failed imports, whose frames keep the callers and their models alive.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(import_module, "vllm.entrypoints.llm").result()
    from vllm import LLM
    from vllm.platforms import current_platform

    try:
        engine = LLM(
            folder,
            skip_tokenizer_init=True,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            load_format="safetensors",
            generation_config="vllm",  # that of the folder may set sampling and penalties
            max_model_len=-1,
            seed=0,
            max_logprobs=-1,  # no limit
            use_tqdm_on_load=False,
            **{**(_ON_CPU if current_platform.is_cpu() else {}), **engine_args},
        ).llm_engine
    except BaseException:
        _leave_process_group()
        raise
    finally:
        gc.unfreeze()  # vLLM exempts every object of the process from garbage collection
    _RUNNING.append(id(engine))
    return engine


def stop_engine(engine: Any) -> None:
    """Stop an engine, so that the process can train or start another."""
    engine.engine_core.shutdown()
    _leave_process_group()
    _RUNNING.remove(id(engine))


def _leave_process_group() -> None:
    """Leave vLLM's process group of torch, in which a trainer would take this process for a part of a launch."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def continue_greedily(
    engine: Any,
    prompts: Sequence[tuple[int, ...]],
    limit: int,
    stop_ids: frozenset[int],
    is_complete: Callable[[int, Sequence[int]], bool],
) -> list[list[int]]:
    """Greedy continuations of prompts, without stop tokens.

    Args:
        engine: From `start_engine`.
        prompts: Token ids.
        limit: Most tokens of a continuation.
        stop_ids: Tokens that end a continuation.
        is_complete: Takes the index of a prompt and its continuation so far, after each token.

    Returns:
        Token ids for each prompt.

    Raises:
        UserError: A prompt with its continuation is longer than the engine's context.
    """
    from vllm import SamplingParams

    _check_context(engine, max(map(len, prompts)) + limit)
    stops = sorted(i for i in stop_ids if i < engine.model_config.get_vocab_size())
    greedy = SamplingParams(temperature=0.0, max_tokens=limit, stop_token_ids=stops, detokenize=False)
    written: list[list[int]] = [[] for _ in prompts]
    running = {str(i): i for i in range(len(prompts))}
    engine.reset_prefix_cache()  # a resumed run begins without it, and low bits may depend on it
    try:
        for name, i in running.items():
            engine.add_request(name, {"prompt_token_ids": list(prompts[i])}, greedy)
        while running:
            for output in engine.step():
                name = output.request_id
                if name not in running:
                    continue
                i, ids = running[name], written[running[name]]
                ended = extend(ids, output.outputs[0].token_ids[len(ids) :], stop_ids, partial(is_complete, i, ids))
                if ended and not output.finished:
                    engine.abort_request([name])
                if ended or output.finished:
                    del running[name]
    finally:
        engine.abort_request(list(running))  # after an error, or the next batch would get their answers
    return written


def prompt_logprobs(
    engine: Any, prompts: Sequence[tuple[int, ...]], k: int
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """Log-probabilities of the tokens of prompts, each given the tokens before it.

    Args:
        engine: From `start_engine`.
        prompts: Token ids.
        k: Number of likeliest tokens at each position.

    Returns:
        Token ids and log-probabilities (nats) for each prompt of n tokens, both of shape (n - 1, 1 + k): the prompt's
        own token, and the k likeliest, likeliest first.

    Raises:
        UserError: A prompt is longer than the engine's context, which has to hold one more token; or vLLM does not
            return all of its log-probabilities.
    """
    from vllm import SamplingParams

    _check_context(engine, max(map(len, prompts)) + 1)
    # One token is written, because vLLM computes no request without one. The flat format is lists of numbers.
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=k, flat_logprobs=True, detokenize=False)
    rows: dict[str, Any] = {}
    try:
        for i, prompt in enumerate(prompts):
            engine.add_request(str(i), {"prompt_token_ids": list(prompt)}, params)
        while len(rows) < len(prompts):
            for output in engine.step():
                flat, shape = output.prompt_logprobs, (len(prompts[int(output.request_id)]) - 1, 1 + k)
                ids, logprobs = np.array(flat.token_ids, np.int64), np.array(flat.logprobs, np.float64)
                if ids.size != shape[0] * shape[1] or not np.isfinite(logprobs).all():
                    raise UserError("vLLM did not return a finite log-probability of each token; try `dtype='float32'`")
                rows[output.request_id] = ids.reshape(shape), logprobs.reshape(shape)
    finally:
        engine.abort_request([str(i) for i in range(len(prompts)) if str(i) not in rows])
    return [rows[str(i)] for i in range(len(prompts))]


def _check_context(engine: Any, tokens: int) -> None:
    if tokens > (most := engine.model_config.max_model_len):
        raise UserError(
            f"vLLM's context is {most} tokens (the model's, or what memory allows), and prompt and answer need "
            f"{tokens}; use a smaller `max_length` or `max_new_tokens`, or more memory"
        )


def extend(ids: list[int], new: Sequence[int], stop_ids: frozenset[int], is_complete: Callable[[], bool]) -> bool:
    """Append new tokens up to the end of a continuation.

    Args:
        ids: The continuation so far.
        new: The next tokens.
        stop_ids: Tokens that end a continuation and do not belong to it.
        is_complete: Called after each token.

    Returns:
        Whether the end was reached.
    """
    for token in new:
        if token in stop_ids:
            return True
        ids.append(token)
        if is_complete():
            return True
    return False
