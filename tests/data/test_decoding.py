"""A text whose tokens come one by one is the text of all tokens."""

from collections.abc import Callable, Sequence

import pytest
from byte_pairs import BytePairs
from hypothesis import given, settings
from hypothesis import strategies as st

from makemoe.data.bpe import BPETokenizer
from makemoe.data.decoding import AnyPieces, Decoder
from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer

TEXT = "aé漢\U0001f600\ufffd\r\n"
# Some text, some parts of characters, some bytes that are never text.
BYTES = st.lists(st.sampled_from([*TEXT.encode(), 0xFF, 0x80, 0xED, 0xF4]) | st.integers(0, 255))
PAIRS = BytePairs().fit(TEXT)
DECODERS = {
    "bytes": ByteTokenizer().decoder,
    "any": lambda: AnyPieces(ByteTokenizer().decode),
    "pairs": PAIRS.decoder,
    "bytes with an end": ByteTokenizer(end_of_text=True).decoder,
    "sub-words": lambda: InOrderOfBytes(BPETokenizer(257).fit(TEXT)),
}


class InOrderOfBytes(Decoder):
    """A decoder for sub-words, whose first id is the end of a text, by the byte."""

    def __init__(self, tokenizer: BPETokenizer) -> None:
        self.ids = {tokenizer.symbol(id): id for id in range(257)}
        self.inner = tokenizer.decoder()

    def push(self, ids: Sequence[int]) -> str:
        symbols = [bytes([byte]).decode(errors="surrogateescape") for byte in ids]
        return self.inner.push([self.ids[symbol] for symbol in symbols])

    def end(self) -> str:
        return self.inner.end()


@pytest.mark.parametrize("new", DECODERS.values(), ids=DECODERS.keys())
@settings(deadline=None, max_examples=200)
@given(ids=BYTES, cuts=st.lists(st.integers(0, 30)))
def test_the_parts_are_together_what_all_ids_are(
    new: Callable[[], Decoder], ids: list[int], cuts: list[int]
) -> None:
    decoder, text, rest = new(), "", list(ids)
    for cut in [*cuts, *[1] * len(ids)]:
        text += decoder.push(rest[:cut])
        del rest[:cut]
    assert not rest
    assert text + decoder.end() == bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("new", DECODERS.values(), ids=DECODERS.keys())
def test_a_character_comes_whole_with_its_last_token(new: Callable[[], Decoder]) -> None:
    decoder = new()
    for character in "aé漢\U0001f600\n":
        *first, last = character.encode()
        assert [decoder.push([byte]) for byte in first] == [""] * len(first)
        assert decoder.push([last]) == character
    assert decoder.end() == ""


@pytest.mark.parametrize("new", DECODERS.values(), ids=DECODERS.keys())
def test_bytes_that_never_become_a_character_are_replaced(new: Callable[[], Decoder]) -> None:
    decoder = new()
    assert decoder.push([0xE6, 0xBC]) == ""
    assert decoder.push([0x41]) == "\ufffdA"
    assert decoder.push([0xF0, 0x9F]) == ""
    assert decoder.end() == "\ufffd"


def test_a_long_run_of_bytes_that_are_no_text_is_not_held() -> None:
    decoder = AnyPieces(ByteTokenizer().decode)
    for _ in range(1000):
        decoder.push([0xFF])
    assert len(decoder.held) <= 3


def test_a_character_of_its_own_that_looks_like_a_replacement_is_not_held() -> None:
    tokenizer = CharTokenizer("a\ufffd")
    assert tokenizer.decoder().push([1]) == "\ufffd"
    assert tokenizer.symbol(1) == "\ufffd"


def test_the_end_of_a_text_neither_ends_a_character_nor_begins_one() -> None:
    """Only a model puts it there; the parts are still together what all ids are."""
    tokenizer = ByteTokenizer(end_of_text=True)
    ids = [*"a漢".encode()[:3], 256, *"漢".encode()[2:], 256, *b"b"]
    decoder = tokenizer.decoder()
    parts = [decoder.push([id]) for id in ids]
    assert "".join(parts) + decoder.end() == tokenizer.decode(ids) == "a漢b"
