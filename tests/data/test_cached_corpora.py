"""What the token cache does with corpora of documents, and with processes that end or wait."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import (
    TEXTS,
    Ending,
    expected,
    expected_bytes,
    is_held_out,
    write_file,
    write_folder,
)
from large_text import Counting

from makemoe.data import growing, token_cache
from makemoe.data.growing import GrowingArray
from makemoe.data.token_cache import tokens_of
from makemoe.data.tokenizer import CharTokenizer, Ids, Tokenizer
from makemoe.data.unknown import known_text
from makemoe.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(token_cache, "LARGE_BYTES", 1)
    write_folder(Path("c"))
    return tmp_path / "cache/makemoe/tokens"


def work(name: str = "c", seed: int | None = 0, text_key: str = "text") -> list[str]:
    """What a tokenizer had to do for a corpus."""
    tokenizer = Counting()
    tokens_of(name, tokenizer, text_key=text_key, seed=seed)
    return sorted(set(tokenizer.work))


def text_of(tokenizer: Tokenizer | None = None) -> tuple[str, str]:
    tokenizer = tokenizer or CharTokenizer()
    tokens = tokens_of("c", tokenizer, seed=0)
    return tokenizer.decode(tokens.ids[: tokens.split]), tokenizer.decode(
        tokens.ids[tokens.split :]
    )


def test_a_corpus_is_read_once(cache: Path) -> None:
    assert work() == ["encode", "fit"]
    assert work() == work("c/") == work("./c") == work(os.path.abspath("c")) == []
    first, second = tokens_of("c", Counting(), seed=0), tokens_of("c", Counting(), seed=0)
    assert isinstance(second.ids, np.memmap)
    assert first[1:] == second[1:]
    names = sorted(path.suffix for path in cache.iterdir())
    assert names == [".json", ".json", ".lock", ".npy"]


def test_each_split_and_key_has_an_entry_of_its_own() -> None:
    write_file(Path("c/lines.jsonl"), TEXTS[:3], key="text")
    assert work() == ["encode", "fit"]
    assert work(seed=1) == work(seed=None) == ["encode"]
    assert work() == work(seed=1) == work(seed=None) == []
    with pytest.raises(DataError, match="no key 'body'"):
        work(text_key="body")
    assert work() == []


def change(path: Path) -> None:
    path.write_text("another text\n" + path.read_text())


def change_in_secret(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Document", b"document"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def rename(path: Path) -> None:
    path.rename(path.with_name("z.txt"))


def add(path: Path) -> None:
    path.with_name("new.txt").write_text("new")


def add_deep(path: Path) -> None:
    write_file(Path("c/a/b/c/new.txt"), ["new"])


@pytest.mark.parametrize("act", [change, change_in_secret, rename, Path.unlink, add, add_deep])
def test_a_changed_added_or_removed_file_is_noticed(cache: Path, act: Any) -> None:
    work()
    before = set(cache.glob("*.npy"))
    act(Path("c/001/000013.txt"))
    assert work() == ["encode", "fit"]
    assert work() == []
    assert len(before | set(cache.glob("*.npy"))) == 2
    assert not before & set(cache.glob("*"))  # the old ids are gone


def test_what_does_not_count_changes_nothing() -> None:
    work()
    Path("c/notes.md").write_text("new")
    Path("c/.hidden.txt").write_text("new")
    assert work() == []


def test_a_corpus_that_changes_meanwhile_is_refused(cache: Path) -> None:
    class Slow(CharTokenizer):
        def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
            yield from super().encode_chunks(chunks)
            Path("c/new.txt").write_text("new")

    with pytest.raises(DataError, match=r"^--data.corpus 'c': changed while it was being read"):
        tokens_of("c", Slow(), seed=0)
    assert not list(cache.glob("*.npy"))
    assert not list(cache.glob(".*"))


@pytest.mark.parametrize(
    "record",
    [
        "",
        "{}",
        '{"digest": "0", "record": {}}',
        {"lengths": [1, 2], "documents": [1, 1], "empty": 0, "first_empty": ""},
        {"lengths": [], "documents": [1], "empty": 0, "first_empty": ""},
        [],
    ],
)
def test_a_damaged_record_is_made_anew(cache: Path, record: Any) -> None:
    work()
    (path,) = cache.glob("*-0.json")
    if not isinstance(record, str):
        record = json.dumps({"digest": token_cache._digest(record), "record": record})
    path.write_text(record)
    assert work() == ["encode"]
    assert text_of() == expected(TEXTS, 0)


def test_ids_without_their_record_are_made_anew(cache: Path) -> None:
    work()
    (path,) = cache.glob("*-0.json")
    path.unlink()
    assert work() == ["encode"]
    assert work() == []


def test_one_text_has_the_entry_it_always_had(cache: Path) -> None:
    Path("one.txt").write_text("abc" * 100)
    status = os.stat("one.txt")
    tokens_of("one.txt", tokenizer := CharTokenizer("abc"), seed=3)
    digest, source = token_cache._digest, token_cache._source
    state = digest([status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    spec = digest([tokenizer.spec(), *map(source, tokenizer.sources())])
    (path,) = cache.glob("*.npy")
    assert path.name == f"{digest(os.path.abspath('one.txt'))}-{state}-{spec}.npy"


def test_empty_documents_are_told_of_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c/a.txt").touch()
    for _ in range(2):
        known_text("c", CharTokenizer(), "--data.corpus", seed=0)
        assert capsys.readouterr().err == (
            "makemoe: --data.corpus 'c': left out an empty document: a.txt\n"
        )
    Path("c/b.txt").touch()
    known_text("c", CharTokenizer(), "--data.corpus", seed=0)
    assert "left out 2 empty documents, the first of them a.txt" in capsys.readouterr().err


def test_a_document_is_named_by_its_share_of_the_split() -> None:
    text = known_text("c", CharTokenizer(), "--data.corpus", seed=0)
    training, held_out = text.tokens.documents
    assert text.validation_split().name == (
        f"the validation split ({held_out} of {training + held_out} documents) of c"
    )


# --- processes that end, and processes that wait ------------------------------------------------

CHILD = """
import os, resource, signal, sys, time
from pathlib import Path
from corpora import Ending
from makemoe.data import growing, token_cache
from makemoe.data.growing import GrowingArray
from makemoe.data.token_cache import tokens_of

