"""What a run records of its origin: versions, machine, git revision and command line."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from sailkit import __version__
from sailkit.distributed import process_count

_PACKAGES = (
    *("torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "openai"),
    *("numpy", "scikit-learn", "vllm"),
)
_COMMAND: ContextVar[str] = ContextVar("command", default="")  # empty in a program that uses the package


@contextlib.contextmanager
def command_line(words: Sequence[str]) -> Iterator[None]:
    """A context in which runs are begun by a command of sailkit, which their manifests record.

    Args:
        words: The words after `sailkit`.
    """
    token = _COMMAND.set(shlex.join(["sailkit", *words]))
    try:
        yield
    finally:
        _COMMAND.reset(token)


def environment() -> dict[str, Any]:
    """Versions, platform, git revision and command line, as information for the manifest."""
    versions = {"sailkit": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        **({"processes": count} if (count := process_count()) > 1 else {}),
        **({"gpus": cards} if (cards := gpus()) else {}),
        "git_revision": _git_revision(),
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **({"command": _COMMAND.get()} if _COMMAND.get() else {}),
    }


def gpus() -> list[dict[str, Any]]:
    """The visible CUDA devices, on which values in 16 bits depend; empty if this process has not imported torch."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    driver = _driver()
    cards = (torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count()))
    return [
        {
            "name": card.name,
            "compute_capability": f"{card.major}.{card.minor}",
            "memory": card.total_memory,
            "cuda": torch.version.cuda,
            "driver": driver,
        }
        for card in cards
    ]


def _driver() -> str | None:
    """The version of NVIDIA's driver, which torch does not tell; None if it cannot be read."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.split("\n")[0].strip() or None
    return None


def _git_revision() -> str | None:
    """The git revision of the working directory, with `-dirty` if it has uncommitted changes."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return None
