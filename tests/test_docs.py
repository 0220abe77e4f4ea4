"""What pages and configs name exists: links and headings, files, options of the command line."""

import re
from contextlib import suppress
from pathlib import Path

import pytest

from makemoe.cli import main

ROOT = Path(__file__).parents[1]
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
}
FOLDERS = {name: ROOT if (ROOT / name).exists() else ROOT / "docs" for name in PAGES}
each_page = pytest.mark.parametrize("page", PAGES)

LINK = re.compile(r"\]\((?!https://)([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
FILE = re.compile(
    r"(?<![\w/.])(?:makemoe|tests|configs|benchmarks|docs|examples)/[\w./-]+\.(?:py|md|yaml|json|png|txt)\b"
)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.]*\w")


def anchors(text: str) -> set[str]:
    """The headings of a page as links name them."""
    titles = HEADING.findall(text)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_every_link_leads_somewhere(page: str) -> None:
    for file, anchor in LINK.findall(PAGES[page]):
        target = FOLDERS[page] / (file or page)
        assert target.exists(), f"{page}: {file}"
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), anchor


@each_page
def test_every_file_named_exists(page: str) -> None:
    assert [file for file in FILE.findall(PAGES[page]) if not (ROOT / file).exists()] == []


def test_every_option_named_exists(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Lightning calls jsonargparse in an old way, and pytest makes jsonargparse say so.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

    def told(*arguments: str) -> str:
        with suppress(SystemExit):  # how argparse ends after help
            main(arguments)
        return capsys.readouterr().out

    commands = re.findall(r"^  (\w+) ", told("--help"), re.MULTILINE)
    helps = [told(command, "--help") for command in commands]
    known = set(OPTION.findall("\n".join([*helps, told("fit", "--help_all")])))
    known |= {"--help", "--version", "--print_config"}

    def exists(option: str) -> bool:
        """An option, or an argument of the class that an option names."""
        ends = [dot.start() for dot in re.finditer(r"\.", option)]
        parents = [option[:end] for end in ends[1:]]  # the first is a group, as in --model
        return option in known or any(parent in known for parent in parents)

    call = re.compile(rf"makemoe (?:{'|'.join(commands)})\b(?:\\\n|[^`\n])*")
    for page, text in PAGES.items():
        named = {option for option in OPTION.findall(text) if "." in option}
        named |= {option for found in call.findall(text) for option in OPTION.findall(found)}
        assert [option for option in sorted(named) if not exists(option)] == [], page
    for config in (ROOT / "configs").glob("*.yaml"):
        text = re.sub(r"mlflow ui .*", "", config.read_text(encoding="utf-8"))
        named = set(OPTION.findall(text))
        assert [option for option in sorted(named) if not exists(option)] == [], config.name
