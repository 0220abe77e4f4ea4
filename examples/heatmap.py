"""Draw which experts read each token of a text, in every layer, as a PNG file.

    python examples/heatmap.py best routing.png --text "But, soft! what light through yonder"

Needs matplotlib: pip install 'makemoe[plots]'.
"""

import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

import makemoe
from makemoe.cli.parser import OneLineErrors
from makemoe.errors import MakeMoEError, UsageError
from makemoe.files import replacing
from makemoe.pictures import draw_reading


def main() -> None:
    """Read the text, and draw how it was read."""
    parser = OneLineErrors(
        "heatmap", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", help="file, name of a run, or `last` or `best` of the newest run")
    add("picture", type=Path, help="PNG file to write")
    add("--text", help="what is read (default: 100 tokens sampled from the model)")
    options = parser.parse_args()
    if options.picture.suffix != ".png":
        raise UsageError(f"{options.picture} is not a PNG file: use a name that ends in .png")

    model = makemoe.load(options.checkpoint)
    text = model.sample(max_new_tokens=100) if options.text is None else options.text
    table = model.routing(text)
    if not table:
        raise UsageError("nothing to draw: " + ("no layer has a router" if text else "no text"))
    symbols = [model.tokenizer.symbol(token) for token in table.tokens]
    try:
        figure = draw_reading(table.shares_LNE(), symbols, table.layers)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with replacing(options.picture) as file:
        figure.savefig(file, format="png")
    print(f"{len(table.tokens)} tokens in {len(table.layers)} layers: {options.picture}")


if __name__ == "__main__":
    try:
        main()
    except (MakeMoEError, OSError) as error:
        print(f"heatmap: error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 1))
