"""Run planned tasks on a Ray cluster, with byte-identical results to this machine."""

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
from typing import Annotated, Any, Protocol
from urllib.parse import urlsplit

from cyclopts import Parameter

from sailkit import __version__, runs
from sailkit.errors import UserError, required_extra

_MAX_BLOCKS = 4096  # blocks of a Ray data set; longer plans put several tasks into a block, to limit overhead
_CONNECT_TIMEOUT = 10.0  # seconds


class Described(Protocol):
    """A model or labeler, which a worker loads once."""

    def describe(self) -> dict[str, Any]:
        """Everything that affects its results."""


@dataclass(frozen=True)
class Job:
    """The work of a worker; its functions are module-level, so that every node can import them.

    Attributes:
        what: Kind of model, such as `labeler`, for errors.
        load: Loads the model from `setup`.
        setup: Arguments of `load`; JSON values.
        work: Maps the model and a task (JSON values) to bytes.
    """

    what: str
    load: Callable[[dict[str, Any]], Described]
    setup: Mapping[str, Any]
    work: Callable[[Any, Any], bytes]


@dataclass(frozen=True)
class RayOptions:
    """Options to distribute work over a Ray cluster, to workers that each load the model.

    Attributes:
        enabled: Distribute the work over a Ray cluster; a local one is started if none is running.
        address: Address of a running cluster; RAY_ADDRESS by default.
        actors: Number of workers; 0 for as many as fit on the cluster.
        cpus: CPUs per worker; 0 for the number of torch threads here, or 1 if each has a GPU.
        gpus: GPUs per worker, or a fraction of one.
    """

    enabled: Annotated[bool, Parameter(name="--ray")] = False
    address: Annotated[str | None, Parameter(name="--ray-address")] = None
    actors: Annotated[int, Parameter(name="--ray-actors")] = 0
    cpus: Annotated[float, Parameter(name="--ray-cpus")] = 0.0
    gpus: Annotated[float, Parameter(name="--ray-gpus")] = 0.0

    def pool(self, *, shard: str | None, max_requests: int) -> Pool | None:
        """Create the pool of workers; None if the work is done in this process.

        Args:
            shard: The verb's `--shard`.
            max_requests: The verb's `--max-requests`.

        Raises:
            UserError: The options conflict, or Ray is not installed.
        """
        if not self.enabled:
            if self != RayOptions():
                raise UserError("`ray_address`, `ray_actors`, `ray_cpus` and `ray_gpus` go with `ray`")
            return None
        if shard is not None:
            raise UserError("`ray` shares the work out itself; leave out `shard`")
        if max_requests:
            raise UserError("`max_requests` is counted by one process; with `ray` leave it out")
        return Pool(self)


