"""Checkpoint files: safe reading, recognition from the tensors, errors that name what differs."""

import io
import json
import os
import pickle
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lib.sam.checkpoint_files import WeightsError, read_contents, read_header
from lib.sam.checkpoints import check_fit, differences, expected_shapes, recognise, shapes_of, state_of
from lib.sam.zoo import SPECS
from safetensors.torch import save_file

from tests.sam.checkpoint_samples import decoder_alone, encoder_alone, sample_state, save, training_checkpoint

PUBLISHED = ("fastsam3d_published_h6", "fastsam3d_published_h12", "sam_med3d", "fastsam3d_compact")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def write_pickle(value, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def write_zip(value, path: Path) -> None:
    torch.save(value, path)


def write_legacy(value, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def write_tar(value, path: Path) -> None:
    """The archive that PyTorch wrote before 0.1.10."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(value, protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("write", [write_pickle, write_zip, write_legacy, write_tar])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda payload: payload,
        lambda payload: [payload],
        lambda payload: {"model_state_dict": {"pos_embed": torch.zeros(1)}, "args": payload},
        lambda payload: {"model_state_dict": {"pos_embed": payload}},
    ],
    ids=["bare", "list", "args", "tensor"],
)
def test_a_pickle_with_a_payload_is_refused_and_never_runs(tmp_path, suffix, write, wrap):
    canary, path = tmp_path / "canary", tmp_path / f"hostile{suffix}"
    write(wrap(Payload(canary)), path)
    with pytest.raises(WeightsError, match="hostile"):
        read_contents(path)
    assert not canary.exists()


def test_the_payload_would_have_run(tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps([Payload(canary)]))
    assert canary.is_dir()


def test_benign_globals_are_allowed_only_while_reading(tmp_path):
    path = save(training_checkpoint({"pos_embed": torch.zeros(2)}), tmp_path / "train.pth")
    before = set(torch.serialization.get_safe_globals())
    for value in (read_contents(path).value, read_contents(path).value):
        assert value["args"].lr == 8e-4
        assert value["dices"] == [0.75]
        assert value["args"].step == 3
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_numbers_written_by_numpy_2_are_read(tmp_path):
    old, new = save(training_checkpoint({"pos_embed": torch.zeros(2)}), tmp_path / "old.pth"), tmp_path / "new.pth"
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w") as target:
        for member in source.namelist():
            data = source.read(member)
            renamed = data.replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
            assert (renamed != data) == member.endswith("data.pkl")
            target.writestr(member, renamed)
    assert read_contents(new).value["dices"] == [0.75]


def test_many_threads_may_read_at_once(tmp_path):
    path = save(training_checkpoint({"pos_embed": torch.zeros(2)}), tmp_path / "train.pth")
    failures = []

    def read() -> None:
        for _ in range(5):
            try:
                read_contents(path)
            except WeightsError as error:
                failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("value", [np.zeros(3), Path("x"), np.array(["a"], dtype=object)[0:1], os.getcwd])
def test_other_globals_are_refused_with_their_name(tmp_path, value):
    path = save({"model_state_dict": {"pos_embed": torch.zeros(1)}, "extra": value}, tmp_path / "extra.pth")
    with pytest.raises(WeightsError, match="GLOBAL|Unsupported"):
        read_contents(path)


def test_the_old_format_is_read(tmp_path):
    path = tmp_path / "old.pth"
    write_legacy(training_checkpoint({"pos_embed": torch.arange(3.0)}), path)
    assert read_contents(path).value["model_state_dict"]["pos_embed"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04 not really", b"\x80\x02", b"{}", b"\x80\x02]q\x00(."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_weights_errors(tmp_path, content, suffix):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="bad"):
        state_of(read_contents(path).value, path.name)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_weights_errors(tmp_path, share, suffix):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    state = {"pos_embed": torch.zeros(5000)}
    save(state, whole) if suffix == ".pth" else save_file(state, whole)
    path.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(WeightsError, match="cut"):
        read_contents(path)


def test_a_compressed_archive_is_refused_before_it_is_inflated(tmp_path):
    plain, bomb = save({"pos_embed": torch.zeros(100_000)}, tmp_path / "plain.pth"), tmp_path / "bomb.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    assert bomb.stat().st_size < plain.stat().st_size / 10
    with pytest.raises(WeightsError, match="compressed archive"):
        read_contents(bomb)


def test_other_suffixes_and_missing_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"\.safetensors.*weights\.zip"):
        read_contents(tmp_path / "weights.zip")
    with pytest.raises(WeightsError, match="does not exist"):
        read_contents(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="does not exist"):
        read_header(tmp_path / "none.safetensors")


@pytest.mark.parametrize("spec", PUBLISHED)
def test_the_spec_is_recognised_from_the_tensors(spec):
    assert recognise(expected_shapes(SPECS[spec]), "file").name == spec


@pytest.mark.parametrize("spec", PUBLISHED)
def test_an_encoder_alone_is_recognised(spec):
    state = state_of({"model_state_dict": encoder_alone(sample_state(spec))}, "file")
    assert recognise(shapes_of(state), "file").name == spec


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module.", "module.sam."])
@pytest.mark.parametrize("wrapper", [None, "model_state_dict", "state_dict", "model", "average"])
def test_wrappers_and_prefixes_are_removed(prefix, wrapper):
    state = {"image_encoder.pos_embed": torch.zeros(1), "mask_decoder.iou_token.weight": torch.zeros(2)}
    wrapped = {prefix + key: tensor for key, tensor in state.items()}
    found = state_of({wrapper: wrapped, "epoch": 1} if wrapper else wrapped, "file")
    assert found.keys() == state.keys()


@pytest.mark.parametrize(
    "name, spec",
    [
        ("SAM-Med3D turbo (teacher)", "sam_med3d"),
        ("FastSAM3D full model", "fastsam3d_published_h6"),
        ("FastSAM3D student encoder only", "fastsam3d_published_h6"),
        ("FastSAM3D CVPR 2025 encoder", "fastsam3d_published_h12"),
    ],
)
def test_the_published_manifests(shared_dir, name, spec):
    conformance = shared_dir / "conformance"
    row = next(r for r in json.loads((conformance / "checkpoints.json").read_text()) if r["name"] == name)
    state = {}
    for piece in row["parts"]:
        tensors = json.loads((conformance / "manifests" / f"{piece['manifest']}.json").read_text())["tensors"]
        state |= {piece["prefix"] + key: torch.zeros(()).expand(shape) for key, shape, *_ in tensors}
    assert len(state) == row["num_tensors"]
    found = state_of({row["wrapper_key"]: state}, row["published_file"])
    assert recognise(shapes_of(found), name).name == spec
    if len(row["parts"]) == 3:
        check_fit(found, SPECS[spec], name)
    else:
        check_fit(found | decoder_alone(sample_state("sam_med3d")), SPECS[spec], name)


def test_a_vit_for_images_is_refused():
    for prefix in ("", "image_encoder."):
        with pytest.raises(WeightsError, match="2D ViT encoder .SAM, MedSAM., which is not supported"):
            state_of({f"{prefix}patch_embed.proj.weight": torch.zeros(768, 3, 16, 16)}, "medsam_vit_b.pth")


@pytest.mark.parametrize(
    "value", [None, 3, [torch.zeros(1)], {}, {"model_state_dict": {}}, {"epoch": 1}, torch.zeros(3)]
)
def test_files_without_weights_are_refused(value):
    with pytest.raises(WeightsError, match="holds no weights"):
        state_of(value, "file.pth")


def test_foreign_tensors_are_refused_with_their_keys():
    with pytest.raises(WeightsError, match="first keys are conv1.weight, fc.weight"):
        state_of({"conv1.weight": torch.zeros(3), "fc.weight": torch.zeros(3)}, "resnet.pth")
    with pytest.raises(WeightsError, match="not tensors.*image_encoder.depth"):
        state_of({"image_encoder.pos_embed": torch.zeros(3), "image_encoder.depth": 6}, "file.pth")


def test_a_difference_is_named_by_key_and_shape():
    spec = SPECS["fastsam3d_published_h6"]
    state = dict(sample_state(spec.name))
    del state["mask_decoder.iou_token.weight"]
    state["mask_decoder.refine.weight"] = torch.zeros(2, 3)
    state["image_encoder.neck.0.weight"] = torch.zeros(9, 9)
    with pytest.raises(WeightsError) as error:
        check_fit(state, spec, "own.pth")
    text = str(error.value)
    assert "own.pth does not fit fastsam3d_published_h6" in text
    assert "1 missing: mask_decoder.iou_token.weight [1, 384]" in text
    assert "1 unexpected: mask_decoder.refine.weight [2, 3]" in text
    assert "image_encoder.neck.0.weight [9, 9] instead of [384, 768, 1, 1, 1]" in text


def test_only_the_first_differences_are_named():
    text = differences({}, {f"key{i}": (i,) for i in range(50)})
    assert text.startswith("50 missing: key0 [0], key1 [1]")
    assert text.endswith("and 45 more")


def test_an_unknown_depth_is_told_with_the_nearest_model():
    shapes = {k: s for k, s in expected_shapes(SPECS["fastsam3d_published_h6"]).items() if ".blocks.5." not in k}
    with pytest.raises(
        WeightsError, match="depth 5, width 768, 6 heads.*Nearest is fastsam3d_published_h6.*15 missing"
    ):
        recognise(shapes, "five.pth")


@pytest.mark.parametrize(
    "spoil, what",
    [
        (lambda t: torch.full_like(t, float("nan")), "not finite"),
        (lambda t: torch.full_like(t, float("-inf")), "not finite"),
        (lambda t: torch.zeros_like(t, dtype=torch.int32), "not a plain floating-point tensor"),
        (lambda t: torch.zeros_like(t).to_sparse(), "not a plain floating-point tensor"),
        (lambda t: torch.empty_like(t, device="meta"), "not a plain floating-point tensor"),
        (lambda t: torch.zeros_like(t, dtype=torch.complex64), "not a plain floating-point tensor"),
    ],
)
def test_strange_tensors_are_refused(spoil, what):
    state = dict(sample_state("fastsam3d_compact"))
    key = "mask_decoder.iou_token.weight"
    state[key] = spoil(state[key])
    with pytest.raises(WeightsError, match=f"{key} .*{what}|{key} is {what}"):
        check_fit(state, SPECS["fastsam3d_compact"], "strange.pth")
