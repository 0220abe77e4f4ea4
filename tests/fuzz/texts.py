"""Texts and prompts: empty, short, binary, of every script and line ending."""

import gzip
import json
import re
from typing import Any

import zstandard
from hypothesis import strategies as st

from fuzz.case import Case
from fuzz.files import SPECIAL
from fuzz.folder import TINY, VERSE

LINES = "".join(json.dumps({"text": f"{n} {VERSE}"}) + "\n" for n in range(40))
KNOWN = {
    "empty": {"text": ""},
    "one": {"text": "a"},
    "two": {"text": "ab"},
    "newline": {"text": "\n"},
    "same": {"repeat": "a", "times": 1000},
    "eleven": {"repeat": "a", "times": 11},
    "line": {"repeat": "ab", "times": 200_000},
    "crlf": {"repeat": "a line\r\n", "times": 50},
    "cr": {"repeat": "a line\r", "times": 50},
    "bom": {"text": "\ufeff" + VERSE * 3},
    "emoji": {"repeat": "😀👩‍👩‍👧 ", "times": 50},
    "right to left": {"repeat": "שלום \u202eabc\u202c ", "times": 50},
    "nul": {"repeat": "a\0b", "times": 50},
    "separators": {"repeat": "a\u2028b\u0085c\x1c", "times": 50},
    "many symbols": {"text": "".join(map(chr, range(0x4E00, 0x8000)))},
    "private": {"repeat": "\ue000\U0010ffff", "times": 50},
    "surrogates": {"hex": "eda080" * 50},
    "binary": {"hex": bytes(range(256)).hex() * 4},
    "cut": {"hex": ("é" * 100).encode().hex()[:-2]},
    "late": {"hex": (b"a" * 5000 + b"\xff").hex()},
    "overlong": {"hex": "c0af" * 50},
    "utf-16": {"hex": (VERSE * 3).encode("utf-16").hex()},
    "gzip": {"hex": "1f8b0800000000000003" * 30},
    "gzip of a verse": {"hex": gzip.compress((VERSE * 20).encode(), mtime=0).hex()},
    "gzip cut": {"hex": gzip.compress((VERSE * 20).encode(), mtime=0)[:-9].hex()},
    "bomb": {"hex": gzip.compress(bytes(1 << 24), mtime=0).hex()},
    "zstd": {"hex": zstandard.compress((VERSE * 20).encode()).hex()},
    "zstd of lines": {"hex": zstandard.compress(LINES.encode()).hex()},
    "zstd cut": {"hex": zstandard.compress(LINES.encode())[:-9].hex()},
    "lines": {"text": LINES},
    "lines of which one is none": {"text": LINES + "{\n" + LINES},
    "lines of another key": {"repeat": '{"body": "a line"}\n', "times": 50},
    "lines of one text": {"repeat": '{"text": "a line"}\n', "times": 50},
    "brackets": {"repeat": "[", "times": 100_000},
    "verse": {"text": VERSE * 20},
    "large": {"repeat": VERSE, "times": 120_000},
}
PREDICT = ("predict", "--ckpt_path", "checkpoints/tiny/last.ckpt", "--max_new_tokens", "4")
NAMES = {
    "odd": "odd",
    "odd.txt": "odd*",
    "odd.jsonl": "odd.jsonl",
    "odd.txt.gz": "odd.txt.gz",
    "odd.jsonl.gz": "odd*",
    "odd.txt.zst": "odd.txt.zst",
    "odd.jsonl.zst": "odd.jsonl.zst",
    "folder/a.txt": "folder",
    "folder/b/a.jsonl": "folder",
    "folder/a.jsonl.zst": "folder/**/a*",
}
"""Where a text lies, and what names it."""

USES = (
    ("fit", *TINY, "--data.corpus=odd"),
    ("fit", *TINY, "--data.corpus=odd"),
    ("fit", *TINY, "--data.test_corpus=odd"),
    ("fit", "--ckpt_path=checkpoints/tiny/last.ckpt", "--data.corpus=odd"),
    ("validate", "--ckpt_path", "checkpoints/bias/last.ckpt", "--data.corpus", "odd"),
    ("test", "--ckpt_path", "checkpoints/bias/last.ckpt", "--data.test_corpus", "odd"),
    ("test", "--ckpt_path", "checkpoints/tiny/last.ckpt", "--data.test_corpus", "odd"),
    ("inspect", "--ckpt_path", "checkpoints/tiny/last.ckpt", "--data.corpus", "odd"),
    (*PREDICT, "--prompt_file", "odd"),
    (*PREDICT, "--prompt_file", "odd", "--trace", "trace.jsonl"),
)
"""Commands that read a text."""


def placed(use: tuple[str, ...], spec: dict[str, Any], name: str) -> Case:
    """A text under a name, where a command reads one."""
    if "--prompt_file" in use:
        name = "odd"
    argv = [re.sub(r"\bodd$", NAMES[name], word) for word in use]
    return Case("texts", argv, {name: spec})


def texts() -> st.SearchStrategy[Case]:
    """A text where one is read, or a prompt."""
    spec = st.one_of(
        st.sampled_from(sorted(KNOWN)).map(KNOWN.__getitem__),
        st.sampled_from(sorted(SPECIAL)).map(lambda kind: {"special": kind}),
        st.binary(max_size=200).map(lambda content: {"hex": content.hex()}),
        st.builds(
            lambda unit, times: {"repeat": unit, "times": times},
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
            st.integers(1, 100),
        ),
    )
    prompt = st.one_of(
        st.text(max_size=30),
        st.binary(max_size=20).map(lambda b: b.decode("utf-8", "surrogateescape")),
        st.sampled_from(["", "A", "\n", "A" * 10_000, "A" * 130_000, "\udcff", "Who", "\x1b[0m"]),
    )
    of_prompt = st.builds(
        lambda option, prompts: Case(
            "texts", [*PREDICT, *(part for p in prompts for part in (option, p))]
        ),
        st.sampled_from(["--prompt", "--stop"]),
        st.lists(prompt, min_size=1, max_size=3),
    )
    of_file = st.builds(
        placed,
        st.sampled_from(USES),
        spec,
        st.sampled_from([*["odd"] * len(NAMES), *NAMES]),
    )
    sample = prompt.map(lambda p: Case("texts", ["fit", *TINY, f"--run.sample_prompt={p}"]))
    return st.one_of(of_file, of_file, of_file, of_prompt, sample).filter(
        lambda case: case.is_possible
    )
