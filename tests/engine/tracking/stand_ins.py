"""Stand-ins for the packages wandb and mlflow, with the functions that trackers call: they record what they are given.

The real packages, with their dependencies, are larger than all others of the tests together.
"""

import itertools
from types import SimpleNamespace


class Wandb(SimpleNamespace):
    """The package wandb; ``runs`` is what its server would hold, by id."""

    def __init__(self):
        super().__init__(runs={}, Image=lambda pixels: ("image", pixels.shape), Artifact=Artifact)

    def init(self, project, name, dir, config, id=None, resume=None):
        assert (id is None) == (resume is None)
        known = {"project": project, "name": name, "dir": dir, "config": config}
        new = {**known, "rows": [], "files": [], "exit_codes": []}
        id = id or f"run{len(self.runs)}"
        return WandbRun(id, self.runs.setdefault(id, new))


class Artifact:
    def __init__(self, name, type):
        self.name, self.type, self.files = name, type, []

    def add_file(self, path):
        self.files.append(path)


class WandbRun:
    def __init__(self, id, content):
        self.id, self.content = id, content

    def log(self, values, step, commit):
        assert commit
        self.content["rows"].append((step, values))

    def log_artifact(self, artifact):
        self.content["files"].append((artifact.name, artifact.type, artifact.files))

    def finish(self, exit_code):
        self.content["exit_codes"].append(exit_code)


class Mlflow(SimpleNamespace):
    """The package mlflow, whose client keeps runs in ``runs`` and refuses what a store refuses."""

    def __init__(self):
        entity = lambda *values: values  # noqa: E731
        super().__init__(entities=SimpleNamespace(Param=entity, Metric=entity), experiments={}, runs={})
        self._ids = map(str, itertools.count(1))

    def MlflowClient(self):
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = next(self._ids)
        return self.experiments[name]

    def create_run(self, experiment_id, run_name):
        run_id = f"m{next(self._ids)}"
        new = {"experiment": experiment_id, "name": run_name, "params": {}, "metrics": [], "images": [], "files": []}
        self.runs[run_id] = {**new, "status": ["RUNNING"], "config": None}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id, status):
        self.runs[run_id]["status"].append(status)

    def set_terminated(self, run_id, status):
        self.runs[run_id]["status"].append(status)

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(metrics) <= 1000
        assert len(params) <= 100
        assert all(len(value) <= 500 for _, value in params)
        assert not {key for key, _ in params} & set(self.runs[run_id]["params"])
        self.runs[run_id]["params"].update(params)
        for name, value, milliseconds, step in metrics:
            assert not set(name) & set("?:(),'"), name
            assert milliseconds > 1.7e12
            self.runs[run_id]["metrics"].append((step, name, value))

    def log_dict(self, run_id, dictionary, artifact_file):
        assert artifact_file == "config.yaml"
        self.runs[run_id]["config"] = dictionary

    def log_image(self, run_id, image, key, step, synchronous):
        self.runs[run_id]["images"].append((step, key, image.shape))

    def log_artifact(self, run_id, path):
        self.runs[run_id]["files"].append(path)
