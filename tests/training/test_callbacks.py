"""Callbacks of training: how fast it goes, its history, and the memory that it returns."""

from __future__ import annotations

import ctypes
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

callbacks = pytest.importorskip("sailkit.training.callbacks")


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when it is told to."""
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    return now


def test_evaluating_and_saving_do_not_count(clock):
    speed = callbacks.Speed()
    assert speed.overall(0) == 0
    with speed.pause():  # the model as it was, before the first step
        clock[0] += 50
    speed.start()
    clock[0] += 2
    speed.start()
    assert speed.since_last(100) == 50
    with speed.pause():
        clock[0] += 30
    clock[0] += 1
    assert speed.since_last(140) == 40
    assert speed.overall(150) == 50


def test_what_an_earlier_run_did_is_not_this_ones_speed(clock):
    speed = callbacks.Speed()
    speed.start(1000)
    clock[0] += 2
    assert speed.since_last(1100) == speed.overall(1100) == 50


def test_a_run_that_goes_on_counts_its_steps_and_says_its_own_speed():
    class State:
        global_step = 7

    told = []

    def show(done):
        told.append(done)
        return lambda steps, note: told.append((steps, note))

    progress = callbacks.Progress(show, lambda: 1234.5)
    assert told == []
    progress.on_train_begin(None, State, None)
    progress.on_step_end(None, State, None)
    progress.on_step_end(None, State, None)
    assert told == [7, (1, "1,234 tokens/s"), (1, "1,234 tokens/s")]


def test_a_norm_that_is_infinite_does_not_end_the_history(tmp_path):
    class State:
        is_world_process_zero = True
        log_history = ({"grad_norm": math.inf, "loss": 1.5, "step": 1},)

    callbacks.History(tmp_path / "history.jsonl").on_log(None, State, None)
    assert json.loads((tmp_path / "history.jsonl").read_text()) == {"grad_norm": None, "loss": 1.5, "step": 1}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc has malloc_trim")
def test_freed_memory_goes_back_to_the_system_every_few_steps():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    begin = resident()
    blocks = [b"x" * (100_000 + i) for i in range(2000)]
    kept = blocks[1::500]  # so that most of what is freed is not at the end of the heap
    del blocks
    held = resident() - begin
    callback = callbacks.FreedMemory()
    arguments = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    callback.on_step_end(arguments, SimpleNamespace(global_step=9), None)
    assert resident() - begin == pytest.approx(held, rel=0.05)
    callback.on_step_end(arguments, SimpleNamespace(global_step=10), None)
    assert resident() - begin < held / 2
    assert kept
