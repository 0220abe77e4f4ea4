"""`python -m benchmarks.tokenise FILE`: seconds and peak MB of a process that tokenises a file."""

import json
import sys
import time

from makemoe.data.tokenizer import CharTokenizer


def main(path: str) -> None:
    """Print them as JSON. No torch here: its own memory is no part of the work."""
    from makemoe.data.token_cache import token_ids

    begin = time.perf_counter()
    ids = token_ids(path, CharTokenizer(), "--data.corpus")
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "tokens": len(ids)}), flush=True)
    # Until whoever asked has looked at this process's memory.
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
