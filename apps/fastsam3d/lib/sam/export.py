"""Files that other programs run: encoder and decoder as ONNX or OpenVINO, checked against torch, and what they mean.

The folder appears whole or not at all: everything is written and checked beside it, and then renamed.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import os
import secrets
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .build import Sam2D, Sam3D
from .export_check import (
    LEAST_DICE,
    TOLERANCE,
    Disagreement,
    Runner,
    compare,
    onnx_runner,
    openvino_runner,
    torch_runner,
)
from .export_graphs import PROMPTS, Graph, Port, decoder_graph, encoder_graph

OPSET = 20
MOST_PROMPTS = 1000
FORMATS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""Format -> the packages it needs."""

DESCRIPTION = "model.json"


class ExportError(ValueError):
    """What cannot be exported, or was refused; the text says what to do."""


def check_ready(format: str, out: Path) -> None:
    """That the packages are there and the folder is free.

    Raises:
        ExportError: with what to put right.
    """
    if format not in FORMATS:
        raise ExportError(f"--format takes {', '.join(FORMATS)}, got {format!r}")
    missing = [name for name in FORMATS[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"export to {format} needs {', '.join(missing)}, which this environment does not have: "
            "pip install --no-deps -r requirements-export.txt"
        )
    if out.exists() and not out.is_dir():
        raise ExportError(f"--out takes a folder, and {out} is a file; give a folder that is new or empty")
    if out.is_dir() and any(out.iterdir()):
        raise ExportError(
            f"--out takes a folder that is new or empty, and {out} holds files; give another, or delete it"
        )
    if not out.absolute().parent.is_dir():
        raise ExportError(f"the folder {out.absolute().parent} is not there; make it, or give another --out")


def export(model: Sam3D | Sam2D, description: Mapping[str, Any], format: str, out: Path) -> dict[str, Any]:
    """Writes a network's encoder and decoder, checks them, and describes them in model.json.

    Args:
        model: in float32 and evaluation mode, on the CPU.
        description: what model.json says beside ports, files and check.
        format: see FORMATS. out: a new or empty folder.

    Returns:
        What model.json says.

    Raises:
        ExportError: see `check_ready`; or the files disagree with the network, and nothing is left of them.
        OSError: the folder cannot be written.
    """
    check_ready(format, out)
    out = out.absolute()
    part = out.parent / f".{out.name}.{secrets.token_hex(8)}.part"
    part.mkdir()
    try:
        graphs = {"encoder": encoder_graph(model), "decoder": decoder_graph(model)}
        files, runners = {}, []
        for name, graph in graphs.items():
            files[name], runner = _write(graph, part / name, format)
            runners.append(runner)
        steps = compare(model.spec, tuple(torch_runner(graph) for graph in graphs.values()), tuple(runners))
        _refuse(steps, format)
        report = {
            **description,
            "format": format,
            "opset": OPSET,
            **{name: _ports(graph, files[name]) for name, graph in graphs.items()},
            "check": {
                "against": f"torch {torch.__version__}, float32, a generated patch",
                "tolerance": {"difference": TOLERANCE, "dice": LEAST_DICE},
                "steps": [{key: value for key, value in asdict(step).items() if value is not None} for step in steps],
            },
        }
        (part / DESCRIPTION).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return report


def write_onnx(graph: Graph, path: Path) -> None:
    """One graph as an ONNX file, with the number of prompts free.

    Raises:
        ExportError: a part of the network has no form in ONNX.
    """
    prompts = torch.export.Dim(PROMPTS, min=1, max=MOST_PROMPTS)
    axes = [{shape.index(PROMPTS): prompts} if PROMPTS in shape else {} for shape in (p.shape for p in graph.inputs)]
    is_decoder = len(axes) > 1  # which takes its features as *features
    shapes = (*axes[:3], tuple(axes[3:])) if is_decoder else tuple(axes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        was = logging.root.manager.disable
        logging.disable(logging.WARNING)
        collecting = gc.isenabled()
        gc.disable()  # a fifth of the time: millions of small objects live until the file is written
        try:
            torch.onnx.export(
                graph.module,
                graph.sample(),
                str(path),
                input_names=[port.name for port in graph.inputs],
                output_names=[port.name for port in graph.outputs],
                opset_version=OPSET,
                dynamic_shapes=shapes,
                external_data=False,
                # Makes 3D convolutions without bias valid (onnxscript 0.7.2), which are in the encoders alone. What else is
                # to be simplified the runtimes do when they load the file, in a fraction of the time.
                optimize=not is_decoder
                and any(isinstance(m, nn.Conv3d) and m.bias is None for m in graph.module.modules()),
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise ExportError(f"{path.stem} cannot be exported: {error}") from error
        finally:
            logging.disable(was)
            if collecting:
                gc.enable()


def _write(graph: Graph, stem: Path, format: str) -> tuple[list[str], Runner]:
    """The files' names, and what runs them."""
    path = stem.with_suffix(".onnx")
    write_onnx(graph, path)
    if format == "onnx":
        return [path.name], onnx_runner(path)
    import openvino

    model = openvino.Core().read_model(str(path))
    openvino.save_model(model, str(stem.with_suffix(".xml")), compress_to_fp16=False)
    del model
    path.unlink()
    return [f"{stem.name}.xml", f"{stem.name}.bin"], openvino_runner(stem.with_suffix(".xml"))


def _refuse(steps: list[Disagreement], format: str) -> None:
    faults = [step.fault for step in steps if step.fault]
    if faults:
        raise ExportError(
            f"the exported files disagree with the network and were deleted: {'; '.join(faults)}. "
            f"Install the pinned packages (requirements-export.txt), or try the other format than {format}"
        )


def _ports(graph: Graph, files: list[str]) -> dict[str, Any]:
    def table(ports: tuple[Port, ...]) -> list[dict[str, Any]]:
        return [{"name": p.name, "type": "float32", "shape": list(p.shape), "meaning": p.meaning} for p in ports]

    return {"files": files, "inputs": table(graph.inputs), "outputs": table(graph.outputs)}
