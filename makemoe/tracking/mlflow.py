"""MLflow: stores the settings, metrics and checkpoints of many runs in one place."""

import json
import os
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

from makemoe.errors import UsageError
from makemoe.files import replacing

ENVIRONMENT = {
    # With MLflow's defaults, a server that does not answer would block a run for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Defaults for variables that the user has not set."""

SQLITE = "sqlite:///"

ARTIFACTS = (
    *("config.yaml", "metrics.csv", "best.ckpt", "last.ckpt"),
    *("best.ckpt.pieces", "last.ckpt.pieces"),
)


class MLflow(Logger):
    """Tracks a run with MLflow, through Lightning's logger; needs the extra `makemoe[mlflow]`.

    Settings become parameters, cut to 250 characters; metrics are logged per step; at the end, the
    checkpoints, config.yaml and metrics.csv are uploaded as artifacts. A resumed run continues the
    same MLflow run, whose id is in `mlflow.json` in the run's folder.

    Args:
        tracking_uri: the store, a SQLite file or a server; null: $MLFLOW_TRACKING_URI or mlflow.db.
        experiment: the experiment that groups the runs; created if it does not exist.
    """

    def __init__(self, tracking_uri: str | None = None, experiment: str = "makemoe") -> None:
        super().__init__()
        self.tracking_uri = (
            tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        )
        self.experiment_name = experiment
        self.folder = Path()
        self._inner: MLFlowLogger | None = None

    def begin(self, folder: Path) -> None:
        """Set the run's folder; raise UsageError if MLflow is not installed.

        The constructor does not raise it, because the parser would replace the message.
        """
        if find_spec("mlflow") is None:
            raise UsageError("MLflow is not installed: pip install 'makemoe[mlflow]'")
        self.folder = folder

    @property
    def inner(self) -> MLFlowLogger:
        """Lightning's logger, created on first use because importing MLflow takes seconds."""
        if self._inner is None:
            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            # A deprecation warning about how MLflow uses SQLAlchemy.
            warnings.filterwarnings("ignore", message="The ``noload`` loader strategy")
            self._inner = MLFlowLogger(
                self.experiment_name,
                run_name=self.folder.name,
                tracking_uri=self.tracking_uri,
                run_id=self._known_run(),
            )
        return self._inner

    @property
    def name(self) -> str:
        """The experiment."""
        return self.experiment_name

    @property
    def version(self) -> str | None:
        """The id of the MLflow run."""
        version: str | None = self.inner.version
        return version

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client."""
        return self.inner.experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log settings, nested or not; MLflow keeps the values from the start of the run."""
        client, run_id = self.inner.experiment, self.inner.run_id
        flat = flatten(params)
        known = client.get_run(run_id).data.params
        self.inner.log_hyperparams({k: v for k, v in flat.items() if k not in known})
        store = {"tracking_uri": absolute(self.tracking_uri), "run_id": run_id}
        with replacing(self.folder / "mlflow.json") as file:
            file.write(f"{json.dumps(store)}\n".encode())

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.inner.log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload the run's files and end it."""
        if self._inner is None:
            return
        client, run_id = self.inner.experiment, self.inner.run_id
        for file in (self.folder / name for name in ARTIFACTS):
            if file.is_dir():
                client.log_artifacts(run_id, str(file), file.name)
            elif file.exists():
                client.log_artifact(run_id, str(file))
        self.inner.finalize(status)

    def _known_run(self) -> str | None:
        """The run's id in this store, if it was tracked there before."""
        path = self.folder / "mlflow.json"
        if not path.exists():
            return None
        known = json.loads(path.read_text(encoding="utf-8"))
        same_store = absolute(known["tracking_uri"]) == absolute(self.tracking_uri)
        run_id: str | None = known["run_id"] if same_store else None
        return run_id


def absolute(uri: str) -> str:
    """A store's address that means the same in every folder."""
    path = uri.removeprefix(SQLITE)
    is_relative = path != uri and path and not os.path.isabs(path)
    return f"{SQLITE}{os.path.abspath(path)}" if is_relative else uri


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings, flattened to option names: {"model.n_layer": 8}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
