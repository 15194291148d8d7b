"""The bytes of tokens: they come back whole, whatever the text and the tokenizer's family."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from sailkit.distillation.align import NotRepresentableError, Vocabulary, byte_stream, end_tokens
from sailkit.errors import UserError
from small_models import TRAINED, changed, trained, with_gaps

NAMES = [*TRAINED, "llama", "qwen", "stories260k"]
TEXTS = [
    "All search results are informative.",
    "👩‍🚀 and 👍🏽 in a row 🇨🇿",
    "气候变化是真的吗？ 気候変動",
    "e\u0301 is not \u00e9 here",
    "two  spaces,   three,\ttab",
    "line\n\nline\r\n",
    "a\u2581b <0x41> Ġ",
    "12345 3.14 U.S.A. don't",
    "\u00a0no-break\u200bzero width",
    "نص عربي ועברית",
]


@pytest.fixture(scope="module")
def load(request: pytest.FixtureRequest) -> Callable[[str], tuple[Any, Vocabulary]]:
    @cache
    def find(name: str) -> tuple[Any, Vocabulary]:
        if name in TRAINED:
            tokenizer = trained(name)
        else:
            shared = request.getfixturevalue("shared")
            if name == "llama":
                tokenizer = LlamaTokenizer.from_pretrained(shared / "tokenizers" / "llama")
            else:
                folder = "tokenizers/qwen" if name == "qwen" else "models/stories260k"
                tokenizer = AutoTokenizer.from_pretrained(shared / folder)
        return tokenizer, Vocabulary(tokenizer)

    return find


def _whole(tokenizer: Any, vocabulary: Vocabulary, text: str) -> bytes:
    ids = tokenizer("x\n" + text, add_special_tokens=False)["input_ids"]
    return b"".join(vocabulary.pieces[i] or b"?" for i in ids).strip(b" ").removeprefix(b"x\n")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_come_back_whole(load, name, text):
    tokenizer, vocabulary = load(name)
    expected = unicodedata.normalize("NFC", text) if name == "qwen" else text
    if name not in ("qwen", "byte-level"):  # pieces of the other families cannot tell the sign for a space from one
        expected = expected.replace("▁", " ")
    if name == "unigram":  # takes a spelled byte piece for the byte; `stream` refuses such a completion
        expected = expected.replace("<0x41>", "A")
    assert _whole(tokenizer, vocabulary, text) == expected.encode()


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback", "llama", "stories260k"])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\0"), max_size=40))
def test_bytes_come_back_whole_for_any_text(load, name, text):
    tokenizer, vocabulary = load(name)
    assert _whole(tokenizer, vocabulary, text + ".") == (text + ".").encode()


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), cut=st.integers(0, 3))
def test_a_text_begins_with_its_first_token(load, name, text, cut):
    vocabulary = load(name)[1]
    data = text.encode()[cut:] or b"\xe4"  # may begin within a character
    piece = vocabulary.pieces[vocabulary.first_token(data)]
    assert piece
    assert data.startswith(piece)


def test_the_first_token_is_the_very_same_bytes_or_that_of_the_tokenizer(load):
    qwen, vocabulary = load("qwen")
    assert vocabulary.pieces[vocabulary.first_token(b" information")] == b" information"
    said = " antidisestablishmentarianism!"
    assert vocabulary.first_token(said.encode()) == qwen(said)["input_ids"][0]


def test_no_special_token_stands_for_bytes(load):
    for name in NAMES:
        tokenizer, vocabulary = load(name)
        end = tokenizer.eos_token
        assert vocabulary.pieces[tokenizer.eos_token_id] is None
        assert vocabulary.first_token(end.encode()) != tokenizer.eos_token_id


def test_most_pieces_of_llama_have_a_token_of_qwen(load):
    llama, qwen = load("llama")[1], load("qwen")[1]
    texts = [piece for piece in llama.pieces if piece]
    share = sum(piece in qwen.ids for piece in texts) / len(texts)
    assert share == pytest.approx(0.826, abs=0.005)


def test_a_completion_is_laid_out_from_its_own_beginning(load):
    llama, vocabulary = load("llama")
    tokens = llama("### Response: Yes, it is", add_special_tokens=False)["input_ids"]
    before = len(llama("### Response:", add_special_tokens=False)["input_ids"])
    laid = byte_stream(vocabulary, [*tokens[before:], llama.eos_token_id], "Yes, it is")
    assert (laid.starts[0], laid.starts[-1], laid.length) == (-1, 10, 10)
    assert laid.between(0, 3) == b"Yes"
    assert end_tokens(llama, [laid]) == {llama.eos_token_id}


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ("Yes", "one token that ends it"),
        ("No</s>", "cannot represent"),
        ("No Yes</s>", "cannot represent"),
        ("Yes No</s>", "cannot represent"),
        ("</s>Yes</s>", "one token that ends it"),
    ],
)
def test_other_tokens_are_refused(load, tokens, why):
    llama, vocabulary = load("llama")
    ids = llama(tokens, add_special_tokens=False)["input_ids"]
    with pytest.raises(NotRepresentableError, match=why):
        byte_stream(vocabulary, ids, "Yes")


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused():
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(UserError, match="WordPiece"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=words))


def test_ids_may_have_gaps():
    tokenizer = with_gaps(trained("byte-level"))
    vocabulary = Vocabulary(tokenizer)
    end = tokenizer.eos_token_id
    assert len(vocabulary.pieces) == end + 1 > len(tokenizer)
    assert vocabulary.pieces[end - 1] is None
    ids = tokenizer(" the search", add_special_tokens=False)["input_ids"]
    assert byte_stream(vocabulary, [*ids, end], "the search").data == b" the search"


def test_runs_of_spaces_are_spaces():
    def change(spec):  # as Gemma has them: pieces of the vocabulary that are added tokens, too
        for piece in ("▁▁", "▁▁▁"):
            vocabulary = spec["model"]["vocab"]
            number = vocabulary[piece] = max(vocabulary.values()) + 1
            plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            spec["added_tokens"].append({"id": number, "content": piece, **plain})
        spec["model"]["merges"] += [["▁", "▁"], ["▁▁", "▁"]]

    tokenizer = changed(trained("byte-fallback"), change)
    vocabulary = Vocabulary(tokenizer)
    two, three = tokenizer.convert_tokens_to_ids(["▁▁", "▁▁▁"])
    assert [vocabulary.pieces[i] for i in (two, three)] == [b"  ", b"   "]
    assert vocabulary.first_token(b"  ") == two
    ids = tokenizer("?   ?  !", add_special_tokens=False)["input_ids"]
    assert {two, three} < set(ids)
    assert byte_stream(vocabulary, [*ids, tokenizer.eos_token_id], "?   ?  !").data == b" ?   ?  !"
