"""Options to load and run a labeler, which the verbs `label` and `audit` show as flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from sailkit.models.base import ModelOptions

Direction = Literal["result-first", "response-first", "both"]
Measure = Literal["auto", "entailment", "relevance"]
InputForm = Literal["pair", "esp", "minicheck", "factcg"]
_NO_FLAG = Parameter(parse=False)


@dataclass(frozen=True, kw_only=True)
class LabelerOptions(ModelOptions):
    """Options to load and run a labeler; a labeler ignores those that it does not use.

    Attributes:
        direction: For entailment: the premise is the result (result-first), the response, or each in turn.
        measure: For entailment: P(entailment), or relevance, 1 - P(neutral); auto takes relevance for a model of fit.
        form: For entailment: input as a pair of texts, as ESP's single sentence, or as MiniCheck or FactCG read it.
        chat: For judge: use the model's chat template: auto (where it has one), on, off.
        dtype: Number format; auto takes bfloat16 where the machine has it.
        batch_tokens: For judge: maximum tokens in a batch; 0 chooses.
        concurrency: Maximum concurrent requests of each worker.
        api_key_env: Environment variable with the endpoint's key.
        date: For judge: the day, as YYYY-MM-DD, for chat templates that read the clock; today by default.
    """

    direction: Direction = "result-first"
    measure: Measure = "auto"
    form: InputForm = "pair"
    trust_remote_code: Annotated[bool, _NO_FLAG] = False


@dataclass(frozen=True, kw_only=True)
class AuditedLabelerOptions(LabelerOptions):
    """Options of labelers in an audit, which chooses the batches.

    Attributes:
        direction: For entailment; see label.
        measure: For entailment.
        form: For entailment.
        chat: For judge.
        dtype: Number format.
        device: Where to run.
    """

    batch_tokens: Annotated[int, _NO_FLAG] = 0


_WORDS = {
    "supports": ("supports", "support", "supported", "entailment", "entails"),
    "refutes": ("refutes", "refute", "refuted", "contradiction", "contradicts"),
    "informative": ("informative", "relevant", "true", "yes", "1"),
    "neither": ("neither", "neutral", "irrelevant", "distracting", "not_enough_info", "not enough info", "nei",
                "false", "no", "0"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JudgementColumns:
    """The columns of a table of claims, search results and human judgements.

    Common words for judgements, such as SUPPORTS, entailment, irrelevant or 1, are known.

    Attributes:
        judgement: Column with the judgements; the other columns are only read if it is given.
        claim: Column with the claims.
        result: Column with the texts of the results.
        title: Column with the titles of the results, if there is one.
        supports: Judgements that mean: the result supports the claim.
        refutes: Judgements that mean: the result refutes the claim.
        informative: Judgements that mean: it does one or the other.
        distracting: Judgements that mean: it does neither.
    """

    judgement: Annotated[str, Parameter(name="--judgement-column")] = ""
    claim: Annotated[str, Parameter(name="--claim-column")] = "claim"
    result: Annotated[str, Parameter(name="--result-column")] = "evidence"
    title: Annotated[str, Parameter(name="--title-column")] = ""
    supports: tuple[str, ...] = ()
    refutes: tuple[str, ...] = ()
    informative: tuple[str, ...] = ()
    distracting: tuple[str, ...] = ()

    def words(self) -> dict[str, Any]:
        """Judgement in lower case -> stance; the given words take precedence over the common ones."""
        given = {"supports": self.supports, "refutes": self.refutes, "informative": self.informative}
        given["neither"] = self.distracting
        return {word.lower(): stance for kinds in (_WORDS, given) for stance in kinds for word in kinds[stance]}
