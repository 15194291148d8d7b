"""Web engines against a real server that misbehaves: outcomes stay apart, answers are frozen."""

from __future__ import annotations

import contextlib
import gzip
import json
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forked
from sailkit.errors import UserError
from sailkit.records import Instruction
from sailkit.retrieval.instructions import read_searched
from sailkit.retrieval.results import SearchRun
from sailkit.retrieval.search import search
from sailkit.retrieval.web import QUERY_CHARACTERS, WebSearcher, web_query
from sailkit.text import without_markup

QUICK = {"interval": 0.01, "timeout": 0.5, "tries": 3}


class Engine:
    """Speaks SearXNG's JSON, or does what its script says with a request, by number or query; see `behave`."""

    def __init__(self, script=(), headers=(), rows=None):
        self.script, self.headers, self.rows = dict(script), dict(headers), rows
        self.asked, self.at = [], []
        self.closing = threading.Event()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                engine.at.append(time.monotonic())
                engine.asked.append(parse_qs(urlsplit(self.path).query).get("q", [self.path])[0])
                keys = (len(engine.asked), engine.asked[-1], "always")
                engine.behave(self, next((engine.script[key] for key in keys if key in engine.script), "ok"))

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # a client that goes away is what is being tested

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def behave(self, handler, what):
        rows = self.rows
        if rows is None:
            rows = [
                {"title": f"{handler.path} {i}", "content": f"text {i}", "url": f"https://a.test/{i}"} for i in range(9)
            ]
        data = json.dumps({"results": rows}).encode()
        if what == "hang":
            self.closing.wait(5)
            return
        if what == "none":
            data = b'{"results": [], "unresponsive_engines": []}'
        elif what == "silent engines":
            data = b'{"results": [], "unresponsive_engines": [["google", "CAPTCHA"]]}'
        elif what == "garbage":
            data = b"<html>have lunch</html>"
        elif what == "list":
            data = b"[1]"
        elif what == "huge":
            data = b" " * 5_000_000
        handler.send_response(what if isinstance(what, int) else 200)
        length = len(data) + (10 if what == "cut" else 0) + (10**6 if what == "drip" else 0)
        for name, value in {"Content-Length": str(length), **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        while what == "drip" and not self.closing.wait(0.02):
            handler.wfile.write(b" ")
        handler.wfile.write(data)

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def ask(tmp_path, *texts):
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in texts))
    return str(path)


def run(tmp_path, engine, *texts, out="run", **options):
    options = {"searxng_url": engine.url, **QUICK, **options}
    search(instructions=ask(tmp_path, *texts), out=tmp_path / out, engine="searxng", **options)
    return read_searched(tmp_path / out)


def test_engine_rank_address_and_time_stay_with_a_result(tmp_path):
    with Engine() as engine:
        (row,) = run(tmp_path, engine, "polar\nbears", k=2)
    assert engine.asked == ["polar bears"]
    assert [(r.source, r.rank, r.body, r.url) for r in row.results] == [
        ("searxng", 1, "text 0", "https://a.test/0"),
        ("searxng", 2, "text 1", "https://a.test/1"),
    ]
    assert all(r.retrieved_at.startswith("20") and r.retrieved_at.endswith("Z") for r in row.results)
    assert json.loads((tmp_path / "run" / "snapshot.jsonl").read_text())["at"] == row.results[0].retrieved_at


def test_found_empty_unavailable_and_left_out_are_four_things(tmp_path):
    with Engine({2: "none", 3: 404}) as engine:
        rows = run(tmp_path, engine, "a", "b", "c", " ")
    assert [row.searches["searxng"] for row in rows] == ["found", "empty", "unavailable", "left_out"]
    assert engine.asked == ["a", "b", "c"]


@pytest.mark.parametrize("mishap", [429, 500, 503, "garbage", "hang", "drip", "cut", "silent engines"])
def test_what_may_pass_is_tried_again(tmp_path, mishap):
    with Engine({1: mishap, 2: mishap}) as engine:
        (row,) = run(tmp_path, engine, "a")
    assert (row.searches["searxng"], len(engine.asked)) == ("found", 3)


