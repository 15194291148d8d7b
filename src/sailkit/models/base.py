"""Models that answer prompts: on this machine, or behind any OpenAI-compatible server."""

# Annotations stay objects here: cyclopts evaluates those of a derived options class in the module that derives it.
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sailkit.errors import UserError
from sailkit.prompts.render import Prompt
from sailkit.records import AnswerScore

SCORE_RESERVE = 8  # tokens left free for an answer that is scored
# Told the text so far; says whether the answer is complete.
Finished = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model gave back for one prompt.

    Attributes:
        prompt: The prompt as it was sent.
        prompt_fingerprint: sha256 of what was sent, 16 hex digits.
        prompt_tokens: Its length.
        text: Newly generated text, or None where nothing was generated.
        answers: Answer word -> score, where the model gives log-probabilities.
        completion_tokens: Tokens generated.
        cut_tokens: Tokens of search results left out of the prompt.
        cut_off: The answer was stopped by the limit, before its end.
        refusal: Why a server gave no answer to this prompt; None where it gave one.
        thought: What the model thought before, where the server tells it from the answer.
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
    """Anything that answers prompts."""

    name: str

    def describe(self) -> dict[str, Any]:
        """Everything about the model that decides its answers, for the manifest."""

    def count_tokens(self, text: str) -> int:
        """How many tokens a text takes; an estimate where a server's tokenizer is not known."""

    def plan(self, prompts: Sequence[Prompt], reserve: int, names: Sequence[str] = ()) -> list[list[int]]:
        """Cut a whole run into batches.

        Args:
            prompts: All prompts of the run.
            reserve: Tokens to leave free for the answer.
            names: What to call each prompt in an error.

        Returns:
            Batches of indices; every prompt is in one.
        """

    def score(self, prompts: Sequence[Prompt], answers: Mapping[str, str]) -> list[Reply]:
        """Score each label's answer word behind each prompt of one batch.

        Args:
            prompts: One batch of the plan.
            answers: Label -> answer word.
        """

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, finished: Finished, likely: Sequence[str] = ()
    ) -> list[Reply]:
        """Answer each prompt of one batch greedily, until `finished` or the limit.

        Args:
            prompts: One batch of the plan.
            max_new_tokens: The limit.
            finished: Told the text so far; says whether it is complete.
            likely: Complete answers that are likely; knowing them may save time, and changes nothing else.
        """


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where and in which number format a model runs here.

    Attributes:
        dtype: Number format; auto takes bfloat16 where the machine is faster in it.
        device: Where to run: auto, cpu, cuda:0, mps.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class ModelOptions(DeviceOptions):
    """How to load and run a model.

    A verb takes it as one parameter, whose attributes the command line shows as flags; their help is the text below.
    A verb that leaves an attribute out, or words its help differently, derives a class: a field declared there as
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
        date: The day, as YYYY-MM-DD, for chat templates that read the clock; by default the day of the model's own
            training here, else today. A run that goes on keeps its day.
    """

    chat: Literal["auto", "on", "off"] = "auto"
    batch_tokens: int = 0
    max_requests: int = 0
    concurrency: int = 8
    timeout: float = 60.0
    max_response_mb: float = 32.0
    api_key_env: str = "OPENAI_API_KEY"
    trust_remote_code: bool = False
    date: str | None = None


def is_endpoint(name: str) -> bool:
    """Whether a model's name is that of one behind a server."""
    return name.startswith("endpoint:")


def check_scorable(model: Model) -> None:
    """Refuse to score answers of a model whose prompts end within a thought: no answer is expected there.

    The thought is not closed here, because a model that was trained to think has not learnt to answer without.

    Raises:
        UserError: Its chat template opens a thought, and has no switch (`enable_thinking`) that leaves it out.
    """
    if thought := model.describe().get("open_thought"):
        raise UserError(
            f"the chat template of {model.name} opens a thought ({thought.strip()}), and answers cannot be scored "
            "inside it; use `answer='generate'` with a `max_new_tokens` that leaves room to think, or `chat='off'`"
        )
