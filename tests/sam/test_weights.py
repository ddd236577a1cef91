"""Weights: order of choice, hashes, imports of the published layouts, strict loading, the export of a run."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lib.sam.build import build_sam
from lib.sam.checkpoint_files import read_header
from lib.sam.checkpoints import ENCODER, GAUSSIAN
from lib.sam.registry import REGISTRY, SHIPPED, entries, read_registry
from lib.sam.weights import WeightsError, load_sam, resolve, verify, version_of
from lib.sam.weights_files import SHIPPED_MAX_BYTES, export_run, import_checkpoint
from lib.sam.zoo import ALL_SPECS, SPECS
from safetensors.torch import load_file

from tests.sam.checkpoint_samples import (
    decoder_alone,
    encoder_alone,
    run_checkpoint,
    sample_state,
    save,
    training_checkpoint,
)

COMPACT = "fastsam3d_compact"


@pytest.fixture(autouse=True)
def _tidy(tmp_path) -> Iterator[None]:
    """Removes the large files of a test at once; pytest would keep those of its last runs."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Iterator[Path]:
    """A folder of weights as it ships; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("shipped")
    export_run(save(run_checkpoint(COMPACT), folder / "checkpoint.pt"), folder / "model")
    yield folder / "model"
    shutil.rmtree(folder)


@pytest.fixture
def model_dir(shipped, tmp_path) -> Path:
    """A folder of weights of one's own."""
    return Path(shutil.copytree(shipped, tmp_path / "model"))


def accept(model_dir: Path, seed: int = 9) -> Path:
    """Does what a trainer does after its gate."""
    folder = model_dir / "accepted" / "fastsam3d"
    pair = export_run(save(run_checkpoint(COMPACT, seed), model_dir.parent / "c.pt"), folder, "candidate")
    (folder / "registry.json").unlink()
    content = {"files": [path.name for path in pair], "spec": COMPACT, "version": version_of(pair)}
    (folder / "current.json").write_text(json.dumps(content))
    return folder


# ------------------------------------------------------------------ registry


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=REGISTRY.keys())
def test_the_rows_are_complete(entry):
    assert entry.spec in ALL_SPECS
    assert len(entry.files) == len(entry.sha256)
    assert entry.licence
    assert entry.note
    assert entry.url is None or entry.url.startswith("https://") and entry.url.endswith(entry.files[0])
    assert entry.decoder is None or entry.decoder in REGISTRY
    assert entry.pinned or "unpinned" in entry.note or entry.name == SHIPPED


def test_rows_in_a_folder_replace_the_published_ones(model_dir):
    assert not REGISTRY[SHIPPED].pinned
    assert entries(model_dir)[SHIPPED].pinned
    assert entries(model_dir).keys() == REGISTRY.keys()


@pytest.mark.parametrize(
    "content, what",
    [
        ("{", "JSON"),
        ("[]", "list"),
        ('{"weights": [{}]}', "needs"),
        ('{"weights": [3]}', "needs"),
        ('{"weights": [], "defaults": 3}', "defaults"),
        ({"files": ["../x.safetensors"]}, "letters"),
        ({"files": ["/etc/passwd"]}, "letters"),
        ({"name": "a/b"}, "letters"),
        ({"files": "x.safetensors"}, "list one or two files"),
        ({"files": ["a.pth", "b.pth"]}, "list one or two files"),
        ({"sha256": ["abc"]}, "64 hex digits"),
        ({"spec": "nothing"}, "names the spec"),
        ({"model": "sam_med3d"}, "its model must be fastsam3d"),
        ({"url": 3}, "url"),
        ({"colour": "red"}, "knows"),
    ],
)
def test_a_broken_registry_is_an_error(tmp_path, content, what):
    row = {
        "name": "n",
        "model": "fastsam3d",
        "files": ["a.pth"],
        "sha256": ["unpinned"],
        "licence": "l",
        "spec": COMPACT,
    }
    text = content if isinstance(content, str) else json.dumps({"weights": [row | content]})
    (tmp_path / "registry.json").write_text(text)
    with pytest.raises(WeightsError, match=what):
        resolve("fastsam3d", tmp_path)