@pytest.mark.parametrize("mishap", [400, 403, 302, "list", "huge"])
def test_what_will_not_pass_is_asked_once(tmp_path, mishap, capsys):
    with Engine({"always": mishap}, headers={"Location": "file:///etc/passwd"} if mishap == 302 else {}) as engine:
        (row,) = run(tmp_path, engine, "a")
    assert (row.searches["searxng"], row.results, len(engine.asked)) == ("unavailable", (), 1)
    assert capsys.readouterr().err.count("searxng: no answer") == 1


@pytest.mark.parametrize(
    ("mishap", "why"),
    [
        (403, "HTTP 403; has its settings.yml json among search.formats?"),
        (503, "HTTP 503"),
        ("hang", "timed out"),
        ("drip", "no whole answer within 0.3 s"),
        ("cut", "the answer was cut off"),
        ("huge", "an answer of more than 4000000 bytes"),
        ("garbage", "an answer that is not JSON"),
        ("list", "JSON without a list of results"),
        ("silent engines", "its engines did not answer: [['google', 'CAPTCHA']]"),
    ],
)
def test_the_snapshot_says_why_there_is_no_answer(tmp_path, mishap, why):
    with Engine({1: mishap}) as engine:
        run(tmp_path, engine, "a", tries=1, timeout=0.3)
    assert json.loads((tmp_path / "run" / "snapshot.jsonl").read_text())["why"] == why


def test_a_compressed_answer_is_not_unpacked(tmp_path):
    class Packing(Engine):
        def behave(self, handler, what):
            data = gzip.compress(b" " * 2**22)
            handler.send_response(200)
            for name, value in {"Content-Length": str(len(data)), "Content-Encoding": "gzip"}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data)

    with Packing() as engine:
        run(tmp_path, engine, "a", tries=1)
    assert json.loads((tmp_path / "run" / "snapshot.jsonl").read_text())["why"] == "an answer that is not JSON"


def test_a_snapshot_keeps_the_answers_of_servers_apart(tmp_path):
    snapshot = tmp_path / "shared.jsonl"
    with Engine() as first, Engine() as second:
        run(tmp_path, first, "a", out="first", snapshot=snapshot)
        run(tmp_path, second, "a", out="second", snapshot=snapshot)
        run(tmp_path, first, "a", out="third", snapshot=snapshot)
        lines = [{**json.loads(line), "searxng_url": None} for line in snapshot.read_text().splitlines()[:1]]
        snapshot.write_text("".join(json.dumps(line) + "\n" for line in lines))  # as written by earlier versions
        run(tmp_path, second, "a", out="fourth", snapshot=snapshot)
    assert (first.asked, second.asked) == (["a"], ["a"])


def test_a_redirect_is_not_followed(tmp_path):
    with Engine() as other, Engine({1: 302}, headers={"Location": f"{other.url}/elsewhere"}) as engine:
        (row,) = run(tmp_path, engine, "a")
    assert (row.searches["searxng"], other.asked) == ("unavailable", [])


def test_requests_keep_their_distance_and_the_server_is_left_alone_when_it_asks(tmp_path):
    with Engine({2: 429}, headers={"Retry-After": "0.3"}) as engine:
        run(tmp_path, engine, "a", "b", "c", interval=0.1)
    gaps = [later - sooner for sooner, later in zip(engine.at, engine.at[1:], strict=False)]
    assert len(gaps) == 3
    assert min(gaps) >= 0.09
    assert gaps[1] >= 0.29


def test_hostile_results_are_text_and_nothing_else(tmp_path):
    rows = [
        {"title": "<b>T</b> &amp; U", "content": "<script src=x>1 &lt; 2</script> a < b", "url": "HTTPS://a.test/?q=1"},
        {"title": None, "content": 7, "url": "https://a.test"},
        "not an object",
        {"content": "\x00\x01 \x02"},
        {"title": "x", "content": "half \ud800 </s> ../../etc", "url": "file:///etc/passwd"},
        {"title": "x", "content": "y" * 1_000_000, "url": "javascript:alert(1)"},
        {"title": "List<String>", "content": "<mark>when</mark> a<b and c>d", "url": ""},
    ]
    with Engine(rows=rows) as engine:
        (row,) = run(tmp_path, engine, "a", k=9)
    assert [(r.title, r.rank, r.body[:30], r.url) for r in row.results] == [
        ("T & U", 1, "1 < 2 a < b", "HTTPS://a.test/?q=1"),
        ("x", 5, "half ? ../../etc", ""),
        ("x", 6, "y" * 30, ""),
        ("List<String>", 7, "when a<b and c>d", ""),
    ]
    assert row.dropped_results == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.suffix != ".lock") == [
        ".lock",
        "manifest.json",
        "results.jsonl",
        "snapshot.jsonl",
    ]


