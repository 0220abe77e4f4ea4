"""The wheel and the source distribution, built, installed into an empty environment, and used."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from makemoe import __version__

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
BUILD = """
import sys, setuptools.build_meta as backend
for kind in sys.argv[1:]:
    getattr(backend, f"build_{kind}")("dist")
"""
SMALL = (
    *("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.batch_size=2"),
    *("--trainer.limit_val_batches=1", "--run.sample_tokens=2"),
)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

Run = Callable[..., str]


def ran(*command: str | Path, cwd: Path) -> str:
    """What a command prints; it sees none of this environment's packages."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "MAKEMOE"))}
    settings = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cwd / "cache")}
    pip = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    pip |= {"PIP_CONSTRAINT": str(CONSTRAINTS), "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS)}
    done = subprocess.run(
        command, cwd=cwd, env=ours | settings | pip, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked() -> list[str]:
    """The files of the repository, with those that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution of a copy of the repository."""
    copy = tmp_path_factory.mktemp("source")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    ran(sys.executable, "-c", BUILD, "sdist", "wheel", cwd=copy)
    return copy / "dist"


def wheel_of(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


def sdist_of(dist: Path) -> Path:
    (sdist,) = dist.glob("*.tar.gz")
    return sdist


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_holds_the_code_the_play_and_the_configs(dist: Path) -> None:
    held = contents(wheel_of(dist))
    mine = {name: (ROOT / name).read_bytes() for name in tracked()}
    expected = {name: data for name, data in mine.items() if name.startswith("makemoe/")}
    expected |= {f"makemoe/{name}": data for name, data in mine.items() if name[:8] == "configs/"}
    assert {"makemoe/data/sample.txt", "makemoe/py.typed", "makemoe/configs/quickstart.yaml"} <= (
        expected.keys()
    )
    assert {name: data for name, data in held.items() if ".dist-info/" not in name} == expected


def test_a_source_distribution_builds_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist_of(dist)) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    ran(sys.executable, "-c", BUILD, "wheel", cwd=source)
    assert contents(wheel_of(source / "dist")) == contents(wheel_of(dist))
    names = {path.name for path in source.iterdir()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt"} <= names
    assert "tests" not in names


def test_the_metadata_names_the_pythons_that_are_tested(dist: Path) -> None:
    text = contents(wheel_of(dist))[f"makemoe-{__version__}.dist-info/METADATA"]
    metadata = message_from_bytes(text)
    begin = "Programming Language :: Python :: 3."
    classified = [c[len(begin) - 2 :] for c in metadata.get_all("Classifier") if begin in c]
    assert classified == list(PYTHONS)
    allowed = SpecifierSet(metadata["Requires-Python"])
    assert all(f"{version}.0" in allowed for version in PYTHONS)
    assert "3.10.20" not in allowed
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert f"[{', '.join(map(repr, PYTHONS))}]".replace("'", '"') in workflow


class Environment:
    """A virtual environment without packages.

    Args:
        python: the interpreter it is made from.
        folder: where; it does not exist yet.
    """

    def __init__(self, python: str | Path, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        ran(python, "-m", "venv", "--without-pip", folder, cwd=folder.parent)

    def install(self, *what: str | Path) -> None:
        """Install with this environment's pip."""
        pip = (sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "-q")
        # Python compiles what it imports; pip would compile everything.
        ran(*pip, "--no-compile", *what, cwd=self.folder)


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment into which the wheel was installed, with what it needs and nothing else."""
    environment = Environment(sys.executable, tmp_path_factory.mktemp("empty") / "venv")
    try:
        environment.install("--dry-run", "--no-deps", "--retries=1", "--timeout=20", "tqdm")
    except AssertionError as error:
        pytest.skip(f"pip reaches no package index: {str(error).strip().splitlines()[-1]}")
    environment.install(wheel_of(dist))
    return environment


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_trains_and_samples_from_a_folder_elsewhere(
    installed: Environment, dist: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "sdist":
        installed.install("--no-deps", "--force-reinstall", sdist_of(dist))
    makemoe = installed.bin / "makemoe"
    where = "import makemoe, importlib.util as u; print(makemoe.__file__, u.find_spec('pytest'))"
    file, pytest_there = ran(installed.bin / "python", "-c", where, cwd=tmp_path).split()
    assert Path(file).is_relative_to(installed.folder)
    assert pytest_there == "None"
    assert ran(makemoe, "--version", cwd=tmp_path) == f"makemoe {__version__}\n"
    ran(makemoe, "fit", "--config", "quickstart", *SMALL, cwd=tmp_path)
    assert (tmp_path / "checkpoints" / "quickstart" / "last.ckpt").is_file()
    sampled = ran(makemoe, "predict", "--ckpt_path=last", "--max_new_tokens=5", cwd=tmp_path)
    assert len(sampled) >= 5


def interpreter(version: str) -> Path | None:
    """A Python of this version on this machine: on PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found = [
        shutil.which(f"python{version}"),
        *sorted(pyenv.glob(f"versions/{version}.*/bin/python")),
    ]
    for python in map(Path, filter(None, found)):
        asked = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
        answer = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
        if answer.stdout.strip() == version:  # pyenv has a script for versions that are turned off
            return python
    return None


@pytest.mark.parametrize("version", PYTHONS)
def test_every_python_of_the_metadata_installs_and_starts_it(
    dist: Path, tmp_path: Path, version: str
) -> None:
    """Without its dependencies, which CI installs: the whole suite runs in each Python there."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    environment = Environment(python, tmp_path / "venv")
    environment.install("--no-deps", wheel_of(dist))
    (package,) = (tmp_path / "venv").glob("lib/python*/site-packages/makemoe")
    ran(python, "-W", "error", "-m", "compileall", "-q", "-f", package, cwd=tmp_path)
    makemoe = environment.bin / "makemoe"
    assert ran(makemoe, "--version", cwd=tmp_path) == f"makemoe {__version__}\n"
    assert "makemoe COMMAND" in ran(makemoe, "--help", cwd=tmp_path)
    assert "no runs in checkpoints/" in ran(makemoe, "runs", cwd=tmp_path)
    assert "--show_experts" in ran(makemoe, "predict", "--help", cwd=tmp_path)