# ------------------------------------------------------------------ order of choice


def test_nothing_there(tmp_path):
    with pytest.raises(WeightsError, match="no weights for fastsam3d.*weights list"):
        resolve("fastsam3d", tmp_path / "none")
    with pytest.raises(WeightsError, match="no model 'unet'"):
        resolve("unet", tmp_path)


def test_the_order_of_choice(model_dir, tmp_path):
    """Configured, accepted, imported, shipped."""
    assert (resolve("fastsam3d", model_dir).name, resolve("fastsam3d", model_dir).origin) == (SHIPPED, "shipped")

    for name, seed in (("first", 1), ("second", 2)):
        file = save(sample_state(COMPACT, seed), tmp_path / f"{name}.pth")
        import_checkpoint(file, model_dir / "imported")
    found = resolve("fastsam3d", str(model_dir))
    assert (found.name, found.origin, found.spec.name) == ("second", "imported", COMPACT)
    (model_dir / "imported" / "second.safetensors").unlink()
    assert resolve("fastsam3d", model_dir).name == "first"

    folder = accept(model_dir)
    found = resolve("fastsam3d", model_dir)
    assert (found.name, found.origin) == ("fastsam3d-accepted", "accepted")
    assert found.version == json.loads((folder / "current.json").read_text())["version"]

    for choice in (SHIPPED, "first", str(file), model_dir / "imported" / "first.safetensors"):
        found = resolve("fastsam3d", model_dir, configured=choice)
        assert found.origin == "configured"
        assert found.name in (str(choice), Path(choice).stem)
    shutil.rmtree(model_dir / "accepted")
    shutil.rmtree(model_dir / "imported")
    assert resolve("fastsam3d", model_dir).name == SHIPPED


def test_a_pair_may_be_configured_by_either_half_or_by_its_folder(model_dir, tmp_path):
    expected = resolve("fastsam3d", model_dir)
    pair = [path.name for path in expected.paths]
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in pair:
        shutil.copy(model_dir / name, bare / name)
    for choice in (bare / pair[0], bare / pair[1], bare, model_dir):
        found = resolve("fastsam3d", tmp_path, configured=choice)
        assert [path.name for path in found.paths] == pair
        assert (found.version, found.spec) == (expected.version, expected.spec)
    (bare / pair[1]).unlink()
    with pytest.raises(WeightsError, match="encoder alone.*--decoder"):
        resolve("fastsam3d", tmp_path, configured=bare / pair[0])
    shutil.copy(model_dir / pair[0], bare / "other.safetensors")
    with pytest.raises(WeightsError, match="must hold one weights file.*other.safetensors"):
        resolve("fastsam3d", tmp_path, configured=bare)


def test_configured_weights_that_are_not_there_name_what_is(model_dir, tmp_path):
    with pytest.raises(WeightsError, match=f"nothing.pth are not there; by name there are {SHIPPED}.*sam_med3d_turbo"):
        resolve("fastsam3d", model_dir, configured=tmp_path / "nothing.pth")
    with pytest.raises(WeightsError, match="fastsam3d_compact_decoder.safetensors"):
        resolve("fastsam3d", model_dir, configured=model_dir / "nothing.pth")
    with pytest.raises(WeightsError, match="weights fetch sam_med3d_turbo"):
        resolve("sam_med3d", model_dir, configured="sam_med3d_turbo")
    with pytest.raises(WeightsError, match="6layer6head2skip_logits.pth.*by hand"):
        resolve("fastsam3d", model_dir, configured="fastsam3d_published_encoder_h6")


def test_weights_of_another_model_are_refused(model_dir):
    with pytest.raises(WeightsError, match="which the model sam_med3d cannot use"):
        resolve("sam_med3d", model_dir, configured=SHIPPED)


