"""The batches of `label` on a Ray cluster: the same plan, the same function and the same bytes as here."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import socket
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from sailkit import __version__, runs
from sailkit.errors import UserError, missing_extra
from sailkit.label import Labeler, Pair, Score, score_batch
from sailkit.label.load import LabelerOptions, load_labeler
from sailkit.models import ModelOptions
from sailkit.records import Instruction, SearchResult

_BLOCKS = 4096  # most pieces that Ray keeps account of; a longer plan has several batches in one
_PATIENCE = 10.0  # seconds to reach a cluster; Ray itself tries for minutes


@dataclass(frozen=True)
class Pool:
    """Workers on a cluster, each with a labeler of its own.

    Attributes:
        labeler: The labeler's name, as every node finds it.
        options: How to load and run it.
        address: A running cluster; `RAY_ADDRESS` by default, and without that one is started here and stopped again.
        actors: How many workers; 0 for as many as the cluster has room for.
        cpus: What each counts as; 0 for one CPU with a GPU, else as many as torch uses threads.
        gpus: GPUs of each.
    """

    labeler: str
    options: LabelerOptions
    address: str | None = None
    actors: int = 0
    cpus: float = 0.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not (self.actors >= 0 and self.cpus >= 0 and self.gpus >= 0):
            raise UserError("--ray-actors, --ray-cpus and --ray-gpus should be at least 0")
        if self.gpus > 1 and self.gpus % 1:
            raise UserError(f"--ray-gpus {self.gpus:g}: a part of one GPU, or whole ones")
        if self.options.model.max_requests:
            raise UserError("--max-requests is counted by one process; with --ray leave it out")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # read when ray is imported
        try:
            import ray.data  # noqa: F401
        except ImportError:
            raise missing_extra("ray", "label --ray") from None

    def score(self, labeler: Labeler, batches: Sequence[Sequence[Pair]]) -> Generator[list[Score], None, None]:
        """Scores of each batch, in order, as they come.

        Args:
            labeler: The same labeler as it is here; the nodes' must be its equal.
            batches: What is left of the plan.

        Raises:
            UserError: No cluster, no room on it, or what a labeler there raised.
        """
        if not batches:
            return
        torch = sys.modules.get("torch")
        threads = torch.get_num_threads() if torch else 1
        setup = {"labeler": self.labeler, "options": asdict(self.options), "is": _identity(labeler), "threads": threads}
        with _connected(self.address):
            from ray.data import ActorPoolStrategy, from_items

            size, cpus = self._size(len(batches), threads)
            rows = [{"batch": json.dumps([asdict(pair) for pair in batch])} for batch in batches]
            data = from_items(rows, override_num_blocks=min(len(rows), _BLOCKS))
            data.context.execution_options.preserve_order = True
            data.context.enable_progress_bars = False
            answers = data.map_batches(
                Worker,
                fn_constructor_args=(json.dumps(setup),),
                batch_size=1,
                compute=ActorPoolStrategy(size=size),
                num_cpus=cpus,
                num_gpus=self.gpus or None,
            )
            for row in answers.iter_rows():
                answer = json.loads(row["answer"])
                if error := answer.get("error"):
                    raise UserError(error)
                for text in answer["warnings"]:
                    warnings.warn(text, RuntimeWarning, stacklevel=1)
                yield [Score(**score) for score in answer["scores"]]

    def _size(self, batches: int, threads: int) -> tuple[int, float]:
        """How many workers, and the CPUs of each."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        cpus = self.cpus or (1.0 if self.gpus else min(float(threads), largest or 1.0))
        room = 0
        for node in nodes:
            shares = [node.get("CPU", 0.0) / cpus, *([node.get("GPU", 0.0) / self.gpus] if self.gpus else [])]
            room += int(min(shares))
        wanted = min(self.actors or room, batches)
        if not wanted:
            each = f"{cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")
            raise UserError(f"no node has {each}; ask for less, or name --ray-actors to wait for nodes that will come")
        if room < wanted:
            runs.notice(f"sailkit: the cluster has room for {room} of {wanted} workers; Ray waits for the others")
        return wanted, cpus


class Worker:
    """What runs on a node: a labeler that is loaded once; plain data comes in and goes out."""

    def __init__(self, setup: str) -> None:
        self._setup: dict[str, Any] = json.loads(setup)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Answer a column of batches, as Ray hands them over."""
        return {"answer": [json.dumps(self._answer(json.loads(text))) for text in batch["batch"]]}

    def _answer(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        pairs = [Pair(Instruction(**row["instruction"]), SearchResult(**row["result"])) for row in rows]
        try:
            with warnings.catch_warnings(record=True) as told:
                scores = score_batch(self._labeler, pairs)
        except UserError as error:
            return {"error": str(error)}  # Ray would wrap an exception in its own, with a traceback
        heard = [str(one.message) for one in told if issubclass(one.category, RuntimeWarning)]
        return {"scores": [asdict(score) for score in scores], "warnings": heard}

    @functools.cached_property
    def _labeler(self) -> Labeler:
        options = self._setup["options"]
        labeler = load_labeler(
            self._setup["labeler"], LabelerOptions(**{**options, "model": ModelOptions(**options["model"])})
        )
        here, there = _identity(labeler), self._setup["is"]
        if other := [name for name in {**there, **here} if there.get(name) != here.get(name)]:
            values = "; ".join(f"{name}: {here.get(name)} there, {there.get(name)} here" for name in other)
            raise UserError(f"the labeler on node {socket.gethostname()} is not the one here ({values})")
        # Ray gives a worker as many threads as it has CPUs; the last bits of a sum change with their number.
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self._setup["threads"])
        return labeler


def _identity(labeler: Labeler) -> dict[str, Any]:
    """What must be the same everywhere, as JSON brings it back."""
    found: dict[str, Any] = json.loads(json.dumps({"sailkit": __version__, **labeler.describe()}))
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
