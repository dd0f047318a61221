"""Backends of :class:`Tracker`: TensorBoard, a CSV file, Weights & Biases, MLflow."""

import csv
import io
import re
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from detr_d2.engine.tracking.tracker import Events, Tracker
from detr_d2.utils.files import atomic_file


class TensorBoardTracker(Tracker):
    """Event files in the output folder, as Detectron2's writer makes them, with the config as text."""

    def open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self.run.output_dir)
        if self.step < 0:
            rows = "\n".join(f"| {key} | {value} |" for key, value in self.run.flat_config().items())
            self._writer.add_text("config", f"| key | value |\n|---|---|\n{rows}")

    def log(self, step: int, events: Events) -> None:
        for name, value in events.scalars.items():
            self._writer.add_scalar(name, value, step)
        for name, pixels in events.images.items():
            self._writer.add_image(name, pixels, step, dataformats="HWC")
        for histogram in events.histograms:
            self._writer.add_histogram_raw(**histogram)

    def end(self, failed: bool) -> None:
        self._writer.close()


class CsvTracker(Tracker):
    """The file metrics.csv in the output folder: one row per iteration that is logged, one column per scalar.

    A cell is empty where the scalar was not measured in the iteration. A new run replaces the file of an earlier one.
    """

    def open(self) -> None:
        self._path = Path(self.run.output_dir, "metrics.csv")
        rows = self._read() if self.step >= 0 and self._path.exists() else []
        self._columns = rows[0] if rows else ["iteration"]
        # The last row of a killed run may be cut off, or of an iteration that is computed again.
        self._write([x for x in rows[1:] if len(x) == len(self._columns) and int(x[0]) <= self.step])

    def log(self, step: int, events: Events) -> None:
        if new := [x for x in events.scalars if x not in self._columns]:
            rows = self._read()[1:]
            self._columns += new
            self._write([x + [""] * len(new) for x in rows])
        row = [step, *(events.scalars.get(x, "") for x in self._columns[1:])]
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(row)

    def _read(self) -> list[list[str]]:
        with open(self._path, encoding="utf-8", newline="") as file:
            return list(csv.reader(file))

    def _write(self, rows: Sequence[Sequence[str]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([self._columns, *rows])
        with atomic_file(self._path) as file:
            file.write(text.getvalue().encode())


class WandbTracker(Tracker):
    """A run of Weights & Biases. ``WANDB_MODE=offline`` keeps it in the output folder."""

    requires = "wandb"

    def open(self) -> None:
        import wandb

        resumed = {"id": self.run_id, "resume": "allow"} if self.run_id else {}
        self._run = wandb.init(
            project=self.run.project, name=self.run.name, dir=self.run.output_dir, config=self.run.config, **resumed
        )
        self.run_id = self._run.id

    def log(self, step: int, events: Events) -> None:
        import wandb

        images = {name: wandb.Image(pixels) for name, pixels in events.images.items()}
        # Without commit, W&B keeps the row in memory until the next step.
        self._run.log({**events.scalars, **images}, step=step, commit=True)

    def log_file(self, path: str) -> None:
        import wandb

        artifact = wandb.Artifact(f"{Path(path).stem}-{self.run_id}", type="model")
        artifact.add_file(path)
        self._run.log_artifact(artifact)

    def end(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


# What MLflow accepts in the name of a metric of any store, and how many parameters at a time and how long.
_FORBIDDEN = re.compile(r"[^\w\-. /]")
_PARAMETERS, _PARAMETER_LENGTH = 100, 500


class MlflowTracker(Tracker):
    """A run of MLflow, in the store that ``MLFLOW_TRACKING_URI`` names, by default a local one.

    Other characters in the names of metrics than letters, digits and ``_-. /`` become ``_``.
    """

    requires = "mlflow"

    def open(self) -> None:
        import mlflow

        self._client = mlflow.MlflowClient()
        if self.run_id:
            self._client.update_run(self.run_id, status="RUNNING")
            return
        project = self._client.get_experiment_by_name(self.run.project)
        project_id = project.experiment_id if project else self._client.create_experiment(self.run.project)
        self.run_id = self._client.create_run(project_id, run_name=self.run.name).info.run_id
        values = iter(self.run.flat_config().items())
        while batch := list(islice(values, _PARAMETERS)):
            parameters = [mlflow.entities.Param(key, value[:_PARAMETER_LENGTH]) for key, value in batch]
            self._client.log_batch(self.run_id, params=parameters)
        # Parameters are cut off; the file has the whole values.
        self._client.log_dict(self.run_id, self.run.config, "config.yaml")

    def log(self, step: int, events: Events) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_FORBIDDEN.sub("_", name), x, now, step) for name, x in events.scalars.items()]
        self._client.log_batch(self.run_id, metrics=metrics)
        for name, pixels in events.images.items():
            key = _FORBIDDEN.sub("_", name)
            self._client.log_image(self.run_id, pixels, key=key, step=step, synchronous=True)

    def log_file(self, path: str) -> None:
        self._client.log_artifact(self.run_id, path)

    def end(self, failed: bool) -> None:
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "csv": CsvTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}
"""Values of LOGGING.TRACKERS."""
