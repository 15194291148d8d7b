"""How fact checkers read a result and a response: as one text, and T5 answers with the first token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sailkit.errors import UserError
from sailkit.labeling.options import InputForm
from sailkit.prompts.render import Part

# The first answer token of T5, for: not supported, supported.
FIRST_TOKEN: dict[InputForm, tuple[str, str]] = {"minicheck": ("0", "1"), "factcg": ("No", "Yes")}


@dataclass(frozen=True)
class Template:
    """A text with two texts in it.

    Attributes:
        before: Text before the first; may hold special tokens, as may the others.
        between: Text between the two.
        after: Text after the second.
        trusted: Whether these texts may hold special tokens.
    """

    before: str
    between: str
    after: str
    trusted: bool = True

    def parts(self, first: str, second: str) -> list[Part]:
        """The pieces of the text; the two texts are never read as special tokens."""
        pieces = ((self.before, True), (first, False), (self.between, True), (second, False), (self.after, True))
        return [Part(text, trusted and self.trusted) for text, trusted in pieces if text]


def template_of(form: InputForm, end_of_text: str | None, *, answers: bool) -> Template | None:
    """The template of a form; None for a pair of texts.

    Args:
        form: `minicheck` is Tang et al. 2024, `factcg` Lei et al. 2025, `esp` Luo et al. 2023.
        end_of_text: The tokenizer's end-of-text token, with which MiniCheck separates the texts.
        answers: Whether the model generates the answer (T5).

    Raises:
        UserError: The tokenizer has no end-of-text token.
    """
    if form == "esp":
        return Template("", " is entailed by ", "", trusted=False)
    if form == "factcg":
        question = '\n\nChoose your answer: based on the paragraph above can we conclude that "'
        return Template("", question, '"?\n\nOPTIONS:\n- Yes\n- No\nI think the answer is ', trusted=False)
    if form == "minicheck":
        if not end_of_text:
            raise UserError("`form` minicheck needs a tokenizer with an end-of-text token")
        return Template("predict: " if answers else "", end_of_text, "")
    return None


def first_token_logits(model: Any, tokenizer: Any, form: InputForm) -> Callable[..., torch.Tensor]:
    """A function like a classifier: the logits of the two answers as the first token that the decoder generates."""
    answers = [tokenizer(word, add_special_tokens=False).input_ids[:1] for word in FIRST_TOKEN[form]]
    ids = [i for answer in answers for i in answer]
    if len(set(ids)) != 2 or tokenizer.unk_token_id in ids:
        raise UserError(f"`form` {form}: the tokenizer has no tokens for {' and '.join(FIRST_TOKEN[form])}")

    def logits(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        start = input_ids.new_full((len(input_ids), 1), model.config.decoder_start_token_id)
        output = model(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=start)
        picked: torch.Tensor = output.logits[:, 0, ids]
        return picked

    return logits