# ------------------------------------------------------------------ hashes


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_changed_file_is_found(model_dir, keep_time):
    found = resolve("fastsam3d", model_dir)
    path, row = found.paths[1], read_registry(model_dir)[0][0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if keep_time:  # then the size must tell
        data += b"\0"
    status = path.stat()
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(WeightsError, match=f"sha256 must be {row.sha256[1]}, got [0-9a-f]{{64}}; put"):
        resolve("fastsam3d", model_dir)
    with pytest.raises(WeightsError, match="sha256 must be"):
        verify(row, model_dir)


def test_shipped_weights_need_their_hash(model_dir):
    path = model_dir / "registry.json"
    content = json.loads(path.read_text())
    content["weights"][0]["sha256"] = ["unpinned", "unpinned"]
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="sha256 must be in"):
        resolve("fastsam3d", model_dir)


def test_damaged_imports_and_accepted_weights_never_give_way_silently(model_dir, tmp_path):
    import_checkpoint(save(sample_state(COMPACT), tmp_path / "own.pth"), model_dir / "imported")
    (model_dir / "imported" / "own.safetensors").write_bytes(b"junk")
    with pytest.raises(WeightsError, match=r"sha256 must be.*import its source again \(imported from own.pth\)"):
        resolve("fastsam3d", model_dir)
    pointer = accept(model_dir) / "current.json"
    good = json.loads(pointer.read_text())
    for change, what in (
        ({"version": "0" * 12}, "must have version 000000000000, got"),
        ({"spec": "nothing"}, "known spec"),
        ({"files": ["../../x.safetensors"]}, "letters"),
        ({"files": []}, "one or two files"),
        ({"files": ["none.safetensors"]}, "cannot be read"),
        ({"files": None}, "must name files"),
    ):
        pointer.write_text(json.dumps(good | change))
        with pytest.raises(WeightsError, match=what):
            resolve("fastsam3d", model_dir)
    for text in ("[]", "{}", "{"):
        pointer.write_text(text)
        with pytest.raises(WeightsError, match="current.json"):
            resolve("fastsam3d", model_dir)


def test_resolving_again_reads_no_weights(model_dir, monkeypatch):
    resolve("fastsam3d", model_dir)
    read = []
    monkeypatch.setattr("lib.sam.weights.file_sha256", lambda path: read.append(path))
    assert resolve("fastsam3d", model_dir).name == SHIPPED
    assert read == []


# ------------------------------------------------------------------ loading


def test_load_gives_float32_eval_without_gradients(model_dir):
    found = resolve("fastsam3d", model_dir)
    model = load_sam(found, "cpu")
    assert not model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())
    expected = sample_state(COMPACT)
    for key, tensor in model.state_dict().items():
        stored = expected[key] if key == GAUSSIAN else expected[key].half().float()
        assert torch.equal(tensor, stored), key
    with torch.inference_mode():
        embedding = model.encode(torch.zeros(1, 2, 128, 128, 128))
        points = torch.tensor([[[64.0, 64, 64]]]), torch.ones(1, 1, dtype=torch.long)
        logits, iou = model.decode(embedding, points, torch.zeros(1, 1, 32, 32, 32))
    assert logits.shape == (1, 1, 32, 32, 32)
    assert bool(torch.isfinite(logits).all() and torch.isfinite(iou).all())


def test_a_loaded_network_does_not_depend_on_its_file(model_dir, tmp_path):
    pth = save(sample_state(COMPACT), tmp_path / "own.pth")
    for choice in (pth, None):
        found = resolve("fastsam3d", model_dir, configured=choice)
        model = load_sam(found)
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        for path in found.paths:
            path.write_bytes(bytes(path.stat().st_size))  # in place, as a careless copy would
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_file_that_changed_since_it_was_chosen_is_not_used(model_dir, tmp_path):
    file = save(sample_state(COMPACT, 1), tmp_path / "own.pth")
    found = resolve("fastsam3d", model_dir, configured=file)
    save(sample_state(COMPACT, 2), file)
    with pytest.raises(WeightsError, match="changed"):
        load_sam(found)


def test_weights_that_do_not_fit_their_stated_spec(model_dir, tmp_path):
    state = sample_state(COMPACT)
    del state["mask_decoder.iou_token.weight"]
    found = resolve("fastsam3d", model_dir, configured=save(state, tmp_path / "own.pth"))
    with pytest.raises(WeightsError, match="own.pth does not fit fastsam3d_compact: 1 missing: mask_decoder.iou_token"):
        load_sam(found)


