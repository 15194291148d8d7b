"""The verb `doctor`: what this installation and machine have, what is missing, and the command that installs it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sailkit import runs
from sailkit.arguments import checked
from sailkit.catalog import recipes, samples
from sailkit.files.yaml_files import read_yaml
from sailkit.models.base import is_endpoint
from sailkit.models.sources import EMBEDDED, ENCODER, INSTALL, local_folder, shipped
from sailkit.provenance import environment, gpus
from sailkit.rendering.model import Block, Bullets, Facts, Flags, Headline, Report, Text, short
from sailkit.rendering.result import Result

_FOR = {
    "local": "local models",
    "endpoint": "models of a server",
    "parquet": "data in Parquet files",
    "pandas": "predictions as a DataFrame",
    "hub": "data sets of the Hugging Face hub",
    "search": "BM25 search",
    "web": "web search",
    "serve": "serve",
    "demo": "demo",
    "label": "labelers that are models",
    "finetune": "finetune and distill",
    "track": "trackers of training",
    "gpu": "bases in 4 or 8 bits",
    "deepspeed": "ZeRO",
    "ray": "clusters",
    "vllm": "models that vLLM runs, in an environment of its own",
}
_OF_DEVELOPERS = ("all", "dev", "docs")
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w.,-]+)\])?[^;]*(?:;.*extra == ['\"]([\w-]+)['\"])?")
_CUDA_BUILD = "uv pip install --reinstall --torch-backend=auto torch"


@dataclass(frozen=True)
class Lack:
    """Something that is missing.

    Attributes:
        what: What is missing, and what it is for.
        command: The command that installs it.
        required: Whether sailkit does not work without it.
    """

    what: str
    command: str
    required: bool = False


@dataclass(frozen=True)
class Diagnosis(Result):
    """The state of an installation.

    Attributes:
        versions: Package -> version.
        device: The device that `auto` selects, the number formats and the attention; None without torch.
        gpus: The visible GPUs, with free memory.
        memory: Free and total bytes of memory and of disks.
        extras: Extra -> the packages of it that are missing.
        models: Name -> where the model is; None if it would have to be downloaded.
        catalog: Number of recipes, examples and samples that come with the package.
        lacks: What is missing.
    """

    versions: dict[str, str]
    device: dict[str, str] | None
    gpus: list[dict[str, Any]]
    memory: dict[str, dict[str, int]]
    extras: dict[str, list[str]]
    models: dict[str, str | None]
    catalog: dict[str, int]
    lacks: tuple[Lack, ...]

    @property
    def complete(self) -> bool:
        """Whether everything that sailkit requires is there."""
        return not any(lack.required for lack in self.lacks)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**asdict(self), "lacks": [asdict(lack) for lack in self.lacks], "complete": self.complete}

    def report(self) -> Report:
        """Facts about machine and installation, then what is missing."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        rows = [("versions", versions), ("machine", f"{platform.platform()}, {os.cpu_count()} CPU cores")]
        rows += [(f"GPU {number}", _card(card)) for number, card in enumerate(self.gpus)]
        rows += [
            (name, f"{size['free'] / 1e9:.1f} GB free of {size['total'] / 1e9:.1f} GB")
            for name, size in self.memory.items()
        ]
        device = self.device or {"device": "no local models: torch is not installed"}
        rows += list(device.items())
        complete = [name for name, absent in self.extras.items() if not absent]
        rows += [("extras", ", ".join(complete) or "none")]
        rows += [("models", ", ".join(name for name, folder in self.models.items() if folder) or "none")]
        rows += [("in the package", ", ".join(f"{count} {name}" for name, count in self.catalog.items()))]
        blocks: list[Block] = [Facts(["value"], [(name, [value]) for name, value in rows])]
        if required := [f"{lack.what}: {lack.command}" for lack in self.lacks if lack.required]:
            blocks.append(Flags("", {"": required}))
        if optional := [lack for lack in self.lacks if not lack.required]:
            blocks.append(Text("Not installed; the command installs it if you need it:"))
            blocks.append(Bullets([(lack.what, f" {lack.command}") for lack in optional]))
        verdict = "everything that is required is installed" if self.complete else "something required is missing"
        return short("sailkit doctor", "", *blocks, Headline(verdict))


def _card(card: dict[str, Any]) -> str:
    free = f"{card['free'] / 1e9:.1f} GB free of {card['memory'] / 1e9:.1f} GB"
    return f"{card['name']}, {free}, compute capability {card['compute_capability']}, driver {card['driver']}"


