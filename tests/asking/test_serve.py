"""The verb `serve`: a real server process and real clients, and the limits of the application."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import httpx
import openai
import pytest

import sailkit
from sailkit.asking.gate import Limits
from sailkit.asking.results import Answer
from sailkit.asking.retrieve import NotRecordedError, SearchUnavailableError
from sailkit.asking.server import create_app
from sailkit.asking.worker import Worker
from sailkit.errors import UserError
from sailkit.models.base import ModelOptions
from sailkit.records import Judgement, SearchResult

KEY = "key-of-the-clients"
QUESTION = "Who makes honey?"


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notes")
    (folder / "bees.md").write_text("Bees make honey in a hive.")
    (folder / "tower.md").write_text("The tower was finished in 1889.")
    return folder


@contextlib.contextmanager
def serving(model_id, *arguments, cwd=None, **variables):
    """The base URL and the process of a server, which ends itself after five minutes."""
    command = ["timeout", 300, sys.executable, "-m", "sailkit", "serve", "--port", 0, *arguments]
    process = subprocess.Popen(
        [*map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", **{name: str(value) for name, value in variables.items()}},
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if match := re.search(rf"serving {model_id} at (http://127\.0\.0\.1:\d+/v1); ctrl-C stops it", line):
            break
    else:
        process.communicate()
        pytest.fail("".join(lines))
    try:
        yield match[1], process
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server(shared, notes, tmp_path_factory):
    """A server with a key, and a corpus to search, in the folder of its model."""
    with serving(
        "stories260k", "--key-env", "THE_KEY", "--model", ".", "--corpus", notes, "--k", 1, "--max-new-tokens", 200,
        "--max-request-kb", 8, cwd=shared / "models" / "stories260k", THE_KEY=KEY,
        SAILKIT_CACHE=tmp_path_factory.mktemp("cache"),
    ) as running:  # fmt: skip
        yield running


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with openai.OpenAI(base_url=server[0], api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def messages(text: str = QUESTION) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]


def test_a_client_gets_the_answer_and_flags_of_ask(client, shared):
    assert [model.id for model in client.models.list()] == ["stories260k"]
    passage = {"title": "bees", "body": "Bees make honey in a hive."}
    answer = sailkit.ask(QUESTION, model=shared / "models" / "stories260k", results=[passage], max_new_tokens=12)
    reply = client.chat.completions.create(model="stories260k", messages=messages(), max_tokens=12, temperature=0.7)
    assert reply.choices[0].message.content == answer.answer
    assert reply.choices[0].finish_reason == "length"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (answer.prompt_tokens, 12)
    (result,) = reply.model_extra["search_results"]
    assert (result["body"], result["source"]) == (passage["body"], "bm25")
    assert result["verdict"] == answer.judgements[0].verdict
    assert result["informative"] == pytest.approx(answer.judgements[0].score, abs=1e-5)


def test_a_streamed_answer_begins_with_the_flags_and_is_the_same(client):
    how = {"model": "stories260k", "messages": messages(), "max_completion_tokens": 12}
    whole = client.chat.completions.create(**how).choices[0].message.content
    chunks = list(client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].model_extra["search_results"][0]["verdict"] in ("informative", "distracting")
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole
    assert sum(map(bool, pieces)) > 3
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 12


def test_an_answer_ends_before_the_texts_at_which_the_client_stops_it(client):
    how = {"model": "stories260k", "messages": messages(), "max_completion_tokens": 30}
    whole = client.chat.completions.create(**how).choices[0].message.content
    stop = [whole[20:23], "no such text"]
    (choice,) = client.chat.completions.create(**how, stop=stop).choices
    assert (choice.message.content, choice.finish_reason) == (whole[: whole.index(stop[0])], "stop")
    chunks = list(client.chat.completions.create(**how, stop=stop[0], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_client_may_send_null_and_messages_that_are_not_read(client):
    earlier = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
               {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}]  # fmt: skip
    how = {"model": "stories260k", "max_tokens": 4, "stream": None, "stop": None}
    body = {**how, "messages": [*earlier, *messages()], "stream_options": {"include_usage": None}}
    reply = httpx.post(f"{client.base_url}chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert reply.json()["usage"]["completion_tokens"] == 4


def test_a_model_that_fails_is_not_the_clients_fault_and_its_reason_stays_here(tmp_path):
    (tmp_path / "plug.py").write_text(
        "from sailkit.errors import UserError\n"
        "class Failing:\n"
        "    name = 'failing'\n"
        "    def describe(self): return {'model': 'failing'}\n"
        "    def plan(self, prompts, reserve, names=()): return [[0]]\n"
        "    def count_tokens(self, text): return 1\n"
        "    def score(self, prompts, answers): raise NotImplementedError\n"
        "    def generate(self, *_): raise UserError('http://internal:8000 refused; put the key into KEY')\n"
        "model = Failing()\n"
    )
    with serving("failing", "--model", "plug:model", "--engine", "none", cwd=tmp_path) as (url, run):
        body = {"model": "failing", "messages": messages()}
        replies = [httpx.post(f"{url}/chat/completions", json={**body, "stream": on}, timeout=30) for on in (0, 1)]
        run.terminate()
        assert run.stderr.read().count("http://internal:8000 refused; put the key into KEY") == len(replies)
    assert replies[0].status_code == 502
    assert all("the model gave no answer; the messages of the server say why" in reply.text for reply in replies)
    assert all("internal" not in reply.text for reply in replies)


def test_a_client_may_pass_results_of_its_own(client):
    given = [{"title": "A", "body": "First."}, {"body": "Second."}]
    reply = client.chat.completions.create(
        model="stories260k", messages=messages(), max_tokens=4, extra_body={"search_results": given}
    )
    results = reply.model_extra["search_results"]
    assert [(result["title"], result["body"]) for result in results] == [("A", "First."), ("", "Second.")]
    assert all(0 < result["informative"] < 1 for result in results)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "gpt-5"}, 404, "this server has 'stories260k'"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, 400, "no message of role user"),
        ({"messages": messages("bees " * 1000)}, 400, "the question: the prompt has"),
        ({"messages": messages("x" * 9000)}, 413, "larger than 8000 bytes"),
        ({"extra_body": {"search_results": [{"title": "x"}]}}, 400, "search_results.0.body: Field required"),
        ({"extra_body": {"search_results": [{"body": "x"}] * 7}}, 400, "at most 6 items"),
        ({"n": 2}, 400, "n: Input should be 1"),
        ({"stop": ["."] * 5}, 400, "at most 4 items"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only text is understood"),
        ({"extra_headers": {"Authorization": f"Bearer {KEY}x"}}, 401, "the key is missing or wrong"),
    ],
)
def test_what_cannot_be_answered_has_a_status_and_a_reason(client, change, status, message):
    with pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(**{"model": "stories260k", "messages": messages(), **change})
    assert error.value.status_code == status
    assert message in error.value.body["message"]


def test_a_served_model_can_be_evaluated(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path))
    model = f"endpoint:stories260k@{server[0]}"
    with pytest.warns(RuntimeWarning, match="gives no log-probabilities"):
        evaluation = sailkit.evaluate(model=model, task="sample-claims", wording="bare", limit=3)
    assert len(evaluation.predictions) == 3
    assert all(prediction.raw_output for prediction in evaluation.predictions)


def test_sigterm_ends_the_answer_in_progress_and_the_server(client, server):
    stream = client.chat.completions.create(model="stories260k", messages=messages(), stream=True)
    chunks = [next(stream), next(stream)]
    server[1].send_signal(signal.SIGTERM)
    chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    out, err = server[1].communicate(timeout=30)
    assert server[1].returncode == 0
    assert re.fullmatch(r"stopped after \d+ answers in \d+ s\n", out)
    assert "Traceback" not in err


# The application, with a function in the place of the model


LIMITS = Limits(request_bytes=1000, queue=2, seconds=5.0, max_new_tokens=9)


def post(app, content=None, headers=None, base="http://127.0.0.1:8000", times=1):
    """Send equal requests at once."""
    body = json.dumps({"model": "m", "messages": messages()}).encode()

    async def send():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=base, timeout=30) as client:
            how = {"content": content or body, "headers": {"content-type": "application/json", **(headers or {})}}
            return await asyncio.gather(*(client.post("/v1/chat/completions", **how) for _ in range(times)))

    return asyncio.run(send())


def application(answer=None, limits=LIMITS, key=None):
    def at_once(question, results, new_tokens, until, stream, stop):
        done = Answer(question, "m", (SearchResult("b"),), (Judgement(0.25, "distracting"),), answer=f"{new_tokens}")
        stream(done)
        return done

    return create_app("m", Worker(answer or at_once, limits, lambda: False), limits, key)


def test_limits_hold_for_what_a_client_asks():
    reply = post(application())[0].json()
    assert reply["choices"][0]["message"]["content"] == "9"
    assert reply["search_results"][0]["informative"] == 0.25
    body = json.dumps({"model": "m", "messages": messages(), "max_tokens": 10**9}).encode()
    assert post(application(), body)[0].json()["choices"][0]["message"]["content"] == "9"


def test_half_a_surrogate_pair_is_no_error_of_the_server():
    given = {"search_results": [{"title": "\ud800", "body": "Bees\ud800 make honey."}, {"body": " "}]}

    def echo(question, results, new_tokens, until, stream, stop):
        done = Answer(question, "m", results, (Judgement(0.25, "distracting"),), answer=question)
        stream(done)
        return done

    asked = [{"role": "user", "content": "Who\ud800?"}]
    reply = post(application(echo), json.dumps({"model": "m", "messages": asked, **given}).encode())[0]
    assert reply.is_success
    assert reply.json()["choices"][0]["message"]["content"] == "Who??"
    (result,) = reply.json()["search_results"]
    assert result["body"] == "Bees? make honey."


def test_the_gate_refuses_what_is_too_large_a_form_or_without_the_key():
    async def pieces():
        for _ in range(100):
            yield b" " * 100

    assert post(application(), pieces())[0].status_code == 413  # without a length
    assert post(application(), headers={"content-type": "text/plain"})[0].status_code == 415
    assert post(application(), base="http://evil.example")[0].status_code == 400
    keyed = application(key=KEY)
    assert post(keyed)[0].status_code == 401
    assert post(keyed, headers={"authorization": f"Bearer {KEY}"}, base="http://elsewhere.example")[0].is_success


def test_a_body_that_never_ends_is_given_up():
    async def slow():
        yield b" "
        await asyncio.sleep(5)

    start = time.monotonic()
    reply = post(application(limits=Limits(1000, 2, 0.2, 9)), slow())[0]
    assert (reply.status_code, time.monotonic() - start < 4) == (408, True)


def test_a_full_queue_is_refused_and_a_wait_without_an_answer_ends():
    def slow(question, results, new_tokens, until, stream, stop):
        stream(so_far := Answer(question, "m"))
        while not stop():
            time.sleep(0.01)
        time.sleep(0.2)  # a token may take long
        return replace(so_far, cut_off=True)

    replies = post(application(slow, Limits(1000, 2, 0.5, 9)), times=4)
    assert sorted(reply.status_code for reply in replies) == [200, 429, 429, 503]
    by_status = {reply.status_code: reply for reply in replies}
    assert by_status[200].json()["choices"][0]["finish_reason"] == "length"
    assert by_status[429].headers["retry-after"] == "1"
    assert by_status[503].json()["error"]["type"] == "server_error"


def test_an_answer_stops_when_its_client_goes_and_the_queue_is_free_again():
    stopped = threading.Event()

    def slow(question, results, new_tokens, until, stream, stop):
        stream(Answer(question, "m"))
        while not stop():
            time.sleep(0.01)
        stopped.set()
        return Answer(question, "m")

    worker = Worker(slow, Limits(1000, 1, 30.0, 9), lambda: False)

    async def leave():
        for _ in range(2):
            updates = worker.updates(QUESTION, None, 9, [])
            await anext(updates)
            await updates.aclose()
            assert await asyncio.to_thread(stopped.wait, 5)
            stopped.clear()
            await asyncio.sleep(0.1)

    asyncio.run(leave())
    assert worker.answered == 0


def test_a_search_that_fails_is_not_the_clients_fault():
    def unanswered(*_):
        raise SearchUnavailableError("searxng gave no answer")

    (reply,) = post(application(unanswered))
    assert (reply.status_code, reply.json()["error"]["message"]) == (502, "searxng gave no answer")


def test_a_question_without_recorded_results_is_refused_without_the_path_of_the_run():
    def unknown(*_):
        raise NotRecordedError("/home/me/run has no results for this question; give an id, such as 'a' or 'b'")

    (reply,) = post(application(unknown))
    message = "there are no recorded search results for this question"
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, message)


def test_a_bug_is_a_500_without_its_text():
    def broken(*_):
        raise ValueError("secret")

    with pytest.raises(ValueError, match="secret"):  # the server logs it
        post(application(broken))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines"),
        ({"key_env": "NO_SUCH_KEY"}, "this environment variable is empty"),
        ({"k": 9}, "`k` should be at most 6"),
        ({"queue": 0}, "`queue` should be at least 1"),
        ({"time_limit": 0.0}, "`time_limit` should be above 0"),
        ({"port": 99999}, "`port` should be from 0 to 65535"),
        ({"port": 0}, "no search results: give `corpus` FILES"),
    ],
)
def test_mistakes_are_one_line_with_the_mend(arguments, message):
    with pytest.raises(sailkit.UserError) as error:
        sailkit.serve(**arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_options_of_a_loaded_model_are_refused(shared):
    model = sailkit.load_model(shared / "models" / "stories260k")
    with pytest.raises(UserError, match="this one is loaded"):
        sailkit.serve(model=model, engine="none", options=ModelOptions(dtype="bfloat16"))


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(sailkit.UserError, match=rf"cannot listen on 127.0.0.1, port {port}.*`port`"):
            sailkit.serve(engine="none", port=port)
