"""Two real processes on one CPU: they train the model that one process trains, and they end together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from sailkit.data.exports import example_row
from sailkit.distributed import Processes
from sailkit.records import SearchResult, TrainingExample
from sailkit.training.finetune import finetune

pytest.importorskip("trl")
HERE = Path(__file__).parents[1]
CONFIGS = HERE.parent / "recipes" / "accelerate"
SET = ["training.bf16=false", "training.learning_rate=2e-3", "training.max_length=512", "training.logging_steps=1",
       "training.per_device_eval_batch_size=2"]  # fmt: skip


def example(i: int) -> TrainingExample:
    """Every third response is twenty times as long: the processes never have equally much to learn."""
    good, bad = SearchResult(f"Seals like {i} red balls.", "Seals"), SearchResult("It was sunny." * (i % 4), "Day")
    results, verdicts = ((good, bad), ("informative", "distracting")) if i % 2 else ((bad,), ("distracting",))
    response = f"{i} red balls." * (1 if i % 3 else 20)
    return TrainingExample(str(i), "What do seals like?", "", results, verdicts, response, "sail-fixed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Neither 11 rows nor 5 come out even."""
    folder = tmp_path_factory.mktemp("build")
    for name, numbers in (("train", range(11)), ("held_out", range(11, 16))):
        rows = (json.dumps(example_row(example(i))) + "\n" for i in numbers)
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@contextlib.contextmanager
def started(*words: str | Path, **more: str):
    """A command and all that it starts, of which nothing is left afterwards."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1", **more}
    child = subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    family: list[psutil.Process] = []
    try:
        yield child
        family = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    finally:
        for one in [*family, child]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                one.kill()
        child.wait()


def finished(*words: str | Path, seconds: float = 240, **more: str) -> tuple[int, str]:
    with started(*words, **more) as child:
        try:
            said = child.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            pytest.fail(f"not finished after {seconds} s: {words}")
        return child.returncode, said


def launched(folder: Path, data: Path, out: Path, *settings: str, program: str = "sailkit") -> list[str]:
    """The words of the documented command, on two processes."""
    given = [word for setting in (*SET, *settings) for word in ("--set", setting)]
    words = ["-m", "accelerate.commands.launch", "--config_file", CONFIGS / "cpu.yaml", "-m", program, "finetune"]
    return [*map(str, words), "--out", str(out), "--model", str(folder), "--data", str(data), *given]


def history(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def logged(out: Path, *names: str) -> list[tuple]:
    return [(row["step"], name, row[name]) for row in history(out) for name in names if name in row]


@pytest.mark.long
def test_two_processes_train_what_one_trains(folder, data, tmp_path):
    two_train_what_one_trains(folder, data, tmp_path)


@pytest.mark.long
def test_processes_that_count_for_themselves_are_noticed(folder, data, tmp_path):
    with pytest.raises(AssertionError, match=r"\(1, '(loss|grad_norm)'\)"):
        two_train_what_one_trains(folder, data, tmp_path, program="own_mean")


@pytest.mark.long
def test_two_processes_weight_the_loss_as_one_does(folder, data, tmp_path):
    two_train_what_one_trains(folder, data, tmp_path, settings=["loss_weights.answer=8"])


def two_train_what_one_trains(folder, data, tmp_path, program="sailkit", settings=()):
    same = ["training.num_train_epochs=1", "training.per_device_train_batch_size=2", *settings]
    single = "training.gradient_accumulation_steps=1"
    done, said = finished(*launched(folder, data, tmp_path / "two", *same, single, program=program))
    assert done == 0, said
    one = finetune(
        out=tmp_path / "one", model=str(folder), data=[str(data)],
        set=[*SET, *same, "training.gradient_accumulation_steps=2"],
    ).to_json()  # fmt: skip
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["global_batch"] == two["global_batch"] == 4
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["settings"]["processes"] == 2
    names = "loss", "grad_norm", "learning_rate", "num_tokens", "mean_token_accuracy", "eval_loss"
    pair = [logged(tmp_path / name, *names) for name in ("one", "two")]
    assert len(pair[0]) == 3 * 6  # three steps, each of them evaluated
    for (step, name, expected), (*same, found) in zip(*pair, strict=True):
        assert same == [step, name]
        assert found == pytest.approx(expected, abs=1e-4), (step, name)
    for name in one.keys() & two.keys() - {"seconds", "tokens_per_second", "saved", "processes"}:
        assert two[name] == (pytest.approx(one[name], abs=1e-4) if isinstance(one[name], float) else one[name]), name
    assert {"base_flagging_auroc", "tuned_flagging_auroc", "base_loss", "tuned_loss"} <= two.keys()
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) < 1e-4
    assert not list((tmp_path / "two").glob(".model*"))


@pytest.mark.long
def test_a_loss_that_is_no_number_ends_both_with_one_line(folder, data, tmp_path):
    out = tmp_path / "run"
    more = "training.learning_rate=1e20", "training.max_grad_norm=0.0", "training.gradient_accumulation_steps=2"
    done, said = finished(*launched(folder, data, out, *more))
    assert done != 0
    (line,) = [line for line in said.splitlines() if line.startswith("sailkit:")]
    assert "error: the loss of step" in line
    assert said.count("Traceback") == 1  # the launcher's own
    assert not (out / "metrics.json").exists()


@pytest.mark.long
def test_a_folder_of_something_else_ends_both_with_one_line(folder, data, tmp_path):
    (tmp_path / "mine").touch()
    done, said = finished(*launched(folder, data, tmp_path))
    assert done != 0
    assert [line for line in said.splitlines() if line.startswith("sailkit:")] == [
        f"sailkit: error: {tmp_path} exists and is not a run folder; choose another --out"
    ]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.long
def test_a_sharded_model_has_the_loss_and_the_gradients_of_the_whole(folder, data, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", str(free_port()), HERE / "sharded.py"]
    done, said = finished(*launcher, folder, data, tmp_path / "two")
    assert done == 0, said
    from sharded import run

    run(folder, data, tmp_path / "one", Processes())
    one, two = (json.loads((tmp_path / name / "figures.json").read_text()) for name in ("one", "two"))
    assert one.pop("sharded") == 0
    assert two.pop("sharded") > 40
    assert two == pytest.approx(one, abs=1e-4)
    assert {"loss", "eval_loss", "eval_auroc"} <= one.keys()
    grads = [load_file(tmp_path / name / "grads.safetensors") for name in ("one", "two")]
    assert max(grad.abs().max() for grad in grads[0].values()) > 1e-2
    assert max((grads[0][name] - grads[1][name]).abs().max() for name in grads[0]) < 1e-4


@pytest.mark.long
def test_a_process_that_alone_runs_out_of_memory_says_so_and_ends_all(folder, data, tmp_path):
    done, said = finished(*launched(folder, data, tmp_path / "run", program="short_of_memory"))
    assert done != 0
    (line,) = [line for line in said.splitlines() if line.startswith("sailkit:")]
    assert "error: out of memory while training; set training.per_device_train_batch_size lower" in line


def short_of_memory(how: str, folder: Path, data: Path) -> tuple[int, str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    return finished(*launcher, "--master-port", str(free_port()), HERE / "sharded_short.py", how, folder, data)


@pytest.mark.long
def test_a_process_halves_no_batch_alone_where_the_others_wait_for_it_in_each_pass(folder, data):
    done, said = short_of_memory("sharded", folder, data)
    assert done != 0
    (line,) = [line for line in said.splitlines() if "ProcessError:" in line]
    assert "process 1: out of memory with " in line
    assert "tokens; divide the weights among more processes" in line
    assert "going on with half of them" not in said


@pytest.mark.long
def test_a_process_with_a_whole_model_halves_alone(folder, data):
    done, said = short_of_memory("whole", folder, data)
    assert done == 0, said
    assert said.count("going on with half of them") >= 1


@pytest.mark.long
@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_two_processes_that_were_killed_end_with_the_same_weights(folder, data, tmp_path, sampling):
    """Within the second epoch, whose order of rows has to come again."""
    steps = ["training.max_steps=8", "training.eval_strategy=steps", "training.eval_steps=2",
             "training.gradient_accumulation_steps=2", f"training.train_sampling_strategy={sampling}"]  # fmt: skip
    assert finished(*launched(folder, data, tmp_path / "whole", *steps))[0] == 0
    out = tmp_path / "killed"
    with started(*launched(folder, data, out, *steps)) as child:
        until = time.monotonic() + 240
        while not (out / "checkpoints" / "checkpoint-6" / "trainer_state.json").exists():
            assert child.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        workers = psutil.Process(child.pid).children(recursive=True)
        for one in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        child.communicate(timeout=60)
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in workers)
    assert not (out / "metrics.json").exists()
    assert finished(*launched(folder, data, out, *steps))[0] == 0
    assert logged(out, "loss", "eval_loss") == logged(tmp_path / "whole", "loss", "eval_loss")
    weights = [(path / "model" / "model.safetensors").read_bytes() for path in (out, tmp_path / "whole")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("n", "count"), [(5, 2), (4, 2), (1, 3), (7, 3), (3, 1)])
def test_work_is_dealt_once_and_in_equal_numbers(n, count):
    dealt = [Processes(rank, count).shard(range(n)) for rank in range(count)]
    assert len({len(share) for share in dealt}) == 1
    assert sorted(item for share in dealt for item, counts in share if counts) == list(range(n))


def parsed(path: Path) -> tuple[object, dict[str, str]]:
    """A config as the launcher reads it, and the environment that it gives its processes."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    args, _, _ = launch._validate_launch_command(
        launch.launch_command_parser().parse_args(["--config_file", str(path), "-m", "sailkit"])
    )
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = []
        return args, prepare_deepspeed_cmd_env(args)[1]
    return args, prepare_multi_gpu_env(args)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_we_ship_is_understood_by_accelerate(path):
    args, environment = parsed(path)
    assert args.num_processes == {"cpu": 2}.get(path.stem, 8)
    assert args.main_process_port > 0
    assert (args.multi_gpu, args.use_fsdp, args.use_deepspeed) == {
        "cpu": (True, False, False),
        "ddp": (True, False, False),
        "fsdp2": (False, True, False),
        "zero2": (False, False, True),
    }[path.stem]
    assert environment["ACCELERATE_MIXED_PRECISION"] == ("no" if path.stem == "cpu" else "bf16")


def test_the_sharding_that_we_ship(monkeypatch):
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

    for name, value in parsed(CONFIGS / "fsdp2.yaml")[1].items():
        monkeypatch.setenv(name, value)
    fsdp = FullyShardedDataParallelPlugin()
    assert (fsdp.fsdp_version, fsdp.reshard_after_forward, fsdp.state_dict_type.name) == (2, True, "FULL_STATE_DICT")
    for name, value in parsed(CONFIGS / "zero2.yaml")[1].items():
        monkeypatch.setenv(name, value)
    config = DeepSpeedPlugin().hf_ds_config
    assert config.get_value("zero_optimization.stage") == 2
    assert config.get_value("zero_optimization.offload_optimizer.device") == "cpu"
    assert config.get_value("zero_optimization.offload_param.device") == "none"
    assert (config.get_value("gradient_accumulation_steps"), config.get_value("gradient_clipping")) == ("auto", "auto")
