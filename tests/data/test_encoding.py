import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from byte_pairs import BytePairs
from corpora import TEXTS, Ending, expected, expected_bytes, joined, write_file, write_folder

from makemoe.data import documents, encoding, growing, reading, token_cache
from makemoe.data.bpe import BPETokenizer
from makemoe.data.growing import GrowingArray
from makemoe.data.token_cache import tokens_of
from makemoe.data.tokenizer import CharTokenizer, Ids, Tokenizer
from makemoe.data.unknown import Skipping
from makemoe.errors import DataError

LONG = "".join(TEXTS) * 3


class Stopping:
    """Of a tokenizer: it counts the characters it encodes, and raises after so many chunks."""

    left = 1 << 60
    encoded = 0

    def encode_parts(self, chunks: Iterable[str]) -> Iterator[tuple[Ids, str | None]]:
        def counted() -> Iterator[str]:
            for chunk in chunks:
                if Stopping.left == 0:
                    raise KeyboardInterrupt
                Stopping.left -= 1
                Stopping.encoded += len(chunk)
                yield chunk

        yield from super().encode_parts(counted())  # type: ignore[misc]


class Characters(Stopping, CharTokenizer):
    pass


class Bytes(Stopping, Ending):
    pass


class SubWords(Stopping, BPETokenizer):
    pass


class Pairs(Stopping, BytePairs):
    """Its tokens cross the borders of chunks, so it cannot begin in the midst of a document."""


@pytest.fixture(autouse=True)
def small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large corpus in pieces: long documents are read in many blocks and not held."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(token_cache, "LARGE_BYTES", 1)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 101)
    monkeypatch.setattr(documents, "BLOCK_BYTES", 101)
    monkeypatch.setattr(documents, "HELD_BYTES", 500)
    monkeypatch.setattr(growing, "COMMIT_BYTES", 250)


def prepared(name: str, tokenizer: Tokenizer, every: int) -> tuple[list[int], list[int], int]:
    """The ids of both splits, made by processes that end after so many chunks; their number."""
    for number in range(1, 200):
        Stopping.left = every
        try:
            tokens = tokens_of(name, tokenizer, seed=0)
        except KeyboardInterrupt:
            continue
        finally:
            Stopping.left = 1 << 60
        return tokens.ids[: tokens.split].tolist(), tokens.ids[tokens.split :].tolist(), number
    raise AssertionError("it does not go on")


@pytest.fixture(params=["c", "c.jsonl", "c.jsonl.zst", "mixed"])
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "c":
        write_folder(Path("c"), TEXTS)
    elif request.param == "mixed":
        write_file(Path("mixed/0.jsonl.gz"), TEXTS[:9])
        write_file(Path("mixed/1.txt"), TEXTS[9:10])
        write_file(Path("mixed/2.jsonl"), TEXTS[10:30])
        write_folder(Path("mixed/3"), TEXTS[30:])
    else:
        write_file(Path(request.param), TEXTS)
    return str(request.param)


@pytest.mark.parametrize("every", [12, 20])
def test_characters_are_the_same_however_often_it_was_interrupted(name: str, every: int) -> None:
    tokenizer = Characters("".join(sorted(set("".join(TEXTS)))))
    training, held_out, times = prepared(name, tokenizer, every)
    assert (tokenizer.decode(training), tokenizer.decode(held_out)) == expected(TEXTS, 0)
    assert times > 1
    assert prepared(name, tokenizer, 0) == (training, held_out, 1)


@pytest.mark.parametrize("tokenizer", [Bytes(), Pairs().fit("".join(TEXTS))])
def test_other_tokens_are_the_same_however_often_it_was_interrupted(
    name: str, tokenizer: Tokenizer
) -> None:
    *ids, times = prepared(name, tokenizer, 30)
    assert times > 1
    if isinstance(tokenizer, Ending):
        assert ids == [side.tolist() for side in expected_bytes(TEXTS, 0)]
    else:
        assert tuple(map(tokenizer.decode, ids)) == expected(TEXTS, 0)


def every_kind() -> dict[str, Tokenizer]:
    """Tokenizers that may stop in the midst of a document."""
    known = Characters("".join(sorted(set(LONG))))
    return {
        "characters": known,
        "bytes": Bytes(),
        "sub-words": SubWords(300).fit(LONG),
        "sub-words without an end": SubWords(300, end_of_text=None).fit(LONG),
        "some characters": Skipping(Characters("".join(sorted(set(LONG) - set("ü 0\n"))))).fit(
            LONG
        ),
    }


