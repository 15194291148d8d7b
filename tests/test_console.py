"""What comes from outside and is printed: no control character, no direction override reaches a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import tarfile
import termios
from pathlib import Path

import pytest

import forked
from sailkit.testing import MisbehavingServer

# Clipboard (OSC 52), title, clear screen, bell, backspace, C1 forms of CSI and OSC, direction overrides, marks.
HOSTILE = "A\x1b]52;c;aGk=\x07B\x1b]0;title\x07\x1b[2J\x08\x7f\x9b2J\x9d0;x\x9c\u202eC\u2066\u061c\u200fZ"
# What our own tables and bars write on a terminal: colours, and moves within the lines of the bar.
_OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[1?A|\x1b\[2K")
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]")


def sailkit(*words: object, **more) -> subprocess.CompletedProcess[bytes]:
    return forked.Command(*words, **more).wait()


def on_a_terminal(*words: object, cwd: Path, program: tuple[str, ...] = ("-m", "sailkit")) -> tuple[int, str]:
    """The exit status, and all that a terminal would get."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 200))
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, words)],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )  # fmt: skip
    os.close(theirs)
    data = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side has closed
            break
        if not part:
            break
        data += part
    os.close(ours)
    return process.wait(), data.decode("utf-8")


def unsafe(text: str | bytes) -> list[str]:
    """What of a text should not have been printed."""
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    return _UNSAFE.findall(_OURS.sub("", text.replace("\r\n", "\n").replace("\r", "")))


@pytest.fixture
def hostile_run(tmp_path: Path) -> Path:
    manifest = {
        "stage": "evaluate", "fingerprint": "0",
        "settings": {"model": HOSTILE, "task": f"[red]:fire:{HOSTILE}", HOSTILE: 1},
        "environment": {"started_at": HOSTILE, "versions": {}},
    }  # fmt: skip
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
        manifest["settings"]["model"] += "!"
    return tmp_path


def test_tables_are_clean(hostile_run):
    done = sailkit("runs", hostile_run)
    assert done.returncode == 0, done.stderr
    assert unsafe(done.stdout) == []
    assert "A\ufffd]52;c;aGk=" in done.stdout.decode()
    assert ":fire:" in done.stdout.decode()  # text stays text
    done = sailkit("runs", hostile_run / "one", hostile_run / "two")
    assert done.returncode == 0, done.stderr
    assert unsafe(done.stdout) == []


def test_a_terminal_gets_no_sequence_from_outside(hostile_run):
    status, text = on_a_terminal("runs", hostile_run, cwd=hostile_run)
    assert status == 0, text
    assert unsafe(text) == []
    assert "\x1b[1m" in text  # our own headings are bold
    assert "aGk=" in text


def test_json_on_standard_output_is_escaped_and_says_the_same(hostile_run):
    done = sailkit("runs", hostile_run, "--json", "-")
    assert unsafe(done.stdout) == []
    assert {row["model"] for row in json.loads(done.stdout)["runs"]} == {HOSTILE, HOSTILE + "!"}
    status, text = on_a_terminal("runs", hostile_run, "--json", "-", cwd=hostile_run)
    assert status == 0
    assert unsafe(text) == []
    assert json.loads(text) == json.loads(done.stdout)


