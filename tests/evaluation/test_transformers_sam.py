"""SAM through the optional package `transformers`: a small network with random weights against a plain call of it."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from lib.cli import main
from lib.sam.evaluation.interface import ModelError, Wanted
from lib.sam.evaluation.transformers_sam import TransformersSam, _pixels, sam_version
from lib.sam.grid import Grid
from lib.sam.prompts import Box, Click, Prompts
from lib.sam.session import SessionStore
from PIL import Image

INSTALLED = importlib.util.find_spec("transformers") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="the optional package transformers is not installed")


@pytest.mark.skipif(INSTALLED, reason="the optional package transformers is installed")
def test_without_the_package_it_says_what_to_install(tmp_path, capsys):
    with pytest.raises(ModelError, match="pip install transformers"):
        sam_version("medsam", tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    arguments = ["--images", str(tmp_path / "a.png"), "--labels", str(tmp_path / "a.png"), "--out", str(tmp_path / "o")]
    assert main(["evaluate", "--model", "sam_vit_b", *arguments]) == 2
    assert "pip install transformers" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 128, "patch_size": 16,
              "output_channels": 32, "mlp_dim": 64, "global_attn_indexes": [0], "window_size": 4, "num_pos_feats": 16}  # fmt: skip
    prompt = {
        "hidden_size": 32,
        "image_size": 128,
        "patch_size": 16,
        "image_embedding_size": 8,
        "mask_input_channels": 4,
    }
    decoder = {
        "hidden_size": 32,
        "mlp_dim": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
    }
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    path = tmp_path_factory.mktemp("sam")
    SamModel(config).save_pretrained(path, safe_serialization=True)
    return path


@needs_package
def test_a_photograph_is_asked_as_the_package_would_be(folder, tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(rng.integers(0, 255, (9, 6, 3), dtype=np.uint8)).resize((60, 90)))  # 90 high
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = TransformersSam("medsam", folder)
    from lib.sam.evaluation.scans import read_scan

    with SessionStore(2**28, read=read_scan).open("a", tmp_path / "a.png") as session:
        assert session.volume.grid == Grid((60, 90, 1), np.diag([-1.0, -1, 1, 1]))
        with model.open(session, tmp_path / "a.png", Wanted(1, "disc")) as ask:
            answer = ask(Prompts((), Box((10, 20, 0), (40, 70, 0))))
            with pytest.raises(ModelError, match="box2d"):
                ask(Prompts((Click((3, 3, 0)),)))
    scale = 128 / 90
    with torch.inference_mode():
        plain = model._model(
            pixel_values=_pixels(pixels, (128, 85), 128),
            input_boxes=torch.tensor([[[10, 20, 40, 70]]]) * scale,
            multimask_output=False,
        ).pred_masks[0]
    large = torch.nn.functional.interpolate(plain, (128, 128), mode="bilinear")[..., :85]
    expected = torch.nn.functional.interpolate(large, (90, 60), mode="bilinear")[0, 0].numpy() > 0
    assert 0 < expected.mean() < 1 and (answer.mask[..., 0].T == expected).mean() > 0.999


@needs_package
def test_the_command(folder, tmp_path):
    truth = np.zeros((40, 50), np.uint8)
    truth[10:20, 5:30] = 1
    for kind, array in (("images", 100 * truth + 20), ("labels", truth)):
        (tmp_path / kind).mkdir()
        Image.fromarray(array).save(tmp_path / kind / "a.png")
    arguments = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels"), "--protocol", "box2d"]
    arguments += ["--model", "sam_vit_b", "--weights", f"sam_vit_b={folder}", "--out", str(tmp_path / "out")]
    assert main(["evaluate", *arguments]) == 0
    (row,) = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert row["model"] == "sam_vit_b" and 0 <= row["box"]["dice"] <= 1
