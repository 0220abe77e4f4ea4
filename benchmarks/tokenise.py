"""`python -m benchmarks.tokenise CORPUS`: seconds and peak MB of a process that tokenises it."""

import json
import sys
import time

from benchmarks.scripts import Options, run
from makemoe.data.bpe import BPETokenizer
from makemoe.data.tokenizer import CharTokenizer, Tokenizer

PROG = "python -m benchmarks.tokenise"


def main() -> None:
    """Print them as JSON. Does not import torch, whose memory would count."""
    from makemoe.data.documents import TEXT_KEY, Corpus
    from makemoe.data.token_cache import tokens_of

    parser = Options(PROG, description="Tokenise a text; seconds and tokens as JSON.")
    parser.add_argument("corpus", metavar="CORPUS", help="a file, a folder or a pattern")
    parser.add_argument(
        "--sub_words", type=int, metavar="N", help="sub-words to learn; default: characters"
    )
    options = parser.parse_args()
    tokenizer: Tokenizer = CharTokenizer()
    found: dict[str, float] = {}
    if options.sub_words is not None:
        tokenizer = BPETokenizer(options.sub_words)
        begin = time.perf_counter()
        tokenizer.fit_chunks(Corpus(options.corpus, TEXT_KEY).chunks("reading"))
        found["learning"] = time.perf_counter() - begin
    begin = time.perf_counter()
    ids = tokens_of(options.corpus, tokenizer, seed=0).ids
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "tokens": len(ids), **found}), flush=True)
    # Wait until the caller has read this process's memory.
    sys.stdin.read()


if __name__ == "__main__":
    run(PROG, main)
