"""MLflow with a real store, and trackers that break."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import TINY, script
from lightning.pytorch.loggers import TensorBoardLogger

from makemoe.tracking import mlflow
from makemoe.tracking.mlflow import MLflow, absolute, flatten
from makemoe.tracking.trackers import forgiving

CONFIG = str(Path(__file__).parents[2] / "configs" / "mlflow.yaml")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Reads a store back with MLflow's own client."""
    for name, value in mlflow.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what MLflow imports
        from mlflow.tracking import MlflowClient
    return MlflowClient


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that MLflow has tracked, and of its store: to make one takes seconds."""
    folder = tmp_path_factory.mktemp("tracked")
    for flags in (TINY, ("--ckpt_path=last", "--trainer.max_steps=25")):
        ended = script("fit", *flags, "--config", CONFIG, cwd=folder)
        assert ended.status == 0, ended.err
        assert "failed" not in ended.err
    return folder


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_a_store_holds_settings_losses_routing_and_checkpoints_of_a_resumed_run(
    tracked: Path, client: Callable[[str], Any]
) -> None:
    store = client(f"sqlite:///{tracked}/mlflow.db")
    experiment = store.get_experiment_by_name("makemoe")
    (run,) = store.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "mlflow"
    for name, value in {"model.n_embd": "16", "seed": "1337", "trainer.max_steps": "20"}.items():
        assert run.data.params[name] == value
    history = {
        name: [figure.step for figure in store.get_metric_history(run.info.run_id, name)]
        for name in ("train_loss", "val_loss", "router/layer_0/load_2", "val_router/max_vio")
    }
    assert sorted(history["val_loss"]) == [10, 20]
    assert sorted(history["router/layer_0/load_2"])[-1] > 20
    assert {file.path for file in store.list_artifacts(run.info.run_id)} == {
        *("best.ckpt", "last.ckpt", "config.yaml", "metrics.csv")
    }
    held = Path(store.get_run(run.info.run_id).info.artifact_uri.removeprefix("file://"))
    last = tracked / "checkpoints" / "mlflow" / "last.ckpt"
    assert (tracked / held / "last.ckpt").read_bytes() == last.read_bytes()


def test_a_run_that_goes_on_in_another_folder_knows_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = absolute("sqlite:///mlflow.db")
    assert one == f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert absolute("sqlite:///mlflow.db") != one == absolute("sqlite:///../mlflow.db")
    for other in (one, "sqlite://", "http://127.0.0.1:5000"):
        assert absolute(other) == other


def test_training_goes_on_without_a_server_that_does_not_answer(tmp_path: Path) -> None:
    address = "--trainer.logger.init_args.tracking_uri=http://127.0.0.1:9"
    ended = script("fit", *TINY, "--config", CONFIG, address, cwd=tmp_path)
    assert ended.status == 0, ended.err
    (told,) = [line for line in ended.err.splitlines() if "makemoe: " in line]
    assert told.startswith("makemoe: MLflow failed, training continues without it: ")
    assert "127.0.0.1" in told
    assert "Traceback" not in ended.err
    run = tmp_path / "checkpoints" / "mlflow"
    assert {"last.ckpt", "best.ckpt", "metrics.csv"} <= {path.name for path in run.iterdir()}


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_a_store_that_breaks_in_the_middle_is_told_of_once(
    tmp_path: Path, tracked: Path, client: Callable[[str], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tracked / "mlflow.db", tmp_path / "m.db")
    logger = MLflow(f"sqlite:///{tmp_path}/m.db")
    logger.begin(tmp_path)
    forgiving(logger)
    logger.log_metrics({"val_loss": 1.0}, 1)
    logger.inner.experiment.create_experiment("it works until here")
    assert "failed" not in capfd.readouterr().err
    (tmp_path / "m.db").write_bytes(b"no database " * 1000)
    for step in (2, 3):
        logger.log_metrics({"val_loss": 1.0}, step)
    logger.log_hyperparams({"a": 1})
    logger.finalize("success")
    told = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(told) == 1
    assert told[0].startswith("makemoe: MLflow failed, training continues without it: ")


class Broken(TensorBoardLogger):
    @property
    def experiment(self) -> Any:
        raise OSError(28, "No space left on device")


class HalfBroken(TensorBoardLogger):
    """Its own object is there, and fails when used."""

    class Writer:
        def add_text(self, *args: Any) -> None:
            raise OSError(28, "No space left on device")

        @property
        def file_writer(self) -> "HalfBroken.Writer":
            return self

    @property
    def experiment(self) -> Any:
        return self.Writer()


@pytest.mark.parametrize("kind", [Broken, HalfBroken])
def test_what_callbacks_log_past_the_logger_is_forgiven_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: type[TensorBoardLogger]
) -> None:
    logger = forgiving(kind(str(tmp_path)))
    assert isinstance(logger, TensorBoardLogger)
    for step in range(3):
        logger.experiment.file_writer.add_text("sample", "text", step)
        logger.experiment.add_text("sample", "text", step)
        logger.log_metrics({"val_loss": 1.0}, step)
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_a_logger_that_works_is_not_changed(tmp_path: Path) -> None:
    logger = forgiving(TensorBoardLogger(str(tmp_path), "run", ""))
    logger.experiment.add_text("sample", "text", 1)
    logger.log_metrics({"val_loss": 1.0}, 1)
    logger.finalize("success")
    assert (logger.name, logger.version) == ("run", "")
    assert list((tmp_path / "run").glob("events.*"))


def test_settings_are_named_like_their_options() -> None:
    nested = {"seed": 1, "model": {"router": {"class_path": "R", "init_args": {"x": [1, 2]}}}}
    assert flatten(nested) == {
        "seed": 1,
        "model.router.class_path": "R",
        "model.router.init_args.x": [1, 2],
    }
