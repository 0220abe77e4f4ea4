"""Take a picture of the page of `makemoe serve`, as in the README.

    python -m benchmarks.page_picture best docs/pictures/page.png --prompt "ROMEO:" --layer 3

It starts the server, writes a text in the browser Chromium of the system, without a window, and
chooses a character. Needs the package playwright, and no browser of its own.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.scripts import Options, run
from makemoe.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROG = "python -m benchmarks.page_picture"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000


def main() -> None:
    options = parse()
    with served(options.checkpoint) as url, chromium() as browser:
        page = browser.new_page(
            viewport={"width": options.width, "height": options.height},
            color_scheme="dark" if options.dark else "light",
        )
        page.set_default_timeout(PATIENCE_MS)
        page.goto(url)
        write(page, options.prompt, options.tokens, options.seed)
        if options.layer is not None:
            choose_layer(page, options.layer)
        token = page.locator(".token").nth(options.character)
        token.click()
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=options.picture, full_page=True)
        print(f"{options.picture}: {page.title()} at {options.width} pixels")


@contextmanager
def served(checkpoint: str) -> Iterator[str]:
    """The address of a server of a checkpoint, while the block runs."""
    command = [sys.executable, "-m", "makemoe", "serve", "--ckpt_path", checkpoint, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said = line
                if "serving at " in line:
                    break
            else:
                raise DataError(said.strip().removeprefix("makemoe: error: "))
            yield said.partition("serving at ")[2].split(";")[0].split(" ")[0]
        finally:
            process.terminate()


@contextmanager
def chromium() -> Iterator["Browser"]:
    """The browser, without a window.

    Raises:
        MissingPackageError: if it or playwright is not installed.
    """
    path = found_browser()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise MissingPackageError("this needs playwright: pip install playwright") from error
    if path is None:
        raise MissingPackageError("this needs a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        # The sandbox does not start for root, and the page is ours.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--force-prefers-reduced-motion"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def found_browser() -> str | None:
    """The browser of the system."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def write(page: "Page", prompt: str, tokens: int, seed: int) -> None:
    """Let the page write a text to its end."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Length").fill(str(tokens))
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_role("button", name="Write").click()
    page.get_by_role("status").filter(has_text="Done").wait_for()


def choose_layer(page: "Page", layer: int) -> None:
    """Colour the text by a layer."""
    page.get_by_role("radio", name=str(layer), exact=True).check()


def parse() -> argparse.Namespace:
    parser = Options(
        PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", help="a file, or last or best")
    add("picture", type=png, help="the PNG file to write")
    add("--prompt", default="ROMEO:", help="(%(default)s)")
    add("--tokens", type=int, default=300, metavar="N", help="to add (%(default)s)")
    add("--seed", type=int, default=1, metavar="N", help="(%(default)s)")
    add("--layer", type=int, metavar="N", help="that colours the text (the first)")
    add("--character", type=int, default=20, metavar="N", help="to choose (%(default)s)")
    add("--width", type=int, default=1100, metavar="N", help="of the page, pixels (%(default)s)")
    add("--height", type=int, default=800, metavar="N", help="at least, pixels (%(default)s)")
    add("--dark", action="store_true", help="as for someone who prefers dark pages")
    return parser.parse_args()


def png(text: str) -> Path:
    """The type of an argument that is the name of a picture."""
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text} is not a PNG file: use a name that ends in .png")
    return Path(text)


if __name__ == "__main__":
    run(PROG, main)