@pytest.mark.parametrize("suffix", ["", ".zst"])
@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("kind", every_kind())
def test_a_long_document_goes_on_in_its_midst(suffix: str, end: str, kind: str) -> None:
    texts = [LONG + end, LONG[:-9] + end, *TEXTS[:20]]
    for number, text in enumerate(texts):
        write_file(Path(f"c/{number:02}.txt{suffix}"), [text])
    tokenizer = every_kind()[kind]
    Stopping.encoded = 0
    training, held_out, times = prepared("c", tokenizer, 60)
    assert times > 3
    # What was encoded twice: at most what comes between two entries of the journal.
    assert Stopping.encoded < sum(map(len, texts)) + len(texts) + times * 900
    shutil.rmtree("cache")
    assert prepared("c", tokenizer, 1 << 30) == (training, held_out, 1)
    if "some" not in kind:
        assert (tokenizer.decode(training), tokenizer.decode(held_out)) == (
            expected(texts, 0) if tokenizer.end_of_text is None else joined(texts, 0)
        )


@pytest.mark.parametrize("kind", every_kind())
def test_one_text_goes_on_in_its_midst(kind: str) -> None:
    Path("one.txt").write_bytes(LONG.encode())
    tokenizer = every_kind()[kind]
    Stopping.encoded = 0
    ids, _, times = prepared("one.txt", tokenizer, 20)
    assert times > 3
    assert Stopping.encoded < len(LONG) + times * 900
    assert ids == tokenizer.encode(LONG).tolist()


def test_an_unknown_character_is_placed_in_its_document_also_after_an_interruption() -> None:
    write_file(Path("c/a.txt"), [LONG + "\x07"])
    write_file(Path("c/b.txt"), [LONG])
    tokenizer = Characters("".join(sorted(set(LONG))))
    Stopping.left = 60
    with pytest.raises(KeyboardInterrupt):
        tokens_of("c", tokenizer)
    Stopping.left = 1 << 60
    assert list(Path().glob("cache/*/*/.*.journal.partial"))
    with pytest.raises(DataError, match=rf"a.txt: character '\\x07' .* {len(LONG)} is not"):
        tokens_of("c", tokenizer)
    assert not list(Path().glob("cache/*/*/.*"))


def test_a_token_never_crosses_from_one_document_to_the_next() -> None:
    write_folder(Path("c"), ["ab", "ab", "ba"])
    pairs = BytePairs().fit("ab\nab\nba\n")
    whole = tokens_of("c", pairs).ids.tolist()
    assert whole == [id for text in ("ab\n", "ab\n", "ba\n") for id in pairs.encode(text)]
    assert whole != pairs.encode("ab\nab\nba\n").tolist()


def test_ids_that_are_too_many_for_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(Path("c"))
    Path("cache").touch()
    monkeypatch.setattr(encoding, "MOST_HELD_BYTES", 100)
    monkeypatch.setattr(token_cache, "MOST_HELD_BYTES", 1 << 30)
    with pytest.raises(DataError, match="tokens are not stored, and take more than"):
        tokens_of("c", CharTokenizer())


def test_without_a_place_to_store_them_large_texts_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(Path("c"))
    Path("cache").touch()
    monkeypatch.setattr(token_cache, "MOST_HELD_BYTES", 100)
    with pytest.raises(DataError) as caught:
        tokens_of("c", CharTokenizer())
    line = str(caught.value)
    assert line.startswith("--data.corpus 'c': its tokens cannot be stored in ")
    assert "Not a directory" in line
    assert line.endswith("or set XDG_CACHE_HOME to a folder with room")
    assert capsys.readouterr() == ("", "")


def test_nothing_is_between_documents_of_a_model_without_newlines() -> None:
    Path("d.jsonl").write_text('{"text": "ACGT"}\n{"text": "TTA"}\n')
    for letters, text in (("ACGT", "ACGTTTA"), ("\nACGT", "ACGT\nTTA\n")):
        tokenizer = CharTokenizer(letters)
        assert tokenizer.decode(tokens_of("d.jsonl", tokenizer).ids) == text


def test_sections_in_memory_are_those_in_a_file(tmp_path: Path) -> None:
    held = encoding.HeldSections(2)
    with GrowingArray(tmp_path / "a.npy", 2) as array:
        for sections in (held, array):
            sections.append(1, np.array([3], np.uint8))
            sections.append(0, np.array([1, 2], np.uint8))
        assert held.lengths == array.lengths == [2, 1]
        array.finish()
        array.publish()
    assert held.ids().tolist() == np.load(tmp_path / "a.npy").tolist() == [1, 2, 3]
