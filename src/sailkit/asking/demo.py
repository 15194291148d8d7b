"""The verb `demo`: a page in the browser to try a model with search results that can be switched off or made up."""

from __future__ import annotations

import contextlib
import os
import time
import webbrowser
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from sailkit import runs
from sailkit.arguments import checked
from sailkit.asking.ask import claim_question
from sailkit.asking.demo_turns import DemoPipeline
from sailkit.asking.listening import client_key, listen, quiet_signals, url_of
from sailkit.asking.model import SearchAugmentedModel
from sailkit.asking.report import short_name
from sailkit.asking.retrieve import check_k, open_retrieval
from sailkit.asking.serve import ServerRun
from sailkit.errors import at_least_one, required_extra
from sailkit.models.base import Model, ModelOptions
from sailkit.models.load import check_unloaded
from sailkit.models.sources import default_model
from sailkit.packaged import sample_path
from sailkit.prompts.sail import MOST_VERIFIED
from sailkit.tasks.task import Task, load_task

_SAMPLES = ("sample:facts.jsonl", "sample:facts-train.jsonl")
_EXAMPLES = ("danube-1b", "danube-1a", "kilimanjaro-1a")  # claims of the sample task
_FREE_QUESTION = "Where does the Danube rise?"


@checked
def demo(
    *,
    model: str | Path | Model | None = None,
    compare_with: str | Path | Model | None = None,
    corpus: list[Path] | None = None,
    engine: str = "bm25",
    search_run: Path | str | None = None,
    k: int = 3,
    searxng_url: str | None = None,
    task: str | Path | Task = "sample-facts",
    wording: str | None = None,
    style: Literal["auto", "sail", "sail-fixed", "chat"] = "auto",
    verify: Literal["auto", "on", "off"] = "auto",
    max_new_tokens: int = 128,
    host: str = "127.0.0.1",
    port: int = 7860,
    key_env: str | None = None,
    open: bool = False,
    options: Annotated[ModelOptions, Parameter(name="*")] = ModelOptions(),
) -> ServerRun:
    """Try models with search results in the browser.

    The page takes a claim or a question, shows the search results with each model's flags and probabilities, and
    streams the answers side by side. Results can be switched off, and results of your own pasted. It runs until ctrl-C
    or SIGTERM; models are loaded once, and questions are answered one at a time. Nothing is written, and nothing is
    loaded from or sent to other hosts, except to a search engine or model endpoint that you name.

    Args:
        model: A model, as in evaluate; by default smollm2-135m-sail, beside its base smollm2-135m.
        compare_with: A second model that gets the same question and results, such as the base model.
        corpus: Tables of documents, texts, folders of both, .tar.gz of .txt, .md and .json files; repeated. By default
            the passages of the package's sample facts.
        engine: bm25, dense, hybrid, searxng, web, or none to answer without search; see search.
        search_run: A run folder of search, or its results file: recorded results, for its questions only.
        k: Maximum results of each engine, at most 6 together.
        searxng_url: For searxng: the server, such as http://localhost:8080.
        task: The task whose claims are judged: a built-in task, your own YAML file, or module:attribute.
        wording: One of the task's wordings; by default the first that leaves the search results to the style.
        style: The style in which search results are shown: by default that of the model's training, else chat if it has
            a template, else sail-fixed.
        verify: Have the model judge the search results before it answers; auto for models that were trained to.
        max_new_tokens: Longest answer to a free question.
        host: The address to listen on; one that other machines can reach needs a key.
        port: The port; 0 for any that is free.
        key_env: Environment variable with a key, which the browser then asks for as a password.
        open: Open the page in the browser.
        options: How to load and run the models.

    Returns:
        The number of answers, after the server has stopped.

    Raises:
        UserError: An option cannot be used, or the port is taken.
    """
    at_least_one(k=k, max_new_tokens=max_new_tokens)
    check_k(k)
    key = client_key(key_env, host)
    with required_extra("demo", "the demo"):
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
        import gradio  # noqa: F401 - takes seconds; missing, it is missed before models are loaded
        import uvicorn

        from sailkit.asking.demo_app import LIMITS, PageServer, create_app
        from sailkit.asking.worker import Worker
    question = claim_question(load_task(task), wording)
    on_samples = corpus is None and search_run is None and engine in ("bm25", "dense", "hybrid")
    passages = [sample_path(name) for name in _SAMPLES] if on_samples else corpus
    names: list[str | Path | Model] = [model or default_model(claims=True)]
    if model is None or compare_with is not None:
        names.append(compare_with or default_model(claims=False))
    for name in names:
        check_unloaded(name, options)
    with (
        contextlib.closing(listen(host, port)) as listener,
        open_retrieval(engine, k, passages, search_run, searxng_url) as retrieve,
    ):
        runs.notice("sailkit: loading the models")
        models = [SearchAugmentedModel.load(name, options, MOST_VERIFIED, style=style, verify=verify) for name in names]
        pipeline = DemoPipeline(models, question, retrieve, max_new_tokens)
        worker = Worker(pipeline.run, LIMITS, lambda: server.should_exit)
        search = f"{engine} over the sample facts" if on_samples else "recorded results" if search_run else engine
        app = create_app(pipeline.names, worker, _examples() if on_samples else [], search, key)
        server = PageServer(
            uvicorn.Config(
                app, log_config=None, access_log=False, ws="none", server_header=False, proxy_headers=False,
                timeout_graceful_shutdown=1,
            )
        )  # fmt: skip
        url = url_of(host, listener)
        runs.notice(f"sailkit: the demo is at {url} ; ctrl-C stops it")
        if open:
            webbrowser.open(url)  # the browser waits: the port is open already
        start = time.monotonic()
        with quiet_signals():
            server.run(sockets=[listener])
        worker.close()
        return ServerRun(url, ", ".join(map(short_name, pipeline.names)), worker.answered, time.monotonic() - start)


def _examples() -> list[tuple[bool, str]]:
    """Claims of the sample task, and a free question: whether it is a claim, and the text."""
    texts = {example.id: example.text for example in load_task("sample-facts").load().examples}
    return [*((True, texts[name]) for name in _EXAMPLES), (False, _FREE_QUESTION)]
