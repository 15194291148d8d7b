"""Options of a model as one parameter of a verb, and as flags of the command line."""

import inspect
import io
import re
from dataclasses import dataclass, fields
from typing import Annotated

import pytest
from cyclopts import App, Parameter, UnknownOptionError
from rich.console import Console

from sailkit import cli
from sailkit.evaluation.evaluate import evaluate
from sailkit.models.base import DeviceOptions, ModelOptions
from sailkit.signatures import for_command_line


@dataclass(frozen=True, kw_only=True)
class Served(ModelOptions):
    """Options of a verb that runs no code of a repository.

    Attributes:
        date: The day of the server.
    """

    trust_remote_code: Annotated[bool, Parameter(parse=False)] = False


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


def help_of(app):
    text = io.StringIO()
    app.help_print([], console=Console(file=text, width=1000))
    return text.getvalue()


def test_each_attribute_is_a_flag_with_its_own_default_and_help():
    app = App()
    app.default(for_command_line(evaluate))
    arguments = arguments_of(app)
    for option in fields(ModelOptions):
        argument = arguments["--" + option.name.replace("_", "-")]
        assert argument.field_info.default == option.default
    assert "--options" not in arguments
    shown = help_of(app)
    for line in re.findall(r"^ {8}\w+: (.*)$", f"{DeviceOptions.__doc__}{ModelOptions.__doc__}", re.MULTILINE):
        assert line in shown
    assert inspect.signature(evaluate).parameters["options"].default == ModelOptions()


def test_a_derived_class_leaves_a_flag_out_and_words_another(app):
    shown = help_of(app)
    assert "--trust-remote-code" not in shown
    with pytest.raises(UnknownOptionError):
        app(["--trust-remote-code"], exit_on_error=False, print_error=False)
    assert re.search(r"--date STR +The day of the server\.", shown)
    assert re.search(r"--chat CHOICE +Use the model's chat template: auto \(where it has one\), on, off\.", shown)


def test_what_is_not_given_keeps_its_default(app):
    assert app([]) == Served()
    given = ["--dtype", "float32", "--max-requests", "3", "--date", "2026-01-01"]
    assert app(given) == Served(dtype="float32", max_requests=3, date="2026-01-01")


def test_an_error_about_an_attribute_names_its_flag():
    assert cli._with_flags("try `dtype='float32'` or `max_requests`") == "try --dtype float32 or --max-requests"
