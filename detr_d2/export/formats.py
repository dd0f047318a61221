"""Formats of exported files: how each is written, read and run."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr_d2.export.graph import INPUTS, ExportGraph
from detr_d2.export.info import GOLDEN, INFO
from detr_d2.utils.errors import UserError

# The earliest that PyTorch's exporter writes; onnxruntime has it since 1.14.
_OPSET = 18

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
"""Function from the inputs by name to the outputs in their order."""


class Program:
    """A graph to export, and what the exporters derive from it."""

    def __init__(self, graph: ExportGraph, images: Tensor, sizes: Tensor):
        self.graph = graph
        self.inputs = (images, sizes)

    @cached_property
    @torch.no_grad()
    def script(self) -> torch.jit.ScriptModule:
        """The graph traced to TorchScript, for all sizes."""
        with quiet():
            return torch.jit.trace(self.graph, self.inputs, check_trace=False)

    @cached_property
    @torch.no_grad()
    def exported(self) -> "torch.export.ExportedProgram":
        """The graph exported by PyTorch, for all sizes."""
        if not hasattr(torch.export.Dim, "DYNAMIC"):
            raise UserError("This format needs PyTorch 2.6 or later: install it, or export openvino or torchscript.")
        any_size = torch.export.Dim.DYNAMIC
        shapes = {"images": {0: any_size, 2: any_size, 3: any_size}, "sizes": {0: any_size}}
        with quiet():
            return torch.export.export(self.graph, self.inputs, dynamic_shapes=shapes, strict=False)


@dataclass(frozen=True)
class Format:
    """A format of exported files."""

    suffix: str
    extra: str  # Extra of this package that installs the runtime; "": PyTorch runs the file.
    packages: tuple[str, ...]  # Packages that the extra installs.
    write: Callable[[Program, Path, Mapping[str, str]], None]
    """Writes a program with texts by name; the files have the name of the path, with the format's suffixes."""
    read: Callable[[Path, str], tuple[Run, dict[str, str]]]
    """Opens a file in a precision, and returns how to run it, and its texts."""
    precisions: tuple[str, ...] = ("float32",)
    """Values of MODEL.DETR.TEST.PRECISION."""
    companions: tuple[str, ...] = ()
    """Suffixes of the files that belong to it."""


def _write_onnx(program: Program, path: Path, texts: Mapping[str, str]) -> None:
    onnx = importlib.import_module("onnx")
    with quiet():
        # Optimizing takes minutes, and runtimes do it when they open the file.
        converted = torch.onnx.export(
            program.exported,
            input_names=list(INPUTS),
            output_names=list(program.graph.options.output_names),
            opset_version=_OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    converted.save(str(path), external_data=False)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(texts))
    onnx.save(model, str(path))


def _read_onnx(path: Path, precision: str) -> tuple[Run, dict[str, str]]:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors only: it warns of every operation that it can't compute beforehand.
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    texts = dict(session.get_modelmeta().custom_metadata_map)
    return lambda inputs: session.run(None, dict(inputs)), texts


def _write_openvino(program: Program, path: Path, texts: Mapping[str, str]) -> None:
    openvino = importlib.import_module("openvino")
    images, _ = program.inputs
    shapes = [[-1, images.shape[1], -1, -1], [-1, 2]]
    types = [{torch.uint8: openvino.Type.u8, torch.float32: openvino.Type.f32}[images.dtype], openvino.Type.i64]
    with quiet():
        model = openvino.convert_model(
            program.script, example_input=program.inputs, input=list(zip(shapes, types, strict=True))
        )
    ports = zip((*model.inputs, *model.outputs), (*INPUTS, *program.graph.options.output_names), strict=True)
    for port, name in ports:
        port.get_tensor().set_names({name})
    for name, text in texts.items():
        model.set_rt_info(text, name)
    openvino.save_model(model, str(path), compress_to_fp16=False)