def test_a_snapshot_replaces_the_network(tmp_path):
    kept = tmp_path / "kept.jsonl"
    with Engine({2: "none", 3: 404}) as engine:
        run(tmp_path, engine, "a", "b", "c", "a", snapshot=kept)
        assert engine.asked == ["a", "b", "c"]
        asked = (tmp_path / "run" / "results.jsonl").read_bytes()
    run(tmp_path, engine, "a", "b", "c", "a", out="again", snapshot=kept, offline=True)
    assert (tmp_path / "again" / "results.jsonl").read_bytes() == asked
    rows = run(tmp_path, engine, "a", "never asked", out="other", snapshot=kept, offline=True)
    assert [row.searches["searxng"] for row in rows] == ["found", "unavailable"]


def test_what_was_unavailable_is_asked_again_and_what_was_found_is_not(tmp_path):
    kept = tmp_path / "kept.jsonl"
    with Engine({2: 404}) as engine:
        run(tmp_path, engine, "a", "b", snapshot=kept)
        rows = run(tmp_path, engine, "a", "b", out="second", snapshot=kept)
        run(tmp_path, engine, "a", out="more", snapshot=kept, k=9)
    assert engine.asked == ["a", "b", "b"]  # the whole answer was kept, so that more results need no asking
    assert [row.searches["searxng"] for row in rows] == ["found", "found"]
    assert len(kept.read_text().splitlines()) == 3


def test_the_same_command_asks_again_for_what_was_unavailable_only(tmp_path):
    texts = [f"q{i}" for i in range(20)]
    with Engine(dict.fromkeys((3, 12, 20), 404)) as engine:
        first = run(tmp_path, engine, *texts)
        asked = len(engine.asked)
        engine.script = {asked + 2: 404}  # one of them is down once more
        second = run(tmp_path, engine, *texts)
        assert sorted(engine.asked[asked:]) == ["q11", "q19", "q2"]
        (silent_still,) = engine.asked[asked + 1 : asked + 2]
        third = run(tmp_path, engine, *texts)
        assert engine.asked[asked + 3 :] == [silent_still]
        lines = (tmp_path / "run" / "results.jsonl").read_bytes()
        assert run(tmp_path, engine, *texts) == third
        assert len(engine.asked) == asked + 4  # nothing is left to ask
    silent = [[i for i, row in enumerate(rows) if "unavailable" in row.searches.values()] for rows in (first, second)]
    assert silent == [[2, 11, 19], [int(silent_still[1:])]]
    assert [row.searches["searxng"] for row in third] == ["found"] * 20
    snapshot = tmp_path / "run" / "snapshot.jsonl"
    run(tmp_path, engine, *texts, out="again", snapshot=snapshot, offline=True)
    assert (tmp_path / "again" / "results.jsonl").read_bytes() == lines


def test_a_server_that_stays_down_takes_nothing_away(tmp_path):
    texts = [f"q{i}" for i in range(24)]
    with Engine({number: 404 for number in range(1, 24) if number % 2}) as engine:
        run(tmp_path, engine, *texts)
        before = (tmp_path / "run" / "results.jsonl").read_bytes()
        engine.script = {len(engine.asked) + 1: "ok", "always": 404}
        with pytest.raises(UserError, match="not answered 10 queries in a row"):
            run(tmp_path, engine, *texts)
    after = (tmp_path / "run" / "results.jsonl").read_bytes()
    changed = [a != b for a, b in zip(before.splitlines(), after.splitlines(), strict=True)]
    assert sum(changed) == 1
    with Engine({"always": 404}) as down:
        (tmp_path / "run" / "snapshot.jsonl").unlink()
        with pytest.raises(UserError):
            run(tmp_path, down, *texts, searxng_url=engine.url)
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == after


