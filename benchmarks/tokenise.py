"""`python -m benchmarks.tokenise FILE`: seconds and peak MB of a process that tokenises a file."""

import json
import sys
import time

from benchmarks.scripts import Options, run
from makemoe.data.tokenizer import CharTokenizer

PROG = "python -m benchmarks.tokenise"


def main() -> None:
    """Print them as JSON. Does not import torch, whose memory would count."""
    from makemoe.data.token_cache import token_ids

    parser = Options(PROG, description="Tokenise a text; seconds and tokens as JSON.")
    parser.add_argument("text", metavar="FILE", help="UTF-8")
    path = parser.parse_args().text
    begin = time.perf_counter()
    ids = token_ids(path, CharTokenizer(), "--data.corpus")
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "tokens": len(ids)}), flush=True)
    # Wait until the caller has read this process's memory.
    sys.stdin.read()


if __name__ == "__main__":
    run(PROG, main)
