"""Prediction on files: overlays, COCO results and a summary, in one folder."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from detr_d2.data.bands import check_bands, to_display
from detr_d2.data.images import read_image
from detr_d2.data.inputs import InputFile
from detr_d2.data.panoptic.segments import write_segment_map
from detr_d2.data.videos import VideoReader, VideoWriter
from detr_d2.inference.predictor import Predictor
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import output_folder
from detr_d2.utils.progress import progress_bar
from detr_d2.visualization import draw_instances, draw_panoptic

SUMMARY = "summary.json"
# Formats of overlays. Files of other formats become the first, with its suffix after their name.
_IMAGES, _VIDEOS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"), (".mp4",)


@dataclass
class Summary:
    """Counts of files and detections, and the speed."""

    score_thresh: float
    images: int = 0
    videos: int = 0
    frames: int = 0
    detections: int = 0
    detections_by_class: Counter = field(default_factory=Counter)
    highest_score: float = 0.0  # Including detections below the threshold.
    seconds: float = 0.0
    images_per_second: float = 0.0  # Including frames of videos; reading, predicting, drawing and writing together.
    failed: list[dict] = field(default_factory=list)  # "file" and "error" of the inputs that could not be read.


def predict_files(
    predictor: Predictor,
    inputs: Sequence[InputFile],
    output: str | Path,
    *,
    score_thresh: float = 0.5,
    batch_size: int = 1,
    overlays: bool = True,
    overwrite: bool = False,
    run: dict[str, Any] | None = None,
    show: Callable[[NDArray[np.uint8]], bool] | None = None,
) -> Summary:
    """Predict on images and videos and write to the folder ``output``, which appears when all is done.

    ``show`` receives every image and frame with its detections, (H, W, 3) RGB; if it returns False, no more inputs are
    read. A live stream also ends with Ctrl-C.

    - ``predictions.json``: COCO results with score >= ``score_thresh``; of a video with the key ``frame``, counted from
      0;
    - ``images.json``: a COCO dataset without annotations, which maps ``image_id`` to file (and frame), and
      ``category_id`` to name: ``COCO("images.json").loadRes("predictions.json")`` opens the two;
    - ``panoptic.json`` and ``panoptic/``, of a panoptic model: COCO's panoptic format, one PNG per image or frame;
    - ``overlays/``: the images and videos (as mp4) with the detections or segments, under their names; of images with
      other bands than RGB, see :func:`~detr_d2.data.bands.to_display`;
    - ``summary.json``: counts, speed, the files that could not be read, which are left out, and ``run``.

    Raises:
        UserError: no file can be read, or ``output`` can't be written or replaced.
    """
    started = time.perf_counter()
    with output_folder(output, marker=SUMMARY, overwrite=overwrite) as folder:
        writer = _Writer(folder, predictor, score_thresh, overlays, show)
        summary = writer.summary
        with progress_bar(description="predicting", total=len(inputs), unit="file") as bar:
            images = writer.read_images((x for x in inputs if not x.is_video), bar)
            for file, image, result in predictor.predict(images, batch_size):
                writer.add_image(file, image, result)
                if writer.is_stopped:
                    break
            for file in (x for x in inputs if x.is_video and not writer.is_stopped):
                writer.add_video(file, batch_size)
                bar.update()
        if not (summary.images or summary.frames):
            first = summary.failed[0]["error"] if summary.failed else "there are no inputs"
            raise UserError(f"None of the {len(inputs)} files can be read; the first: {first}")
        summary.seconds = round(time.perf_counter() - started, 3)
        summary.images_per_second = round((summary.images + summary.frames) / max(summary.seconds, 1e-3), 3)
        writer.finish(run or {})
    return summary


class _Writer:
    def __init__(
        self,
        folder: Path,
        predictor: Predictor,
        score_thresh: float,
        overlays: bool,
        show: Callable[[NDArray[np.uint8]], bool] | None,
    ):
        self.folder = folder
        self.predictor = predictor
        self.categories = predictor.categories
        self.overlays = overlays
        self.show = show
        self.is_stopped = False
        self.summary = Summary(score_thresh)
        self.images: list[dict] = []
        self.results: list[dict] = []
        self.panoptic: list[dict] = []

    def read_images(self, files: Iterable[InputFile], bar: tqdm) -> Iterator[tuple[InputFile, NDArray[np.uint8]]]:
        for file in files:
            bar.update()
            try:
                image = read_image(file.source, "RGB", file.content, self.predictor.channels)
            except UserError as e:
                self._add_failure(file, e)
            else:
                yield file, image

    def add_image(self, file: InputFile, image: NDArray[np.uint8], result: dict[str, Any]) -> None:
        self._add(result, {"file_name": file.source}, image)
        self.summary.images += 1
        drawn = self._draw(image, result)
        if self.overlays:
            Image.fromarray(drawn).save(self._overlay_path(file, _IMAGES), quality=90)

    def add_video(self, file: InputFile, batch_size: int) -> None:
        writer = None
        try:
            check_bands(f"Video {file.source}", 3, self.predictor.channels)
            video = VideoReader(file.source, file.is_live)
            if self.overlays:
                writer = VideoWriter(self._overlay_path(file, _VIDEOS), video.frames_per_second)
            frames = progress_bar(video, file.source, total=video.frame_count, unit="frame", keep=False)
            # Ctrl-C is the only end of a stream.
            with suppress(KeyboardInterrupt) if file.is_live else nullcontext():
                for number, image, result in self.predictor.predict(enumerate(frames), batch_size):
                    self._add(result, {"file_name": file.source, "frame": number}, image)
                    self.summary.frames += 1
                    drawn = self._draw(image, result)
                    if writer:
                        writer.write(drawn)
                    if self.is_stopped:
                        break
            self.summary.videos += 1
        except UserError as e:
            self._add_failure(file, e)
        finally:
            if writer:
                writer.close()

    def finish(self, run: dict[str, Any]) -> None:
        # One result per line: these files grow long.
        lines = ",\n".join(json.dumps(x) for x in self.results)
        (self.folder / "predictions.json").write_text(f"[\n{lines}\n]\n" if lines else "[]\n", encoding="utf-8")
        pairs = zip(self.categories.ids, self.categories.names, strict=True)
        categories = [{"id": i, "name": name} for i, name in pairs]
        dataset = {"images": self.images, "categories": categories, "annotations": []}
        self._write("images.json", {"info": {"description": "input images of the predictions"}, **dataset})
        if rules := getattr(self.predictor.model, "panoptic", None):
            categories = [{**x, "isthing": int(y)} for x, y in zip(categories, rules.is_thing, strict=True)]
            self._write("panoptic.json", {**dataset, "annotations": self.panoptic, "categories": categories})
        counts = dict(self.summary.detections_by_class.most_common())
        self._write(SUMMARY, {**vars(self.summary), "detections_by_class": counts, **run})

    def _add(self, result: dict[str, Any], source: dict[str, Any], image: NDArray[np.uint8]) -> None:
        instances, summary, ids = result["instances"], self.summary, self.categories.ids
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, **source, "height": image.shape[0], "width": image.shape[1]})
        highest = result.get("highest_score", float(instances.scores.max()) if len(instances) else 0.0)
        summary.highest_score = max(summary.highest_score, round(highest, 4))
        kept = instances[instances.scores >= summary.score_thresh]
        kept = kept[kept.scores.argsort(descending=True)]
        if kept.has("pred_masks"):
            kept.pred_masks = kept.pred_masks.numpy()
        for x in instances_to_coco_json(kept, image_id):
            summary.detections_by_class[self.categories.names[x["category_id"]]] += 1
            bbox = [round(v, 2) for v in x["bbox"]]
            x.update(category_id=ids[x["category_id"]], bbox=bbox, score=round(x["score"], 5))
            self.results.append({**x, **({"frame": source["frame"]} if "frame" in source else {})})
        summary.detections += len(kept)
        if "panoptic_seg" in result:
            segment_map, segments = result["panoptic_seg"]
            name = f"{image_id:06}.png"
            write_segment_map(str(self.folder / "panoptic" / name), segment_map.numpy())
            infos = [
                {"id": x["id"], "category_id": ids[x["category_id"]], "area": x["area"], "score": round(x["score"], 5)}
                for x in segments
            ]
            self.panoptic.append({"image_id": image_id, "file_name": name, "segments_info": infos})

    def _add_failure(self, file: InputFile, error: UserError) -> None:
        self.summary.failed.append({"file": file.source, "error": str(error)})

    def _draw(self, image: NDArray[np.uint8], result: dict[str, Any]) -> NDArray[np.uint8] | None:
        """Draw and show an image; None if it is neither written nor shown."""
        if not (self.overlays or self.show):
            return None
        names, image = self.categories.names, to_display(image)
        if "panoptic_seg" in result:
            drawn = draw_panoptic(image, *result["panoptic_seg"], names)
        else:
            drawn = draw_instances(image, result["instances"], names, self.summary.score_thresh)
        self.is_stopped = self.show is not None and not self.show(drawn)
        return drawn

    def _overlay_path(self, file: InputFile, formats: Sequence[str]) -> Path:
        name = file.name if file.suffix in formats else file.name + formats[0]
        path = self.folder / "overlays" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write(self, name: str, content: Any) -> None:
        (self.folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