def test_queries_that_always_fail_do_not_keep_the_others_from_being_asked(tmp_path):
    """Ten failures in a row stop a run, and here ten queries fail whenever they are asked."""
    texts = [f"q{i}" for i in range(14)]
    with Engine({"always": 404}) as engine:
        for _ in range(2):  # the batches that come before the tenth failure are written
            with pytest.raises(UserError, match="not answered 10 queries in a row"):
                run(tmp_path, engine, *texts)
        engine.script, asked = dict.fromkeys(texts[:10], 404), len(engine.asked)
        for _ in range(4):
            with contextlib.suppress(UserError):
                run(tmp_path, engine, *texts)
    assert {*texts[10:]} <= {*engine.asked[asked:]}


@pytest.mark.long
def test_an_engine_that_is_down_does_not_take_what_another_gave(tmp_path, monkeypatch):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus.jsonl").write_text('{"title": "Seals", "text": "Seals eat fish."}\n')
    options = {"corpus": [tmp_path / "corpus.jsonl"], "out": tmp_path / "run", "engine": "bm25,searxng", **QUICK}
    with Engine({"always": 404}) as engine:
        options |= {"instructions": ask(tmp_path, "seals"), "searxng_url": engine.url}
        assert search(**options).unfinished == (
            "1 of 1 instructions had no answer from an engine; the same command asks again for them"
        )
        assert SearchRun.load(tmp_path / "run").unfinished is not None
        before = (tmp_path / "run" / "results.jsonl").read_bytes()
        search(**options)
        assert (tmp_path / "run" / "results.jsonl").read_bytes() == before
        engine.script = {}
        assert search(**options).unfinished is None
    (row,) = read_searched(tmp_path / "run")
    assert row.searches == {"bm25": "found", "searxng": "found"}
    assert [r.source for r in row.results] == ["bm25"] + ["searxng"] * 5


@pytest.mark.long
def test_the_command_says_that_it_is_unfinished_and_then_that_it_is_not(tmp_path):
    with Engine({1: 404}) as engine:
        command = ["search", "--instructions", ask(tmp_path, "a", "b")]
        command += [
            "--engine",
            "searxng",
            "--searxng-url",
            engine.url,
            "--interval",
            "0.01",
            "--out",
            str(tmp_path / "run"),
        ]
        done = forked.run(*command)
        assert done.returncode == 3
        assert "found 1, empty 0, unavailable 1" in done.stdout
        assert done.stderr.splitlines()[-1] == (
            "sailkit: unfinished: 1 of 2 instructions had no answer from an engine; "
            "the same command asks again for them"
        )
        done = forked.run(*command, "--json", "-")
        assert done.returncode == 0
        assert json.loads(done.stdout)["unavailable"] == 0
        assert json.loads(done.stdout)["unfinished"] is None
    more = ["--out", str(tmp_path / "offline"), "--snapshot", str(tmp_path / "run" / "snapshot.jsonl"), "--offline"]
    ask(tmp_path, "a", "never asked")
    done = forked.run(*command[:-2], *more)
    assert (done.returncode, "unavailable 1" in done.stdout) == (0, True)  # a snapshot says all that it will ever say


def test_an_answer_is_not_lost_when_more_is_asked_for_and_none_comes(tmp_path):
    kept = tmp_path / "kept.jsonl"
    with Engine({2: 404}) as engine:
        (first,) = run(tmp_path, engine, "a", snapshot=kept)
        more = run(tmp_path, engine, "a", out="more", snapshot=kept, k=20)  # nine were all there were
        again = run(tmp_path, engine, "a", out="again", snapshot=kept, k=20, offline=True)
        (offline,) = run(tmp_path, engine, "a", out="offline", snapshot=kept, offline=True)
    assert engine.asked == ["a", "a"]
    assert (len(first.results), len(more[0].results)) == (5, 9)
    assert more == again
    assert first == offline


