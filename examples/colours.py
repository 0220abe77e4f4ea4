"""Sample a text and print each token in the colour of the expert that reads it.

    python examples/colours.py best --prompt "ROMEO:" --layer 2

The colour is that of the expert with the largest weight in the layer. `makemoe predict
--show_experts LAYER` does the same while the text grows.
"""

import sys
from argparse import RawDescriptionHelpFormatter

import makemoe
from makemoe.cli.parser import OneLineErrors
from makemoe.colours import painted, palette, why_no_colours
from makemoe.errors import MakeMoEError, UsageError


def main() -> None:
    """Sample, see how the text is read, and print it."""
    parser = OneLineErrors(
        "colours", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", help="file, name of a run, or `last` or `best` of the newest run")
    add("--prompt", default="", help="beginning of the text (default: a newline)")
    add("--layer", type=int, default=0, help="0 is the first (%(default)s)")
    add("--max_new_tokens", type=int, default=300, help="tokens to add (%(default)s)")
    add("--temperature", type=float, default=0.8, help="0 is greedy (%(default)s)")
    add("--seed", type=int, default=1337, help="the same seed gives the same text (%(default)s)")
    options = parser.parse_args()

    model = makemoe.load(options.checkpoint)
    text = model.sample(
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )
    table = model.routing(text)
    if options.layer not in table.layers:
        layers = ", ".join(map(str, table.layers)) or "none"
        raise UsageError(f"--layer {options.layer} has no router; layers with one: {layers}")
    why_not = why_no_colours()
    if why_not is not None:
        print(f"colours: not shown: {why_not}", file=sys.stderr)
    colours = palette(table.num_experts)

    def shown(words: str, expert: int) -> str:
        return words if why_not else painted(words, colours[expert])

    legend = " ".join(shown(f" {expert} ", expert) for expert in range(table.num_experts))
    print(f"experts of layer {options.layer}: {legend}\n")
    print("".join(shown(row.text, row.experts[0]) for row in table if row.layer == options.layer))


if __name__ == "__main__":
    try:
        main()
    except MakeMoEError as error:
        print(f"colours: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
