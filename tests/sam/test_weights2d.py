"""Weights of the models for images: published layouts, the files that ship, strict loading, the fused form."""

import json
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lib.sam.build import Sam2D
from lib.sam.checkpoint_files import read_header
from lib.sam.checkpoints import COUNTER, GAUSSIAN, check_fit, recognise, shapes_of, state_of
from lib.sam.networks.fuse import TOLERANCE, disagreement, fused_encoder
from lib.sam.registry import model_of
from lib.sam.weights import WeightsError, load_sam, resolve
from lib.sam.weights_files import SHIPPED_MAX_BYTES, export_run, import_checkpoint, write_model
from lib.sam.zoo import get_spec2d
from safetensors.torch import load_file, save_file

from tests.sam.checkpoint_samples import decoder_alone, encoder_alone, save
from tests.sam.models2d import SMALL, small_state

MODELS = {"LiteMedSAM": "litemedsam", "RepViT-SAM": "repmedsam", "RepMedSAM (as inferred)": "repmedsam"}


@pytest.fixture(autouse=True)
def _tidy(tmp_path) -> Iterator[None]:
    """Removes the large files of a test at once; pytest would keep those of its last runs."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def state() -> OrderedDict[str, torch.Tensor]:
    return small_state()


def published(conformance: Path, name: str, parts: int = 3, prefixed: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a published file, without memory: names and shapes are the published ones."""
    row = next(r for r in json.loads((conformance / "checkpoints.json").read_text()) if r["name"] == name)
    tensors = {}
    for piece in sorted(row["parts"], key=lambda p: p["prefix"] != "image_encoder.")[:parts]:
        manifest = json.loads((conformance / "manifests" / f"{piece['manifest']}.json").read_text())
        for key, shape, *_ in manifest["tensors"]:
            zero = torch.zeros((), dtype=torch.int64 if key.endswith(COUNTER) else torch.float32)
            tensors[(piece["prefix"] if prefixed else "") + key] = zero.expand(shape)
    return tensors


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wrapper", [None, "model", "module."])
def test_the_published_layouts_are_recognised(shared_dir, name, wrapper):
    tensors = published(shared_dir / "conformance", name)
    value = {wrapper + key: tensor for key, tensor in tensors.items()} if wrapper == "module." else tensors
    found = state_of({"model": value, "epoch": 3} if wrapper == "model" else value, "file.pth")
    spec = recognise(shapes_of(found), name)
    assert spec.name == MODELS[name] == model_of(spec.name)
    check_fit(found, spec, name)


@pytest.mark.parametrize("name", ["LiteMedSAM", "RepViT-SAM"])
def test_an_encoder_alone_is_recognised_without_its_prefix(shared_dir, name):
    found = state_of(published(shared_dir / "conformance", name, parts=1, prefixed=False), "encoder.pth")
    assert recognise(shapes_of(found), name).name == MODELS[name]


def test_a_damaged_file_is_refused(shared_dir):
    tensors = published(shared_dir / "conformance", "RepViT-SAM")
    lost = next(key for key in tensors if key.endswith("fc1.weight"))
    with pytest.raises(WeightsError, match=f"Nearest is repmedsam: 1 missing: {lost}"):
        recognise(shapes_of({key: tensor for key, tensor in tensors.items() if key != lost}), "x")
    counter = next(key for key in tensors if key.endswith(COUNTER))
    check_fit(tensors, get_spec2d("repmedsam"), "x")
    with pytest.raises(WeightsError, match="not a plain floating-point tensor"):
        check_fit(tensors | {counter: torch.zeros((), dtype=torch.int32)}, get_spec2d("repmedsam"), "x")


def test_an_import_is_kept_unfused_and_answers_as_the_file(state, tmp_path):
    target = import_checkpoint(save({"model": state, "epoch": 1}, tmp_path / "mine.pth"), tmp_path / "m" / "imported")
    assert shapes_of(load_file(target)) == shapes_of(state)
    found = resolve("repmedsam", tmp_path / "m")
    assert (found.origin, found.name, found.spec.name) == ("imported", "mine", SMALL)
    model = load_sam(found)
    assert isinstance(model, Sam2D)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_encoder_and_decoder_from_two_files(state, tmp_path):
    encoder = save(encoder_alone(state), tmp_path / "encoder.pth")
    with pytest.raises(WeightsError, match="encoder alone.*lite_medsam.pth, with --decoder"):
        import_checkpoint(encoder, tmp_path / "m" / "imported")
    decoder = save(decoder_alone(state), tmp_path / "decoder.pth")
    import_checkpoint(encoder, tmp_path / "m" / "imported", decoder=decoder)
    assert load_sam(resolve("repmedsam", tmp_path / "m")).spec.name == SMALL


@pytest.fixture
def shipped(state, tmp_path) -> Path:
    """A folder of weights as a training run leaves it."""
    run = {"config": json.dumps({"spec": SMALL}), "step": 7, "seconds": 60.0, "average": state}
    export_run(save(run, tmp_path / "checkpoint.pt"), tmp_path / "model", "repmedsam_small", release=2)
    return tmp_path / "model"


def test_a_run_becomes_the_models_default(state, shipped):
    found = resolve("repmedsam", shipped)
    assert (found.name, found.origin, found.spec.name) == ("repmedsam-small-v2", "shipped", SMALL)
    assert all(path.stat().st_size <= SHIPPED_MAX_BYTES for path in found.paths)
    tensors = {key: tensor for path in found.paths for key, tensor in load_file(path).items()}
    assert tensors.keys() == state.keys()
    assert tensors[GAUSSIAN].dtype == torch.float32
    wide = [t for key, t in tensors.items() if t.ndim > 1 and key != GAUSSIAN]
    assert {t.dtype for t in wide} == {torch.float16}
    assert {t.dtype for t in tensors.values() if t.ndim == 1} == {torch.float32}
    assert read_header(found.paths[0])[1]["spec"] == SMALL
    with pytest.raises(WeightsError, match="fastsam3d"):
        resolve("fastsam3d", shipped, configured="repmedsam-small-v2")


def test_the_fused_form_agrees_on_what_ships(shipped):
    encoder = load_sam(resolve("repmedsam", shipped)).image_encoder
    assert disagreement(encoder, fused_encoder(encoder), torch.rand(2, 3, 256, 256)) < TOLERANCE


def test_a_changed_file_is_refused(shipped):
    path = resolve("repmedsam", shipped).paths[0]
    tensors = load_file(path)
    save_file({key: tensor * 2 for key, tensor in tensors.items()}, path)
    with pytest.raises(WeightsError, match="damaged or was replaced"):
        resolve("repmedsam", shipped)


def test_a_model_too_large_to_ship_is_refused(tmp_path):
    spec = get_spec2d("repmedsam")
    with torch.device("meta"):
        shapes = shapes_of(Sam2D(spec).state_dict())
    zeros = {
        key: torch.zeros((), dtype=torch.int64 if key.endswith(COUNTER) else torch.float32).expand(shape)
        for key, shape in shapes.items()
    }
    with pytest.raises(WeightsError, match="at most 16 MiB: use a smaller spec"):
        write_model(zeros, spec, tmp_path, "repmedsam_m2_3")
