import importlib
import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from byte_pairs import BytePairs
from hypothesis import given, settings
from hypothesis import strategies as st

from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer, Ids, Tokenizer, UnknownCharacter
from makemoe.data.unknown import Skipping
from makemoe.errors import DataError, UsageError

# Hypothesis leaves surrogates out unless they are asked for.
CHARACTERS = st.characters(exclude_categories=[]) | st.sampled_from("ab\n\0é\U0001f600\ud800\udfff")
TEXTS = st.text(CHARACTERS, min_size=1)


@settings(deadline=None)
@given(TEXTS, st.data())
def test_encode_agrees_with_a_dict_over_sorted_characters(text: str, data: st.DataObject) -> None:
    tokenizer = CharTokenizer().fit(text)
    id_of = {character: i for i, character in enumerate(sorted(set(text)))}
    other = data.draw(st.text(st.sampled_from(sorted(set(text)))))
    for known in (text, other):
        assert tokenizer.encode(known).tolist() == [id_of[character] for character in known]
    assert tokenizer.vocab_size == len(id_of)


@settings(deadline=None)
@given(TEXTS)
def test_decoding_gives_back_any_text(text: str) -> None:
    tokenizer = CharTokenizer().fit(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids.tolist()) == text


@settings(deadline=None)
@given(st.lists(CHARACTERS, min_size=1, unique=True).map("".join))
def test_a_given_vocabulary_keeps_its_order(vocabulary: str) -> None:
    tokenizer = CharTokenizer(vocabulary)
    assert tokenizer.encode(vocabulary).tolist() == list(range(len(vocabulary)))
    assert tokenizer.decode(range(len(vocabulary))) == vocabulary


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_the_first_unknown_character_is_named_with_its_place(known: str, text: str) -> None:
    tokenizer = CharTokenizer().fit(known)
    position = next((i for i, character in enumerate(text) if character not in known), None)
    if position is None:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        return
    with pytest.raises(DataError) as caught:
        tokenizer.encode(text)
    message = str(caught.value)
    assert repr(text[position]) in message
    assert f"U+{ord(text[position]):04X}" in message
    assert f"offset {position} " in message
    assert "\n" not in message


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1))
def test_a_text_in_chunks_gives_the_vocabulary_and_the_ids_of_the_whole(chunks: list[str]) -> None:
    text = "".join(chunks)
    id_of = {character: i for i, character in enumerate(sorted(set(text)))}
    tokenizer = CharTokenizer().fit_chunks(iter(chunks))
    assert tokenizer.vocabulary == "".join(id_of)
    ids = np.concatenate(list(tokenizer.encode_chunks(iter(chunks))))
    assert ids.tolist() == [id_of[character] for character in text]


@pytest.mark.parametrize("size", [255, 256, 257])
@pytest.mark.parametrize("text", ["ab\xff", "ab\u0394"])
def test_every_way_to_encode_agrees_around_256_characters(size: int, text: str) -> None:
    vocabulary = "ab\u0394\xff" + "".join(map(chr, range(0x4E00, 0x4E00 + size - 4)))
    for order in (vocabulary, vocabulary[::-1]):
        ids = CharTokenizer(order).encode(text)
        assert ids.tolist() == [order.index(character) for character in text]
        with pytest.raises(DataError, match=r"U\+0063\) at offset 3 "):
            CharTokenizer(order).encode(text + "c")


def test_an_unknown_character_is_placed_in_the_whole_text() -> None:
    ids = CharTokenizer("abé").encode_chunks(["aéb", "ab", "bbz"])
    with pytest.raises(DataError, match=r"'z' \(U\+007A\) at offset 7 "):
        list(ids)


def test_a_tokenizer_that_knows_no_chunks_gets_them_joined() -> None:
    class Whole(CharTokenizer):
        fit_chunks = Tokenizer.fit_chunks
        encode_chunks = Tokenizer.encode_chunks

        def fit(self, text: str) -> "Whole":
            return Whole("".join(sorted(set(text))))

    tokenizer = Whole().fit_chunks(["ba", "c"])
    assert [ids.tolist() for ids in tokenizer.encode_chunks(["ba", "c"])] == [[1, 0, 2]]


