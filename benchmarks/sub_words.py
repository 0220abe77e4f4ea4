"""Times learning sub-words from a text, and encoding it, against the library alone."""

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks.measure import Bench
from benchmarks.report import Goal, Result
from benchmarks.texts import in_own_process, play
from makemoe.data.bpe import MOST_LEARNED_FROM, BPETokenizer, library

BYTES = 10**8
PLAIN_BYTES = 4 * 10**6
"""Size for the library alone, which is slower; in chunks as large as ours."""

CHUNK = 1 << 16
SIZE = 4096
NEW = 25
"""In every copy of the play, one in so many words is one that was never seen before.

Otherwise all segments but those of the first copy would be known, which makes encoding too fast.
"""


def sub_words(bench: Bench) -> list[Result]:
    """Learn sub-words in a separate process, then encode the text, against `encode_batch`."""
    peaks: list[float | None] = []
    learning: list[float] = []
    size = bench.choose(SIZE, 300)
    with tempfile.TemporaryDirectory() as folder:
        bench.say("tokenising: writing 0.1 GB with new words")
        path, plain = Path(folder) / "text.txt", Path(folder) / "plain.txt"
        written = write_text(path, bench.choose(BYTES, 10**5))
        plain_bytes = write_text(plain, bench.choose(PLAIN_BYTES, 10**5))
        alone = TokenizersAlone(plain, size)

        def ours() -> float:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                found, peak_mb = in_own_process(path, cache, f"--sub_words={size}")
            peaks.append(peak_mb)
            learning.append(found["learning"])
            return found["seconds"]

        bench.say("tokenising / sub-words / the library alone")
        times = bench.alternate([ours, alone.encode])
        mine, theirs = map(median, times)
        learning_s = median(learning[-len(times[0]) :])  # without the warm-up
    peak_mb = max((peak for peak in peaks if peak is not None), default=None)
    learned_from = min(written, MOST_LEARNED_FROM)
    work = f"{size:,} sub-words"
    return [
        Result(
            f"learning {work} from {written / 1e9:.2f} GB",
            ours=learned_from / learning_s / 1e6,
            unit="MB/s",
            note=f"{learning_s:.1f} s, from an even sample of {learned_from / 1e6:.0f} MB",
        ),
        Result(
            f"tokenising {written / 1e9:.2f} GB, {work}",
            ours=written / mine / 1e6,
            against="encode_batch of tokenizers",
            theirs=plain_bytes / theirs / 1e6,
            unit="MB/s",
            goal=Goal(">=", 3),
            peak_mb=[peak_mb],
            note=f"one in {NEW} words is new",
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


class TokenizersAlone:
    """The library on the chunks of a text, with the sub-words learned from it.

    It uses the threads it wants: as many as there are processors.
    """

    def __init__(self, path: Path, size: int) -> None:
        text = path.read_text(encoding="utf-8")
        self.chunks = [text[begin : begin + CHUNK] for begin in range(0, len(text), CHUNK)]
        self.library = library().Tokenizer.from_str(BPETokenizer(size).fit(text).to_json())

    def encode(self) -> None:
        assert all(one.ids for one in self.library.encode_batch_fast(self.chunks))


def write_text(path: Path, least: int) -> int:
    """Write copies of the play with new words; return its bytes."""
    text = play().decode()
    fresh = map(word, count())
    with path.open("wb") as file:
        while file.tell() < least:
            words = text.split(" ")
            words[::NEW] = [next(fresh) for _ in words[::NEW]]
            file.write(" ".join(words).encode())
    return path.stat().st_size


def word(number: int) -> str:
    """A word of its own for each number."""
    return "".join(_letters(number + 26**3))


def _letters(number: int) -> Iterator[str]:
    while number:
        number, letter = divmod(number, 26)
        yield chr(ord("a") + letter)
