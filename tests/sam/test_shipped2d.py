"""The weights for slices that ship: size, fused form, and that they do more than fill the box."""

import torch
from lib.sam.anatomy.fields import Draw
from lib.sam.anatomy.pictures import Easel
from lib.sam.networks.fuse import TOLERANCE, disagreement, fuse
from lib.sam.weights import load_sam, resolve


def _load(app_dir):
    found = resolve("repmedsam", app_dir / "model", configured="repmedsam-compact-v2")
    return found, load_sam(found, "cpu")


def test_shipped_weights_fit_their_limit_and_agree_in_both_forms(app_dir):
    found, model = _load(app_dir)
    assert found.spec.name == "repmedsam_compact" and len(found.paths) == 2
    assert all(path.stat().st_size <= 16 * 2**20 for path in found.paths)
    images = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(7))
    assert disagreement(model.image_encoder, fuse(model.image_encoder), images) <= TOLERANCE


def test_a_box_around_a_plain_object_gives_the_object(app_dir):
    _, model = _load(app_dir)
    easel = Easel(Draw(3), 256)
    easel.image += 0.3
    window, level = easel.blob((120.0, 140.0), (60.0, 35.0))
    easel.paint(window, level, torch.full((3, 256, 256), 0.75), 1.0)
    easel.claim(window, level < 0)
    truth = easel.label > 0
    rows, columns = (truth.any(axis).nonzero().flatten() for axis in (1, 0))
    box = torch.tensor([[columns[0], rows[0], columns[-1], rows[-1]]], dtype=torch.float32)
    with torch.no_grad():
        logits, _ = model.decode(model.encode(easel.image[None]), boxes=box)
    logits = torch.nn.functional.interpolate(logits, (256, 256), mode="bilinear", align_corners=False)
    mask = logits[0, 0] > 0
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) >= 0.95
    filled = torch.zeros_like(truth)
    filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert 2 * (filled & truth).sum() / (filled.sum() + truth.sum()) < 0.9
