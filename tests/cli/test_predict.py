"""The command ``predict``, with a small model that is not trained."""

import functools
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from detr_d2.cli.predict import main
from detr_d2.data import inputs
from detr_d2.data.videos import VideoReader
from detr_d2.inference.predictor import Predictor, prediction_config
from detr_d2.modeling import meta_arch
from detr_d2.modeling.postprocessing import resized_masks
from detr_d2.visualization import live

NAMES = ["cat", "dog", "bird", "fish", "horse"]


@pytest.fixture
def predict(save_trained, tmp_path):
    """Return a function that runs the command on inputs, and returns the exit code."""
    config, weights = save_trained(class_names=NAMES)

    def run(*words) -> int:
        flags = ["--config-file", str(config), "--output", str(tmp_path / "out")]
        return main([*flags, *map(str, words), "MODEL.WEIGHTS", str(weights)])

    return run


@pytest.fixture
def photos(real_data, tmp_path):
    """Three photographs in two folders, two of one name."""
    source = sorted((real_data / "coco" / "val2017").iterdir())
    for name, path in zip(("a.jpg", "b.jpg", "more/a.jpg"), source, strict=False):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(path.read_bytes())
    return tmp_path / "photos"


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_a_folder(predict, photos, tmp_path, capsys):
    """Overlays beside results that pycocotools opens, and that are the model's."""
    assert predict("--input", photos, "--score-thresh", 0, "--batch-size", 2) == 0
    out = tmp_path / "out"
    overlays = sorted(x.relative_to(out).as_posix() for x in (out / "overlays").rglob("*.*"))
    assert overlays == ["overlays/a.jpg", "overlays/b.jpg", "overlays/more/a.jpg"]
    for name in ("a.jpg", "more/a.jpg"):
        before, after = (np.asarray(Image.open(x / name).convert("RGB")) for x in (photos, out / "overlays"))
        assert before.shape == after.shape
        assert not np.array_equal(before, after)

    coco = COCO(str(out / "images.json"))
    results = coco.loadRes(str(out / "predictions.json"))
    assert [x["name"] for x in coco.loadCats([1, 5])] == ["cat", "horse"]
    assert len(results.anns) == 3 * 7
    cfg = prediction_config(str(tmp_path / "config.yaml"), ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth")])
    predictor = Predictor.from_config(cfg)
    for image in coco.loadImgs(coco.getImgIds()):
        (instances,) = predictor([np.asarray(Image.open(image["file_name"]).convert("RGB"))])
        assert (image["height"], image["width"]) == instances.image_size
        order = instances.scores.argsort(descending=True)
        boxes = instances.pred_boxes.tensor[order]
        found = results.loadAnns(results.getAnnIds([image["id"]]))
        assert np.allclose([x["score"] for x in found], instances.scores[order], atol=1e-4)
        assert [x["category_id"] for x in found] == (instances.pred_classes[order] + 1).tolist()
        assert np.allclose([x["bbox"][:2] for x in found], boxes[:, :2], atol=0.02)
        assert np.allclose([x["bbox"][2:] for x in found], boxes[:, 2:] - boxes[:, :2], atol=0.02)

    summary = read(out, "summary.json")
    assert (summary["images"], summary["detections"], summary["failed"]) == (3, 21, [])
    assert sum(summary["detections_by_class"].values()) == 21
    assert summary["weights"] == str(tmp_path / "model_final.pth")
    assert "21 detections with a score of 0 or more in 3 images" in capsys.readouterr().out


@pytest.fixture
def web(tmp_path, monkeypatch):
    """Serve the files of the test, and return the address."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_and_a_page(predict, tmp_path, web, monkeypatch, capsys):
    """The same results for a URL and a file; a missing one is named; the page gets what is drawn."""
    shown = []
    monkeypatch.setattr(live.MjpegServer, "show", lambda self, image: shown.append(image.shape) or len(shown) < 2)
    pixels = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    words = ("--score-thresh", 0, "--serve", 0, "--no-overlays")
    assert predict("--input", f"{web}/b.png", f"{web}/a.png", tmp_path / "a.png", "nowhere/*", *words) == 1
    assert "No file matches" in capsys.readouterr().err
    assert predict("--input", f"{web}/b.png", f"{web}/a.png", tmp_path / "a.png", tmp_path / "a.png", *words) == 1
    out = tmp_path / "out"
    assert [x["file_name"] for x in read(out, "images.json")["images"]] == [f"{web}/a.png", str(tmp_path / "a.png")]
    results = read(out, "predictions.json")
    assert [x | {"image_id": 0} for x in results[:7]] == [x | {"image_id": 0} for x in results[7:]]
    assert [x["file"] for x in read(out, "summary.json")["failed"]] == [f"{web}/b.png"]
    assert shown == [(40, 50, 3)] * 2
    assert "showing the results at http://127.0.0.1:" in capsys.readouterr().out


def test_a_live_stream_ends_with_ctrl_c(predict, tmp_path, monkeypatch):
    """Its results are written; here the stream is a file."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 12.5, (64, 48))
    writer.write(np.zeros((48, 64, 3), dtype=np.uint8))
    writer.release()

    def interrupt(self, image):
        raise KeyboardInterrupt

    monkeypatch.setattr(live.MjpegServer, "show", interrupt)
    monkeypatch.setattr(inputs, "_LIVE_SCHEMES", ("file",))
    assert predict("--input", (tmp_path / "clip.avi").as_uri(), "--score-thresh", 0, "--serve", 0) == 0
    assert len(read(tmp_path / "out", "predictions.json")) == 7


def test_tiles(predict, tmp_path):
    """Results are in pixels of the image; an image no larger than a tile has the plain ones."""
    pixels = np.random.default_rng(0).integers(256, size=(60, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    files = {}
    for name, words in {"plain": (), "one": ("--tiles", "200"), "four": ("--tiles", "64", "--overlap", "0.25")}.items():
        flags = ("--score-thresh", 0, "--batch-size", 2, "--overwrite", "--no-overlays")
        assert predict("--input", tmp_path / "a.png", *flags, *words) == 0
        files[name] = read(tmp_path / "out", "predictions.json")
    assert files["one"] == files["plain"]
    assert 7 < len(files["four"]) <= 4 * 7
    assert max(x["bbox"][0] + x["bbox"][2] for x in files["four"]) > 140
    assert read(tmp_path / "out", "images.json")["images"][0]["width"] == 200


def test_a_video(predict, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 12.5, (64, 48))
    for i in range(6):
        writer.write(np.full((48, 64, 3), 40 * i, dtype=np.uint8))
    writer.release()
    assert predict("--input", tmp_path / "clip.avi", "--score-thresh", 0, "--batch-size", 4) == 0
    out = tmp_path / "out"
    overlay = VideoReader(out / "overlays" / "clip.avi.mp4")
    assert overlay.frames_per_second == pytest.approx(12.5)
    frames = list(overlay)
    assert [x.shape for x in frames] == [(48, 64, 3)] * 6
    images = read(out, "images.json")["images"]
    assert [(x["id"], x["frame"]) for x in images] == [(i + 1, i) for i in range(6)]
    results = read(out, "predictions.json")
    assert len(results) == 6 * 7
    assert all(x["frame"] == x["image_id"] - 1 for x in results)
    summary = read(out, "summary.json")
    assert (summary["images"], summary["videos"], summary["frames"]) == (0, 1, 6)


def test_files_that_can_not_be_read_are_left_out_and_named(predict, photos, tmp_path, capsys):
    """A truncated image and a file that is no video: the others are done, and the exit code is 1."""
    (photos / "broken.jpg").write_bytes((photos / "a.jpg").read_bytes()[:3000])
    (photos / "broken.mp4").write_bytes(b"no video")
    assert predict("--input", photos, "--no-overlays") == 1
    out = tmp_path / "out"
    summary = read(out, "summary.json")
    assert summary["images"] == 3
    assert [x["file"] for x in summary["failed"]] == [str(photos / x) for x in ("broken.jpg", "broken.mp4")]
    assert len(read(out, "images.json")["images"]) == 3
    assert not (out / "overlays").exists()
    errors = capsys.readouterr().err
    assert "error: 2 of the inputs could not be read" in errors
    assert "broken.jpg can't be read" in errors


def test_nothing_found(predict, photos, tmp_path, capsys):
    assert predict("--score-thresh", "1", "--no-overlays", "--input", photos / "a.jpg") == 0
    assert read(tmp_path / "out", "predictions.json") == []
    assert "The highest score is 0." in capsys.readouterr().out


def test_nothing_that_can_be_read_leaves_no_output(predict, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("hello")
    assert predict("--input", tmp_path / "text.jpg") == 1
    assert "error: None of the 1 files can be read; the first: Image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_formats_that_can_not_be_written_become_png(predict, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8))
    image.save(tmp_path / "a.gif")
    image.convert("L").save(tmp_path / "b.PNG")
    assert predict("--input", tmp_path / "a.gif", tmp_path / "b.PNG") == 0
    overlays = tmp_path / "out" / "overlays"
    assert sorted(x.name for x in overlays.iterdir()) == ["a.gif.png", "b.PNG"]
    assert {Image.open(x).size for x in overlays.iterdir()} == {(50, 40)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--input", "nowhere.jpg"), "nowhere.jpg does not exist"),
        (("--input", "{photos}", "--score-thresh", "50"), "--score-thresh is 50.0: give a number from 0 to 1"),
        (("--input", "{photos}", "--batch-size", "0"), "--batch-size is 0"),
        (("--input", "{photos}", "--overlap", "0.5"), "add --tiles"),
        (("--input", "{photos}", "--tiles", "5"), "MODEL.DETR.TEST.TILES is 5"),
        (("--input", "{photos}", "MODEL.DETR.NHEDS", "8"), "Did you mean MODEL.DETR.NHEADS?"),
        (("--input", "{photos}", "--output", "{photos}"), "holds other files"),
    ],
)
def test_mistakes(predict, photos, tmp_path, capsys, words, message):
    """One line, no traceback, no output."""
    assert predict(*(x.format(photos=photos) for x in words)) == 1
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.glob("out*"))
    assert len(list(photos.rglob("*.jpg"))) == 3


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_masks_below_the_threshold_are_not_computed(save_trained, tmp_path, monkeypatch, threshold):
    """A batch of photographs would need gigabytes; detections and the highest score are the same."""
    config, weights = save_trained("MODEL.MASK_ON", True, class_names=NAMES)
    counts = []

    def counting(logits, **settings):
        counts.append(len(logits))
        return resized_masks(logits, **settings)

    monkeypatch.setattr(meta_arch, "resized_masks", counting)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(256, size=(40, 50 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    files = str(tmp_path / "*.png")
    flags = ["--config-file", str(config), "--input", files, "--batch-size", "2", "--no-overlays"]
    out, words = tmp_path / "out", ["--score-thresh", str(threshold), "MODEL.WEIGHTS", str(weights)]
    assert main([*flags, "--output", str(out), *words]) == 0
    summary, results = read(out, "summary.json"), read(out, "predictions.json")
    assert sum(counts) == summary["detections"] == len(results)
    cfg = prediction_config(str(config), ["MODEL.WEIGHTS", str(weights)])
    images = [np.asarray(Image.open(x["file_name"]).convert("RGB")) for x in read(out, "images.json")["images"]]
    scores = [x.scores for x in Predictor.from_config(cfg)(images)]
    assert summary["highest_score"] == pytest.approx(float(max(x.max() for x in scores)), abs=1e-4)
    assert len(results) == sum(int((x >= threshold).sum()) for x in scores)
