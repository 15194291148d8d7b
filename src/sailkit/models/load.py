"""Loads a model of any kind by its name."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from sailkit.errors import UserError
from sailkit.models.base import Model, ModelOptions, is_endpoint, is_vllm
from sailkit.plugins import check_members, is_plugin, load_plugin
from sailkit.prompts.chat_template import check_date


def load_model(name: str | Path | Model, options: ModelOptions | None = None) -> Model:
    """Load a model by name.

    Args:
        name: `smollm2-135m`, an adapter that the package ships, a hub id, a local folder, a GGUF file, a LoRA adapter
            folder, `vllm:` before any of these, `endpoint:MODEL@BASE_URL`, or `module:attribute` for a model of your
            own; or a model.
        options: How to load and run it.

    Raises:
        UserError: There is no such model, or it cannot be read or run with these options.
    """
    if not isinstance(name, (str, Path)):
        check_members(name, Model, type(name).__name__)
        return name
    name, options = str(name), options or ModelOptions()
    if options.chat not in ("auto", "on", "off"):
        raise UserError(f"`chat` takes auto, on or off, not {options.chat!r}")
    check_date(options.date)
    if is_endpoint(name):
        from sailkit.models.endpoint import EndpointModel  # each kind imports its own libraries

        return EndpointModel.from_name(name, options)
    if is_vllm(name):  # before plug-ins, whose names may look like it
        from sailkit.models.vllm_model import VllmModel

        return VllmModel.from_name(name, options)
    if is_plugin(name):
        return cast(Model, load_plugin(name, Model))
    from sailkit.models.local import LocalModel

    return LocalModel.from_name(name, options)


def check_unloaded(name: str | Path | Model, options: ModelOptions) -> None:
    """Refuse options beside a model that is loaded already.

    Raises:
        UserError: The options have no effect any more.
    """
    if not isinstance(name, (str, Path)) and options != ModelOptions():
        raise UserError("`options` say how to load a model, and this one is loaded; give them to `load_model`")