def test_an_engine_that_is_down_stops_the_run_and_it_goes_on_later(tmp_path):
    texts = [f"q{i}" for i in range(20)]
    with Engine(dict.fromkeys(range(9, 19), 404)) as engine:
        with pytest.raises(UserError, match=r"not answered 10 queries in a row.*HTTP 404"):
            run(tmp_path, engine, *texts)
        rows = run(tmp_path, engine, *texts)
    assert [row.searches["searxng"] for row in rows].count(
        "unavailable"
    ) == 0  # also those of the batch that was written


@pytest.mark.parametrize(
    "damage",
    [
        "nonsense",
        "[]",
        '{"engine": "searxng"}',
        '{"engine":"searxng","query":"a","k":1,"at":"x","outcome":"maybe","results":[]}',
    ],
)
def test_a_damaged_snapshot_is_named_with_its_line(tmp_path, damage):
    kept = tmp_path / "kept.jsonl"
    with Engine() as engine:
        run(tmp_path, engine, "a", snapshot=kept)
        kept.write_text(kept.read_text() + damage + "\n")
        with pytest.raises(UserError, match=r"kept.jsonl, line 2: not a line of a snapshot"):
            run(tmp_path, engine, "a", out="other", snapshot=kept)


def test_a_line_cut_short_by_a_kill_is_asked_again(tmp_path):
    kept = tmp_path / "kept.jsonl"
    with Engine() as engine:
        run(tmp_path, engine, "a", "b", snapshot=kept)
        kept.write_bytes(kept.read_bytes()[:-20])
        run(tmp_path, engine, "a", "b", out="other", snapshot=kept)
    assert engine.asked == ["a", "b", "b"]
    assert [json.loads(line)["query"] for line in kept.read_text().splitlines()] == ["a", "b"]


def test_two_processes_do_not_share_a_snapshot(tmp_path):
    with Engine() as engine:
        first, second = (WebSearcher("searxng", tmp_path / "s.jsonl", engine.url) for _ in range(2))
        first.search([Instruction("0", "a")], 1)
        with pytest.raises(UserError, match="in use by another"):
            second.search([Instruction("0", "a")], 1)


def test_two_engines_of_one_search_share_a_snapshot(tmp_path):
    pytest.importorskip("ddgs")
    kept = tmp_path / "kept.jsonl"
    entry = {"engine": "web", "query": "a", "k": 5, "at": "2026-01-01T00:00:00Z", "outcome": "found"}
    results = [{"rank": 1, "title": "Bears", "body": "Bears fish.", "url": ""}]
    kept.write_text(json.dumps({**entry, "results": results}) + "\n")  # so that nothing is asked of ddgs
    with Engine() as engine:
        options = {"instructions": ask(tmp_path, "a"), "engine": "web,searxng", "snapshot": kept, **QUICK}
        for name in ("first", "second"):
            search(**options, searxng_url=engine.url, out=tmp_path / name)
            (row,) = read_searched(tmp_path / name)
            assert row.searches == {"web": "found", "searxng": "found"}
    assert engine.asked == ["a"]
    assert [json.loads(line)["engine"] for line in kept.read_text().splitlines()] == ["web", "searxng"]


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "localhost:8080",
        "file:///etc/passwd",
        "ftp://a.test",
        "http://u:p@a.test",
        "http://a.test/?q=1",
        "http://a.test:99999",
        "http://a\nb",
    ],
)
def test_a_server_is_a_plain_web_address(tmp_path, url):
    with pytest.raises(UserError, match="`searxng_url`"):
        WebSearcher("searxng", tmp_path / "s.jsonl", url)


@pytest.mark.parametrize(
    "options",
    [
        {"interval": 0},
        {"timeout": float("nan")},
        {"tries": 0},
        {"offline": True},
        {"engine": "searxng,searxng"},
        {"engine": "searx"},
        {"engine": "web,recorded"},
    ],
)
def test_bad_options_are_errors_before_anything_is_asked(tmp_path, options):
    with Engine() as engine, pytest.raises(UserError):
        search(
            instructions=ask(tmp_path, "a"),
            out=tmp_path / "run",
            **{"engine": "searxng", "searxng_url": engine.url} | options,
        )
    assert not engine.asked
    assert not (tmp_path / "run").exists()


