"""Processes that fork from a server which has imported everything: as real to kill as any, and there at once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = [
    "__main__", "pytest", "sailkit.cli", "sailkit.retrieval.search", "sailkit.labeling.label", "sailkit.models.local",
    "sailkit.evaluation.evaluate", "sailkit.training.trainer", "sailkit.distillation.distill",
    "sailkit.distillation.trainer", "sailkit.distillation.teacher", "sailkit.distillation.teacher_cache",
    "sklearn.metrics",
    "transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
]  # fmt: skip


def start_server() -> None:
    """Start the server, unless it runs; it imports while the test goes on."""
    _CONTEXT.set_forkserver_preload(_IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")  # read by the import; the command line sets it before
        forkserver.ensure_running()


def start(target: Callable[..., object], *arguments: Any) -> BaseProcess:
    """Start a process that calls a function."""
    start_server()
    process = _CONTEXT.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def _execute(words: list[str], environment: dict[str, str], folder: str, output: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(output, 1):
        stream = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(stream, number)
        os.close(stream)
    program = words[0].endswith(".py")
    sys.argv = words if program else ["sailkit", *words]
    sys.path.insert(0, folder)
    try:
        if program:
            runpy.run_path(words[0], run_name="__main__")
        else:
            from sailkit.cli import main

            main(words)
    except Exception:
        sys.excepthook(*sys.exc_info())  # multiprocessing would not call it
        sys.exit(1)


class Command:
    """A command of sailkit, or a program if the first word ends in .py, in a process of its own."""

    def __init__(self, *words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        """Start it, by default in the working directory and with the environment of now."""
        self._words = [str(word) for word in words]
        self._output = tempfile.TemporaryDirectory()
        files = [os.path.join(self._output.name, name) for name in ("stdout", "stderr")]
        self._files = [Path(file) for file in files]
        self._process = start(_execute, self._words, dict(env or os.environ), str(cwd or Path.cwd()), files)

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def wait(self, timeout: float | None = None) -> subprocess.CompletedProcess[bytes]:
        """Wait for its end: the exit status and what it wrote."""
        self._process.join(timeout)
        status = self.poll()
        assert status is not None, f"not finished after {timeout} s: {self._words}"
        written = [file.read_bytes() if file.exists() else b"" for file in self._files]
        self._output.cleanup()
        return subprocess.CompletedProcess(self._words, status, *written)


def run(
    *words: object, check: bool = False, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; with `check` it has to succeed."""
    done = Command(*words, cwd=cwd, env=env).wait()
    assert not check or done.returncode == 0, done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
