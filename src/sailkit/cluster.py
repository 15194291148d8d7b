"""A planned list of tasks on a Ray cluster: the same plan, the same function and the same bytes as here."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from sailkit import __version__, runs
from sailkit.errors import UserError, missing_extra

_BLOCKS = 4096  # most pieces that Ray keeps account of; a longer plan has several tasks in one
_PATIENCE = 10.0  # seconds to reach a cluster; Ray itself tries for minutes


class Described(Protocol):
    """What does the work: a model, loaded once in each worker."""

    def describe(self) -> dict[str, Any]:
        """Everything that decides its values."""


@dataclass(frozen=True)
class Job:
    """What a worker does; all of it is found by name on every node.

    Attributes:
        what: What the errors call the thing that works, such as `labeler`.
        load: A function of a module: makes that thing out of `setup`.
        setup: How to load it, as JSON can say it.
        work: A function of a module: that thing and a task, as JSON brings it back, to bytes.
    """

    what: str
    load: Callable[[dict[str, Any]], Described]
    setup: Mapping[str, Any]
    work: Callable[[Any, Any], bytes]


@dataclass(frozen=True)
class Pool:
    """Workers on a cluster, each with a model of its own.

    Attributes:
        address: A running cluster; `RAY_ADDRESS` by default, and without that one is started here and stopped again.
        actors: How many workers; 0 for as many as the cluster has room for.
        cpus: What each counts as; 0 for one CPU with a GPU, else as many as torch uses threads.
        gpus: GPUs of each.
    """

    address: str | None = None
    actors: int = 0
    cpus: float = 0.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not (self.actors >= 0 and self.cpus >= 0 and self.gpus >= 0):
            raise UserError("--ray-actors, --ray-cpus and --ray-gpus should be at least 0")
        if self.gpus > 1 and self.gpus % 1:
            raise UserError(f"--ray-gpus {self.gpus:g}: a part of one GPU, or whole ones")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # read when ray is imported
        try:
            import ray.data  # noqa: F401
        except ImportError:
            raise missing_extra("ray", "--ray") from None

    def run(self, job: Job, here: Described, tasks: Sequence[Any]) -> Generator[bytes, None, None]:
        """What comes of each task, in order, as it comes. The task of a worker that dies is given to another.

        Args:
            job: What to do.
            here: The same model as it is here; the nodes' must be its equal.
            tasks: What is left of the plan, as JSON can say it.

        Raises:
            UserError: No cluster, no room on it, or what was raised there.
        """
        if not tasks:
            return
        torch = sys.modules.get("torch")
        threads = torch.get_num_threads() if torch else 1
        told = {"what": job.what, "setup": dict(job.setup), "is": _identity(here), "threads": threads}
        with _connected(self.address):
            from ray.data import ActorPoolStrategy, from_items

            size, cpus = self._size(len(tasks), threads)
            rows = [{"task": json.dumps(task)} for task in tasks]
            data = from_items(rows, override_num_blocks=min(len(rows), _BLOCKS))
            data.context.execution_options.preserve_order = True
            data.context.enable_progress_bars = False
            answers = data.map_batches(
                Worker,
                fn_constructor_args=(job.load, job.work, json.dumps(told)),
                batch_size=1,
                compute=ActorPoolStrategy(size=size),
                num_cpus=cpus,
                num_gpus=self.gpus or None,
            )
            for row in answers.iter_rows():
                heard = json.loads(row["heard"])
                if error := heard.get("error"):
                    raise UserError(error)
                for text in heard["warnings"]:
                    warnings.warn(text, RuntimeWarning, stacklevel=1)
                yield row["answer"]

    def _size(self, tasks: int, threads: int) -> tuple[int, float]:
        """How many workers, and the CPUs of each."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        cpus = self.cpus or (1.0 if self.gpus else min(float(threads), largest or 1.0))
        room = 0
        for node in nodes:
            shares = [node.get("CPU", 0.0) / cpus, *([node.get("GPU", 0.0) / self.gpus] if self.gpus else [])]
            room += int(min(shares))
        wanted = min(self.actors or room, tasks)
        if not wanted:
            each = f"{cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")
            raise UserError(f"no node has {each}; ask for less, or name --ray-actors to wait for nodes that will come")
        if room < wanted:
            runs.notice(f"sailkit: the cluster has room for {room} of {wanted} workers; Ray waits for the others")
        return wanted, cpus