# ------------------------------------------------------------------ import


def check_import(path: Path, spec: str, expected: dict[str, torch.Tensor], model_dir: Path) -> None:
    """The imported file is chosen, loads strictly, and holds the very numbers; it is removed afterwards."""
    shapes, metadata = read_header(path)
    assert metadata["spec"] == spec
    assert len(metadata["source_sha256"]) == 64
    assert {"source", "model", "licence"} <= metadata.keys()
    found = resolve(metadata["model"], model_dir)
    assert (found.paths, found.spec, found.origin) == ((path,), SPECS[spec], "imported")
    assert verify(entries(model_dir)[found.name], model_dir) == (path,)
    model = load_sam(found)
    own = model.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], expected[key]) for key in own)
    assert not list(path.parent.glob(".*"))
    path.unlink()


def test_import_of_a_training_checkpoint(tmp_path):
    """FastSAM3D.pth: whole network under model_state_dict, with optimizer state, arguments and numpy numbers."""
    state = sample_state("fastsam3d_published_h6")
    file = save(training_checkpoint(state), tmp_path / "FastSAM3D.pth")
    path = import_checkpoint(file, tmp_path / "model" / "imported")
    assert path.name == "fastsam3d_published.safetensors"
    assert "techlove/FastSAM3D" in read_header(path)[1]["licence"]
    check_import(path, "fastsam3d_published_h6", state, tmp_path / "model")


def test_import_of_an_encoder_with_another_files_decoder(tmp_path):
    """fastsam3d.pth (12 heads, no prefix) completed from a SAM-Med3D training checkpoint."""
    student, teacher = sample_state("fastsam3d_published_h12", 1), sample_state("sam_med3d", 2)
    encoder = save({"model_state_dict": encoder_alone(student)}, tmp_path / "fastsam3d.pth")
    with pytest.raises(WeightsError, match="encoder alone.*--decoder"):
        import_checkpoint(encoder, tmp_path / "model" / "imported")
    whole = save(training_checkpoint(teacher), tmp_path / "sam_med3d.pth")
    path = import_checkpoint(encoder, tmp_path / "model" / "imported", decoder=whole)
    assert path.name == "fastsam3d_published_encoder_h12.safetensors"
    assert read_header(path)[1]["decoder_source"] == "sam_med3d.pth"
    expected = {key: (student if key.startswith(ENCODER) else teacher)[key] for key in student}
    check_import(path, "fastsam3d_published_h12", expected, tmp_path / "model")
    with pytest.raises(WeightsError, match="missing: .*mask_decoder|holds an encoder alone"):
        import_checkpoint(encoder, tmp_path / "model" / "imported", decoder=encoder)


def test_import_of_plain_weights_with_a_wrappers_prefix(tmp_path):
    """SAM-Med3D turbo: the plain residual, whatever the keys look like."""
    state = sample_state("sam_med3d", 3)
    file = save({f"module.{key}": tensor for key, tensor in state.items()}, tmp_path / "sam_med3d_turbo.pth")
    path = import_checkpoint(file, tmp_path / "model" / "imported")
    assert path.name == "sam_med3d_turbo.safetensors"
    check_import(path, "sam_med3d", state, tmp_path / "model")
    assert SPECS["sam_med3d"].encoder.residual == "plain"


def test_import_takes_a_name_and_a_spec(tmp_path):
    file, folder = save(sample_state(COMPACT), tmp_path / "own.pth"), tmp_path / "model" / "imported"
    path = import_checkpoint(file, folder, name="mine", spec="fastsam3d_compact_sparse")
    assert path.name == "mine.safetensors"
    assert resolve("fastsam3d", tmp_path / "model").spec.encoder.attention == "segment_dilated"
    again = import_checkpoint(path, folder, name="copy")
    assert read_header(again)[1]["spec"] == "fastsam3d_compact_sparse"
    for name in ("../x", "a/b", "", ".hidden", SHIPPED):
        with pytest.raises(WeightsError, match="name"):
            import_checkpoint(file, folder, name=name or " ")
    with pytest.raises(WeightsError, match="names the spec 'unet'"):
        import_checkpoint(file, folder, spec="unet")


