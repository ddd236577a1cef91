"""No reader of checkpoints runs what a file holds: every call in the sources, and each resume and warm start."""

from __future__ import annotations

import ast
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lib.sam.training import finetune, pretrain, pretrain2d

from tests.conftest import APP

SOURCES = sorted(path for path in APP.rglob("*.py") if "__pycache__" not in path.parts)
READERS = {
    "pretrain, resume": lambda path: pretrain.Pretraining.resume(SimpleNamespace(checkpoint=path, device="cpu")),
    "pretrain, warm start": lambda path: pretrain.Pretraining.warm_start(SimpleNamespace(device="cpu"), path),
    "pretrain2d, resume": lambda path: pretrain2d.Training2d.resume(SimpleNamespace(checkpoint=path, device="cpu")),
    "pretrain2d, a stage before": pretrain2d.averaged,
    "finetune, resume": lambda path: finetune.Finetuning.resume(SimpleNamespace(checkpoint=path, device="cpu")),
}


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("key", ["average", "model", "optimizer"])
def test_a_training_checkpoint_with_a_payload_is_refused_and_never_runs(tmp_path, reader, key):
    path = tmp_path / "checkpoint.pt"
    torch.save({"step": 1, "average": {}, "model": {}, key: Payload(tmp_path / "canary")}, path)
    with pytest.raises(pickle.UnpicklingError):
        READERS[reader](path)
    assert not (tmp_path / "canary").exists()


def calls(path: Path) -> list[tuple[str, dict]]:
    """Every call of a file: its name as written, and its constant keyword arguments."""
    return [
        (ast.unparse(node.func), {k.arg: getattr(k.value, "value", None) for k in node.keywords})
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def test_no_source_reads_a_pickle_unsafely():
    reads = 0
    for path in SOURCES:
        for name, given in calls(path):
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load"), path
            if name == "torch.load":
                reads += 1
                assert given.get("weights_only") is True, path
            if name in ("np.load", "numpy.load"):
                assert not given.get("allow_pickle"), path
    assert reads >= 4