@checked
def doctor() -> Diagnosis:
    """Check the installation, and print what installs what is missing.

    Loads no model and downloads nothing. The exit status is 1 if something required is missing, else 0.

    Returns:
        Versions, devices, memory, extras, and models that are there without a download.
    """
    extras = _extras()
    required = extras.pop("", [])
    lacks = [Lack(f"{name}, required by sailkit", f"pip install {name!r}", required=True) for name in required]
    lacks += [
        Lack(f"{_FOR.get(extra, extra)} ({', '.join(absent)})", f"pip install 'sailkit[{extra}]'")
        for extra, absent in extras.items()
        if absent
    ]
    device = None
    if importlib.util.find_spec("torch") is not None:
        device = _device()
        if device["device"] == "cpu" and shutil.which("nvidia-smi") and not _cuda_build():
            lacks.append(Lack("a build of torch that can use the GPU", _CUDA_BUILD))
    models = {name: local_folder(name) for name in (EMBEDDED, *shipped(), ENCODER, *_hub_models())}
    lacks += [
        Lack(f"{name}, a model", INSTALL.get(name, f"hf download {name}"))
        for name, folder in models.items()
        if folder is None and name not in shipped()  # these need the embedded model alone
    ]
    return Diagnosis(
        versions=environment()["versions"],
        device=device,
        gpus=_with_free_memory(gpus()) if device else [],
        memory=_memory(),
        extras=extras,
        models={name: str(folder) if folder else None for name, folder in models.items()},
        catalog={"recipes and examples": len(recipes().files), "samples": len(samples().files)},
        lacks=tuple(lacks),
    )


def _extras() -> dict[str, list[str]]:
    """Extra -> those of its packages that are missing or too old; those of sailkit itself under the empty name."""
    requires = _requirements("sailkit")
    return {
        extra: list(dict.fromkeys(_absent(requires, extra)))
        for extra in ["", *dict.fromkeys(extra for _, _, _, extra in requires if extra)]
        if extra not in _OF_DEVELOPERS
    }


def _requirements(package: str) -> list[tuple[str, str, list[str], str]]:
    """Text, package, extras of the package, and extra of sailkit that requires it."""
    texts: list[str] = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from its source
        texts = importlib.metadata.requires(package) or []
    matches = ((text, _REQUIREMENT.match(text)) for text in texts)
    return [
        (text.partition(";")[0].strip(), match[1], (match[2] or "").split(","), match[3] or "")
        for text, match in matches
        if match
    ]


def _absent(requires: list[tuple[str, str, list[str], str]], extra: str) -> Iterator[str]:
    for text, package, extras, required_by in requires:
        if required_by != extra:
            continue
        if package == "sailkit":
            for inner in extras:
                yield from _absent(requires, inner)
        elif not _is_installed(package, text):
            yield text


def _is_installed(package: str, requirement: str) -> bool:
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    try:
        from packaging.requirements import Requirement
    except ImportError:  # it comes with transformers
        return True
    return Requirement(requirement).specifier.contains(version, prereleases=True)


def _cuda_build() -> bool:
    import torch

    return torch.version.cuda is not None


def _device() -> dict[str, str]:
    """What `auto` selects here."""
    import torch

    from sailkit.models.attention import packed_attention
    from sailkit.models.weights import fast_in_bfloat16, pick_device, pick_dtype

    device = pick_device("auto")
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    autocast = "bfloat16 autocast" if fast_in_bfloat16(device) else "float32"
    flash = packed_attention(torch.bfloat16)
    return {
        "device": str(device),
        "threads": str(torch.get_num_threads()),
        "dtype": f"{dtype} with --dtype auto; training in {autocast}",
        "attention": "sdpa of torch" + (f"; {flash[0]} for packed rows" if flash else ""),
    }


def _with_free_memory(cards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    import torch

    return [{**card, "free": torch.cuda.mem_get_info(number)[0]} for number, card in enumerate(cards)]


def _memory() -> dict[str, dict[str, int]]:
    """Free and total bytes: memory, the disk of the working directory, and that of sailkit's cache."""
    sizes: dict[str, dict[str, int]] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not on every system
        page = os.sysconf("SC_PAGE_SIZE")
        sizes["memory"] = {"free": page * os.sysconf("SC_AVPHYS_PAGES"), "total": page * os.sysconf("SC_PHYS_PAGES")}
        lines = Path("/proc/meminfo").read_text("utf-8")
        if available := re.search(r"^MemAvailable: *(\d+) kB", lines, re.MULTILINE):  # with the caches of files
            sizes["memory"]["free"] = 1024 * int(available[1])
    folders = {"disk, here": Path.cwd(), f"disk, {runs.cache_folder()}": runs.cache_folder()}
    for name, folder in folders.items():
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        usage = shutil.disk_usage(existing)
        sizes[name] = {"free": usage.free, "total": usage.total}
    return sizes


def _hub_models() -> list[str]:
    """The models of the hub that the recipes of the package name."""
    trees = (read_yaml(file.path) for file in recipes().files if file.kind in ("finetune", "distill"))
    names = (str(tree[key]) for tree in trees for key in ("model", "teacher") if key in tree)
    return sorted({name for name in names if "/" in name and not is_endpoint(name) and not name.startswith("runs/")})
