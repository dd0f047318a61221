"""The C++ program for OpenVINO, against the package's predictor."""

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from .conftest import assert_same_detections
from .test_onnxruntime_detect import read_lines


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """Build the program with the headers and libraries in pip's openvino."""
    openvino = pytest.importorskip("openvino")
    config = Path(openvino.__path__[0]) / "cmake"
    missing = [x for x in ("cmake", "c++") if not shutil.which(x)]
    if missing or not config.is_dir():
        pytest.skip(f"not found: {' and '.join(missing) or config}")
    folder = tmp_path_factory.mktemp("cpp")
    sources = Path(__file__).resolve().parents[2] / "examples" / "cpp"
    # Not optimized, which takes twice as long.
    configure = ["cmake", "-S", sources, "-B", folder, f"-DOpenVINO_DIR={config}", "-DCMAKE_BUILD_TYPE=Debug"]
    for command in ([*configure, "-DCMAKE_CXX_FLAGS=-Werror"], ["cmake", "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "detect"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_detections_are_those_of_the_predictor(program, make_example, tmp_path, format):
    """Of several images at once, in both formats that OpenVINO reads."""
    example = make_example(format)
    images = {path: tmp_path / f"{path.stem}.ppm" for path in example.images}
    for path, image in images.items():
        Image.open(path).save(image)
    done = run(program, example.path, 0, *images.values())
    assert done.stderr == ""
    for path, image in images.items():
        found = read_lines(done.stdout, str(image))
        assert len(found) == 7
        assert_same_detections(found, example.detect(path))
    ordered = sorted(x.score for x in example.detect(path))
    best = run(program, example.path, (ordered[-3] + ordered[-4]) / 2, image)
    assert len(best.stdout.splitlines()) == 3


@pytest.mark.slow
def test_mistakes_are_one_line(program, make_example, tmp_path):
    example = make_example("openvino")
    for arguments, message in (
        ((), "usage: detect"),
        ((tmp_path / "none.xml", 0, "image.ppm"), "none.xml does not exist"),
        ((example.path, 0, example.images[0]), "wide.png is not a PPM image"),
    ):
        done = run(program, *arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
