"""Batches that memory does not hold: what shows it, in what parts they are computed, and what is remembered."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sailkit.distillation.records import TeacherExample
from sailkit.distillation.teacher import LocalTeacher, TopK
from sailkit.errors import ProcessError, UserError
from sailkit.models import selftest
from sailkit.models.base import ModelOptions
from sailkit.models.checks import memory_for, out_of_memory
from sailkit.models.halving import BatchHalver
from sailkit.models.load import load_model
from sailkit.models.local import LocalModel
from sailkit.prompts.render import step_prompt

MORE_THAN_ANY_MACHINE_HAS = 2**58


def no_memory() -> None:
    """The error of torch's own allocator."""
    torch.empty(MORE_THAN_ANY_MACHINE_HAS)


# What shows that memory ran out: texts as torch 1.13 to 2.13 writes them.
HINT = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable "
    "device-side assertions.\n"
)
RAN_OUT = {
    "CUDA": "CUDA out of memory. Tried to allocate 2.26 GiB (GPU 0; 6.00 GiB total capacity; 781.59 MiB already "
    "allocated; 3.03 GiB free; 1.24 GiB reserved in total by PyTorch)",
    "CUDA's runtime": "CUDA error: out of memory" + HINT,
    "CUDA's runtime, with a link": "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in "
    "https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information." + HINT,
    "CUDA's driver": "CUDA driver error: out of memory",
    "Triton": "Triton Error [CUDA]: out of memory",
    "HIP": "HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.98 GiB of which 1.21 GiB "
    "is free.",
    "cuBLAS": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuBLAS for ROCm": "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "cuSOLVER": "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuDNN 8": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN 9": "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "MPS": "MPS backend out of memory (MPS allocated: 15.05 GB, other allocations: 11.91 GB, max allowed: 27.20 GB). "
    "Tried to allocate 1.16 GB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for "
    "memory allocations (may cause system failure).",
    "MPS, a single tensor": "Invalid buffer size: 20.61 GiB",
    "CPU": "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 42949672960 bytes. Error code 12 (Cannot allocate memory)",
    "CPU, Windows": "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to "
    "allocate 42949672960 bytes.",
    "C++": "std::bad_alloc",
    "mmap": "unable to mmap 988097824 bytes from file <model.safetensors>: Cannot allocate memory (12)",
    "oneDNN": "could not create a primitive",
    "oneDNN, a tensor": "could not create a memory object",
}
DID_NOT = {
    "an assertion on a GPU": "CUDA error: device-side assert triggered" + HINT,
    "an illegal access": "CUDA error: an illegal memory access was encountered" + HINT,
    "cuBLAS": "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k, "
    "&alpha, a, lda, b, ldb, &beta, c, ldc)`",
    "cuDNN": "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "oneDNN": "could not create a primitive descriptor for the matmul primitive. Run workload with environment "
    "variable ONEDNN_VERBOSE=all to get additional diagnostic information.",
    "shapes": "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "a peer": "[../third_party/gloo/gloo/transport/tcp/pair.cc:525] Connection closed by peer [127.0.0.1]:2001",
}


@pytest.mark.parametrize("text", RAN_OUT.values(), ids=RAN_OUT)
def test_memory_that_ran_out_is_recognised(text):
    assert out_of_memory(RuntimeError(text))
    with pytest.raises(ProcessError, match=r"^out of memory while trying; buy some$"), memory_for("trying", "buy some"):
        raise RuntimeError(text)


@pytest.mark.parametrize("text", DID_NOT.values(), ids=DID_NOT)
def test_other_errors_are_not_taken_for_it(text):
    assert not out_of_memory(RuntimeError(text))
    with pytest.raises(RuntimeError) as caught, memory_for("trying", "buy some"):
        raise RuntimeError(text)
    assert str(caught.value) == text


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("anything")])
def test_errors_with_a_class_of_their_own_need_no_text(error):
    assert out_of_memory(error)


def test_the_allocator_of_this_machine_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        no_memory()
    assert out_of_memory(caught.value)


# In what parts


@contextmanager
def warned(times: int) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        yield
    assert [warning.category for warning in shown] == [RuntimeWarning] * times
    assert all("out of memory with" in str(warning.message) for warning in shown)