@dataclass(frozen=True)
class Pool:
    """Workers on a cluster, each with its own copy of the model.

    Attributes:
        options: Address of the cluster, number and size of the workers.
    """

    options: RayOptions

    def __post_init__(self) -> None:
        options = self.options
        if not (options.actors >= 0 and options.cpus >= 0 and options.gpus >= 0):
            raise UserError("`ray_actors`, `ray_cpus` and `ray_gpus` should be at least 0")
        if options.gpus > 1 and options.gpus % 1:
            raise UserError(f"`ray_gpus` {options.gpus:g}: a part of one GPU, or whole ones")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # read when ray is imported
        with required_extra("ray", "`ray`"):
            import ray.data  # noqa: F401

    def run(self, job: Job, here: Described, tasks: Sequence[Any]) -> Generator[bytes, None, None]:
        """Yield the output of each task, in order; the tasks of a dead worker are repeated by another.

        Args:
            job: The work.
            here: The model as loaded on this machine; those on the nodes must have the same description.
            tasks: The remaining tasks of the plan; JSON values.

        Raises:
            UserError: There is no cluster, no node is large enough, or a worker raised a UserError.
        """
        if not tasks:
            return
        torch = sys.modules.get("torch")
        threads = torch.get_num_threads() if torch else 1
        config = {"what": job.what, "setup": dict(job.setup), "identity": _identity(here), "threads": threads}
        with _connected(self.options.address):
            from ray.data import ActorPoolStrategy, from_items

            size, cpus = self._size(len(tasks), threads)
            rows = [{"task": json.dumps(task)} for task in tasks]
            data = from_items(rows, override_num_blocks=min(len(rows), _MAX_BLOCKS))
            data.context.execution_options.preserve_order = True
            data.context.enable_progress_bars = False
            outputs = data.map_batches(
                Worker,
                fn_constructor_args=(job.load, job.work, json.dumps(config)),
                batch_size=1,
                compute=ActorPoolStrategy(size=size),
                num_cpus=cpus,
                num_gpus=self.options.gpus or None,
            )
            for row in outputs.iter_rows():
                messages = json.loads(row["messages"])
                if error := messages.get("error"):
                    raise UserError(error)
                for text in messages["warnings"]:
                    warnings.warn(text, RuntimeWarning, stacklevel=1)
                yield row["output"]

    def _size(self, tasks: int, threads: int) -> tuple[int, float]:
        """Number of workers, and CPUs per worker."""
        import ray

        options = self.options
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        cpus = options.cpus or (1.0 if options.gpus else min(float(threads), largest or 1.0))
        room = 0
        for node in nodes:
            shares = [node.get("CPU", 0.0) / cpus]
            if options.gpus:
                shares.append(node.get("GPU", 0.0) / options.gpus)
            room += int(min(shares))
        workers = min(options.actors or room, tasks)
        if not workers:
            each = f"{cpus:g} CPUs" + (f" and {options.gpus:g} GPUs" if options.gpus else "")
            raise UserError(f"no node has {each}; ask for less, or name `ray_actors` to wait for nodes that will come")
        if room < workers:
            runs.notice(f"sailkit: the cluster has room for {room} of {workers} workers; Ray waits for the others")
        return workers, cpus


class Worker:
    """A Ray actor that loads the model once, and maps tasks as JSON to bytes."""

    def __init__(
        self, load: Callable[[dict[str, Any]], Described], work: Callable[[Any, Any], bytes], config: str
    ) -> None:
        self._load, self._work = load, work
        self._config: dict[str, Any] = json.loads(config)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Run the tasks of a batch in Ray's column format."""
        outputs, messages = zip(*(self._run(json.loads(task)) for task in batch["task"]), strict=True)
        return {"output": list(outputs), "messages": list(map(json.dumps, messages))}

    def _run(self, task: Any) -> tuple[bytes, dict[str, Any]]:
        try:
            with warnings.catch_warnings(record=True) as caught:
                output = self._work(self._model, task)
        except UserError as error:
            return b"", {"error": str(error)}  # returned, because Ray wraps exceptions with a traceback
        return output, {"warnings": [str(item.message) for item in caught if issubclass(item.category, RuntimeWarning)]}

    @functools.cached_property
    def _model(self) -> Described:
        model = self._load(self._config["setup"])
        local, expected = _identity(model), self._config["identity"]
        if different := [name for name in {**expected, **local} if expected.get(name) != local.get(name)]:
            values = "; ".join(f"{name}: {local.get(name)} there, {expected.get(name)} here" for name in different)
            raise UserError(f"the {self._config['what']} on node {socket.gethostname()} is not the one here ({values})")
        # Ray sets the number of threads to the worker's CPUs, but the low bits of sums depend on that number.
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self._config["threads"])
        return model


def _identity(model: Described) -> dict[str, Any]:
    """Everything that must be equal on all nodes, normalised through JSON (tuples become lists)."""
    identity: dict[str, Any] = json.loads(json.dumps({"sailkit": __version__, **model.describe()}))
    return identity


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start a local one and stop it at the end."""
    import ray
    import ray.exceptions

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():  # by the caller, who also stops it
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _reach(address)
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)
        except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"no Ray cluster at {address}: {why} (one that asks for a token needs RAY_AUTH_MODE=token here, too)"
            ) from None
        yield
    finally:
        ray.shutdown()  # only disconnects from a cluster that was already running


def _reach(address: str) -> None:
    """Fail at once if nothing listens at `[ray://]host:port`; Ray itself would retry for minutes."""
    url = urlsplit(address if "://" in address else f"//{address}")
    try:
        if url.hostname and url.port:
            socket.create_connection((url.hostname, url.port), _CONNECT_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address}: {error}") from None
