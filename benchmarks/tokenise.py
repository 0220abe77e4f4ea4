"""`python -m benchmarks.tokenise CORPUS`: seconds and peak MB of a process that tokenises it."""

import json
import sys
import time

from benchmarks.scripts import Options, run
from makemoe.data.tokenizer import CharTokenizer

PROG = "python -m benchmarks.tokenise"


def main() -> None:
    """Print them as JSON. Does not import torch, whose memory would count."""
    from makemoe.data.token_cache import tokens_of

    parser = Options(PROG, description="Tokenise a text; seconds and tokens as JSON.")
    parser.add_argument("corpus", metavar="CORPUS", help="a file, a folder or a pattern")
    corpus = parser.parse_args().corpus
    begin = time.perf_counter()
    ids = tokens_of(corpus, CharTokenizer(), seed=0).ids
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "tokens": len(ids)}), flush=True)
    # Wait until the caller has read this process's memory.
    sys.stdin.read()


if __name__ == "__main__":
    run(PROG, main)
