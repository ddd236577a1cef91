"""Prompt encoder, mask decoder and builder of the 2D models."""

import json
from dataclasses import replace

import pytest
import torch
from lib.sam.build import Sam2D, build_sam2d
from lib.sam.networks.prompt_maps import likeness, prompt_maps
from lib.sam.spec import Decoder2dSpec, RepVitSpec, Sam2dSpec
from lib.sam.zoo import SPECS, SPECS_2D, get_spec2d

from tests.sam.counting import multiply_adds, parameters

ENCODER = RepVitSpec(image_size=64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), out=32)
SMALL = Sam2dSpec("small", ENCODER, Decoder2dSpec(width=32, heads=4, mlp_width=64, iou_width=32), upsampling=2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_sam2d(SMALL).eval()


@pytest.fixture
def embedding(model):
    return torch.randn(1, 32, SMALL.grid, SMALL.grid)


BOXES = torch.tensor([[4.0, 8, 40, 50], [0, 0, 63, 63], [10, 11, 12, 30]])


def test_published_files_load_strictly(shared_dir):
    """Names, shapes and order of LiteMedSAM's, RepViT-SAM's and RepMedSAM's tensors."""
    checkpoints = json.loads((shared_dir / "conformance" / "checkpoints.json").read_text())
    rows = {"LiteMedSAM": "litemedsam", "RepViT-SAM": "repmedsam", "RepMedSAM (as inferred)": "repmedsam_grid16"}
    found = [c for c in checkpoints if c["name"] in rows]
    assert len(found) == 3
    for checkpoint in found:
        with torch.device("meta"):
            network = Sam2D(get_spec2d(rows[checkpoint["name"]]))
        expected = {}
        for part in checkpoint["parts"]:
            manifest = json.loads((shared_dir / "conformance" / "manifests" / f"{part['manifest']}.json").read_text())
            expected |= {part["prefix"] + key: tuple(shape) for key, shape, *_ in manifest["tensors"]}
        assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == expected
        assert len(expected) == checkpoint["num_tensors"] and parameters(network) == checkpoint["num_parameters"]


def test_published_size_of_the_decoder():
    with torch.device("meta"):
        model = Sam2D(get_spec2d("litemedsam")).eval().requires_grad_(False)
        embedding, box = torch.zeros(1, 256, 64, 64), torch.zeros(1, 4)
    assert parameters(model.mask_decoder) == 4_058_340 and parameters(model.prompt_encoder) == 6_220
    assert round(multiply_adds(lambda: model.decode(embedding, boxes=box), attention=True), 2) == 1.82


@pytest.mark.parametrize("name", SPECS_2D)
def test_every_row_has_the_shapes_that_its_spec_says(name):
    spec = get_spec2d(name)
    with torch.device("cpu" if spec.decoder.grow else "meta"), torch.no_grad():  # growing asks for values
        model = Sam2D(spec).eval()
        embedding = model.encode(torch.zeros(1, 3, spec.image_size, spec.image_size))
        logits, iou = model.decode(embedding, boxes=torch.zeros(3, 4))
    channels = spec.encoder.out + (16 * (3 + spec.encoder.detail) if spec.encoder.detail else 0)
    assert embedding.shape == (1, channels, spec.grid, spec.grid) and spec.encoder.out == spec.decoder.width
    assert logits.shape == (3, 1, spec.mask_size, spec.mask_size) and iou.shape == (3, 1)
    assert spec.grid == (16 if name.endswith("grid16") else 32 if name.endswith("compact") else 64)
    assert spec.decoder.refine == spec.encoder.detail


def test_rows_of_both_dimensions_stay_apart():
    assert not SPECS.keys() & SPECS_2D.keys() and all(name == spec.name for name, spec in SPECS_2D.items())
    with pytest.raises(KeyError, match="known: litemedsam, repmedsam"):
        get_spec2d("fastsam3d_compact")


def test_a_box_is_two_corners(model):
    encoder = model.prompt_encoder
    corners = BOXES.reshape(3, 2, 2), torch.tensor([[2, 3]] * 3)
    boxes, _ = encoder(boxes=BOXES)
    points, _ = encoder(points=corners)
    assert boxes.shape == (3, 2, 32) and torch.equal(points[:, :2], boxes)
    assert torch.equal(encoder(boxes=BOXES[:, None, None])[0], boxes)


def test_a_padding_point_follows_points_without_a_box(model):
    encoder = model.prompt_encoder
    points = torch.rand(2, 3, 2) * 60, torch.tensor([[1, 0, 1], [0, 1, -1]])
    alone, _ = encoder(points)
    assert alone.shape == (2, 4, 32)
    assert torch.equal(alone[1, 2], encoder.not_a_point_embed.weight[0]) and torch.equal(alone[0, 3], alone[1, 2])
    with_box, _ = encoder(points, BOXES[:2])
    assert torch.equal(with_box[:, :3], alone[:, :3]) and torch.equal(with_box[:, 3:], encoder(boxes=BOXES[:2])[0])


def test_x_runs_along_columns(model):
    """A point meets the dense encoding of the cell that it lies in."""
    encoder = model.prompt_encoder
    cell = SMALL.image_size // SMALL.grid
    point = torch.tensor([[[5 * cell + (cell - 1) / 2, 2 * cell + (cell - 1) / 2]]])
    sparse = encoder((point, torch.tensor([[1]])))[0][0, 0] - encoder.point_embeddings[1].weight[0]
    assert torch.allclose(sparse, encoder.dense_position()[0, :, 2, 5], atol=1e-5)


def test_no_prompt_but_a_mask(model, embedding):
    mask = torch.randn(2, 1, SMALL.mask_size, SMALL.mask_size)
    sparse, dense = model.prompt_encoder(mask=mask)
    assert sparse.shape == (2, 0, 32) and dense.shape == (2, 32, SMALL.grid, SMALL.grid)
    logits, _ = model.decode(embedding, mask=mask)
    assert logits.shape == mask.shape and not torch.allclose(logits[0], logits[1])


def test_boxes_of_one_image_share_its_embedding(model, embedding):
    together, iou = model.decode(embedding, boxes=BOXES)
    repeated, _ = model.decode(embedding.expand(3, -1, -1, -1), boxes=BOXES)
    for i in range(3):
        alone, one = model.decode(embedding, boxes=BOXES[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4) and torch.allclose(iou[i], one[0], atol=1e-4)
    assert torch.allclose(together, repeated, atol=1e-4)


def test_boxes_of_several_images(model):
    embeddings = torch.randn(3, 32, SMALL.grid, SMALL.grid)
    together, _ = model.decode(embeddings, boxes=BOXES)
    for i in range(3):
        alone, _ = model.decode(embeddings[i : i + 1], boxes=BOXES[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)


def test_three_masks_or_one(model, embedding):
    one, iou_one = model.decode(embedding, boxes=BOXES)
    three, iou_three = model.decode(embedding, boxes=BOXES, multimask=True)
    assert one.shape[1] == iou_one.shape[1] == 1 and three.shape[1] == iou_three.shape[1] == 3


def test_the_embedding_is_enlarged_without_parameters(model):
    plain = build_sam2d(replace(SMALL, upsampling=1)).eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(1, 3, 64, 64)
    small, large = plain.encode(x), model.encode(x)
    assert small.shape[-1] == 4 and large.shape[-1] == 8
    assert small.min() <= large.min() and large.max() <= small.max()  # interpolated
    # Outer corners aligned: a cell of the small embedding covers 2 x 2 cells of the large one.
    assert torch.allclose(large[..., 0, 0], small[..., 0, 0]) and torch.allclose(large[..., -1, -1], small[..., -1, -1])
    assert plain.decode(small, boxes=BOXES)[0].shape[-1] == 16 and model.decode(large, boxes=BOXES)[0].shape[-1] == 32


def test_every_weight_of_the_decoder_learns(model):
    model.train()
    embedding = model.encode(torch.rand(2, 3, 64, 64))
    points = torch.rand(2, 2, 2) * 60, torch.tensor([[1, 0], [0, -1]])
    mask = torch.randn(2, 1, SMALL.mask_size, SMALL.mask_size)
    loss = 0
    for prompts in ({"boxes": BOXES[:2]}, {"points": points, "mask": mask}):
        for multimask in (False, True):
            logits, iou = model.decode(embedding, multimask=multimask, **prompts)
            loss = loss + logits.square().mean() + iou.square().mean()
    loss.backward()
    parts = (model.prompt_encoder, model.mask_decoder)
    dead = [n for part in parts for n, p in part.named_parameters() if p.grad is None or not p.grad.any()]
    # The softmax is blind to a shift that all keys share.
    assert [name for name in dead if not name.endswith("k_proj.bias")] == []


def test_likeness_tells_the_object_in_a_box_from_what_is_around_it():
    image = torch.full((1, 3, 64, 64), 0.3)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = (y - 30) ** 2 + (x - 20) ** 2 <= 100
    image[:, :, disc] = 0.7
    box = torch.tensor([[[20.0, 10.0], [40.0, 30.0]]])  # rows, columns
    maps = prompt_maps(box, torch.tensor([[2, 3]]), None, 64, 1.0)
    assert maps[0, 3].sum() == 21 * 21 and maps[0, :3].abs().max() == 0
    object_like, around_like, prevails = likeness(image, maps)[0]
    assert object_like[disc].min() > 0.5 > object_like[~disc].max()
    assert around_like[~disc].min() > 0.5 and (prevails[disc] > 0.5).all() and (prevails[~disc] < -0.5).all()
    clicks = prompt_maps(torch.tensor([[[30.0, 20.0], [5.0, 50.0]]]), torch.tensor([[1, 0]]), None, 64, 1.0)
    assert (likeness(image, clicks)[0, 2][disc] > 0.5).all()
