"""A Ray cluster on this machine, for the tests of those that run on one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

import psutil
import pytest

# A token of the tests' own, or Ray writes one into the home folder; read when ray is imported, and by what is started.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
ray = pytest.importorskip("ray", reason="needs the extra: pip install 'sailkit[ray]'")


@contextlib.contextmanager
def small_cluster() -> Iterator[None]:
    """Start one, and see that nothing of it is left; its workers have the environment of now."""
    others = psutil.Process().children(recursive=True)  # of tests before, such as a tracker's service
    ray.init("local", num_cpus=2, object_store_memory=2**27, include_dashboard=False, log_to_driver=False)
    yield
    ours = set(psutil.Process().children(recursive=True)) - set(others)
    ray.shutdown()
    _, left = psutil.wait_procs(ours, timeout=60)
    assert left == [], [one.cmdline() for one in left if one.is_running()]
