"""`python -m benchmarks.tokenise FILE`: seconds and peak MB of a process that tokenises a file."""

import json
import sys
import time

from benchmarks.scripts import Options, run
from makemoe.data.bpe import BPETokenizer
from makemoe.data.tokenizer import CharTokenizer, Tokenizer

PROG = "python -m benchmarks.tokenise"


def main() -> None:
    """Print them as JSON. Does not import torch, whose memory would count."""
    from makemoe.data.corpus import read_chunks
    from makemoe.data.token_cache import token_ids

    parser = Options(PROG, description="Tokenise a text; seconds and tokens as JSON.")
    parser.add_argument("text", metavar="FILE", help="UTF-8")
    parser.add_argument(
        "--sub_words", type=int, metavar="N", help="sub-words to learn; default: characters"
    )
    options = parser.parse_args()
    tokenizer: Tokenizer = CharTokenizer()
    found: dict[str, float] = {}
    if options.sub_words is not None:
        tokenizer = BPETokenizer(options.sub_words)
        begin = time.perf_counter()
        tokenizer.fit_chunks(read_chunks(options.text))
        found["learning"] = time.perf_counter() - begin
    begin = time.perf_counter()
    ids = token_ids(options.text, tokenizer, "--data.corpus")
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "tokens": len(ids), **found}), flush=True)
    # Wait until the caller has read this process's memory.
    sys.stdin.read()


if __name__ == "__main__":
    run(PROG, main)
