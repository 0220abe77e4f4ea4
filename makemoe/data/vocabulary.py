"""Reads the vocabulary of a byte-level BPE, a `tokenizer.json`, which may come from a stranger.

Everything in it is checked that decides which ids a text gets, and only that is passed on. What it
describes must be able to express every text, and to give it back.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from makemoe.data.tokenizer_json import byte_characters
from makemoe.errors import UsageError

MOST_CHARACTERS = 64 << 20
"""Limit for the length of the JSON text; those in use have up to 12 million."""

MOST_TOKENS = 1 << 20
"""Limit for the number of ids."""

LONGEST_PATTERN = 10_000
"""Limit for the length of a regular expression."""

MOST_DEPTH = 50
"""Limit for steps within steps; those in use have one. Python's own differs between versions."""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where texts are split into words, as in GPT-4 and Llama 3: no token crosses these borders."""

Segment = re.Pattern[str]
"""Finds segments of a text: they begin and end where words do, whatever is before and after them.

A segment may be several words. So the ids of a text are those of its segments, one by one.
"""

GPT4_SEGMENT: Segment = re.compile(
    # No word goes on from a character to a space, or from a line end to the next line.
    r"\s*+\S++(?:[^\S ]\s*+(?<![\r\n])\S++)*+(?:[^\S ]\s*+)?+|\s++"
)
GPT2_SEGMENT: Segment = re.compile(
    # No word goes on from a character to a space or to a line end.
    r"\s*+\S++(?:(?![ \n])\s++\S++)*+(?:(?![ \n])\s++)?+|\s++"
)
SEGMENTS = {PATTERN: GPT4_SEGMENT, PATTERN.replace("{1,3}", ""): GPT4_SEGMENT}
"""What finds segments, for the patterns that are known; the second is that of Qwen."""

KEPT = ("Isolated", "Contiguous", "MergedWithPrevious", "MergedWithNext")
"""How a text may be split at a pattern; `Removed` would lose a part of it."""


class Vocabulary(NamedTuple):
    """A byte-level BPE.

    Attributes:
        pieces_V: the bytes that each id stands for; none for a special token and an unused id.
        special: ids of the special tokens.
        added: ids of all tokens that are found before a text is split into words.
        segment: finds the segments of a text; None: it is not known where texts are split.
        checked: the JSON text that the library gets: everything in it was checked.
    """

    pieces_V: list[bytes]
    special: dict[str, int]
    added: dict[str, int]
    segment: Segment | None
    checked: str


def read_vocabulary(text: str) -> Vocabulary:
    """Read the text of a `tokenizer.json`.

    Raises:
        UsageError: for a text that is none, or that describes no byte-level BPE.
    """
    try:
        return _read(text)
    except _Misfit as error:
        # Without causes: the command line shows the first one.
        raise UsageError(f"vocabulary {error}") from None
    except RecursionError:
        raise UsageError("vocabulary is nested too deep") from None


class _Misfit(Exception):
    """Why a vocabulary cannot be used."""


def _read(text: str) -> Vocabulary:
    if len(text) > MOST_CHARACTERS:
        raise _Misfit(f"has more than {MOST_CHARACTERS >> 20} million characters")
    try:
        whole = json.loads(text)
    except ValueError as error:
        raise _Misfit("is not the JSON text of a tokenizer.json") from error
    model = _part(whole, "model")
    vocab, merges = _vocab(model), list(_merges(model))
    added = list(_added_tokens(whole, vocab))
    splits = _pre_tokenizer(whole.get("pre_tokenizer"))
    _check_decoder(whole.get("decoder"))
    of_added = {token["content"]: _added_bytes(token) for token in added}
    of_model = _bytes_of(vocab, of_added)
    ignores_merges = model.get("ignore_merges") is True
    _check_merges(merges, vocab)
    made = vocab if ignores_merges else {one + other for one, other in merges}
    for token in of_added.keys() & made:
        if of_added[token] != of_model[token]:
            raise _Misfit(f"has the special token {token!r:.40}, which texts may contain")
    ids = vocab | {token["content"]: token["id"] for token in added}
    pieces_V = [b""] * (1 + max(ids.values()))
    for token, piece in (of_model | of_added).items():
        pieces_V[ids[token]] = piece
    checked = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": _normalizer(whole.get("normalizer")),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "model": {
            "type": "BPE",
            "ignore_merges": ignores_merges,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return Vocabulary(
        pieces_V,
        {token["content"]: token["id"] for token in added if token["special"]},
        {token["content"]: token["id"] for token in added},
        _segment(splits, added),
        json.dumps(checked),
    )


