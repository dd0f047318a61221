"""Trackers: writers of a run's config, metrics, images and checkpoints, which never end a training."""

import logging
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# Iterations that Detectron2's writers take the median of.
_WINDOW = 20


@dataclass(frozen=True)
class RunInfo:
    """A run as trackers show it.

    Args:
        project: name of the project or experiment.
        name: name of the run.
        output_dir: folder of the run, where trackers keep their files.
        config: the config, with its nested keys.
    """

    project: str
    name: str
    output_dir: str
    config: dict[str, Any] = field(default_factory=dict)

    def flat_config(self) -> dict[str, str]:
        """Return the values as text by their whole keys ("SOLVER.BASE_LR")."""
        return dict(_flatten(self.config))


@dataclass
class Events:
    """Scalars and images, (H, W, 3) uint8 RGB, of one iteration, by name; and histograms as Detectron2 stores them."""

    scalars: dict[str, float] = field(default_factory=dict)
    images: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    histograms: list[dict[str, Any]] = field(default_factory=list)


class Tracker(EventWriter):
    """Writer of Detectron2's event storage to an experiment tracker; subclasses are backends.

    ``write`` sends what is newer than ``step``, so that a resumed run sends nothing twice. If the backend fails, there
    is one warning, and the training goes on without this tracker.

    Args:
        run: the run to show.
        run_id: id of the run in the backend, to continue it; None: a new run.
        step: last iteration that has been sent; -1: none.
    """

    # Package that the backend needs, which is also the name of the extra that installs it; "": none.
    requires: ClassVar[str] = ""

    def __init__(self, run: RunInfo, run_id: str | None = None, step: int = -1):
        self.run = run
        self.run_id = run_id
        self.step = step
        self._is_open = False
        self._has_failed = False

    def write(self) -> None:
        """Send the new scalars, smoothed over 20 iterations as by Detectron2's writers, and the new images."""
        for step, events in sorted(new_events(get_event_storage(), self.step).items()):
            self._attempt(self.log, step, events)
            self.step = step

    def close(self, failed: bool = False) -> None:
        """End the run; ``failed``: with an error."""
        if self._is_open:
            self._attempt(self.end, failed)
            self._is_open = False

    def save_file(self, path: str) -> None:
        """Send a file as an artifact of the run."""
        self._attempt(self.log_file, path)

    def start(self) -> None:
        """Open the backend now, instead of at the first write."""
        self._attempt(lambda: None)

    def _attempt(self, method: Callable[..., None], *arguments: Any) -> None:
        if self._has_failed:
            return
        try:
            if not self._is_open:
                self.open()
                self._is_open = True
            method(*arguments)
        # Whatever a client library raises, for want of a network, a login or space. Some raise SystemExit.
        except (Exception, SystemExit) as e:
            self._has_failed = True
            logger.warning(f"{type(self).__name__} failed, and the run goes on without it: {type(e).__name__}: {e}")

    @abstractmethod
    def open(self) -> None:
        """Start the run with its config, and set ``run_id``; or continue the run ``run_id``."""

    @abstractmethod
    def log(self, step: int, events: Events) -> None:
        """Send the events of an iteration; iterations increase."""

    def log_file(self, path: str) -> None:
        """Send a file; a backend that keeps its files in the output folder has it already."""

    def end(self, failed: bool) -> None:
        """End the run."""


def new_events(storage: EventStorage, after: int) -> dict[int, Events]:
    """Return the events of the iterations after ``after`` in a storage, by iteration."""
    events: dict[int, Events] = defaultdict(Events)
    for name, (value, step) in storage.latest_with_smoothing_hint(_WINDOW).items():
        if step > after:
            events[step].scalars[name] = value
    for name, image, step in storage._vis_data:
        if step > after:
            pixels = np.asarray(image)
            if pixels.dtype != np.uint8:
                pixels = (pixels * 255).round().clip(0, 255).astype(np.uint8)
            events[step].images[name] = pixels.transpose(1, 2, 0)
    for histogram in storage._histograms:
        if histogram["global_step"] > after:
            events[histogram["global_step"]].histograms.append(histogram)
    return events


def _flatten(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
