"""A labeler that scores with an NLI model or a fact checker the probability that the result entails the response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, TypeVar, get_args

import torch

from sailkit.errors import UserError, nearest
from sailkit.files import jsonl
from sailkit.labeling.base import ResultPair, Score, statement
from sailkit.labeling.chunks import Windows, max_positions
from sailkit.labeling.human import STANCES
from sailkit.labeling.input_forms import FIRST_TOKEN, Template, first_token_logits, template_of
from sailkit.labeling.options import Direction, InputForm, Measure
from sailkit.models.batching import batch_by_length
from sailkit.models.deberta import LeanDeberta, lean_forward
from sailkit.models.sources import resolve_encoder
from sailkit.models.weights import pick_device, pick_dtype

_Text = TypeVar("_Text", str, tuple[int, ...])
_BATCH_TOKENS = {"cpu": 1024}  # 4096 took up to 30 % longer (DeBERTa-v3-small)
_BATCH_TOKENS_DEFAULT = 4096
_SLACK = 8  # spare tokens: a piece of text may tokenise into more tokens than it had within the whole text
_MEANINGS = {
    "entailment": re.compile(r"^(entail(s|ed|ment)?|supports?|informative|true)$"),
    "neutral": re.compile(r"^(neutral|neither|not[_ -]?enough[_ -]?info|unrelated|irrelevant)$"),
    "contradiction": re.compile(r"^(contradict(s|ion|ory)?|refutes?|false)$"),
    "distracting": re.compile(r"^(distracting|not[_ -]?entail(ed|ment))$"),
}


class Entailment:
    """Probability that the result (premise) entails the statement (hypothesis; see `statement`).

    The score is the maximum over windows of the result. A statement longer than half of the model's input is split into
    windows as well, so that all of it is read.
    """

    threshold = 0.5

    def __init__(
        self,
        model: str,
        direction: Direction = "result-first",
        measure: Measure = "auto",
        form: InputForm = "pair",
        dtype: str = "auto",
        device: str = "auto",
    ) -> None:
        """Load a sequence classification model.

        Args:
            model: A folder or a hub id.
            direction: Which text is the premise; `both` takes the maximum of the two scores.
            measure: P(entailment), or `relevance`: 1 - P(neutral); `auto` takes relevance for a model of `fit`.
            form: The two texts as a `pair`; as one text: ESP's sentence "{result} is entailed by {response}" (`esp`),
                or the input of `minicheck` or `factcg`, whose outputs are: not supported, supported.
            dtype: `auto`, `float32`, `bfloat16` or `float16`.
            device: `auto` or a torch device.

        Raises:
            UserError: The model cannot be loaded, or its config does not say what its outputs mean.
        """
        from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging

        for value, kind in ((direction, Direction), (measure, Measure), (form, InputForm)):
            if value not in get_args(kind):
                raise UserError(f"{value!r} is not known; {nearest(value, get_args(kind))}")
        logging.disable_progress_bar()
        source = resolve_encoder(model)
        where = pick_device(device)
        try:
            config = AutoConfig.from_pretrained(source.folder)
            answers = form in FIRST_TOKEN and config.is_encoder_decoder
            kind = AutoModelForSeq2SeqLM if answers else AutoModelForSequenceClassification
            self._model, report = kind.from_pretrained(
                source.folder, dtype=pick_dtype(dtype, where), use_safetensors=True, output_loading_info=True
            )
            self._tokenizer = AutoTokenizer.from_pretrained(source.folder)
        except Exception as error:  # exceptions of damaged files have no common base class
            raise UserError(f"cannot load {model} as a classifier: {' '.join(str(error).split())[:200]}") from None
        if missing := sorted(report["missing_keys"]):
            raise UserError(f"{model} is no sequence classification model: it has no weights {missing[0]}")
        self._model.to(where).eval()
        self._logits = first_token_logits(self._model, self._tokenizer, form) if answers else lean_forward(self._model)
        self._batch_tokens = _BATCH_TOKENS.get(where.type, _BATCH_TOKENS_DEFAULT)
        config = self._model.config
        self._columns = _columns(config, model, form)
        if measure == "auto":
            measure = "relevance" if tuple(config.id2label.values()) == STANCES else "entailment"
        if measure == "relevance" and "neutral" not in self._columns:
            raise UserError(f"`measure='relevance'` needs a model with a neutral class; {model} has none")
        self.name = f"entailment:{model}"
        self._direction, self._measure, self._form = direction, measure, form
        self._frame = _frame(self._tokenizer, pair=form == "pair")
        self._template = template_of(form, self._tokenizer.eos_token, answers=answers)
        self._room = min(self._tokenizer.model_max_length, max_positions(config)) - sum(map(len, self._frame[0]))
        self._windows = Windows(self._tokenizer, self._room)
        self._sequences = lru_cache(maxsize=65536)(self._make_sequences)
        self._facts = {name: jsonl.file_fingerprint(files) for name, files in source.files().items()}

    @property
    def runs_on(self) -> dict[str, str]:
        """Device and number format of the model."""
        return {"device": self._model.device.type, "dtype": str(self._model.dtype).removeprefix("torch.")}

    def describe(self) -> dict[str, Any]:
        """Everything that affects the scores."""
        return {
            "labeler": self.name,
            "version": 3 if self._form == "esp" else 2,
            "lean_pass": isinstance(self._logits, LeanDeberta),
            "batch_tokens": self._batch_tokens,
            "direction": self._direction,
            "measure": self._measure,
            "form": self._form,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "windows": self._windows.describe(),
            **{f"{name}_sha256": value for name, value in self._facts.items()},
        }

    def plan(self, pairs: Sequence[ResultPair]) -> list[list[int]]:
        """Batches of pairs of similar length, longest first, limited by tokens."""
        lengths = [[len(ids) for ids, _ in self._sequences(pair)[0]] for pair in pairs]
        longest = [max(of_pair, default=0) for of_pair in lengths]
        return batch_by_length(longest, self._batch_tokens, sequences=list(map(len, lengths)))

    @torch.inference_mode()
    def score(self, pairs: Sequence[ResultPair]) -> list[Score]:
        """Score one batch in one forward pass."""
        encoded = [self._sequences(pair) for pair in pairs]
        values = iter(self._forward([sequence for sequences, _ in encoded for sequence in sequences]))
        scores = []
        for pair, (sequences, cut) in zip(pairs, encoded, strict=True):
            # The window that is the most informative decides the stance too.
            best, stance = max((next(values) for _ in sequences), key=itemgetter(0), default=(0.0, None))
            answered = bool(pair.instruction.output.strip())
            scores.append(Score(best, cut_tokens=cut, stance=stance) if answered else Score(None, "no_response", cut))
        return scores

    def _forward(self, sequences: Sequence[tuple[tuple[int, ...], int]]) -> list[tuple[float, float | None]]:
        """The score and the stance of each sequence."""
        if not sequences:
            return []
        longest = max(len(ids) for ids, _ in sequences)
        pad = self._tokenizer.pad_token_id or 0
        device = self._model.device
        ids = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids, _ in sequences], device=device)
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in sequences], device=device)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._tokenizer.model_input_names:
            second = self._frame[1]
            types = [[0] * first + [second] * (len(ids) - first) for ids, first in sequences]
            inputs["token_type_ids"] = torch.tensor(
                [[*row, *[0] * (longest - len(row))] for row in types], device=device
            )
        logits = self._logits(**inputs).float()
        if not bool(torch.isfinite(logits).all()):
            raise UserError(f"{self.name}: the scores are not numbers (NaN or infinite); try `dtype='float32'`")
        if logits.shape[1] == 1:
            return [(score, None) for score in logits[:, 0].sigmoid().tolist()]
        shares = logits.softmax(-1)
        supports = shares[:, self._columns["entailment"]]
        scores = 1 - shares[:, self._columns["neutral"]] if self._measure == "relevance" else supports
        if "contradiction" not in self._columns:
            return [(score, None) for score in scores.tolist()]
        stances = torch.sigmoid(logits[:, self._columns["entailment"]] - logits[:, self._columns["contradiction"]])
        return list(zip(scores.tolist(), stances.tolist(), strict=True))

    def _make_sequences(self, pair: ResultPair) -> tuple[list[tuple[tuple[int, ...], int]], int]:
        """Sequences of a pair, each with the start of its second text, and the number of tokens cut from the result."""
        if not pair.instruction.output.strip():
            return [], 0
        texts = pair.result.text, statement(pair.instruction)
        if self._template:
            return self._text_sequences(self._template, *texts)
        result, response = map(self._windows.ids, texts)
        parts, spans = self._spans(len(result), len(response), self._room)
        sequences = []
        for a, b in parts:
            for c, d in spans:
                sequences += [self._joined(*texts) for texts in self._ordered(result[c:d], response[a:b])]
        return sequences, len(result) - spans[-1][1]

    def _spans(self, result: int, response: int, room: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Windows of the response and of the result such that any two of them fit into one sequence."""
        parts = self._windows.spans(response, max(room // 2, 1))
        return parts, self._windows.spans(result, room - max(b - a for a, b in parts), self._windows.most)

    def _ordered(self, result: _Text, response: _Text) -> list[tuple[_Text, _Text]]:
        both = [(result, response)] if self._direction != "response-first" else []
        return both + ([(response, result)] if self._direction != "result-first" else [])

    def _joined(self, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        before, between, after = self._frame[0]
        head = before + first + between
        return head + second + after, len(head)

    def _text_sequences(
        self, template: Template, result: str, response: str
    ) -> tuple[list[tuple[tuple[int, ...], int]], int]:
        """Sequences of one text, tokenised as a whole: tokens may span the border between its parts."""
        before, _, after = self._frame[0]

        def encode(texts: list[tuple[str, str]]) -> list[tuple[tuple[int, ...], int]]:
            return [(before + self._windows.encode(template.parts(*pair)) + after, 0) for pair in texts]

        whole = encode(self._ordered(result, response))
        if all(len(ids) <= self._room + len(before) + len(after) for ids, _ in whole):
            return whole, 0
        ends = [[0, *self._windows.ends(text)] for text in (result, response)]
        room = self._room - len(self._windows.encode(template.parts("", ""))) - _SLACK
        parts, spans = self._spans(len(ends[0]) - 1, len(ends[1]) - 1, room)
        pieces = []
        for a, b in parts:
            for c, d in spans:
                pieces += self._ordered(result[ends[0][c] : ends[0][d]], response[ends[1][a] : ends[1][b]])
        return encode(pieces), len(ends[0]) - 1 - spans[-1][1]


def _columns(config: Any, name: str, form: InputForm) -> dict[str, int]:
    """Meaning -> index of the model's output; those of published fact checkers have no names in their configs."""
    if form not in FIRST_TOKEN:
        return meanings(config.id2label, name)
    if not config.is_encoder_decoder and config.num_labels != 2:
        raise UserError(f"`form` {form} needs a model with 2 outputs; {name} has {config.num_labels}")
    return {"distracting": 0, "entailment": 1}


def meanings(id2label: dict[int, str], name: str) -> dict[str, int]:
    """Meaning -> index of the model's output, by the label names in its config; the order differs between models.

    Raises:
        UserError: No label name means entailment.
    """
    columns = {}
    for column, label in id2label.items():
        for meaning, words in _MEANINGS.items():
            if words.match(label.strip().lower()):
                columns[meaning] = int(column)
    if "entailment" not in columns or (len(id2label) > 1 and len(columns) < len(id2label)):
        raise UserError(
            f"{name}: its labels {', '.join(id2label.values())} do not say which means entailment; "
            "name them entailment, neutral, contradiction in id2label of its config.json"
        )
    return columns


def _frame(tokenizer: Any, *, pair: bool) -> tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], int]:
    """The special tokens that a tokenizer puts before, between and after two texts, and the second text's type id."""
    texts = ("a", "b") if pair else ("a",)
    out = tokenizer(*texts, return_special_tokens_mask=True, return_token_type_ids=True)
    groups: list[list[int]] = [[]]
    for token, special in zip(out["input_ids"], out["special_tokens_mask"], strict=True):
        if special:
            groups[-1].append(token)
        elif groups[-1] or len(groups) == 1:
            groups.append([])
    before, between, after = [*groups[:-1], [], groups[-1]] if len(groups) == 2 else groups
    return (tuple(before), tuple(between), tuple(after)), max(out["token_type_ids"])
