"""MLflow: a run's settings, figures and checkpoints in a store that many runs share."""

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
    # A server that is gone would hold a run up for minutes by MLflow's own defaults.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""What holds where the user has not set it otherwise."""

ARTIFACTS = ("config.yaml", "metrics.csv", "best.ckpt", "last.ckpt")


class MLflow(Logger):
    """Tracks a run with MLflow, through Lightning's logger; needs the extra `makemoe[mlflow]`.

    Settings are parameters, cut to 250 characters; figures are metrics by step; at the end, the
    checkpoints, config.yaml and metrics.csv are uploaded as artifacts. A run that is resumed goes
    on in the same MLflow run, whose id is in `mlflow.json` in the run's folder.

    Args:
        tracking_uri: the store, a SQLite file or a server; null: $MLFLOW_TRACKING_URI or mlflow.db.
        experiment: the name runs are grouped by; made if it is not there.
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
        """Take the run's folder; UsageError when MLflow is not installed.

        Not raised by the constructor: a parser that calls it has words of its own for that.
        """
        if find_spec("mlflow") is None:
            raise UsageError("MLflow is not installed: pip install 'makemoe[mlflow]'")
        self.folder = folder

    @property
    def inner(self) -> MLFlowLogger:
        """Lightning's logger, made when it is first asked for: MLflow takes seconds to import."""
        if self._inner is None:
            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            # What MLflow should say to SQLAlchemy in newer words.
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
        """The id of MLflow's run."""
        version: str | None = self.inner.version
        return version

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client."""
        return self.inner.experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Settings, nested or not; MLflow keeps the values a resumed run began with."""
        client, run_id = self.inner.experiment, self.inner.run_id
        flat = flatten(params)
        known = client.get_run(run_id).data.params
        self.inner.log_hyperparams({k: v for k, v in flat.items() if k not in known})
        store = {"tracking_uri": self.tracking_uri, "run_id": run_id}
        with replacing(self.folder / "mlflow.json") as file:
            file.write(f"{json.dumps(store)}\n".encode())

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.inner.log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload what the run leaves, and end it."""
        if self._inner is None:
            return
        client, run_id = self.inner.experiment, self.inner.run_id
        for file in (self.folder / name for name in ARTIFACTS):
            if file.exists():
                client.log_artifact(run_id, str(file))
        self.inner.finalize(status)

    def _known_run(self) -> str | None:
        """The run's id in this store, if it has been tracked there before."""
        path = self.folder / "mlflow.json"
        if not path.exists():
            return None
        known = json.loads(path.read_text(encoding="utf-8"))
        same_store = known["tracking_uri"] == self.tracking_uri
        run_id: str | None = known["run_id"] if same_store else None
        return run_id


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by the names of their options: {"model.n_layer": 8}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