def test_errors_about_names_from_outside_are_clean(tmp_path):
    with tarfile.open(tmp_path / "corpus.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(f"{HOSTILE}.json")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"{"))
    (tmp_path / "asked.jsonl").write_text('{"id": "1", "instruction": "Where is Paris?"}\n')
    words = ("search", "--instructions", "asked.jsonl", "--out", "out", "--corpus", "corpus.tar.gz")
    env = {**os.environ, "SAILKIT_CACHE": str(tmp_path / "cache")}
    done = sailkit(*words, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert unsafe(done.stderr) == []
    assert len(done.stderr.splitlines()) == 1
    assert b"aGk=" in done.stderr
    assert b"not valid JSON" in done.stderr


def test_mistyped_words_and_missing_files_are_clean(tmp_path):
    for words in ((HOSTILE,), ("rescore", HOSTILE), ("runs", HOSTILE), ("evaluate", "--task", HOSTILE, "--model", "m")):
        done = sailkit(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert unsafe(done.stderr) == []
        assert len(done.stderr.splitlines()) == 1


def test_an_endpoint_s_error_is_clean(tmp_path):
    with MisbehavingServer(otherwise=400, text=HOSTILE) as server:
        rows = '{"claim_id": "1", "claim": "Ice melts.", "claim_label": "SUPPORTS", "evidences": []}\n'
        (tmp_path / "claims.jsonl").write_text(rows)
        words = ("evaluate", "--task", "climate-fever", "--data", "claims.jsonl", "--out", "out", "--limit", "1")
        model = f"endpoint:any@{server.url}"
        done = sailkit(*words, "--model", model, cwd=tmp_path)
        assert server.requests
        assert unsafe(done.stderr + done.stdout) == []
        status, text = on_a_terminal(*words, "--model", model, cwd=tmp_path)
        assert status == done.returncode
        assert unsafe(text) == []
    assert b"aGk=" in done.stderr


def run_inside(code: str, *, terminal: bool, cwd: Path) -> str:
    """What code prints through the command line's streams."""
    program = f"import sys; from sailkit import cli, runs; HOSTILE = {HOSTILE!r}\n{code}"
    (cwd / "program.py").write_text(program, "utf-8")
    if not terminal:
        done = forked.Command("program.py", cwd=cwd).wait()
        return (done.stdout + done.stderr).decode()
    return on_a_terminal(cwd=cwd, program=("program.py",))[1]


STAGE = """
def runs_overview(*, way: str = "") -> runs.RunList:
    import logging, time, warnings
    if way == "warning":
        warnings.warn(HOSTILE, RuntimeWarning, stacklevel=1)
    if way == "notice":
        runs.notice(HOSTILE)
    if way == "print":
        print(HOSTILE)
        print(HOSTILE, file=sys.stderr)
    if way == "logging":
        logging.getLogger("library").warning(HOSTILE)
    if way == "traceback":
        raise ValueError(HOSTILE)
    if way == "bar":
        from tqdm import tqdm
        for _ in tqdm(range(3), desc=HOSTILE, mininterval=0):
            pass
    if way == "progress":
        with runs.progress(f"searching {HOSTILE}", 3) as tick:
            tick(1, HOSTILE)
            print(HOSTILE)
            runs.notice(HOSTILE)
            time.sleep(0.2)
            tick(2, HOSTILE)
    return runs.RunList(())
cli.VERBS["runs"] = runs_overview
cli.main(["runs", "--way", sys.argv[1] if len(sys.argv) > 1 else WAY])
"""


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("way", ["warning", "notice", "print", "logging", "traceback", "bar", "progress"])
def test_whatever_prints_is_cleaned(way, terminal, tmp_path):
    text = run_inside(STAGE.replace("WAY", repr(way)), terminal=terminal, cwd=tmp_path)
    if way == "bar":  # goes back to the beginning of its line itself
        assert "100%" in text
    if way != "progress" or terminal:  # a short one says nothing elsewhere
        assert "aGk=" in text
    assert unsafe(text) == []


def test_labels_wordings_and_names_of_a_task_are_clean(tmp_path):
    spelt = json.dumps(HOSTILE)
    labels = "".join(f'  {json.dumps(f"{i}{HOSTILE}")}: {{answer: "{word}"}}\n' for i, word in enumerate(("Yes", "No")))
    (tmp_path / "task.yaml").write_text(
        f"name: {spelt}\nabout: {spelt}\ndata: {{fields: {{id: id, text: text, label: label}}}}\nlabels:\n{labels}"
        f'protocols: {{direct: {{wordings: {{{spelt}: "{{text}} {{answers}}"}}}}}}\n',
        "utf-8",
    )
    rows = [{"id": str(i), "text": f"Ice {i}.", "label": f"{i % 2}{HOSTILE}", "output": "Yes."} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = sailkit("rescore", "rows.jsonl", "--task", "task.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"aGk=" in done.stdout
    assert unsafe(done.stdout + done.stderr) == []
    words = ("evaluate", "--task", "task.yaml", "--data", "rows.jsonl", "--out", "out", "--model", "nowhere")
    done = sailkit(*words, "--wording", "plain", cwd=tmp_path)
    assert done.returncode == 2
    assert b"aGk=" in done.stderr  # the wordings that there are
    assert unsafe(done.stderr) == []