def pool_of(
    ray: bool,
    address: str | None,
    actors: int,
    cpus: float,
    gpus: float,
    *,
    shard: str | None,
    max_requests: int,
) -> Pool | None:
    """The pool that a stage's flags ask for, or None.

    Args:
        ray: The flag `--ray`; the next four are those of its name.
        address: See `Pool`.
        actors: Likewise.
        cpus: Likewise.
        gpus: Likewise.
        shard: The stage's `--shard`.
        max_requests: Its `--max-requests`.

    Raises:
        UserError: They do not go together, or Ray is not installed.
    """
    if not ray:
        if address or actors or cpus or gpus:
            raise UserError("--ray-address, --ray-actors, --ray-cpus and --ray-gpus go with --ray")
        return None
    if shard is not None:
        raise UserError("--ray shares the work out itself; leave out --shard")
    if max_requests:
        raise UserError("--max-requests is counted by one process; with --ray leave it out")
    return Pool(address, actors, cpus, gpus)


class Worker:
    """What runs on a node: a model that is loaded once; JSON comes in, and bytes go out."""

    def __init__(
        self, load: Callable[[dict[str, Any]], Described], work: Callable[[Any, Any], bytes], told: str
    ) -> None:
        self._load, self._work = load, work
        self._told: dict[str, Any] = json.loads(told)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Answer a column of tasks, as Ray hands them over."""
        answers, heard = zip(*(self._answer(json.loads(task)) for task in batch["task"]), strict=True)
        return {"answer": list(answers), "heard": list(map(json.dumps, heard))}

    def _answer(self, task: Any) -> tuple[bytes, dict[str, Any]]:
        try:
            with warnings.catch_warnings(record=True) as told:
                found = self._work(self._model, task)
        except UserError as error:
            return b"", {"error": str(error)}  # Ray would wrap an exception in its own, with a traceback
        return found, {"warnings": [str(one.message) for one in told if issubclass(one.category, RuntimeWarning)]}

    @functools.cached_property
    def _model(self) -> Described:
        model = self._load(self._told["setup"])
        here, there = _identity(model), self._told["is"]
        if other := [name for name in {**there, **here} if there.get(name) != here.get(name)]:
            values = "; ".join(f"{name}: {here.get(name)} there, {there.get(name)} here" for name in other)
            raise UserError(f"the {self._told['what']} on node {socket.gethostname()} is not the one here ({values})")
        # Ray gives a worker as many threads as it has CPUs; the last bits of a sum change with their number.
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self._told["threads"])
        return model


def _identity(model: Described) -> dict[str, Any]:
    """What must be the same everywhere, as JSON brings it back."""
    found: dict[str, Any] = json.loads(json.dumps({"sailkit": __version__, **model.describe()}))
    return found


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine and stop it again."""
    import ray
    import ray.exceptions

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():  # by the caller, who will stop it
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _reach(address)
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
        except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"no Ray cluster at {address}: {why} (one that asks for a token needs RAY_AUTH_MODE=token here, too)"
            ) from None
        yield
    finally:
        ray.shutdown()  # of a cluster that was running already it only takes leave


def _reach(address: str) -> None:
    """Say at once when nobody listens at `[ray://]host:port`."""
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        if place.hostname and place.port:
            socket.create_connection((place.hostname, place.port), _PATIENCE).close()
    except (OSError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address}: {error}") from None
