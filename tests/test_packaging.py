"""The installed package works, and its core works without extras."""

import importlib.metadata as metadata
import subprocess
import sys
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import makemoe

WITHOUT = """
import sys
from importlib.machinery import PathFinder

class CoreOnly(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {blocked!r}:
            return PathFinder.find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *args, **kwargs):
        for found in PathFinder.find_distributions(*args, **kwargs):
            if found.name.lower().replace("_", "-") in {core!r}:
                yield found

sys.meta_path = [CoreOnly if finder is PathFinder else finder for finder in sys.meta_path]
from makemoe.cli import main
sys.exit(main(sys.argv[1:]))
"""


def core_distributions() -> set[str]:
    """What makemoe requires without extras, and what that brings."""
    found: set[tuple[str, str]] = set()
    waiting = [("makemoe", "")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(needed.name), e) for e in ("", *needed.extras)]
    return {name for name, _ in found}


def test_the_core_trains_and_samples_without_extras(tmp_path: Path) -> None:
    core = core_distributions()
    blocked = {
        module
        for module, names in metadata.packages_distributions().items()
        if not any(canonicalize_name(name) in core for name in names)
    }
    assert {"pytest", "hypothesis"} <= blocked, "the test would show nothing"
    program = WITHOUT.format(blocked=blocked, core=core)
    small = ["--model.n_layer=1", "--model.n_embd=16", "--model.n_head=2", "--model.block_size=16"]
    small += ["--trainer.limit_val_batches=1", "--run.sample_tokens=2"]
    for arguments in (
        ["fit", *small, "--trainer.max_steps=1", "--trainer.val_check_interval=1"],
        ["predict", "--ckpt_path=last", "--max_new_tokens=5"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        said = done.stderr.count("makemoe[plots]")
        assert said == (arguments[0] == "fit"), done.stderr


def test_module_and_console_script_are_the_same_program() -> None:
    script = Path(sys.executable).parent / "makemoe"
    outputs = [
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        for command in ([str(script)], [sys.executable, "-m", "makemoe"])
    ]
    assert outputs == [f"makemoe {makemoe.__version__}\n"] * 2


def test_an_editable_install_finds_the_configs(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "makemoe"
    command = [script, "fit", "--help"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    for config in (Path(makemoe.__file__).parents[1] / "configs").glob("*.yaml"):
        assert config.stem in told


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((Path(makemoe.__file__).parents[1] / "CITATION.cff").read_text())
    assert citation["version"] == makemoe.__version__
    assert citation["license"] == "MIT"


def test_the_layout_lists_every_module_in_its_package_and_the_readme_every_package() -> None:
    root = Path(makemoe.__file__).parents[1]
    listed = subprocess.run(
        ["git", "ls-files", "makemoe"], cwd=root, capture_output=True, text=True, check=True
    )
    files = {Path(line) for line in listed.stdout.splitlines() if line.endswith(".py")}
    layout = (root / "docs/layout.md").read_text(encoding="utf-8").partition("    makemoe/\n")[2]
    named, folder = set(), Path("makemoe")
    for line in layout.partition("    configs/")[0].splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip()) - 4) // 2
        folder = Path(*folder.parts[:depth])
        if name.endswith("/"):
            folder /= name
        elif name.endswith(".py"):
            named.add(folder / name)
    assert named == {path for path in files if path.name != "__init__.py"}
    readme = (root / "README.md").read_text(encoding="utf-8")
    packages = {path.parts[1] for path in files if len(path.parts) > 2}
    assert {name for name in packages if f"\n      {name}/ " not in readme} == set()
