"""What `--config` means: a file, or the name of a config that is part of makemoe."""

import os
from difflib import get_close_matches
from pathlib import Path

from makemoe.errors import UsageError

SUFFIX = ".yaml"
PACKAGE = Path(__file__).parents[1]


def bundled() -> dict[str, Path]:
    """The configs that are part of makemoe, by name."""
    # setup.py puts them into the package. In a checkout they are beside it.
    installed, checkout = PACKAGE / "configs", PACKAGE.parent / "configs"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def config_file(given: str) -> str:
    """The file that a value of --config means.

    Args:
        given: a path, or a name. A name means a file in the working folder, with or without
            `.yaml`, and otherwise the bundled config of that name.

    Raises:
        UsageError: for a name that neither a file nor a bundled config has.
    """
    if given == "-" or _is_file(given):
        return given
    known = bundled()
    name = Path(given).stem if given.endswith(SUFFIX) else given
    if Path(given).name != given:
        if Path(name).name in known and not os.path.exists(given):
            raise UsageError(
                f"--config {given}: No such file; the bundled config is --config {Path(name).name}"
            )
        return given  # reading it reports what is wrong
    if _is_file(name + SUFFIX):
        return name + SUFFIX
    if name in known:
        return str(known[name])
    if os.path.isdir(given):
        return given
    near = get_close_matches(name, known, n=3)
    mend = f"did you mean {' or '.join(near)}?" if near else f"bundled are {', '.join(known)}"
    raise UsageError(f"--config {given}: No such file, and no bundled config; {mend}")


def _is_file(path: str) -> bool:
    """Whether something other than a folder is there."""
    return os.path.exists(path) and not os.path.isdir(path)
