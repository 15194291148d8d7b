"""A model's judgement of the search results of one prompt, with probabilities."""

from __future__ import annotations

from sailkit.models.base import Model
from sailkit.prompts.render import Prompt
from sailkit.prompts.sail import ExampleRenderer
from sailkit.records import Judgement


def judge_results(model: Model, prompt: Prompt, style: str, n: int, reserve: int) -> tuple[Judgement, ...]:
    """Score every verification sentence after a prompt.

    Args:
        model: The model.
        prompt: The prompt, in a style of training.
        style: The style.
        n: Number of search results in the prompt.
        reserve: Tokens of the context to leave free after the prompt.

    Returns:
        For each search result the verdict of the likeliest sentence, and P(informative) over all sentences as `score`.
        Empty for models that do not score token ids, such as endpoints.
    """
    if n == 0 or not hasattr(model, "score_ids"):  # only local models have it
        return ()
    from sailkit.training.flagging import marginals, sentence_ids

    ids = model.renderer.render(prompt, reserve).ids  # type: ignore[attr-defined]
    renderer = ExampleRenderer(model.tokenizer, model.date)  # type: ignore[attr-defined]
    (scores,) = model.score_ids([ids], sentence_ids(renderer, style, n))
    verdicts, distracting = marginals(n, scores)
    return tuple(Judgement(1 - p, verdict) for verdict, p in zip(verdicts, distracting, strict=True))
