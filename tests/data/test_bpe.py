"""Byte-level BPE, against the library that it is learned with, and against plain counting."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from bpe import SIZE, TEXT, fitted, held, reference, words
from hypothesis import given, settings
from hypothesis import strategies as st

from makemoe.data import bpe
from makemoe.data.bpe import BPETokenizer, even_sample
from makemoe.data.tokenizer import UnknownCharacter
from makemoe.data.unknown import Skipping
from makemoe.data.vocabulary import PATTERN
from makemoe.errors import DataError, MissingPackageError, UsageError

# What is a space to Python, to Unicode, to both or to neither; letters, digits and others.
TRICKY = [
    *" \t\n\r\v\f\x1c\x1f\x85\xa0\u2028\u3000\u200b\ufeff",
    *("\r\n", "'s", "'LL", "<|endoftext|>", "king", "KING:\n"),
    *"ak1٣²é\u0301漢字\U0001f600\U0001f1e9/_-.,!<|>\0",
]
TEXTS = st.lists(st.sampled_from(TRICKY) | st.text(), max_size=30).map("".join)


def splitting(regex: str) -> dict[str, object]:
    kind = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [kind, BYTES | {"use_regex": False}]}


def ignoring_merges() -> dict[str, object]:
    """As Llama 3: a word that is a token is that token, and the end of a text comes last."""
    plain = held()
    (end,) = plain["added_tokens"]
    vocab = {token: id - 1 for token, id in plain["model"]["vocab"].items() if id}
    return {
        "model": plain["model"] | {"ignore_merges": True, "vocab": vocab},
        "added_tokens": [end | {"id": SIZE - 1}],
    }


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
KINDS: dict[str, dict[str, object]] = {
    "GPT-4": {},
    "Qwen": {"pre_tokenizer": splitting(PATTERN.replace("{1,3}", ""))},
    "GPT-2": {"pre_tokenizer": BYTES | {"use_regex": True}},
    "unknown": {"pre_tokenizer": splitting(r"\w+\s?|\W")},
    "composed": {"normalizer": {"type": "NFC"}},
    "Llama 3": ignoring_merges(),
}


def of_kind(kind: str) -> BPETokenizer:
    return BPETokenizer(vocabulary=json.dumps(held(**KINDS[kind])))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(chunks=st.lists(TEXTS))
def test_ids_are_those_of_the_whole_text_however_it_is_cut(kind: str, chunks: list[str]) -> None:
    tokenizer, text = of_kind(kind), "".join(chunks)
    expected = reference(tokenizer).encode(text, add_special_tokens=False).ids
    parts = list(tokenizer.encode_chunks(iter(chunks)))
    assert [id for part in parts for id in part.tolist()] == expected
    assert {part.dtype for part in parts} <= {np.dtype(np.uint16)}
    assert tokenizer.encode(text).tolist() == expected


@settings(deadline=None)
@given(TEXTS)
def test_any_text_comes_back(text: str) -> None:
    tokenizer = fitted()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text
    assert tokenizer.characters(ids) == len(text)
    assert tokenizer.utf8_bytes(ids) == len(text.encode())
    for cut in range(len(ids)):
        parts = ids[:cut], ids[cut:]
        assert sum(map(tokenizer.characters, parts)) == len(text)
        assert sum(map(tokenizer.utf8_bytes, parts)) == len(text.encode())


def merges_by_counting(text: str, count: int) -> list[list[str]]:
    """The merges of BPE as the paper has them; of pairs equally frequent, that of lower ids."""
    of_word = {word: list(word) for word in Counter(words(text))}
    frequency = Counter(words(text))
    ids = held()["model"]["vocab"]
    merges: list[list[str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, tokens in of_word.items():
            for pair in pairwise(tokens):
                pairs[pair] += frequency[word]
        one, other = min(pairs, key=lambda pair: (-pairs[pair], *map(ids.__getitem__, pair)))
        merges.append([one, other])
        for tokens in of_word.values():
            at = 0
            while at + 1 < len(tokens):
                if tokens[at : at + 2] == [one, other]:
                    tokens[at : at + 2] = [one + other]
                at += 1
    return merges


def test_the_most_frequent_pairs_become_tokens() -> None:
    learned = held()["model"]["merges"]
    assert len(learned) == SIZE - 257
    assert learned == merges_by_counting(TEXT, len(learned))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_is_learned_does_not_depend_on_chunks(size: int) -> None:
    chunks = [TEXT[begin : begin + size] for begin in range(0, len(TEXT), size)]
    assert BPETokenizer(SIZE).fit_chunks(chunks).to_json() == fitted().to_json()


def test_of_a_long_text_an_even_sample_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{number:03}" for number in range(100)]
    assert even_sample(texts, 300) == texts
    assert even_sample(texts, 299) == texts[::2]
    assert even_sample(iter(texts), 40) == texts[::8]
    assert even_sample(["a" * 50, "b"], 10) == ["a" * 50]
    monkeypatch.setattr(bpe, "MOST_LEARNED_FROM", len(TEXT))
    lines = [TEXT, "zq zq zq zq " * 90, TEXT, ""]
    assert "zq" not in BPETokenizer(SIZE).fit_chunks(lines).to_json()


def test_the_end_of_a_text_is_a_token_that_no_text_contains() -> None:
    tokenizer = fitted()
    end = tokenizer.end_of_text
    assert end is not None
    assert tokenizer.prompt() == [end]
    assert tokenizer.prompt("the") == tokenizer.encode("the").tolist()
    literal = tokenizer.encode("the king<|endoftext|>the")
    assert end not in literal.tolist()
    assert tokenizer.decode(literal) == "the king<|endoftext|>the"
    joined = [*tokenizer.encode("the").tolist(), end, *tokenizer.encode(" king").tolist()]
    assert tokenizer.decode(joined) == "the king"
    assert tokenizer.symbol(end) == "<|endoftext|>"
    assert tokenizer.characters(np.array(joined)) == tokenizer.utf8_bytes(np.array(joined)) == 8


def test_the_end_of_a_text_has_another_symbol_or_is_left_out() -> None:
    named = fitted(end_of_text="<end of text>")
    assert named.symbol(named.end_of_text or 0) == "<end of text>"
    without = fitted(end_of_text=None)
    assert without.end_of_text is None
    assert without.prompt() == without.encode("\n").tolist()
    assert len(json.loads(without.to_json())["model"]["merges"]) == SIZE - 256
    # A word of the text, whose token would be that of the end.
    with pytest.raises(UsageError, match="the special token 'the', which texts may contain"):
        BPETokenizer(260, end_of_text="the").fit("the,the\nthe " * 20)


def test_every_token_has_a_symbol_of_its_own() -> None:
    tokenizer = fitted()
    symbols = [tokenizer.symbol(id) for id in range(tokenizer.vocab_size)]
    assert len(set(symbols)) == SIZE
    assert {" the", "\udcc3", "<|endoftext|>"} <= {*symbols}
    alone = [tokenizer.symbol(tokenizer.encode(chr(code)).tolist()[0]) for code in range(128)]
    assert alone == list(map(chr, range(128)))


def test_an_id_that_stands_for_nothing_is_decoded_to_nothing() -> None:
    plain = held()
    vocab = plain["model"]["vocab"]
    (last,) = [token for token, id in vocab.items() if id == SIZE - 1]
    tokenizer = BPETokenizer(
        vocabulary=json.dumps(plain | {"model": plain["model"] | {"vocab": vocab | {last: SIZE}}})
    )
    assert tokenizer.vocab_size == SIZE + 1
    assert tokenizer.decode([SIZE - 1]) == ""
    assert tokenizer.symbol(SIZE - 1) == f"\ufffd{SIZE - 1}"
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_a_part_of_a_character_is_a_replacement() -> None:
    tokenizer = fitted()
    ids = tokenizer.encode("é字").tolist()
    text = "".join(tokenizer.decode([id]) for id in ids)
    assert tokenizer.decode(ids) == "é字"
    assert text.count("\ufffd") > 1


def test_a_lone_surrogate_is_unknown_and_placed_in_the_whole_text() -> None:
    tokenizer = fitted()
    assert not tokenizer.knows("\ud800")
    assert all(map(tokenizer.knows, "a\0漢\U0010ffff\ue000"))
    with pytest.raises(UnknownCharacter, match=r"\(U\+D800\) at offset 4 is a lone surrogate"):
        list(tokenizer.encode_chunks(["éé", "a", "a\ud800"]))
    with pytest.raises(UnknownCharacter, match="at offset 1 "):
        BPETokenizer(SIZE).fit("a\ud800")
    skipping = Skipping(tokenizer).fit("a\ud800b")
    assert skipping.decode(skipping.encode("a\ud800b")) == "ab"
    assert skipping.end_of_text == tokenizer.end_of_text
    assert skipping.utf8_bytes(skipping.encode("a\ud800b")) == 2


def test_few_remembered_segments_give_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fitted().encode(TEXT).tolist()
    monkeypatch.setattr(bpe, "MOST_KNOWN", 3)
    tokenizer = fitted()
    chunks = [TEXT[begin : begin + 20] for begin in range(0, len(TEXT), 20)]
    assert np.concatenate(list(tokenizer.encode_chunks(chunks))).tolist() == expected


def test_long_segments_are_not_remembered() -> None:
    tokenizer, word = fitted(), "acgt" * 5000
    ids = [tokenizer.encode(text).tolist() for text in (word, f"{word} the", word)]
    assert ids[0] == ids[2] == ids[1][: len(ids[0])]
    assert max(map(len, tokenizer._known)) <= bpe.LONGEST_KNOWN


def test_the_spec_alone_rebuilds_the_tokenizer() -> None:
    tokenizer = fitted()
    spec = json.loads(json.dumps(tokenizer.spec()))
    assert spec["class_path"] == "makemoe.data.bpe.BPETokenizer"
    again = BPETokenizer(**spec["init_args"])
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert again.spec() == tokenizer.spec()
    unfitted = BPETokenizer(300)
    assert not BPETokenizer(**unfitted.init_args()).is_fitted
    unfitted.restore(tokenizer.init_args())
    assert unfitted.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_a_vocabulary_that_is_there_is_kept() -> None:
    tokenizer = fitted()
    before = tokenizer.to_json()
    assert tokenizer.fit("other words, other words") is tokenizer
    assert tokenizer.to_json() == before


def test_a_vocabulary_larger_than_the_text_can_give_is_refused_with_what_it_can_give() -> None:
    with pytest.raises(DataError) as caught:
        BPETokenizer(5000).fit(TEXT)
    message = str(caught.value)
    assert "\n" not in message
    most = int(message.rpartition("vocab_size to ")[2].partition(",")[0])
    assert BPETokenizer(most).fit(TEXT).vocab_size == most
    with pytest.raises(DataError, match=f"more than the {most} tokens"):
        BPETokenizer(most + 1).fit(TEXT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 256}, r"256 is out of range: use 257 \(256 bytes and the end of a text\)"),
        ({"end_of_text": ""}, "end_of_text '' is no text: give a symbol such as"),
        ({"end_of_text": "a\udc80"}, r"end_of_text 'a\\udc80' is no text"),
        ({"vocab_size": 255, "end_of_text": None}, r"use 256 \(256 bytes\) to 1048576"),
        ({"vocab_size": 1 << 30}, "out of range"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BPETokenizer(**arguments)


def test_the_smallest_vocabulary_is_the_bytes() -> None:
    tokenizer = BPETokenizer(257).fit("aa" * 9)
    assert len(tokenizer.encode("Öl漢")) == len("Öl漢".encode())


USES: list[Callable[[list[str]], object]] = [
    lambda chunks: BPETokenizer(257).fit_chunks(chunks),
    lambda chunks: list(fitted().encode_chunks(chunks)),
]


@pytest.mark.parametrize("use", USES, ids=["fit", "encode"])
@pytest.mark.parametrize("size", [1, 600, 2000])
def test_a_text_without_words_is_refused(
    monkeypatch: pytest.MonkeyPatch, use: Callable[[list[str]], object], size: int
) -> None:
    monkeypatch.setattr(bpe, "LONGEST_SEGMENT", 1000)

    def cut(text: str) -> list[str]:
        return [text[begin : begin + size] for begin in range(0, len(text), size)]

    use(cut("a" * 1000 + " " + "b" * 998 + "\n" + "漢" * 999 + "\n"))
    with pytest.raises(DataError, match="1,000 characters without a space or a line end"):
        use(cut("of " + "a" * 1001 + " b"))


def test_without_the_library_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vocabulary = fitted().to_json()
    monkeypatch.setitem(sys.modules, "tokenizers", None)

    def unread() -> Iterator[str]:
        raise AssertionError("the text is read")
        yield

    for use in (
        lambda: BPETokenizer().fit_chunks(unread()),
        lambda: BPETokenizer(vocabulary=vocabulary),
    ):
        with pytest.raises(MissingPackageError, match=r"^BPETokenizer needs .*'makemoe\[bpe\]'$"):
            use()


def test_a_process_that_forks_afterwards_is_not_warned(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(bpe.PARALLELISM, raising=False)
    tokenizer = fitted()
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    expected = tokenizer.encode(TEXT).tolist()
    child = os.fork()
    if not child:
        os._exit(tokenizer.encode(TEXT + "new").tolist()[:3] != expected[:3])
    assert os.waitpid(child, 0)[1] == 0
    assert capfd.readouterr() == ("", "")
    assert bpe.PARALLELISM not in os.environ
    if threads:
        assert len(os.listdir("/proc/self/task")) <= threads
