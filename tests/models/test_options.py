"""Options of a model as one parameter of a verb, and as flags of the command line."""

import inspect
from dataclasses import dataclass, field, fields
from typing import Annotated

import pytest
from cyclopts import App, Parameter

from sailkit import cli
from sailkit.evaluation.evaluate import evaluate
from sailkit.models.base import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Served(ModelOptions):
    """Options of a verb that runs no code of a repository.

    Attributes:
        date: The day of the server.
    """

    trust_remote_code: bool = field(init=False, default=False)


def verb(*, options: Annotated[Served, Parameter(name="*")] = Served()) -> Served:
    """Do something.

    Args:
        options: How to run the model.
    """
    return options


@pytest.fixture
def app():
    app = App(result_action="return_value")
    app.default(verb)
    return app


def arguments_of(app):
    return {argument.name: argument for argument in app.assemble_argument_collection()}


def test_each_attribute_is_a_flag_with_its_own_default_and_help():
    app = App()
    app.default(evaluate)
    arguments = arguments_of(app)
    for option in fields(ModelOptions):
        argument = arguments["--" + option.name.replace("_", "-")]
        assert argument.field_info.default == option.default
        assert argument.parameter.help
    assert "--options" not in arguments
    assert inspect.signature(evaluate).parameters["options"].default == ModelOptions()


def test_a_derived_class_leaves_a_flag_out_and_words_another(app):
    arguments = arguments_of(app)
    assert "--trust-remote-code" not in arguments
    assert arguments["--date"].parameter.help == "The day of the server."
    assert arguments["--chat"].parameter.help == "Use the model's chat template: auto (where it has one), on, off."


def test_what_is_not_given_keeps_its_default(app):
    assert app([]) == Served()
    given = ["--dtype", "float32", "--max-requests", "3", "--date", "2026-01-01"]
    assert app(given) == Served(dtype="float32", max_requests=3, date="2026-01-01")


def test_an_error_about_an_attribute_names_its_flag(monkeypatch):
    monkeypatch.setattr(cli, "VERBS", {"evaluate": (evaluate, print)})
    cli._arguments.cache_clear()
    assert cli._with_flags("try `dtype='float32'` or `max_requests`") == "try --dtype float32 or --max-requests"
    cli._arguments.cache_clear()
