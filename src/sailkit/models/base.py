"""The model protocol, the replies of models, and the options to load and run them."""

# Annotations stay objects here: cyclopts evaluates those of a derived options class in the module that derives it.
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from sailkit.errors import UserError
from sailkit.prompts.render import Prompt
from sailkit.records import AnswerScore

SCORE_RESERVE = 8  # tokens of the context that are reserved for an answer that is scored
AttnImplementation = Literal[  # names of transformers, except for auto
    "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention"
]
ATTN_IMPLEMENTATIONS: tuple[str, ...] = get_args(AttnImplementation)
VLLM = "vllm:"  # before the name of a local model that vLLM runs
Finished = Callable[[str], bool]  # takes the text so far, and returns whether the answer is complete


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply to one prompt.

    Attributes:
        prompt: The prompt as it was sent.
        prompt_fingerprint: sha256 of what was sent, 16 hex digits.
        prompt_tokens: Length of the prompt.
        text: The generated text; None if answers were scored and nothing was generated.
        answers: Answer word -> score; empty if the model gives no log-probabilities.
        completion_tokens: Generated tokens.
        cut_tokens: Tokens of search results that did not fit into the prompt.
        cut_off: Whether the answer reached the limit of tokens before its end.
        refusal: Why a server did not answer this prompt; None if it did.
        thought: The reasoning before the answer, if the server separates the two.
    """

    prompt: str
    prompt_fingerprint: str
    prompt_tokens: int
    text: str | None = None
    answers: dict[str, AnswerScore] = field(default_factory=dict)
    completion_tokens: int = 0
    cut_tokens: int = 0
    cut_off: bool = False
    refusal: str | None = None
    thought: str | None = None


class Model(Protocol):
    """A model that answers prompts; to use your own class, pass `module:attribute` as a verb's `model`.

    A stage calls `plan` once with all prompts of the run, then `score` or `generate` for each batch of the plan. A
    resumed run plans again and continues with the first batch that is not written, so a plan must depend on its
    arguments alone.

    Attributes:
        name: The model's name, in messages and figures.
        scoring_threads: Number of threads that may call `score` at a time, an int; optional, 1 by default.
    """

    name: str

    def describe(self) -> dict[str, Any]:
        """Everything that determines the answers, as JSON values, such as fingerprints of files and versions.

        It is written to the run's manifest; a run resumes only with the same description.

        Returns:
            At least `model`, the model's name.
        """

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a text; an estimate if the tokenizer is not known."""

    def plan(self, prompts: Sequence[Prompt], reserve: int, names: Sequence[str] = ()) -> list[list[int]]:
        """Divide the prompts of a whole run into batches.

        Args:
            prompts: All prompts of the run.
            reserve: Tokens of the context that are reserved for the answer.
            names: The name of each prompt in errors, such as "item 7".

        Returns:
            Batches of indices; each prompt is in exactly one.

        Raises:
            UserError: A prompt does not fit into the context.
        """

    def score(self, prompts: Sequence[Prompt], answers: Mapping[str, str]) -> list[Reply]:
        """Score the answer word of each label after each prompt of one batch.

        Args:
            prompts: One batch of the plan.
            answers: Label -> answer word.

        Returns:
            A reply for each prompt, with `answers`. If the model has no log-probabilities, `answers` is empty, and the
            label is read from `text`.
        """

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, finished: Finished, likely: Sequence[str] = ()
    ) -> list[Reply]:
        """Answer each prompt of one batch greedily, until `finished` or the limit.

        Args:
            prompts: One batch of the plan.
            max_new_tokens: Most tokens of an answer.
            finished: Returns whether an answer is complete, given its text so far.
            likely: Likely complete answers; they may save time, but never change an answer.

        Returns:
            A reply for each prompt, with `text`.
        """


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Device and number format of a local model.

    Attributes:
        dtype: Number format; auto selects bfloat16 if the machine is faster in it.
        device: Where to run: auto, cpu, cuda:0, mps.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class ModelOptions(DeviceOptions):
    """How to load and run a model.

    A verb takes it as one parameter, whose attributes become flags on the command line; their help is the text below.
    To leave out a flag or to change its help, derive a class: a field that is declared there as
    `Annotated[..., Parameter(parse=False)]` is no flag, and a text under `Attributes` replaces the one here.

    Attributes:
        chat: Use the model's chat template: auto (where it has one), on, off.
        batch_tokens: Most tokens in a batch; 0 chooses.
        max_requests: Most requests to an endpoint, retries included; 0 for no limit.
        concurrency: Most requests at a time.
        timeout: Seconds for one request.
        max_response_mb: Most megabytes of one answer, unpacked.
        api_key_env: Environment variable with the key; it is sent to the endpoint that you name.
        trust_remote_code: Run code that the model's repository carries.
        attn_implementation: How transformers computes attention: auto is its own choice. With eager and sdpa alone,
            prompts share their common beginning.
        date: The date, as YYYY-MM-DD, for chat templates that read the clock; by default the date with which sailkit
            trained the model, else today. A resumed run keeps its date.
    """

    chat: Literal["auto", "on", "off"] = "auto"
    batch_tokens: int = 0
    max_requests: int = 0
    concurrency: int = 8
    timeout: float = 60.0
    max_response_mb: float = 32.0
    api_key_env: str = "OPENAI_API_KEY"
    trust_remote_code: bool = False
    attn_implementation: AttnImplementation = "auto"
    date: str | None = None


def is_endpoint(name: str) -> bool:
    """Whether a name denotes a model behind a server."""
    return name.startswith("endpoint:")


def is_vllm(name: str) -> bool:
    """Whether a name denotes a model that vLLM runs."""
    return name.startswith(VLLM)


def answers_first(described: Mapping[str, Any]) -> bool:
    """Whether sailkit trained a model, from its description, to answer before it judges its search results."""
    return described.get("trained_order") == "answer-first"


def scoring_threads(model: Model) -> int:
    """Number of threads that may call a model's `score` at a time."""
    return getattr(model, "scoring_threads", 1)


def check_scorable(model: Model | str) -> None:
    """Raise a UserError for a model that vLLM runs, or whose prompts end within a thought.

    The thought is not closed here, because a model that was trained to think has not learned to answer without it.

    Args:
        model: A model; or its name before it is loaded, which shows only whether vLLM would run it.

    Raises:
        UserError: vLLM runs it, or its chat template opens a thought and has no switch (`enable_thinking`) that leaves
            it out.
    """
    name = model if isinstance(model, str) else model.name
    if is_vllm(name):
        raise UserError(
            f"answers are not scored with vLLM: leave out {VLLM!r} of {name} (or, to evaluate its "
            "written answers, use `answer='generate'`)"
        )
    if isinstance(model, str):
        return
    if thought := model.describe().get("open_thought"):
        raise UserError(
            f"the chat template of {model.name} opens a thought ({thought.strip()}), and answers cannot be scored "
            "inside it; use `answer='generate'` with a `max_new_tokens` that leaves room to think, or `chat='off'`"
        )
