from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commandline import TINY, Ended, refused

from makemoe.cli import configs
from makemoe.cli.configs import bundled, config_file

Call = Callable[..., Ended]
FOLDER = Path(__file__).parents[2] / "configs"


def test_the_bundled_configs_are_those_of_the_repository() -> None:
    assert {name: path.read_bytes() for name, path in bundled().items()} == {
        path.stem: path.read_bytes() for path in FOLDER.glob("*.yaml")
    }


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml"])
def test_a_name_means_the_bundled_config_in_any_folder(makemoe: Call, name: str) -> None:
    ended = makemoe("fit", "--config", name, "--print_config")
    assert ended == makemoe("fit", f"-c={FOLDER / 'quickstart.yaml'}", "--print_config")
    assert ended.status == 0
    assert list(Path().iterdir()) == []


def test_later_configs_override_earlier_ones_by_name_too(makemoe: Call) -> None:
    ended = makemoe("fit", "--config=makemoe_balanced", "--config=annealed", "--print_config")
    printed = yaml.safe_load(ended.out)
    assert printed["model"]["balancers"]
    assert "Cosine" in printed["model"]["lr_scheduler"]["class_path"]


@pytest.mark.parametrize("given", ["quickstart", "quickstart.yaml"])
@pytest.mark.parametrize("own", ["quickstart", "quickstart.yaml"])
def test_a_file_in_the_working_folder_comes_first(
    given: str, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(own).write_text("seed: 3\n")
    is_own = own in (given, f"{given}.yaml")
    assert config_file(given) == (own if is_own else str(FOLDER / "quickstart.yaml"))


def test_a_folder_does_not_hide_a_bundled_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("makemoe").mkdir()  # as in a clone
    assert config_file("makemoe") == str(FOLDER / "makemoe.yaml")


def test_installed_configs_come_before_those_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "PACKAGE", tmp_path / "makemoe")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "checkout.yaml").touch()
    assert list(bundled()) == ["checkout"]
    (tmp_path / "makemoe" / "configs").mkdir(parents=True)
    (tmp_path / "makemoe" / "configs" / "installed.yaml").touch()
    assert list(bundled()) == ["installed"]


@pytest.mark.parametrize("command", ["fit", "compare"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("quickstrat", ["--config quickstrat: ", "did you mean quickstart?"]),
        ("laptop.yml", ["--config laptop.yml: ", "did you mean laptop?"]),
        ("makemoe_balance", ["did you mean makemoe_balanced or "]),
        ("nonsense", ["--config nonsense: ", "bundled are annealed, ", ", quickstart, "]),
        ("configs/laptop.yaml", ["No such file", "the bundled config is --config laptop"]),
        ("there/laptop", ["No such file", "the bundled config is --config laptop"]),
    ],
)
def test_a_wrong_name_is_answered_with_near_ones(
    makemoe: Call, command: str, given: str, words: list[str]
) -> None:
    refused(makemoe, 2, words, command, "--config", given)


def test_a_run_of_a_bundled_config_has_its_name_and_is_complete_without_it(
    makemoe: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = makemoe("fit", "--config", "quickstart", *TINY, "--trainer.max_steps=1")
    assert ended.status == 0, ended.err
    written = Path("checkpoints/quickstart/config.yaml")
    settings = yaml.safe_load(written.read_text())
    assert "config" not in settings
    assert str(FOLDER) not in written.read_text()
    monkeypatch.setattr(configs, "PACKAGE", Path("nowhere"))
    again = yaml.safe_load(makemoe("fit", "--config", str(written), "--print_config").out)
    assert {group: again[group] for group in ("model", "trainer", "seed")} == {
        group: settings[group] for group in ("model", "trainer", "seed")
    }


def test_the_help_of_fit_lists_them(makemoe: Call) -> None:
    told = " ".join(makemoe("fit", "--help").out.split())
    assert f"YAML file, or bundled config: {', '.join(sorted(bundled()))}; " in told
