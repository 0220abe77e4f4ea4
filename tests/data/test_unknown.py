from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makemoe.data import reading, token_cache
from makemoe.data.token_cache import token_ids
from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer, Ids, UnknownCharacter
from makemoe.data.unknown import Skipping, encode_known, known_text
from makemoe.errors import DataError

TEXT = "abcabc]^-\\é\U0001f600\ud800"


class Pairs(CharTokenizer):
    """Two characters per token, of a vocabulary that it knows at once or not at all."""

    def encode(self, text: str) -> Ids:
        ids = super().encode(text).astype(np.int32)
        return ids[::2] * 100 + np.append(ids, 99)[1::2]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "BLOCK_BYTES", 7)
    path = tmp_path / "mine.txt"
    path.write_text("Grüße an alle, Größe!\n" * 20, encoding="utf-8")
    return path


@settings(deadline=None)
@given(st.lists(st.text(TEXT)), st.text(TEXT, min_size=1).map(set))
def test_what_is_left_is_what_a_loop_over_characters_leaves(
    chunks: list[str], known: set[str]
) -> None:
    text, tokenizer = "".join(chunks), CharTokenizer("".join(sorted(known)))
    left = "".join(character for character in text if character in known)
    if not left:
        with pytest.raises(DataError, match="knows none of its characters"):
            Skipping(tokenizer).fit_chunks(chunks)
        return
    skipping = Skipping(tokenizer).fit_chunks(iter(chunks))
    expected = {c: text.count(c) for c in sorted(set(text) - known)}
    assert skipping.skipped == expected
    assert skipping.count == len(text) - len(left)
    ids = np.concatenate(list(skipping.encode_chunks(iter(chunks))))
    assert ids.tolist() == tokenizer.encode(left).tolist() == skipping.encode(text).tolist()


def test_any_tokenizer_skips() -> None:
    pairs = Pairs("ab")
    assert Skipping(pairs).fit("axxba").encode("axxba").tolist() == pairs.encode("aba").tolist()


@pytest.mark.parametrize("large", [1, 1 << 20])
def test_a_corpus_is_read_without_what_is_unknown_and_its_count_is_remembered(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], large: int
) -> None:
    monkeypatch.setattr(token_cache, "LARGE_BYTES", large)
    content = file.read_text("utf-8")
    tokenizer = CharTokenizer("".join(sorted(set(content) - set("üß!"))))
    left = "".join(character for character in content if character not in "üß!")
    for _ in range(2):
        text = known_text(str(file), tokenizer, "--data.corpus", "skip")
        assert isinstance(text.ids, np.memmap) == (large == 1)
        assert tokenizer.decode(text.ids) == left
        assert text.skipped == len(content) - len(left) == 80
        assert text.whole().name == f"{file} without its 80 unknown characters"
        assert capsys.readouterr().err == (
            f"makemoe: --data.corpus {str(file)!r}: skipped 80 characters that the model does not "
            "know: '!', 'ß', 'ü'\n"
        )
    with pytest.raises(UnknownCharacter, match=r"'ü' .* offset 2 .* --data.unknown skip$"):
        known_text(str(file), tokenizer, "--data.corpus")


def test_the_cache_tells_what_was_skipped_from_what_was_not(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "LARGE_BYTES", 1)
    content = file.read_text("utf-8")
    whole = token_ids(str(file), CharTokenizer())
    few = CharTokenizer("Gale")
    assert len(known_text(str(file), few, "--data.corpus", "skip").ids) < len(whole)
    assert len(known_text(str(file), CharTokenizer(), "--data.corpus", "skip").ids) == len(content)
    with pytest.raises(DataError):
        token_ids(str(file), few)


def test_of_many_unknown_characters_a_few_are_named(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode_known("zaybxcwdve", CharTokenizer("abcde"), "--prompt", "skip") == "abcde"
    assert encode_known("abxcdyeyfzgvhwi", CharTokenizer("ab"), "--prompt", "skip") == "ab"
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(
        "skipped 5 characters that the model does not know: 'v', 'w', 'x', 'y', 'z'"
    )
    assert second.endswith("know: 'c', 'd', 'e', 'f', 'g' and 7 others")


def test_bytes_do_not_know_lone_surrogates_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert encode_known("é\udcff漢", ByteTokenizer(), "--prompt", "skip") == "é漢"
    assert "skipped 1 character that the model does not know: '\\udcff'" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"--prompt: .* or pass --data.unknown skip$"):
        encode_known("é\udcff漢", ByteTokenizer(), "--prompt", "error")


def test_a_prompt_that_makes_no_token_is_refused() -> None:
    class Blind(CharTokenizer):
        """It leaves spaces out."""

        def encode(self, text: str) -> Ids:
            return super().encode(text.replace(" ", ""))

    assert encode_known(" a ", Blind("a"), "--prompt", "error") == " a "
    with pytest.raises(DataError, match=r"^--prompt: Blind makes no token of it; pass another$"):
        encode_known("  ", Blind("a"), "--prompt", "error")


def test_a_fresh_tokenizer_skips_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = known_text(str(file), CharTokenizer(), "--data.corpus", "skip")
    assert (text.skipped, capsys.readouterr().err) == (0, "")