def _part(whole: Any, name: str) -> dict[str, Any]:
    part = whole.get(name) if isinstance(whole, dict) else None
    if not isinstance(part, dict):
        raise _Misfit(f"is not a tokenizer.json: it has no {name}")
    return part


def _parts(part: Any, depth: int = 0) -> list[dict[str, Any]]:
    """A step of the pipeline as a list of its parts."""
    if depth > MOST_DEPTH:
        raise _Misfit("is nested too deep")
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise _Misfit("is not a tokenizer.json: a part of it has no type")
    if part["type"] != "Sequence":
        return [part]
    inner = next((v for k, v in part.items() if k != "type" and isinstance(v, list)), [])
    return [one for item in inner for one in _parts(item, depth + 1)]


# -- the model


def _vocab(model: Mapping[str, Any]) -> dict[str, int]:
    """The tokens and their ids."""
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise _Misfit(f"is not a BPE: its model is {kind!r:.40}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise _Misfit(f"has a model with {name} {model[name]!r:.40}; a byte-level BPE has none")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(map(_is_id, vocab.values())):
        raise _Misfit("has a model whose vocab does not give each token an id")
    if len(set(vocab.values())) < len(vocab):
        raise _Misfit("gives two tokens the same id")
    return vocab


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST_TOKENS


def _merges(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The pairs of tokens that become one token, the first to be merged first."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise _Misfit("has a model without merges")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(x) is str for x in pair):
            raise _Misfit(f"has the merge {merge!r:.60}, which is no pair of tokens")
        yield pair[0], pair[1]


def _bytes_of(vocab: Mapping[str, int], added: Mapping[str, bytes]) -> dict[str, bytes]:
    """The bytes of each token of the model; none for what only an added token can be."""
    alphabet = {character: byte for byte, character in enumerate(byte_characters())}
    pieces = {}
    for token in vocab:
        try:
            pieces[token] = bytes(alphabet[character] for character in token)
        except KeyError:
            if token not in added:
                raise _Misfit(
                    f"is not byte-level: its token {token!r:.40} is no sequence of bytes"
                ) from None
            pieces[token] = b""
    for character, byte in alphabet.items():
        if character not in vocab or character in added:
            raise _Misfit(f"is not byte-level: it has no token for the byte {byte:#04x}")
    return pieces


def _check_merges(merges: Sequence[tuple[str, str]], vocab: Mapping[str, int]) -> None:
    for one, other in merges:
        for token in (one, other, one + other):
            if token not in vocab:
                raise _Misfit(
                    f"merges {one!r:.40} and {other!r:.40}, but {token!r:.40} is no token"
                )


# -- what happens before


def _normalizer(part: Any) -> dict[str, Any] | None:
    """None, or composition of characters (NFC), which changes texts that are not composed."""
    kinds = [] if part is None else [one["type"] for one in _parts(part)]
    for kind in kinds:
        if kind != "NFC":
            raise _Misfit(f"changes texts before they are encoded: its normalizer is {kind:.40}")
    return {"type": "NFC"} if kinds else None


def _pre_tokenizer(part: Any) -> list[dict[str, Any]]:
    """The steps that split a text into words, the last of which turns it into bytes."""
    splits = []
    parts = [] if part is None else _parts(part)
    for one in parts:
        kind = one["type"]
        if kind == "ByteLevel":
            if one.get("add_prefix_space") is not False:
                raise _Misfit("puts a space in front of every text")
            regex = one.get("use_regex", True) is not False
            splits.append({"type": kind, "add_prefix_space": False, "trim_offsets": False})
            splits[-1]["use_regex"] = regex
        elif kind == "Split":
            splits.append(_split(one))
        elif kind == "Digits":
            single = one.get("individual_digits") is True
            splits.append({"type": kind, "individual_digits": single})
        else:
            raise _Misfit(f"is not byte-level: its pre_tokenizer is {kind:.40}")
    if [one["type"] for one in splits].count("ByteLevel") != 1 or splits[-1]["type"] != "ByteLevel":
        raise _Misfit("is not byte-level: its last pre_tokenizer is not ByteLevel")
    return splits


def _check_decoder(part: Any) -> None:
    """Refuse a decoder that does not take the characters for bytes."""
    kinds = ["ByteLevel"] if part is None else [one["type"] for one in _parts(part)]
    if "ByteLevel" not in kinds:
        raise _Misfit(f"is not byte-level: its decoder is {', '.join(kinds):.40}")


def _split(part: Mapping[str, Any]) -> dict[str, Any]:
    """A split at a pattern."""
    pattern, behavior = part.get("pattern"), part.get("behavior")
    if not isinstance(pattern, dict) or len(pattern) != 1:
        raise _Misfit("has a Split without a pattern")
    ((kind, text),) = pattern.items()
    if kind not in ("Regex", "String") or type(text) is not str or len(text) > LONGEST_PATTERN:
        raise _Misfit("has a Split without a pattern")
    if behavior not in KEPT:
        raise _Misfit(f"has a Split with behavior {behavior!r:.40}; a byte-level BPE keeps all")
    invert = part.get("invert") is True
    return {"type": "Split", "pattern": {kind: text}, "behavior": behavior, "invert": invert}


def _segment(
    splits: Sequence[Mapping[str, Any]], added: Sequence[Mapping[str, Any]]
) -> Segment | None:
    """What finds the segments of a text, if it is known where the tokenizer splits it."""
    if any(re.search(r"\s", token["content"]) for token in added if not token["special"]):
        return None
    *before, last = splits
    if not before:
        return GPT2_SEGMENT if last["use_regex"] else None
    for pattern, segment in SEGMENTS.items():
        known = _split({"pattern": {"Regex": pattern}, "behavior": "Isolated"})
        if before == [known] and not last["use_regex"]:
            return segment
    return None


# -- tokens beside the model's


def _added_bytes(token: Mapping[str, Any]) -> bytes:
    """The bytes an added token stands for; none if it is special, and so never found in a text."""
    try:
        content: bytes = token["content"].encode()
    except UnicodeEncodeError as error:
        raise _Misfit(f"has an added token {token['content']!r:.40} that is no text") from error
    return b"" if token["special"] else content


def _added_tokens(whole: Mapping[str, Any], vocab: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """The tokens that are added to those of the model."""
    tokens = whole.get("added_tokens") or []
    if not isinstance(tokens, list):
        raise _Misfit("has added_tokens that are no list")
    names = {id: token for token, id in vocab.items()}
    for token in tokens:
        if not isinstance(token, dict):
            raise _Misfit("has an added token without content and id")
        content, id = token.get("content"), token.get("id", -1)
        if type(content) is not str or not content or not _is_id(id):
            raise _Misfit("has an added token without content and id")
        if names.setdefault(id, content) != content or vocab.get(content, id) != id:
            raise _Misfit(f"gives two tokens the id of {content!r:.40}")
        special = token.get("special") is True
        for name in ("lstrip", "rstrip"):
            if token.get(name) is True and not special:
                raise _Misfit(f"has an added token {content!r:.40} that swallows spaces ({name})")
        flags = {name: token.get(name) is True for name in ("single_word", "normalized")}
        strips = {"lstrip": False, "rstrip": False}
        yield {"id": id, "content": content, **flags, **strips, "special": special}
