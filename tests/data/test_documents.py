import random
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from corpora import (
    PACK,
    TEXTS,
    Ending,
    expected,
    expected_bytes,
    is_held_out,
    write_file,
    write_folder,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from makemoe.data import documents, reading, token_cache
from makemoe.data.corpus import load_text
from makemoe.data.documents import Corpus
from makemoe.data.reading import progress
from makemoe.data.token_cache import Tokens, token_ids, tokens_of
from makemoe.data.tokenizer import CharTokenizer, Tokenizer
from makemoe.data.unknown import known_text
from makemoe.errors import DataError

SEED = 0


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def splits(tokens: Tokens, tokenizer: Tokenizer) -> tuple[str, str]:
    """The text of the training split and that of the validation split."""
    assert tokens.split is not None
    return tokenizer.decode(tokens.ids[: tokens.split]), tokenizer.decode(
        tokens.ids[tokens.split :]
    )


def read(name: str, seed: int = SEED, text_key: str = "text") -> tuple[str, str]:
    tokenizer = CharTokenizer()
    return splits(tokens_of(name, tokenizer, text_key=text_key, seed=seed), tokenizer)


def refusal(name: str, tokenizer: Tokenizer | None = None) -> str:
    """The one line that a corpus is refused in; nothing is kept of it."""
    with pytest.raises(DataError) as caught:
        tokens_of(name, tokenizer or CharTokenizer(), seed=SEED)
    line = str(caught.value)
    assert line.startswith(f"--data.corpus {name!r}: ")
    assert len(line.splitlines()) == 1
    assert not list(Path().glob("cache/*/*/*.npy"))
    assert not list(Path().glob("cache/*/*/.*"))
    return line.partition(": ")[2]


large = pytest.mark.parametrize("least", [1, 1 << 20], ids=["mapped", "held"])


@large
@pytest.mark.parametrize("seed", [0, 7])
def test_a_document_is_wholly_on_one_side(
    monkeypatch: pytest.MonkeyPatch, least: int, seed: int
) -> None:
    monkeypatch.setattr(token_cache, "LARGE_BYTES", least)
    write_folder(Path("c"))
    assert read("c", seed) == expected(TEXTS, seed)
    tokens = tokens_of("c", CharTokenizer(), seed=seed)
    held_out = sum(is_held_out(text, seed) for text in TEXTS)
    assert tokens.documents == (len(TEXTS) - held_out, held_out)
    assert isinstance(tokens.ids, np.memmap) == (least == 1)
    assert 0 < held_out < 12


@large
def test_an_end_of_text_follows_each_document(monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(token_cache, "LARGE_BYTES", least)
    write_folder(Path("c"))
    ids, split = tokens_of("c", Ending(), seed=SEED)[:2]
    training, held_out = expected_bytes(TEXTS, SEED)
    assert ids[:split].tolist() == training.tolist()
    assert ids[split:].tolist() == held_out.tolist()
    assert ids.dtype == np.uint8


@large
def test_documents_that_are_not_split_keep_their_order(
    monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    monkeypatch.setattr(token_cache, "LARGE_BYTES", least)
    write_folder(Path("c"))
    tokenizer = CharTokenizer()
    tokens = tokens_of("c", tokenizer)
    assert tokens.split is None
    assert tokenizer.decode(tokens.ids) == expected(TEXTS, None)[0]
    assert tokens.documents == (len(TEXTS), 0)


ARRANGED = st.lists(st.text("ab \n\u00e9\U0001f600", max_size=60), min_size=2, max_size=12)


@settings(deadline=None, max_examples=60)
@given(ARRANGED, st.randoms(use_true_random=False), st.sampled_from([2, 7, 100]), st.booleans())
def test_sides_depend_on_content_alone_however_documents_are_kept(
    texts: list[str], rng: random.Random, block: int, mapped: bool
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", f"{name}/cache")
        patched.setattr(reading, "BLOCK_BYTES", block)
        patched.setattr(documents, "HELD_BYTES", rng.choice([1, 1000]))
        patched.setattr(token_cache, "LARGE_BYTES", 1 if mapped else 1 << 20)
        order = sorted(texts, key=lambda _: rng.random())
        waiting, files = order, 0
        while waiting:
            pack = rng.choice(list(PACK))
            count = rng.randint(1, len(waiting))
            kind = ".jsonl" if count > 1 or rng.random() < 0.3 else ".txt"
            files += 1
            write_file(Path(name, "c", f"{files:03}{kind}{pack}"), waiting[:count])
            waiting = waiting[count:]
        if files == 1 and kind == ".txt":
            return
        seed = rng.randint(0, 5)
        sides = [is_held_out(text, seed) for text in order if text]
        if len(set(sides)) < 2 or len(set("".join(texts))) < 2:
            with pytest.raises(DataError):
                tokens_of(f"{name}/c", Ending(), seed=seed)
            return
        tokens = tokens_of(f"{name}/c", Ending(), seed=seed)
        assert tokens.documents == (len(sides) - sum(sides), sum(sides))
        assert tokens.empty == order.count("")
        ids = [tokens.ids[: tokens.split].tolist(), tokens.ids[tokens.split :].tolist()]
        assert ids == [side.tolist() for side in expected_bytes(order, seed)]


def test_another_document_changes_no_other_s_side() -> None:
    write_folder(Path("c"))
    before = read("c")
    write_file(Path("c/more.txt"), ["one more"])
    after = read("c")
    assert [a.removeprefix(b) for a, b in zip(after, before, strict=True)] in (
        ["one more\n", ""],
        ["", "one more\n"],
    )


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.jsonl.zst"])
def test_a_line_is_a_document(name: str) -> None:
    write_file(Path(name), TEXTS)
    assert read(name) == expected(TEXTS, SEED)


def test_the_key_of_the_text_may_be_another() -> None:
    write_file(Path("c.jsonl"), TEXTS, key="body")
    assert read("c.jsonl", text_key="body") == expected(TEXTS, SEED)
    assert refusal("c.jsonl") == "line 1 has no key 'text', but 'body', 'id'; name one with " + (
        "--data.text_key"
    )


def test_one_text_is_no_collection_and_is_read_as_before() -> None:
    text = "no newline at its end"
    write_file(Path("c/a.txt"), [text])
    write_file(Path("a.txt.gz"), [text])
    for name in ("c", "c/a.txt", "c/*.txt", "a.txt.gz"):
        tokens = tokens_of(name, CharTokenizer(), seed=SEED)
        assert (tokens.split, tokens.documents) == (None, (0, 0))
        assert bytes(tokens_of(name, Ending(), seed=SEED).ids) == text.encode()


def test_empty_documents_are_counted_and_left_out() -> None:
    write_folder(Path("c"), ["", *TEXTS[:20], ""])
    write_file(Path("c/lines.jsonl"), ["", *TEXTS[20:]])
    Path("c/mark.txt").write_bytes(b"\xef\xbb\xbf")
    tokens = tokens_of("c", CharTokenizer(), seed=SEED)
    assert read("c") == expected(TEXTS, SEED)
    assert (tokens.empty, tokens.first_empty) == (4, "000/000000.txt")


@pytest.mark.parametrize("size", [1, 100])
def test_a_byte_order_mark_does_not_count(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(documents, "HELD_BYTES", size)
    write_folder(Path("c"))
    for path in Path("c").rglob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    write_file(Path("d.jsonl"), TEXTS)
    Path("d.jsonl").write_bytes(b"\xef\xbb\xbf" + Path("d.jsonl").read_bytes())
    assert read("c") == read("d.jsonl") == expected(TEXTS, SEED)


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_byte_order_mark_may_be_in_two_parts_of_a_compressed_file(
    monkeypatch: pytest.MonkeyPatch, size: int, cut: int
) -> None:
    monkeypatch.setattr(documents, "HELD_BYTES", size)
    write_folder(Path("c"))
    for path in Path("c").rglob("*.txt"):
        text = b"\xef\xbb\xbf" + path.read_bytes()
        path.unlink()
        parts = map(zstandard.compress, [text[:cut], text[cut:]])
        path.with_suffix(".txt.zst").write_bytes(b"".join(parts))
    assert read("c") == expected(TEXTS, SEED)
    alone = next(path for path in Path("c").rglob("*.zst") if len(path.read_bytes()) > 40)
    assert not load_text(str(alone)).startswith("\ufeff")


def test_blank_lines_are_no_documents() -> None:
    write_file(Path("c.jsonl"), TEXTS)
    Path("c.jsonl").write_bytes(Path("c.jsonl").read_bytes().replace(b"\n", b"\r\n\n  \n"))
    assert read("c.jsonl") == expected(TEXTS, SEED)


@large
@pytest.mark.parametrize("tokenizer", [CharTokenizer, Ending])
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("5.txt", b"caf\xe9", "5.txt: not UTF-8: byte 0xe9 at offset 3;"),
        ("5.txt.gz", PACK[".gz"](b"ab caf\xe9"), "5.txt.gz: not UTF-8: byte 0xe9 at offset 6;"),
        ("5.txt.gz", PACK[".gz"](b"abc")[:-3], "5.txt.gz: its gzip data ends too early"),
        ("5.txt.zst", PACK[".zst"](b"abc")[:-3], "5.txt.zst: its zstd data ends too early"),
        ("5.txt.gz", b"abc", "5.txt.gz: is not gzip data"),
        ("5.jsonl", b'{"text": "a"}\n{"text"\n', "5.jsonl: line 2 is not JSON: Expecting"),
        ("5.jsonl", b'{"text": "a"}\n\n{"b": 1}\n', "5.jsonl: line 3 has no key 'text', but 'b'"),
        ("5.jsonl", b'{"text": 5}', "5.jsonl: line 1: the value of 'text' is a number"),
        (
            "5.jsonl",
            b'{"text": "a"}\n{"text": "\xe9"}',
            "5.jsonl: line 2: not UTF-8: .* offset 24;",
        ),
        ("5.jsonl", b'{"text": "\\ud800"}', "5.jsonl: line 1: the text has the lone surrogate"),
    ],
)
def test_what_is_wrong_is_told_with_its_file(
    monkeypatch: pytest.MonkeyPatch,
    least: int,
    tokenizer: type[Tokenizer],
    name: str,
    content: bytes,
    problem: str,
) -> None:
    monkeypatch.setattr(token_cache, "LARGE_BYTES", least)
    write_folder(Path("c"))
    Path("c", name).write_bytes(content)
    assert re.match(problem, refusal("c", tokenizer()))
    Path("c", name).unlink()
    assert read("c") == expected(TEXTS, SEED)


def test_a_link_that_leads_nowhere_and_one_to_itself_are_refused() -> None:
    write_folder(Path("c"))
    Path("c/x.txt").symlink_to("gone")
    assert refusal("c").startswith("x.txt: no such file or folder; check the path, or the link")
    Path("c/x.txt").unlink()
    Path("c/x.txt").symlink_to("x.txt")
    assert refusal("c").startswith("x.txt: cannot be read (Too many levels of symbolic links);")


def test_a_folder_of_empty_documents_is_refused() -> None:
    write_folder(Path("c"), ["", "", ""])
    assert refusal("c") == "all of its documents are empty; pass files with text"
    assert refusal("c", Ending()) == "all of its documents are empty; pass files with text"


def test_documents_of_one_character_are_refused() -> None:
    write_folder(Path("c"), ["a" * n for n in range(1, 30)])
    assert refusal("c", Ending()).startswith("contains only 'a'; pass a text with at least two")


def test_a_split_without_validation_names_a_seed_that_has_some() -> None:
    write_folder(Path("c"), texts := TEXTS[:3])
    seed = next(s for s in range(100) if sum(is_held_out(text, s) for text in texts) == 1)
    assert refusal("c") == (
        f"none of its 3 documents is held out for validation; --data.split_seed {seed} holds out 1 "
        "of them"
    )
    assert read("c", seed) == expected(texts, seed)


def test_few_texts_are_sorted_before_anything_is_learned() -> None:
    class Learning(CharTokenizer):
        def fit_chunks(self, chunks: object) -> "Learning":
            raise AssertionError("it begins to learn")

    write_folder(Path("c"), ["the same"] * 5)
    assert "all have the same content" in refusal("c", Learning())


def test_one_line_is_not_divided() -> None:
    write_file(Path("c.jsonl"), TEXTS[4:5])
    assert refusal("c.jsonl").startswith("has only one document, and a document is not divided")


def test_an_unknown_character_is_placed_in_its_document() -> None:
    write_folder(Path("c"), ["ab\n", "ba\nz\n"])
    with pytest.raises(DataError, match=r": 000/000001.txt: character 'z' .* at offset 3 "):
        token_ids("c", CharTokenizer("ab\n"))
    write_file(Path("c.jsonl"), ["ab", "bz"])
    with pytest.raises(DataError, match=r"c.jsonl': line 2: character 'z' .* at offset 1 "):
        token_ids("c.jsonl", CharTokenizer("ab\n"))


def test_any_text_file_may_be_named_whatever_its_suffix() -> None:
    Path("notes.md").write_text("one\ntwo")
    assert CharTokenizer().fit("one\ntwo").decode(token_ids("notes.md", CharTokenizer())) == (
        "one\ntwo"
    )
    Path("more.md").write_text("three")
    assert Corpus("*.md").files == ["more.md", "notes.md"]


def test_unknown_characters_are_skipped_in_all_documents() -> None:
    write_folder(Path("c"))
    few = "".join(sorted(set("".join(TEXTS)) - set("ü\n")))
    text = known_text("c", CharTokenizer(few), "--data.corpus", "skip", seed=SEED)
    left = [side.replace("ü", "").replace("\n", "") for side in expected(TEXTS, SEED)]
    assert splits(text.tokens, CharTokenizer(few)) == tuple(left)
    assert text.skipped == sum(side.count("ü") + side.count("\n") for side in expected(TEXTS, SEED))


@pytest.mark.parametrize("name", ["c", "c.jsonl", "c.jsonl.gz", "c.jsonl.zst", "one.txt"])
def test_a_bar_shows_how_far_it_is_and_how_long_it_will_take(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "c":
        write_folder(Path(name))
    else:
        write_file(Path(name), TEXTS if "jsonl" in name else ["".join(TEXTS)])
    monkeypatch.setattr(reading, "BAR_DELAY_S", 0.0)
    read(name) if name != "one.txt" else token_ids(name, CharTokenizer())
    assert capsys.readouterr() == ("", "")  # no terminal

    bars: list[tqdm] = []

    def shown(*arguments: Any) -> tqdm:
        bars.append(progress(*arguments))
        bars[-1].mininterval = 0.0
        return bars[-1]

    monkeypatch.setattr(documents, "progress", shown)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("XDG_CACHE_HOME", "other")
    token_ids(name, CharTokenizer())
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(
        rf"reading {name}: 100%.*encoding {name}: 100%\|\S+ .*<00:00, ", err, re.DOTALL
    )
    size = sum(path.stat().st_size for path in [Path(name), *Path(name).rglob("*.txt")])
    size -= Path(name).stat().st_size if name == "c" else 0
    assert [(bar.n, bar.total) for bar in bars] == [(size, size)] * 2
