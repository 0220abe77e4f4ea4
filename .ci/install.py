"""Install makemoe into this environment, and show how far the installation is.

    .venv/bin/python .ci/install.py EXTRAS     (such as dev, or plots,mlflow, or core for none)

By itself pip prints either nothing for minutes or pages of text. Here it writes its pages to
.venv/pip.log, and this program reads them as they come. It prints one line per package, and what
pip says about an error. The exit status is pip's, or 130 after Ctrl-C.
"""

import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

LOG = Path(".venv", "pip.log")
FETCHED = re.compile(
    r" *(?:Downloading|Using cached|Processing) (?:\S*/)?(\w[\w.]*)-([^-\s]+)-\S+\.whl"
    r"(?!\.metadata)(?: (\(.*B\)))?"
)
COLLECTED = "Installing collected packages: "
SHOWN = "WARNING: Retrying"
LONGEST_SILENCE = 5.0
"""Seconds without a line."""


def main(extras: str) -> int:
    """Run pip; the exit status."""
    what = "." if extras == "core" else f".[{extras}]"
    pip = [sys.executable, "-m", "pip", "--no-color", "install", "--progress-bar", "off"]
    print(f"Installing makemoe ({extras}) into .venv, which takes a few minutes once", flush=True)
    with LOG.open("wb") as log:
        running = subprocess.Popen(
            [*pip, "-c", "constraints.txt", "-e", what], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        Progress(running).follow()
    except KeyboardInterrupt:
        running.wait()  # the terminal has sent Ctrl-C to pip too
        return 130
    if running.returncode:
        print(errors(LOG.read_text(errors="replace")), file=sys.stderr)
    return running.returncode


class Progress:
    """Reads pip's output as it grows and prints what is worth a line."""

    def __init__(self, pip: "subprocess.Popen[bytes]") -> None:
        self.pip = pip
        self.started = self.last_line = time.monotonic()
        self.fetched: set[str] = set()
        self.packages = self.there_before = 0

    def follow(self) -> None:
        """Return when pip has ended."""
        with LOG.open(errors="replace") as log:
            rest, ended = "", False
            while not ended:
                time.sleep(0.2)
                ended = self.pip.poll() is not None
                *lines, rest = (rest + log.read()).split("\n")
                for line in lines:
                    self.take(line)
                if time.monotonic() - self.last_line > LONGEST_SILENCE:
                    self.say(f"  {self.seconds()} s{self.installed()}")
        if not self.pip.returncode:
            self.say(f"Installed {counted(self.packages)} in {self.seconds()} s")

    def take(self, line: str) -> None:
        """Print what one line of pip's means, if it means something to the user."""
        if line.startswith(COLLECTED):
            self.packages, self.there_before = line.count(",") + 1, packages_there()
            self.say(f"  unpacking {counted(self.packages)}")
        elif line.startswith(SHOWN):
            self.say(line)
        elif (found := FETCHED.match(line)) and found[1] not in self.fetched:
            self.fetched.add(found[1])
            self.say(" ".join(filter(None, (f"  {len(self.fetched):3}", *found.groups()))))

    def installed(self) -> str:
        """How many are unpacked, if pip is at that."""
        done = packages_there() - self.there_before
        return f", {done} of {self.packages} unpacked" if self.packages else ""

    def seconds(self) -> int:
        """Since the beginning."""
        return round(time.monotonic() - self.started)

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)
        self.last_line = time.monotonic()


def counted(packages: int) -> str:
    """A number of packages in words."""
    return "1 package" if packages == 1 else f"{packages} packages"


def packages_there() -> int:
    """How many packages this environment holds."""
    return sum(1 for _ in Path(sysconfig.get_path("purelib")).glob("*.dist-info"))


def errors(log: str) -> str:
    """What pip printed from the first error on."""
    begins = re.search(r"^ *error\b", log, re.IGNORECASE | re.MULTILINE)
    return log[begins.start() if begins else 0 :].rstrip()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
