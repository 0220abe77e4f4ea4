"""Times tokenising a text of 1 GB, documents of 1 GB, and sub-words."""

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.measure import Bench
from benchmarks.report import Goal, Result
from benchmarks.sub_words import sub_words
from benchmarks.texts import in_own_process, play

BYTES = 10**9
PLAIN_BYTES = 10**7
"""Size for the plain method; the whole text would take it two minutes and 40 GB."""

QUICK_BYTES = 10**5
DOCUMENT_CHARACTERS = 2000
FILES = 4


def tokenising(bench: Bench) -> list[Result]:
    """Tokenise 1 GB in a separate process, against a dictionary and a loop; sub-words of 0.1 GB."""
    return [*characters(bench), *documents(bench), *sub_words(bench)]


def characters(bench: Bench) -> list[Result]:
    """Characters of 1 GB, against a dictionary and a loop, and against reading."""
    peaks: list[float | None] = []
    again: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        bench.say("tokenising: writing 1 GB")
        path = Path(folder) / "text.txt"
        size = write_text(path, bench.choose(BYTES, QUICK_BYTES))
        plain_bytes = write_text(Path(folder) / "plain.txt", bench.choose(PLAIN_BYTES, QUICK_BYTES))

        def ours() -> float:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                found, peak_mb = in_own_process(path, cache)
                peaks.append(peak_mb)
                again.append(in_own_process(path, cache)[0]["seconds"])
            return found["seconds"]

        bench.say("tokenising / a dictionary and a loop / reading")
        runs = [ours, partial(tokenise_plainly, path.with_name("plain.txt")), partial(read, path)]
        times = bench.alternate(runs)
        mine, plain, reading = map(median, times)
        opening = median(again[-len(times[0]) :])  # without the warm-up
    work = f"tokenising {size / 1e9:.2f} GB"
    rate, against = size / mine / 1e6, "dictionary and loop"
    peak_mb = max((peak for peak in peaks if peak is not None), default=None)
    return [
        Result(
            work,
            ours=rate,
            against=against,
            theirs=plain_bytes / plain / 1e6,
            unit="MB/s",
            goal=Goal(">=", 200, "MB/s"),
            judged=rate,
            share={"reading": reading / mine},
            peak_mb=[peak_mb],
            note=f"opened again from the cache in {1000 * opening:.0f} ms",
        ),
        Result(
            f"{work}, peak memory of the process",
            ours=peak_mb,
            unit="MB",
            goal=Goal("<=", 500, "MB"),
            judged=peak_mb,
            note="" if peak_mb is not None else "not measured (no /proc on this system)",
        ),
    ]


def documents(bench: Bench) -> list[Result]:
    """Tokenise documents in .jsonl files once, split by their content, in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        bench.say("tokenising documents: writing 1 GB")
        corpus, cache = Path(folder) / "corpus", Path(folder) / "cache"
        size = write_documents(corpus, bench.choose(BYTES, QUICK_BYTES))
        bench.say("tokenising documents")
        found, peak_mb = in_own_process(corpus, str(cache))
    work = f"tokenising {size / 1e9:.2f} GB of documents (.jsonl)"
    return [
        Result(work, ours=size / found["seconds"] / 1e6, unit="MB/s", peak_mb=[peak_mb]),
        Result(
            f"{work}, peak memory of the process",
            ours=peak_mb,
            unit="MB",
            goal=Goal("<=", 500, "MB"),
            judged=peak_mb,
            note="" if peak_mb is not None else "not measured (no /proc on this system)",
        ),
    ]


def write_documents(folder: Path, least: int) -> int:
    """Write .jsonl files with different parts of a play, one on each line; their bytes."""
    text, width = play().decode(), DOCUMENT_CHARACTERS
    folder.mkdir()
    for number in range(FILES):
        with (folder / f"{number}.jsonl").open("wb") as file:
            size = document = 0
            while size < least // FILES:
                begin = document * width % (len(text) - width)
                content = f"{number}.{document} {text[begin : begin + width]}"
                size += file.write(json.dumps({"text": content}).encode() + b"\n")
                document += 1
    return sum(path.stat().st_size for path in folder.iterdir())


def write_text(path: Path, least: int) -> int:
    """Write a play repeatedly; its bytes."""
    text = play()
    with path.open("wb") as file:
        for _ in range(-(-least // len(text))):
            file.write(text)
    return path.stat().st_size


def tokenise_plainly(path: Path) -> None:
    """Tokenise as tutorials do."""
    text = path.read_text(encoding="utf-8")
    number_of = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = [number_of[character] for character in text]
    assert len(ids) == len(text)


def read(path: Path) -> float:
    """Seconds to read a file in pieces without processing it."""
    begin = time.perf_counter()
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass
    return time.perf_counter() - begin
