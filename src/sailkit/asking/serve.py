"""The verb `serve`: an OpenAI-compatible server that answers with search."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from sailkit import runs
from sailkit.arguments import checked
from sailkit.asking.listening import client_key, listen, quiet_signals, url_of
from sailkit.asking.model import SearchAugmentedModel
from sailkit.asking.results import Answer
from sailkit.asking.retrieve import SearchUnavailableError, check_k, open_retrieval
from sailkit.errors import UserError, at_least_one, required_extra
from sailkit.models.base import Model, ModelOptions, is_endpoint
from sailkit.models.endpoint import read_name
from sailkit.models.load import check_unloaded
from sailkit.models.sources import default_model
from sailkit.prompts.render import PromptTooLongError
from sailkit.prompts.sail import MOST_VERIFIED
from sailkit.records import Instruction, Searched, SearchResult
from sailkit.rendering.model import Report, Text, short
from sailkit.rendering.result import Result

_GRACE = 10  # seconds for answers in progress when the server stops


@dataclass(frozen=True)
class ServerRun(Result):
    """A server that has stopped.

    Attributes:
        url: Its base URL.
        model: The model's name for clients.
        answered: Number of answers.
        seconds: Time from its start to its end.
    """

    url: str
    model: str
    answered: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The fields as `--json` writes them."""
        return dict(vars(self))

    def report(self) -> Report:
        """Number of answers and time."""
        return short("", "", Text(f"stopped after {self.answered} answers in {self.seconds:.0f} s"))


@checked
def serve(
    *,
    model: str | Path | Model | None = None,
    corpus: list[Path] | None = None,
    engine: str = "bm25",
    search_run: Path | str | None = None,
    k: int = 3,
    searxng_url: str | None = None,
    style: Literal["auto", "sail", "sail-fixed", "chat"] = "auto",
    verify: Literal["auto", "on", "off"] = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    key_env: str | None = None,
    max_new_tokens: int = 512,
    max_request_kb: int = 256,
    queue: int = 16,
    time_limit: float = 120.0,
    options: Annotated[ModelOptions, Parameter(name="*")] = ModelOptions(),
) -> ServerRun:
    """Serve a model with search as an OpenAI-compatible endpoint.

    It serves until ctrl-C or SIGTERM.

    Clients use `/v1/models` and `/v1/chat/completions`, also streamed. The last message of the user is the question;
    it is searched for, unless the request has `search_results` of its own. The response has the results with the
    model's flags in `search_results`. Answers are greedy, and requests are answered one at a time.

    Args:
        model: A model, as in evaluate; smollm2-135m by default.
        corpus: Tables of documents, texts, folders of both, .tar.gz of .txt, .md and .json files; repeated.
        engine: bm25, dense, hybrid, searxng, web, or none to answer without search; see search.
        search_run: A run folder of search, or its results file: recorded results, for its questions only.
        k: Maximum results of each engine, at most 6 together.
        searxng_url: For searxng: the server, such as http://localhost:8080.
        style: The style in which search results are shown: by default that of the model's training, else chat if it has
            a template, else sail-fixed.
        verify: Have the model judge the search results before it answers; auto for models that were trained to.
        host: The address to listen on; one that other machines can reach needs a key.
        port: The port; 0 for any that is free.
        key_env: Environment variable with the key that clients must send; without it, no key is needed.
        max_new_tokens: Longest answer that a client may ask for, and the default.
        max_request_kb: Largest request, in kilobytes.
        queue: Most requests that wait or run; more are refused with status 429.
        time_limit: Seconds for a request, its wait included; then the answer is cut off.
        options: How to load and run the model.

    Returns:
        The number of answers, after the server has stopped.

    Raises:
        UserError: An option cannot be used, or the port is taken.
    """
    at_least_one(k=k, max_new_tokens=max_new_tokens, max_request_kb=max_request_kb, queue=queue)
    check_k(k)
    if not time_limit > 0:
        raise UserError(f"`time_limit` should be above 0, not {time_limit}")
    key = client_key(key_env, host)
    with required_extra("serve", "serving a model"):
        import uvicorn

        from sailkit.asking.gate import Limits
        from sailkit.asking.server import ModelFailedError, create_app
        from sailkit.asking.worker import Worker
    limits = Limits(max_request_kb * 1000, queue, time_limit, max_new_tokens)
    with (
        contextlib.closing(listen(host, port)) as listener,
        open_retrieval(engine, k, corpus, search_run, searxng_url) as retrieve,
    ):
        name = default_model(claims=False) if model is None else model
        check_unloaded(name, options)
        if isinstance(name, str) and is_endpoint(name):
            options = replace(options, timeout=min(options.timeout, time_limit))
        augmented = SearchAugmentedModel.load(name, options, MOST_VERIFIED, style=style, verify=verify)

        def answer(
            question: str,
            results: Sequence[SearchResult] | None,
            new_tokens: int,
            until: Sequence[str],
            stream: Callable[[Answer], None],
            stop: Callable[[], bool],
        ) -> Answer:
            given = None if results is None else Searched(Instruction("question", question), tuple(results))
            try:
                searched = given or retrieve(question)
            except SearchUnavailableError as error:
                runs.notice(f"sailkit: a question was not searched for: {error}")
                raise SearchUnavailableError("the search failed; the messages of the server say why") from None
            try:
                return augmented.answer(searched, new_tokens, stream, stop, until)
            except PromptTooLongError:
                raise
            except UserError as error:
                runs.notice(f"sailkit: a question was not answered: {error}")
                raise ModelFailedError("the model gave no answer; the messages of the server say why") from None
            finally:
                augmented.forget_prompts()

        worker = Worker(answer, limits, lambda: server.should_exit)
        name = augmented.model.name
        model_id = Path(read_name(name)[0] if is_endpoint(name) else os.path.abspath(name)).name  # a name, also for "."
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(model_id, worker, limits, key), log_config=None, access_log=False, lifespan="off", ws="none",
                server_header=False, proxy_headers=False, limit_concurrency=4 * queue + 16,
                timeout_graceful_shutdown=_GRACE,
            )
        )  # fmt: skip
        url = f"{url_of(host, listener)}/v1"
        runs.notice(f"sailkit: serving {model_id} at {url}; ctrl-C stops it")
        start = time.monotonic()
        with quiet_signals():
            server.run(sockets=[listener])
        worker.close()
        return ServerRun(url, model_id, worker.answered, time.monotonic() - start)
