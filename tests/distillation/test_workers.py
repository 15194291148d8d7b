"""Processes beside this one: as many as the work is worth, what they give in order, and their first error."""

from __future__ import annotations

import os
import sys

import psutil
import pytest

from sailkit.distillation.workers import in_order, worker_count
from sailkit.errors import UserError


def test_few_tokens_need_no_other_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr(sys, "platform", "linux")
    assert [worker_count(n) for n in (1_000, 199_999, 200_000, 5_000_000)] == [0, 0, 2, 8]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    assert worker_count(5_000_000) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # of a launcher
    assert worker_count(5_000_000) == 2
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert worker_count(5_000_000) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_computed_comes_in_order_from_the_processes_that_were_asked_for(workers):
    numbers, processes = zip(*in_order(lambda n: (n * n, os.getpid()), range(100), workers), strict=True)
    assert list(numbers) == [n * n for n in range(100)]
    assert len({*processes} - {os.getpid()}) == workers
    assert (os.getpid() in processes) == (not workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_error_ends_all_processes(workers):
    def halved(n):
        if n % 2:
            raise UserError(f"{n} is odd")
        return n // 2

    computed = in_order(halved, [0, 2, 5, 4, 7], workers)
    assert [next(computed), next(computed)] == [0, 1]
    with pytest.raises(UserError, match=r"^5 is odd$"):
        next(computed)
    assert not psutil.Process().children()


def test_who_stops_early_leaves_no_process():
    computed = in_order(abs, range(1000), 2)
    assert next(computed) == 0
    assert len(psutil.Process().children()) >= 2
    computed.close()
    assert not psutil.Process().children()
