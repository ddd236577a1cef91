"""Other servers' dialects: what deepedit and automatic models are asked, and which part of their answer counts."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nibabel as nib
import numpy as np
import pytest
from lib.cli import main
from lib.sam.evaluation.interface import ModelError
from lib.sam.evaluation.remote import answered_as, clicks_as_request
from lib.sam.prompts import Click, Prompts

SHAPE = (12, 10, 8)
LABELS = {"background": 0, "liver": 2, "spleen": 5}


def label_map():
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:5, 1:5, 1:5], labels[7:11, 5:9, 2:7] = 2, 5
    return labels


@contextmanager
def serving(folder, models):
    """A server of MONAI Label's paths that answers every inference with one file; yields its address and the requests."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, content=b"{}"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            self.answer(json.dumps({"name": "other", "version": "1", "models": models}).encode())

        def do_PUT(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(b'{"session_id": "s"}')

        def do_DELETE(self):
            self.answer()

        def do_POST(self):
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.answer((folder / "answer.nii").read_bytes())

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("kind, requests", [("segmentation", 2), ("deepedit", 2)])
def test_the_structures_own_value_counts(tmp_path, kind, requests):
    """The answer holds all organs; each structure is compared with its own, found by name whatever its value here."""
    answer = label_map()
    for name, array in (
        ("image.nii", answer.astype(np.int16) * 50),
        ("label.nii", np.where(answer == 2, 7, answer // 5)),
    ):
        nib.save(nib.Nifti1Image(array.astype(np.int16), np.eye(4)), tmp_path / name)
    nib.save(nib.Nifti1Image(answer, np.eye(4)), tmp_path / "answer.nii")
    (tmp_path / "labels.json").write_text('{"7": "Liver", "1": "spleen"}')
    with serving(tmp_path, {"auto": {"type": kind, "labels": LABELS}}) as (address, asked):
        arguments = ["--images", tmp_path / "image.nii", "--labels", tmp_path / "label.nii", "--out", tmp_path / "out"]
        assert main(["evaluate", *map(str, arguments), "--clicks", "3", "--model", f"{address}#auto"]) == 0
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [(row["name"], row["dice"]) for row in rows] == [("spleen", [1.0] * 3), ("Liver", [1.0] * 3)]
    assert len(asked) == requests  # one answer is enough: it is perfect, or does not change
    assert ("background" in asked[0] and "spleen" in asked[0]) == (kind == "deepedit")


def test_which_label_is_asked_for():
    assert answered_as("deepedit", LABELS, "Spleen", "x") == ("spleen", 5)
    assert answered_as("deepedit", LABELS, "tumour", "x") == ("liver", 2)
    assert answered_as("deepedit", {"tumour": None}, "7", "x") == ("tumour", None)
    assert answered_as("deepgrow", LABELS, "liver", "x") == ("", None) == answered_as("vista3d", {}, "liver", "x")
    for labels in (LABELS, {"tumour": None}):
        with pytest.raises(ModelError, match="'tumour'"):
            answered_as("segmentation", labels, "tumour", "x")


def test_clicks_in_each_dialect():
    prompts = Prompts((Click((1, 2, 3)), Click((4, 5, 6), False)))
    deepedit = clicks_as_request("deepedit", "spleen", prompts)
    assert (deepedit["label"], deepedit["spleen"], deepedit["background"]) == ("spleen", [[1, 2, 3]], [[4, 5, 6]])
    assert clicks_as_request("vista3d", "", prompts)["point_labels"] == [1, 0]
    assert clicks_as_request("deepgrow", "", prompts)["foreground"] == [[1, 2, 3]]
    assert not any(isinstance(value, list) for value in clicks_as_request("segmentation", "", prompts).values())
