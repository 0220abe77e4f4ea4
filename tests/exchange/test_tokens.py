"""A tokenizer.json gives the same ids and texts as the tokenizer here, whatever the text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from makemoe.errors import DataError
from makemoe.exchange.tokens import is_same, likely

tokenizers = pytest.importorskip("tokenizers", reason="the extra `hf` is not installed")

CHARACTERS = st.characters(exclude_categories=["Cs"])
BYTES = tokenizers.Tokenizer.from_str(ByteTokenizer().to_json())


@given(st.sets(CHARACTERS, min_size=1).map(sorted), st.data())
def test_characters(vocabulary: list[str], data: st.DataObject) -> None:
    ours = CharTokenizer("".join(vocabulary))
    theirs = tokenizers.Tokenizer.from_str(ours.to_json())
    text = "".join(data.draw(st.lists(st.sampled_from(vocabulary))))
    ids = ours.encode(text).tolist()
    assert theirs.encode(text).ids == ids
    assert theirs.decode(ids) == text
    assert theirs.get_vocab_size() == ours.vocab_size


@given(st.text(CHARACTERS))
def test_bytes(text: str) -> None:
    ids = list(text.encode())
    assert BYTES.encode(text).ids == ids
    assert BYTES.decode(ids) == text


@given(st.lists(st.integers(0, 255)))
def test_bytes_that_are_no_text_have_the_same_replacements(ids: list[int]) -> None:
    assert BYTES.decode(ids) == ByteTokenizer().decode(ids)


def test_unknown_characters_are_errors_there_too() -> None:
    theirs = tokenizers.Tokenizer.from_str(CharTokenizer("ab").to_json())
    with pytest.raises(Exception, match=r"Missing \[UNK\] token"):
        theirs.encode("abc")


@pytest.mark.parametrize("tokenizer", [CharTokenizer("ab \n"), ByteTokenizer()])
def test_the_library_writes_the_same_file_again(tokenizer: Tokenizer) -> None:
    own = tokenizer.to_json() or ""
    assert json.loads(tokenizers.Tokenizer.from_str(own).to_str()) == json.loads(own)


def test_a_character_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(DataError, match=r"lone surrogate U\+D801, which no file in UTF-8"):
        CharTokenizer("a\ud801").to_json()


def found(held: dict[str, Any]) -> Tokenizer | None:
    return next((one for one in likely(held) if is_same(one, held)), None)


@pytest.mark.parametrize("tokenizer", [CharTokenizer("b\u0301a \n"), ByteTokenizer()])
def test_a_file_of_ours_is_known(tokenizer: Tokenizer) -> None:
    known = found(json.loads(tokenizer.to_json() or ""))
    assert known is not None
    assert known.spec() == tokenizer.spec()


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {"decoder": None},
        {"added_tokens": [{"id": 5, "content": "<s>", "special": True}]},
        {"post_processor": {"type": "TemplateProcessing", "special_tokens": {"<s>": {}}}},
        {"post_processor": {"type": "RobertaProcessing"}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 2}, "unk_token": ""}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 0}, "unk_token": ""}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0, "bb": 1}, "unk_token": ""}},
        {"model": {"type": "WordLevel", "vocab": {"a": "0", "b": "1"}, "unk_token": ""}},
        {"model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}},
        {"model": {"type": "Unigram"}},
        {"model": None},
    ],
)
def test_a_file_that_computes_anything_else_is_not(change: dict[str, Any]) -> None:
    held = json.loads(CharTokenizer("ab").to_json())
    assert found(held) is not None
    assert found(held | change) is None