assert "torch" not in sys.modules
name, log, go, commits, most = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:]
token_cache.LARGE_BYTES, growing.COMMIT_BYTES, token_cache.PATIENCE_S = 1, 200, 0.3
if int(most):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), resource.RLIM_INFINITY))
    token_cache.MOST_HELD_BYTES = 1
commit = GrowingArray.commit

def counting(self, state):
    commit(self, state)
    with log.open("a") as file:
        file.write("commit\\n")
    if log.read_text().count("commit") == int(commits):
        while not go.exists():
            time.sleep(0.01)

GrowingArray.commit = counting
print("ready", flush=True)
try:
    tokens = tokens_of(name, Ending(), seed=0)
except Exception as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(1)
print(tokens.split, tokens.ids.sum())
"""


def child(name: str, commits: int, go: str = "never", most: int = 0) -> subprocess.Popen[str]:
    """A process that reads a corpus, and stops after so many entries in the journal."""
    arguments = [name, "log", go, str(commits), str(most)]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def commits_in(log: Path, count: int) -> None:
    deadline = time.monotonic() + 20
    while not log.exists() or log.read_text().count("commit") < count:
        assert time.monotonic() < deadline, "the process does not work"
        time.sleep(0.01)


def appended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ids this process adds to a file, as a list that grows."""
    counts: list[int] = []
    append = GrowingArray.append

    def counting(self: GrowingArray, section: int, ids: Ids) -> None:
        counts.append(len(ids))
        append(self, section, ids)

    monkeypatch.setattr(GrowingArray, "append", counting)
    return counts


def check(ids: Ids, split: int | None) -> None:
    training, held_out = expected_bytes(TEXTS, 0)
    assert ids[:split].tolist() == training.tolist()
    assert ids[split:].tolist() == held_out.tolist()


@pytest.mark.parametrize("name", ["c", "c.jsonl", "c.jsonl.gz"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_no_ids_but_what_the_next_one_goes_on_with(
    cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: signal.Signals
) -> None:
    if name != "c":
        write_file(Path(name), TEXTS)
    process = child(name, 5)
    commits_in(Path("log"), 5)
    process.send_signal(number)
    process.communicate()
    assert not list(cache.glob("*.npy"))
    done = 5 * 200
    monkeypatch.setattr(growing, "COMMIT_BYTES", 200)
    counts = appended(monkeypatch)
    tokens = tokens_of(name, Ending(), seed=0)
    check(tokens.ids, tokens.split)
    assert sum(counts) < len(tokens.ids) - done
    held_out = sum(is_held_out(text, 0) for text in TEXTS)
    assert tokens.documents == (len(TEXTS) - held_out, held_out)
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".lock", ".npy"]


def test_what_a_killed_process_did_for_an_earlier_state_is_deleted(cache: Path) -> None:
    process = child("c", 3)
    commits_in(Path("log"), 3)
    process.kill()
    process.communicate()
    assert len(list(cache.glob(".*"))) == 3
    Path("c/000/000003.txt").write_text("changed")
    tokens_of("c", CharTokenizer(), seed=0)
    assert not list(cache.glob(".*"))


def test_a_full_disk_is_told_in_one_line_and_the_next_process_goes_on(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = child("c", 0, most=1500)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    (line,) = err.splitlines()
    assert line.startswith("DataError: --data.corpus 'c': its tokens cannot be stored in ")
    assert "File too large" in line
    assert not list(cache.glob("*.npy"))
    counts = appended(monkeypatch)
    tokens = tokens_of("c", Ending(), seed=0)
    check(tokens.ids, tokens.split)
    assert 0 < sum(counts) < len(tokens.ids) - 800


def test_of_two_processes_one_works_and_the_other_says_that_it_waits(cache: Path) -> None:
    first = child("c", 2, go="go")
    commits_in(Path("log"), 2)
    second = child("c", -1, go="go")
    assert second.stderr is not None
    line = second.stderr.readline()
    assert line == "makemoe: waiting for another process that reads 'c' into the cache\n"
    log = Path("log").read_text()
    Path("go").touch()
    outs = []
    for process in (first, second):
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
        outs.append(out.removeprefix("ready\n"))
    training, held_out = expected_bytes(TEXTS, 0)
    assert outs == [f"{len(training)} {training.sum() + held_out.sum()}\n"] * 2
    assert log == "commit\n" * 2
