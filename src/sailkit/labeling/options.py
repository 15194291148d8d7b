"""Options to load and run a labeler, which the verbs `label` and `audit` show as flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from sailkit.models.base import ModelOptions

Direction = Literal["result-first", "response-first", "both"]
Measure = Literal["entailment", "relevance"]
InputForm = Literal["pair", "esp"]
_NO_FLAG = Parameter(parse=False)


@dataclass(frozen=True, kw_only=True)
class LabelerOptions(ModelOptions):
    """Options to load and run a labeler; a labeler ignores those that it does not use.

    Attributes:
        direction: For entailment: the premise is the result (result-first), the response, or each in turn.
        measure: For entailment: P(entailment), or relevance, 1 - P(neutral).
        form: For entailment: input as a pair of texts, or as ESP's single sentence.
        chat: For judge: use the model's chat template: auto (where it has one), on, off.
        dtype: Number format; auto takes bfloat16 where the machine has it.
        batch_tokens: For judge: maximum tokens in a batch; 0 chooses.
        concurrency: Maximum concurrent requests of each worker.
        api_key_env: Environment variable with the endpoint's key.
        date: For judge: the day, as YYYY-MM-DD, for chat templates that read the clock; today by default.
    """

    direction: Direction = "result-first"
    measure: Measure = "entailment"
    form: InputForm = "pair"
    trust_remote_code: Annotated[bool, _NO_FLAG] = False


@dataclass(frozen=True, kw_only=True)
class AuditedLabelerOptions(LabelerOptions):
    """Options of labelers in an audit, without those for endpoints and batches.

    Attributes:
        direction: For entailment; see label.
        measure: For entailment.
        form: For entailment.
        chat: For judge.
        dtype: Number format.
        device: Where to run.
    """

    batch_tokens: Annotated[int, _NO_FLAG] = 0
    max_requests: Annotated[int, _NO_FLAG] = 0
    concurrency: Annotated[int, _NO_FLAG] = 8
    timeout: Annotated[float, _NO_FLAG] = 60.0
    max_response_mb: Annotated[float, _NO_FLAG] = 32.0
    api_key_env: Annotated[str, _NO_FLAG] = "OPENAI_API_KEY"
    date: Annotated[str | None, _NO_FLAG] = None
