"""The web page: its modules in Node, against Pillow, PyTorch and onnx; the page in Chromium, against the predictor."""

import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from detr_d2.data.augmentation import DetrResizeShortestEdge

from .chromium import Chromium
from .conftest import Detection, assert_same_detections

SOURCES = Path(__file__).resolve().parents[2] / "examples" / "web"


def run_module(name: str, expression: str, **inputs: Any) -> Any:
    """Evaluate an expression of a module of the page, ``m``, and of inputs, ``x``, in Node."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    module = json.dumps((SOURCES / "src" / name).as_uri())
    code = f"import fs from 'node:fs'; import * as m from {module}; const x = JSON.parse(fs.readFileSync(0));"
    command = ["node", "--input-type=module", "--eval", f"{code} console.log(JSON.stringify({expression}))"]
    done = subprocess.run(command, input=json.dumps(inputs), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sizes_are_those_of_the_mapper():
    """Also where the longer side decides, of half pixels, and of images as narrow as a line."""
    sizes = [
        (480, 640),
        (640, 480),
        (97, 41),
        (41, 97),
        (64, 64),
        (100, 800),
        (200, 64),
        (100, 200),
        (3, 1000),
        (1000, 1),
    ]
    rules = [(64, 65), (64, 107), (800, 1333), (128, 208), (0, 100)]
    rows = [(w, h, *rule) for h, w in sizes for rule in rules]
    found = run_module("resize.js", "x.rows.map((row) => m.resizedSize(...row))", rows=rows)
    for (w, h, short, long), size in zip(rows, found, strict=True):
        expected = DetrResizeShortestEdge.get_output_shape(h, w, short, long)[::-1] if short else (w, h)
        assert tuple(size) == expected, (w, h, short, long)


def test_pixels_are_pillows():
    """Bit by bit, of images that are enlarged, reduced, and both. Rows first: Pillow 13 chooses the order itself."""
    sizes = [(50, 83, 64, 106), (97, 41, 33, 20), (60, 80, 31, 120), (64, 30, 64, 15), (20, 20, 20, 20)]
    rng = np.random.default_rng(0)
    images = [rng.integers(256, size=(h, w, 4), dtype=np.uint8) for h, w, _, _ in sizes]
    # Edges, where an inexact rule overflows.
    images[0] = np.where(images[0] > 127, 255, 0).astype(np.uint8)
    inputs = [
        {"data": image.flatten().tolist(), "width": w, "height": h, "size": [new_w, new_h]}
        for image, (h, w, new_h, new_w) in zip(images, sizes, strict=True)
    ]
    found = run_module("resize.js", "x.images.map((i) => [...m.resizePixels(i, ...i.size)])", images=inputs)
    for values, image, (_, _, new_h, new_w) in zip(found, images, sizes, strict=True):
        rgb = Image.fromarray(image[..., :3].copy())
        expected = rgb.resize((new_w, rgb.height), Image.Resampling.BILINEAR)
        expected = expected.resize((new_w, new_h), Image.Resampling.BILINEAR)
        assert np.array_equal(np.array(values).reshape(new_h, new_w, 3), np.asarray(expected))


@pytest.mark.parametrize("divisor", [0, 32])
def test_masks_are_those_of_pytorch(divisor):
    """Resized to the tensor and compared with the threshold; the padding is cut off."""
    width, height, padded = 50, 39, (64, 64) if divisor else (39, 50)
    rows, columns = (-(-x // 4) for x in padded)
    # One more column than the image needs, as in a batch with a wider one.
    logits = torch.randn(2, rows, columns + 1, generator=torch.Generator().manual_seed(0))
    info = {"mask_stride": 4, "mask_threshold": 0.7, "square_size": 0, "size_divisibility": divisor}
    found = run_module(
        "masks.js",
        "[0, 1].map((k) => [...m.maskPixels({ data: Float32Array.from(x.data), dims: x.dims }, k, x.info, x.size)])",
        data=logits.flatten().tolist(),
        dims=[1, *logits.shape],
        info=info,
        size=[width, height],
    )
    resized = interpolate(logits[None, :, :, :-1], size=padded, mode="bilinear", align_corners=False)[0]
    expected = resized[:, :height, :width].sigmoid() > 0.7
    assert torch.equal(torch.tensor(found).view(2, height, width).bool(), expected)


def test_metadata_is_that_of_onnx(tmp_path):
    """Of keys and texts of any length; of a file that is cut off or is none there is an error."""
    onnx = pytest.importorskip("onnx")
    values = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [300], np.arange(300.0))
    graph = onnx.helper.make_graph([], "g", [], [], [values])
    model = onnx.helper.make_model(graph)
    texts = {"detr_d2_info": '{"class_names": ["Möwe", "猫"]}', "long": "x" * 70000, "empty": ""}
    onnx.helper.set_model_props(model, texts)
    files = [model.SerializeToString(), model.SerializeToString()[:-9], b"a text, and not a model", b""]
    read = "(f) => { try { return [...m.readMetadata(Uint8Array.from(f))] } catch (e) { return e.message } }"
    whole, *damaged = run_module("onnx_metadata.js", f"x.files.map({read})", files=[list(x) for x in files])
    assert dict(whole) == texts
    assert damaged == ["not a protocol buffer", "not a protocol buffer", []]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Build the page, in the environment that can export a model for it."""
    pytest.importorskip("onnx")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("web") / "page"
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm could not install onnxruntime-web: {done.stderr.strip()[:200]}")
    subprocess.run(["npm", "run", "build"], cwd=folder, check=True, capture_output=True)
    # The page needs nothing else once it is built.
    shutil.rmtree(folder / "node_modules")
    return folder / "dist"


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    """Return a Chromium that has the address of the page."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=page))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Chromium(program, tmp_path_factory.mktemp("profile")) as chromium:
        chromium.address = f"http://127.0.0.1:{server.server_port}/"
        yield chromium
    server.shutdown()


def status(browser: Chromium) -> str:
    """Wait until the page is idle, and return its status."""
    browser.wait_for("!document.getElementById('status').classList.contains('busy')")
    return browser.evaluate("document.getElementById('status').textContent")


def read_table(browser: Chromium) -> list[Detection]:
    rows = browser.evaluate("[...rows.children].map((row) => [...row.cells].map((cell) => cell.textContent))")
    return [Detection(name, float(score), tuple(map(float, box))) for name, score, *box in rows]


@pytest.mark.slow
def test_page_detects_what_the_predictor_does(browser, page, make_example):
    model = make_example("onnx")
    shutil.copy(model.path, page / "model.onnx")
    browser.open(f"{browser.address}?model=model.onnx")
    assert status(browser) == "The model is open: choose an image, or start the camera."
    browser.evaluate("score.value = 0; score.dispatchEvent(new Event('input'))")
    for image in model.images:
        browser.choose_file("#image", image)
        browser.wait_for(f"canvas.getAttribute('aria-label')?.startsWith({image.name!r})")
        expected = sorted(model.detect(image), key=lambda x: -x.score)
        assert_same_detections(read_table(browser), expected)

    # Another threshold, and the file that is offered.
    minimum = (expected[2].score + expected[3].score) / 2
    browser.evaluate(f"score.step = 'any'; score.value = {minimum}; score.dispatchEvent(new Event('input'))")
    assert len(read_table(browser)) == 3
    browser.evaluate("download.addEventListener('click', (event) => event.preventDefault()); download.click()")
    result = browser.evaluate("fetch(download.href).then((response) => response.json())")
    assert (result["file_name"], result["width"], result["height"]) == ("high.png", 41, 97)
    for found, x in zip(result["detections"], expected[:3], strict=True):
        left, top, width, height = found["bbox"]
        assert found["class_name"] == x.name
        assert (left, top, left + width, top + height) == pytest.approx(x.box, abs=0.1)

    # The browser's test camera.
    browser.evaluate("camera.click()")
    browser.wait_for("canvas.getAttribute('aria-label').startsWith('camera')")
    assert browser.evaluate("camera.textContent") == "Stop the camera"
    browser.evaluate("camera.click()")
    assert browser.evaluate("camera.textContent") == "Start the camera"


@pytest.mark.slow
def test_page_explains_mistakes(browser, page, tmp_path):
    (tmp_path / "photo.png").write_text("a text")
    (tmp_path / "photo.onnx").write_text("a text")
    (tmp_path / "empty.onnx").write_bytes(b"")
    raw = json.dumps({"outputs": "raw"}).encode()
    pair = b"\x0a\x0cdetr_d2_info\x12" + bytes([len(raw)]) + raw
    (tmp_path / "raw.onnx").write_bytes(b"\x72" + bytes([len(pair)]) + pair)
    browser.open(f"{browser.address}?model=missing.onnx")
    assert "missing.onnx is not there (status 404)" in status(browser)
    for selector, name, message in (
        ("#image", "photo.png", "photo.png is not an image that this browser can show"),
        ("#model", "photo.onnx", "photo.onnx is not an ONNX file"),
        ("#model", "empty.onnx", "empty.onnx lacks class names and sizes: make it with detr-d2 export"),
        ("#model", "raw.onnx", "raw.onnx has raw outputs: export the model again with --outputs detections"),
    ):
        browser.choose_file(selector, tmp_path / name)
        browser.wait_for(f"document.getElementById('status').textContent.includes({name!r})")
        assert message in status(browser)
        assert browser.evaluate("document.getElementById('status').className") == "error"