class Memory:
    """A machine with memory for some tokens at a time; items are their own numbers of tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.tried: list[list[int]] = []

    def square(self, batch: Any) -> list[int]:
        self.tried.append(list(batch))
        if len(batch) * max(batch) > self.tokens:
            no_memory()
        return [tokens**2 for tokens in batch]


def run(halver: BatchHalver, memory: Memory, batch: list[int], kind: str = "square") -> list[int]:
    memory.tried.clear()
    squares = halver.run(torch.nn.Linear(1, 1), batch, memory.square, kind, lambda tokens: tokens)
    assert squares == [tokens**2 for tokens in batch]
    return squares


def test_a_size_that_did_not_fit_is_not_tried_again():
    halver, memory = BatchHalver(), Memory(100)
    with warned(1):
        run(halver, memory, [25] * 8)
    assert memory.tried == [[25] * 8, [25] * 4, [25] * 4]
    with warned(0):
        run(halver, memory, [25] * 8)
        assert memory.tried == [[25] * 4] * 2
        run(halver, memory, [40, 20, 20, 20, 20])  # 200 tokens with their padding
        assert memory.tried == [[40, 20], [20, 20, 20]]
    with warned(2):  # 180 tokens and 120, of which nothing is known yet
        run(halver, memory, [60] * 3)
    assert memory.tried == [[60] * 3, [60], [60] * 2, [60], [60]]
    with warned(0):
        run(halver, memory, [30] * 4)
    assert memory.tried == [[30] * 2] * 2


def test_what_is_remembered_changes_no_part():
    """A resumed run has forgotten it, and should compute the same."""
    batch = list(range(64, 0, -1))
    for tokens in (64, 700, 3000):
        halver, memory = BatchHalver(), Memory(tokens)
        parts = []
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run(halver, memory, batch)
            parts.append([part for part in memory.tried if len(part) * max(part) <= tokens])
        assert parts[0] == parts[1]
        assert len(memory.tried) == len(parts[1]), "the second time nothing fails"


def test_kinds_are_remembered_for_themselves():
    halver, memory = BatchHalver(), Memory(100)
    with warned(2):
        for kind in ("square", "another"):
            run(halver, memory, [25] * 8, kind)
            assert memory.tried[0] == [25] * 8


def test_a_single_item_without_room_is_an_error_with_the_mend():
    with warned(1), pytest.raises(UserError, match=r"^out of memory with a single prompt; use a smaller model, `dtype"):
        BatchHalver().run(torch.nn.Linear(1, 1), [2, 2], lambda _: no_memory(), "square", lambda tokens: tokens)


def test_other_errors_of_a_batch_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        BatchHalver().run(
            torch.nn.Linear(1, 1), [1, 1], lambda _: torch.ones(2, 3) @ torch.ones(4, 5), "multiply", lambda tokens: 1
        )


# A model's passes


@pytest.fixture
def folder(shared) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture
def model(folder) -> LocalModel:
    return load_model(str(folder), ModelOptions(dtype="float32"))


@contextmanager
def room_for(rows: int, model: LocalModel) -> Iterator[list[int]]:
    """Memory for a few rows: the rows of each pass."""
    passes: list[int] = []

    def run_out(_: Any, args: Any, inputs: Any) -> None:
        passes.append(len(inputs["input_ids"]))
        if passes[-1] > rows:
            no_memory()

    handle = model.model.register_forward_pre_hook(run_out, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


PROMPTS = [step_prompt("Once {text}", f"a dog ran and {i} cats", []) for i in range(6)]
PAIRS = [TeacherExample(str(i), (1, 300, 301 + i), (302, 303, 2), "") for i in range(6)]


@pytest.mark.parametrize("shared_passes", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("kind", ["score", "ids", "generate", "follow", "teach"])
def test_passes_that_did_not_fit_are_not_made_again(model, kind, shared_passes):
    model.shared = shared_passes
    teacher = LocalTeacher(model, TopK(4, 1.0, "float32"))

    def compute() -> Any:
        if kind == "teach":
            return [row.logprobs.tolist() for row in teacher.rows(PAIRS)]
        if kind == "ids":
            return model.score_ids([(1, 300, 301 + i) for i in range(6)], [(302,), (303, 304)])
        if kind == "score":
            return [[a.logprob for a in r.answers.values()] for r in model.score(PROMPTS, {"A": "a dog", "B": "sad"})]
        likely = ["a dog and a cat", "sad"] if kind == "follow" else []
        return [reply.text for reply in model.generate(PROMPTS, 4, lambda _: False, likely)]

    whole = compute()
    with room_for(3, model) as passes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            halves = compute()
        assert 6 in passes
        passes.clear()
        with warned(0):
            assert compute() == halves
        assert max(passes) == 3
    if kind in ("generate", "follow"):
        assert halves == whole
    else:
        assert torch.allclose(torch.tensor(halves), torch.tensor(whole), atol=1e-4)


def test_memory_that_runs_out_while_a_model_is_tried_is_no_reason_to_share_no_pass(model, monkeypatch):
    """Processes that share a model would not agree on the number of passes."""
    monkeypatch.setattr(LocalModel, "score_shared", lambda *_: no_memory())
    with pytest.raises(RuntimeError) as caught:
        selftest.sharing_agrees(model)
    assert out_of_memory(caught.value)
    with pytest.raises(ProcessError, match=r"^out of memory while trying m on a few tokens; use a smaller model"):
        LocalModel("m", model.model, model.tokenizer, ModelOptions(), {})
