"""What may be in the text of a tokenizer.json, which a stranger may have written."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from bpe import TEXT, fitted, held
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from makemoe.data.bpe import BPETokenizer
from makemoe.data.tokenizer_json import byte_characters
from makemoe.data.vocabulary import read_vocabulary
from makemoe.errors import UsageError

Plain = dict[str, Any]


def test_the_characters_that_stand_for_bytes_are_those_of_the_library() -> None:
    alphabet = {character: byte for byte, character in enumerate(byte_characters())}
    assert {*alphabet} == {*pre_tokenizers.ByteLevel.alphabet()}
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("é漢\U0001f600\r\n\x85\xa0\xad", "".join(map(chr, range(0x800)))):
        ((word, _),) = split.pre_tokenize_str(text)
        assert bytes(alphabet[character] for character in word) == text.encode()


def test_the_pieces_are_the_bytes_of_the_tokens() -> None:
    tokenizer = fitted()
    pieces = read_vocabulary(tokenizer.to_json()).pieces_V
    assert pieces[0] == b""
    assert {*pieces[1:257]} == {bytes([byte]) for byte in range(256)}
    assert b"".join(pieces[id] for id in tokenizer.encode(TEXT)) == TEXT.encode()


def test_older_forms_are_read() -> None:
    plain = held()
    expected = fitted().encode(TEXT).tolist()
    plain["model"]["merges"] = [" ".join(merge) for merge in plain["model"]["merges"]]
    del plain["model"]["type"], plain["decoder"]
    plain["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0}
    plain["padding"] = {"strategy": {"Fixed": 999}, "pad_id": 0}
    plain["post_processor"] = {"type": "Unheard of"}
    assert BPETokenizer(vocabulary=json.dumps(plain)).encode(TEXT).tolist() == expected


def with_added(plain: Plain, **changes: Any) -> Plain:
    token = {"id": 320, "content": "<tool>", "special": False}
    plain["added_tokens"].append(token | changes)
    return plain


def test_a_token_that_is_added_but_not_special_is_found_in_texts() -> None:
    tokenizer = BPETokenizer(vocabulary=json.dumps(with_added(held())))
    assert tokenizer.vocab_size == 321
    text = "the <tool> king\n<tool>"
    ids = tokenizer.encode(text)
    assert ids.tolist().count(320) == 2
    assert tokenizer.decode(ids) == text
    assert tokenizer.symbol(320) == "<tool>"
    assert tokenizer.utf8_bytes(ids) == len(text)


@pytest.mark.parametrize("content", ["two words", "\n\n", "  "])
def test_an_added_token_with_spaces_is_found_across_chunks(content: str) -> None:
    tokenizer = BPETokenizer(vocabulary=json.dumps(with_added(held(), content=content)))
    text = f"the{content}king {content}"
    whole = tokenizer.encode(text).tolist()
    assert 320 in whole
    assert [id for part in tokenizer.encode_chunks(text) for id in part.tolist()] == whole
    assert tokenizer.decode(whole) == text


def test_special_tokens_beside_the_end_are_decoded_to_nothing() -> None:
    plain = with_added(held(), content="<|im_start|>", special=True, lstrip=True)
    tokenizer = BPETokenizer(vocabulary=json.dumps(plain))
    assert tokenizer.decode([320]) == ""
    assert tokenizer.symbol(320) == "<|im_start|>"
    assert tokenizer.decode(tokenizer.encode(" <|im_start|>")) == " <|im_start|>"
    other = BPETokenizer(vocabulary=json.dumps(plain), end_of_text="<|im_start|>")
    assert other.end_of_text == 320


def changed(change: Callable[[Plain], object]) -> str:
    plain = copy.deepcopy(held())
    change(plain)
    return json.dumps(plain)


def step(name: str, value: object) -> Callable[[Plain], object]:
    return lambda plain: plain.update({name: value})


def model(name: str, value: object) -> Callable[[Plain], object]:
    return lambda plain: plain["model"].update({name: value})


def split(**changes: object) -> dict[str, object]:
    part = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [part | changes, byte_level]}


def within_steps(depth: int) -> str:
    """A vocabulary whose decoder is within so many others; as text, for json may not write it."""
    begin, end = '{"type": "Sequence", "decoders": [' * depth, "]}" * depth
    whole = changed(step("decoder", None))
    return whole.replace('"decoder": null', f'"decoder": {begin}{{"type": "ByteLevel"}}{end}')


def test_steps_within_steps_are_read() -> None:
    expected = fitted().encode(TEXT).tolist()
    assert BPETokenizer(vocabulary=within_steps(50)).encode(TEXT).tolist() == expected


HOSTILE: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "is not the JSON text"),
    "empty": ("", "is not the JSON text"),
    "a list": ("[]", "has no model"),
    "nested": ("[" * 100_000, "is nested too deep"),
    "nested steps": (within_steps(51), "is nested too deep"),
    "deep steps": (within_steps(900), "is nested too deep"),
    "a long number": ('{"model": ' + "9" * 5000 + "}", "is not the JSON text"),
    "another model": (changed(model("type", "Unigram")), "is not a BPE: its model is 'Unigram'"),
    "random merges": (changed(model("dropout", 0.1)), "dropout 0.1"),
    "word ends": (changed(model("end_of_word_suffix", "</w>")), "end_of_word_suffix '</w>'"),
    "byte fallback": (changed(model("byte_fallback", True)), "byte_fallback True"),
    "no vocab": (changed(model("vocab", [])), "does not give each token an id"),
    "ids of text": (changed(model("vocab", {"a": "1"})), "does not give each token an id"),
    "ids of truth": (changed(model("vocab", {"a": True})), "does not give each token an id"),
    "negative ids": (changed(model("vocab", {"a": -1})), "does not give each token an id"),
    "huge ids": (changed(model("vocab", {"a": 1 << 40})), "does not give each token an id"),
    "the same id": (changed(lambda p: p["model"]["vocab"].update(x=1)), "two tokens the same id"),
    "a missing byte": (changed(lambda p: p["model"]["vocab"].pop("Ġ")), "for the byte 0x20"),
    "no bytes": (changed(lambda p: p["model"]["vocab"].update({"▁a": 999})), "'▁a' is no sequence"),
    "no merges": (changed(model("merges", None)), "without merges"),
    "a merge of three": (changed(model("merges", [["a", "b", "c"]])), "is no pair of tokens"),
    "a merge of numbers": (changed(model("merges", [[1, 2]])), "is no pair of tokens"),
    "a merge of spaces": (changed(model("merges", ["a  b"])), "is no pair of tokens"),
    "an unknown merge": (changed(model("merges", ["q q"])), "but 'qq' is no token"),
    "no pre_tokenizer": (changed(step("pre_tokenizer", None)), "its last pre_tokenizer is not"),
    "lost text": (changed(step("pre_tokenizer", split(behavior="Removed"))), "'Removed'"),
    "an invalid pattern": (
        changed(step("pre_tokenizer", split(pattern={"Regex": "("}))),
        "cannot be used: ",
    ),
    "a surrogate": (
        changed(step("pre_tokenizer", split(pattern={"Regex": "\ud800"}))),
        "cannot be used: ",
    ),
    "a long pattern": (
        changed(step("pre_tokenizer", split(pattern={"Regex": "a" * 10_001}))),
        "without a pattern",
    ),
    "a leading space": (
        changed(step("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True})),
        "puts a space in front of every text",
    ),
    "Metaspace": (changed(step("pre_tokenizer", {"type": "Metaspace"})), "is Metaspace"),
    "no type": (changed(step("pre_tokenizer", {"kind": "ByteLevel"})), "has no type"),
    "lower case": (changed(step("normalizer", {"type": "Lowercase"})), "is Lowercase"),
    "another decoder": (changed(step("decoder", {"type": "WordPiece"})), "is WordPiece"),
    "added text": (changed(step("added_tokens", "x")), "added_tokens that are no list"),
    "added nothing": (changed(lambda p: with_added(p, content="")), "without content and id"),
    "added without id": (changed(lambda p: with_added(p, id=None)), "without content and id"),
    "added twice": (changed(lambda p: with_added(p, id=5)), "two tokens the id of '<tool>'"),
    "added elsewhere": (
        changed(lambda p: with_added(p, content="Ġt")),
        "two tokens the id of",
    ),
    "added after a gap": (changed(lambda p: with_added(p, id=900)), "no ids just before"),
    "added surrogate": (changed(lambda p: with_added(p, content="\ud800")), "that is no text"),
    "swallowed spaces": (changed(lambda p: with_added(p, lstrip=True)), "swallows spaces (lstrip)"),
    "no end": (changed(step("added_tokens", [])), "is no special token of the vocabulary"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_byte_level_bpe_is_refused_in_one_line(kind: str) -> None:
    text, words = HOSTILE[kind]
    with pytest.raises(UsageError) as caught:
        BPETokenizer(vocabulary=text)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert len(message) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 400) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=4,
)


def paths(value: Any, most: int = 6) -> list[list[Any]]:
    """Where a value could be put, in all dictionaries and in the first items of lists."""
    if isinstance(value, dict):
        items = [*value.items()][:20]
    elif isinstance(value, list):
        items = [*enumerate(value)][:2]
    else:
        return [[]]
    return [[], *([key, *rest] for key, inner in items for rest in paths(inner))]


PATHS = paths(held())


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PATHS), JSON | st.sampled_from(list(held().values())))
def test_any_other_value_is_refused_or_gives_texts_back(path: list[Any], value: Any) -> None:
    plain = held()
    *before, last = path or [None]
    place: Any = plain
    for key in before:
        place = place[key]
    if path:
        place[last] = value
    else:
        plain = value
    try:
        tokenizer = BPETokenizer(vocabulary=json.dumps(plain), end_of_text=None)
    except UsageError as error:
        refused = str(error)
    else:
        refused = ""
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert "\n" not in refused