def test_offsets_count_characters_not_bytes() -> None:
    with pytest.raises(DataError, match=r"'z' \(U\+007A\) at offset 3 "):
        CharTokenizer("é\U0001f600").encode("é\U0001f600éz")


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 65_536, 65_537, 100_000])
def test_ids_take_the_smallest_dtype_that_holds_the_vocabulary(size: int) -> None:
    vocabulary = "".join(map(chr, range(size)))
    ids = CharTokenizer(vocabulary).encode(vocabulary)
    expected = np.uint8 if size <= 256 else np.uint16 if size <= 65_536 else np.int32
    assert ids.dtype == expected
    assert ids.tolist() == list(range(size))


def test_the_empty_text_has_no_ids() -> None:
    tokenizer = CharTokenizer("ab")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.encode("").dtype == np.uint8
    assert tokenizer.decode([]) == ""


def test_fit_keeps_a_vocabulary_that_is_there() -> None:
    tokenizer = CharTokenizer("ba")
    assert tokenizer.fit("xyz") is tokenizer
    assert tokenizer.vocabulary == "ba"


@settings(deadline=None)
@given(TEXTS)
def test_the_spec_alone_rebuilds_the_tokenizer(text: str) -> None:
    tokenizer = CharTokenizer().fit(text)
    spec = json.loads(json.dumps(tokenizer.spec()))
    assert spec == {
        "class_path": "makemoe.data.tokenizer.CharTokenizer",
        "init_args": {"vocabulary": "".join(sorted(set(text)))},
    }
    module, name = spec["class_path"].rsplit(".", 1)
    rebuilt: Tokenizer = getattr(importlib.import_module(module), name)(**spec["init_args"])
    assert rebuilt.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_the_spec_of_an_unfitted_tokenizer_makes_an_unfitted_one() -> None:
    assert not CharTokenizer(**CharTokenizer().spec()["init_args"]).is_fitted


def test_restoring_makes_a_tokenizer_what_another_was() -> None:
    tokenizer = CharTokenizer()
    tokenizer.restore(CharTokenizer("bé").init_args())
    assert tokenizer.encode("éb").tolist() == [1, 0]


def test_the_spec_of_a_subclass_names_the_subclass() -> None:
    subclass = type("Mine", (CharTokenizer,), {"__module__": "mine"})
    assert subclass("ab").spec()["class_path"] == "mine.Mine"


def test_a_vocabulary_with_a_repeated_character_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"repeats '\\n'"):
        CharTokenizer("a\nb\n")


def test_an_empty_vocabulary_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="empty"):
        CharTokenizer("")
    with pytest.raises(UsageError, match="empty"):
        CharTokenizer().fit("")


@pytest.mark.parametrize(
    "use",
    [
        lambda tokenizer: tokenizer.vocab_size,
        lambda tokenizer: tokenizer.encode("a"),
        lambda tokenizer: tokenizer.decode([0]),
    ],
    ids=["vocab_size", "encode", "decode"],
)
def test_an_unfitted_tokenizer_cannot_be_used(use: Callable[[Tokenizer], object]) -> None:
    with pytest.raises(AssertionError, match="fit the tokenizer first"):
        use(CharTokenizer())