@given(st.text(), st.text())
def test_a_query_is_short_one_line_of_whole_words(instruction, text):
    query = web_query(Instruction("0", instruction, text))
    assert len(query) <= QUERY_CHARACTERS
    assert query.isprintable()
    words = set("".join(c if c.isprintable() else " " for c in f"{instruction} {text}").split())
    assert len(query) == QUERY_CHARACTERS or set(query.split()) <= words


def test_a_long_query_ends_with_a_whole_word():
    assert web_query(Instruction("0", "abc " * 200)) == " ".join(["abc"] * 64)
    assert web_query(Instruction("0", "abcdefghi " * 64)) == " ".join(["abcdefghi"] * 40)
    assert len(web_query(Instruction("0", "x" * 5_000_000))) == QUERY_CHARACTERS


@pytest.mark.long
def test_several_engines_are_joined_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setenv("SAILKIT_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        '{"title": "Seals", "text": "Seals eat fish."}\n{"title": "Banks", "text": "Banks lend money."}\n'
    )
    with Engine({2: 404}) as engine:
        options = {"searxng_url": engine.url, "corpus": [corpus], **QUICK}
        run = search(
            instructions=ask(tmp_path, "seals", "zzz"), out=tmp_path / "run", engine="bm25,searxng", k=2, **options
        )
    first, second = read_searched(tmp_path / "run")
    assert [(r.source, r.rank) for r in first.results] == [("bm25", 1), ("searxng", 1), ("searxng", 2)]
    assert second.searches == {"bm25": "empty", "searxng": "unavailable"}
    assert tuple(run.outcomes[name] for name in ("found", "empty", "unavailable")) == (2, 1, 1)


def test_web_without_a_network_is_unavailable(tmp_path, monkeypatch):
    pytest.importorskip("ddgs")
    with Engine() as proxy:  # which refuses to CONNECT: a network that lets nothing through, wherever this runs
        monkeypatch.setenv("DDGS_PROXY", proxy.url)
        options = {"interval": 0.01, "timeout": 1, "tries": 2}
        search(instructions=ask(tmp_path, "polar bears", ""), out=tmp_path / "run", engine="web", **options)
    rows = read_searched(tmp_path / "run")
    assert [row.searches["web"] for row in rows] == ["unavailable", "left_out"]


@pytest.mark.long
def test_ten_kills_change_nothing(tmp_path):
    asked = ask(tmp_path, *(f"query {i % 150}" for i in range(200)))
    kept, out = tmp_path / "kept.jsonl", tmp_path / "killed"
    with Engine() as engine:
        command = ["search", "--instructions", asked, "--engine", "searxng"]
        command += ["--searxng-url", engine.url, "--interval", "0.002", "--snapshot", str(kept), "--out", str(out)]
        killed = 0
        for number in range(10):
            child = forked.Command(*command)
            wanted = 140 * (number + 1) // 11
            while child.poll() is None and len(engine.asked) < wanted:
                time.sleep(0.0005)
            child.send_signal(signal.SIGKILL)
            killed += child.wait().returncode == -signal.SIGKILL
        forked.run(*command, check=True)
    assert killed == 10
    assert len(engine.asked) <= 150 + 10  # a query without its line in the snapshot is asked again, no other
    search(
        instructions=asked,
        out=tmp_path / "rebuilt",
        engine="searxng",
        searxng_url=engine.url,
        snapshot=kept,
        offline=True,
    )
    assert (out / "results.jsonl").read_bytes() == (tmp_path / "rebuilt" / "results.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ('<A HREF="x">a</A> <cite>c</cite> <time datetime="2020">t</time>', "a c t"),
        ("<script async src=x>s</script> <td nowrap>n</td> <a href=x title>t</a> <CODE>k</CODE> x<Br>y", "s n t k x y"),
        ('List<String> Box<P> a<b and c>d <foo bar="1">z', "List<String> Box<P> a<b and c>d z"),
    ],
)
def test_tags_of_pages_are_removed_and_code_is_kept(text, plain):
    assert " ".join(without_markup(text, of_page=True).split()) == plain