@cache
def openvino_core() -> Any:
    """Return the ``openvino.Core`` of this process.

    Each that is used gives the main thread a stack for signal handlers, and unmaps it when it ends: of several that end
    in any order, one can leave an unmapped stack behind, and the next signal that Python handles ends the process.
    """
    return importlib.import_module("openvino").Core()


def _read_openvino(path: Path, precision: str) -> tuple[Run, dict[str, str]]:
    core = openvino_core()
    model = core.read_model(str(path))
    texts = {name: str(model.get_rt_info(name).value) for name in (INFO, GOLDEN) if model.has_rt_info(name)}
    # By default processors with bfloat16 use it.
    hints = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision]}
    compiled = core.compile_model(model, "CPU", {**hints, "INFERENCE_NUM_THREADS": torch.get_num_threads()})

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        results = compiled(dict(inputs))
        return [results[i] for i in range(len(compiled.outputs))]

    return run, texts


def _write_torch_export(program: Program, path: Path, texts: Mapping[str, str]) -> None:
    with quiet():
        torch.export.save(program.exported, str(path), extra_files=dict(texts))


def _read_torch_export(path: Path, precision: str) -> tuple[Run, dict[str, str]]:
    texts = dict.fromkeys((INFO, GOLDEN), "")
    with quiet():
        module = torch.export.load(str(path), extra_files=texts).module()
    return _torch_run(module), texts


def _write_torchscript(program: Program, path: Path, texts: Mapping[str, str]) -> None:
    with quiet():
        torch.jit.save(program.script, str(path), _extra_files=dict(texts))


def _read_torchscript(path: Path, precision: str) -> tuple[Run, dict[str, str]]:
    texts: dict[str, Any] = dict.fromkeys((INFO, GOLDEN), "")
    with quiet():
        module = torch.jit.load(str(path), _extra_files=texts)
    run = _torch_run(module)

    def run_as_written(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        # Optimizing takes seconds for every new size.
        with torch.jit.optimized_execution(False):
            return run(inputs)

    return run_as_written, {name: x.decode() if isinstance(x, bytes) else x for name, x in texts.items()}


def _torch_run(module: Callable[..., tuple[Tensor, ...]]) -> Run:
    @torch.no_grad()
    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [x.numpy() for x in module(*(torch.from_numpy(inputs[name]) for name in INPUTS))]

    return run


FORMATS = {
    "onnx": Format(".onnx", "onnx", ("onnx", "onnxruntime", "onnxscript"), _write_onnx, _read_onnx),
    "openvino": Format(
        ".xml", "openvino", ("openvino",), _write_openvino, _read_openvino, ("float32", "bfloat16"), (".bin",)
    ),
    "torch_export": Format(".pt2", "", (), _write_torch_export, _read_torch_export),
    "torchscript": Format(".ts", "", (), _write_torchscript, _read_torchscript),
}
"""Formats by the name that ``detr-d2 export --format`` takes."""


def is_exported(path: str) -> bool:
    """Check from its suffix whether a file of weights is an exported model, which runs by itself."""
    return Path(path).suffix in {x.suffix for x in FORMATS.values()}


def format_of(path: str | Path) -> Format:
    """Return the format of a file, by its suffix; if no format has it, raise a UserError."""
    for x in FORMATS.values():
        if Path(path).suffix == x.suffix:
            return x
    suffixes = ", ".join(f"{x.suffix} ({name})" for name, x in FORMATS.items())
    raise UserError(f"{path} is not an exported model: its name must end with one of {suffixes}.")


def check_runtime(chosen: Format) -> None:
    """Raise a UserError with pip's command if a package that writes or runs a format is missing."""
    for name in chosen.packages:
        try:
            importlib.import_module(name)
        except ImportError as e:
            raise UserError(
                f"Files {chosen.suffix} need the package {name}, which can't be imported ({e}): pip install "
                f"'detr_d2[{chosen.extra}]'"
            ) from e


@contextmanager
def quiet():
    """Suppress the warnings of tracers and quantizers: every export is compared with the model instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