@pytest.mark.parametrize("ids", [[-1], [2], [0, 1, 2]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(AssertionError, match=r"\[0, 2\)"):
        CharTokenizer("ab").decode(ids)


def test_a_tokenizer_knows_its_characters_and_counts_them() -> None:
    tokenizer = CharTokenizer("ab\ud800")
    assert [tokenizer.knows(character) for character in "ac\ud800\n"] == [True, False, True, False]
    ids = tokenizer.encode("abba")
    assert tokenizer.characters(ids) == Tokenizer.characters(tokenizer, ids) == 4


@settings(deadline=None)
@given(st.lists(st.text()))
def test_bytes_give_back_any_text_whole_and_in_chunks(chunks: list[str]) -> None:
    tokenizer, text = ByteTokenizer().fit("x"), "".join(chunks)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint8
    assert bytes(ids) == text.encode()
    assert b"".join(map(bytes, tokenizer.encode_chunks(chunks))) == text.encode()
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text


def test_a_lone_surrogate_is_no_byte_and_is_placed_in_the_whole_text() -> None:
    tokenizer = ByteTokenizer()
    assert not tokenizer.knows("\ud800")
    assert tokenizer.knows("\U0001f600")
    message = r"'\\ud800' \(U\+D800\) at offset 4 is a lone surrogate"
    with pytest.raises(UnknownCharacter, match=message):
        list(tokenizer.encode_chunks(["éé", "a", "a\ud800"]))


@settings(deadline=None)
@given(st.text(), st.integers(0, 100))
def test_bytes_count_each_character_once_wherever_they_are_cut(text: str, cut: int) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.characters(ids) == len(text)
    assert tokenizer.characters(ids[:cut]) + tokenizer.characters(ids[cut:]) == len(text)


def test_bytes_need_no_vocabulary() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.is_fitted, tokenizer.vocab_size) == (True, 256)
    spec = {"class_path": "makemoe.data.tokenizer.ByteTokenizer", "init_args": {}}
    assert tokenizer.spec() == spec
    assert tokenizer.beginning() == "\n"


def test_the_end_of_a_text_is_an_id_beside_the_bytes() -> None:
    tokenizer = ByteTokenizer(end_of_text=True)
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
    text = "é<|endoftext|>\r\n"
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16
    assert bytes(ids.tolist()) == text.encode()
    joined = np.append(ids, [256, *b"a"])
    assert tokenizer.decode(joined) == text + "a"
    assert tokenizer.characters(joined) == len(text) + 1
    assert tokenizer.utf8_bytes(joined) == len(text.encode()) + 1
    assert tokenizer.symbol(256) == "<|endoftext|>"
    assert (tokenizer.prompt(), tokenizer.prompt("a")) == ([256], [97])
    spec = tokenizer.spec()
    assert spec["init_args"] == {"end_of_text": True}
    assert ByteTokenizer(**spec["init_args"]).vocab_size == 257


def test_a_tokenizer_without_the_end_of_a_text_begins_with_a_newline() -> None:
    for tokenizer in (ByteTokenizer(), CharTokenizer("a\nb"), BytePairs().fit("ab" * 9)):
        assert tokenizer.end_of_text is None
        assert tokenizer.prompt() == tokenizer.encode("\n").tolist()
        assert tokenizer.prompt("ab") == tokenizer.encode("ab").tolist()


@settings(deadline=None)
@given(st.text(CHARACTERS, min_size=1), st.integers(0, 50))
def test_the_bytes_of_characters_are_those_of_utf_8(text: str, cut: int) -> None:
    tokenizer = CharTokenizer().fit(text)
    ids = tokenizer.encode(text)
    assert tokenizer.utf8_bytes(ids[cut:]) == len(text[cut:].encode(errors="surrogatepass"))
    assert Tokenizer.utf8_bytes(tokenizer, ids) == tokenizer.utf8_bytes(ids)


def test_bytes_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("makemoe.data.characters.BLOCK_IDS", 3)
    text = "aé漢\U0001f600" * 5
    for tokenizer in (CharTokenizer().fit(text), ByteTokenizer()):
        ids = tokenizer.encode(text)
        assert tokenizer.utf8_bytes(ids) == 50
        assert tokenizer.characters(ids) == 20


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BytePairs().fit("é漢" * 9)])
def test_every_token_has_a_symbol_of_its_own(tokenizer: Tokenizer) -> None:
    symbols = [tokenizer.symbol(id) for id in range(tokenizer.vocab_size)]
    assert len(set(symbols)) == tokenizer.vocab_size
    assert symbols[:128] == list(map(chr, range(128)))
    if isinstance(tokenizer, BytePairs):
        assert "é" in symbols


def test_a_text_begins_with_the_first_id_that_is_a_text() -> None:
    class Marked(CharTokenizer):
        """Its first ids are no texts: one has none, one cannot be encoded."""

        def encode(self, text: str) -> Ids:
            if "?" in text:
                raise UnknownCharacter("?")
            return super().encode(text)

        def decode(self, ids: Sequence[int] | Ids) -> str:
            return super().decode(ids).replace("_", "")

    assert Marked("_?b").beginning() == "b"


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("abé漢"), min_size=1), min_size=1))
def test_tokens_may_cross_the_borders_of_chunks(chunks: list[str]) -> None:
    text = "".join(chunks)
    tokenizer = BytePairs().fit("abé漢" * 3)
    ids = np.concatenate(list(tokenizer.encode_chunks(chunks)))
    assert ids.tolist() == tokenizer.encode(text).tolist()
    assert tokenizer.decode(tokenizer.encode(text)) == text


class OfTheUser(CharTokenizer):
    """A tokenizer in another file than the class it builds on."""


def test_the_code_of_base_classes_determines_the_ids_too() -> None:
    assert {OfTheUser, CharTokenizer} <= {*OfTheUser().sources()}
    assert {Skipping, OfTheUser, CharTokenizer} <= {*Skipping(OfTheUser()).sources()}