def test_a_failed_import_leaves_nothing_behind(tmp_path):
    state, folder = sample_state("fastsam3d_published_h6"), tmp_path / "model" / "imported"
    state["mask_decoder.iou_token.weight"] = torch.zeros(2, 384)
    with pytest.raises(WeightsError, match=r"mask_decoder.iou_token.weight \[2, 384\] instead of \[1, 384\]"):
        import_checkpoint(save(state, tmp_path / "odd.pth"), folder)
    assert not folder.exists()


# ------------------------------------------------------------------ export


def test_export_writes_the_pair_that_ships(shipped):
    rows, defaults = read_registry(shipped)
    assert defaults == {"fastsam3d": SHIPPED}
    assert rows[0].files == REGISTRY[SHIPPED].files
    assert rows[0].bytes == tuple((shipped / file).stat().st_size for file in rows[0].files)
    assert max(rows[0].bytes) <= SHIPPED_MAX_BYTES
    halves = [load_file(shipped / file) for file in rows[0].files]
    assert all(key.startswith(ENCODER) for key in halves[0])
    assert not any(key.startswith(ENCODER) for key in halves[1])
    joined = halves[0] | halves[1]
    assert joined.keys() == build_sam(SPECS[COMPACT]).state_dict().keys()
    assert {tensor.dtype for key, tensor in joined.items() if key != GAUSSIAN} == {torch.float16}
    assert joined[GAUSSIAN].dtype == torch.float32
    assert read_header(shipped / rows[0].files[0])[1]["step"] == "7"
    assert (shipped / rows[0].files[0]).stat().st_mode & 0o044 == 0o044


def test_export_refuses_what_is_too_large_or_no_run(tmp_path):
    with pytest.raises(WeightsError, match="87.1 MiB; a file that ships has at most 16 MiB"):
        export_run(save(run_checkpoint("fastsam3d_published_h6"), tmp_path / "checkpoint.pt"), tmp_path / "out")
    with pytest.raises(WeightsError, match="no checkpoint of a training run"):
        export_run(save(decoder_alone(sample_state(COMPACT)), tmp_path / "other.pt"), tmp_path / "out")
    broken = run_checkpoint(COMPACT)
    broken["average"]["mask_decoder.iou_token.weight"] = torch.full((1, 192), 1e5)
    with pytest.raises(
        WeightsError, match="in float16: mask_decoder.iou_token.weight holds values that are not finite"
    ):
        export_run(save(broken, tmp_path / "wide.pt"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_the_mean_of_two_runs_of_one_network(tmp_path):
    files = [save(run_checkpoint(COMPACT, seed), tmp_path / f"{seed}.pt") for seed in (1, 2)]
    export_run(files[0], tmp_path / "mean", other=files[1])
    exported = [export_run(file, tmp_path / file.stem) for file in files]
    name = "fastsam3d_compact_decoder.safetensors"
    mean, *single = (load_file(tmp_path / folder / name) for folder in ("mean", "1", "2"))
    for key, value in mean.items():
        torch.testing.assert_close(
            value.float(), (single[0][key].float() + single[1][key].float()) / 2, atol=2e-3, rtol=2e-3
        )
    assert len(exported) == 2
    other = save(run_checkpoint("fastsam3d_published_h6"), tmp_path / "published.pt")
    with pytest.raises(WeightsError, match="two runs of one network"):
        export_run(files[0], tmp_path / "mean", other=other)


def test_export_replaces_an_earlier_release(model_dir, tmp_path):
    before = resolve("fastsam3d", model_dir).version
    export_run(save(run_checkpoint(COMPACT, 5), tmp_path / "c.pt"), model_dir)
    after = resolve("fastsam3d", model_dir)
    assert after.version != before
    assert after.name == SHIPPED
    export_run(tmp_path / "c.pt", model_dir, name="other", release=2)
    assert resolve("fastsam3d", model_dir).name == "other-v2"
    assert resolve("fastsam3d", model_dir, configured=SHIPPED).version == after.version
