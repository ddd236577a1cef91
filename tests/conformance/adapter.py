"""Connects the conformance set's verify.py with the app's library.

    python <shared>/conformance/verify.py --set <shared>/conformance --impl tests.conformance.adapter

Nothing is computed here: each case builds networks or calls functions of apps/fastsam3d/lib/sam and names the results.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

APP = Path(__file__).resolve().parents[2] / "apps" / "fastsam3d"
if str(APP) not in sys.path:
    sys.path.insert(0, str(APP))

from lib.sam import clicks, geometry, intensity, preprocess  # noqa: E402
from lib.sam.build import build_sam  # noqa: E402
from lib.sam.networks.attention import DenseAttention, StridedAttention  # noqa: E402
from lib.sam.networks.decoder3d import MaskDecoder3D  # noqa: E402
from lib.sam.networks.prompt3d import PromptEncoder3D  # noqa: E402
from lib.sam.networks.vit3d import ImageEncoder3D  # noqa: E402
from lib.sam.zoo import get_spec  # noqa: E402

from tests.conformance import adapter2d  # noqa: E402

STUDENT, STUDENT_12 = get_spec("fastsam3d_published_h6"), get_spec("fastsam3d_published_h12")
STRIDED = get_spec("fastsam3d_published_h6_strided")
STRIDED_FP16 = replace(STRIDED, encoder=replace(STRIDED.encoder, attention="strided_fp16"))
TEACHER, TEACHER_FASTBLOCK = get_spec("sam_med3d"), get_spec("sam_med3d_fastblock")

ENCODERS = {
    "student3d_encoder": STUDENT,
    "student3d_encoder_eps": STUDENT,
    "student3d_encoder_h12": STUDENT_12,
    "student3d_encoder_sparse": STRIDED,
    "student3d_encoder_sparse_fp16io": STRIDED_FP16,
    "teacher3d_encoder_prenorm": TEACHER,
    "teacher3d_encoder_fastblock": TEACHER_FASTBLOCK,
}
ATTENTIONS = {"dense_attention3d": DenseAttention, "sparse_attention3d": StridedAttention}
SIMULATORS = {"fast": "fastsam3d", "med3d": "sam_med3d"}


def run(case, spec, weights, inputs):
    """Runs one case: dict of output name -> array (and "__facts__"), or None for cases that are not ours."""
    handlers = {
        "znorm_batch2": _znorm,
        "clicks3d": _clicks,
        "prompt_encoder3d": _prompt_encoder,
        "prompt_encoder3d_eps": _prompt_encoder_mask,
        "mask_decoder3d": _mask_decoder,
        "mask_decoder3d_eps": _mask_decoder_single,
    }
    with torch.inference_mode():
        if case in ENCODERS:
            return _encoder(ENCODERS[case], spec, weights, inputs)
        if case in ATTENTIONS:
            return _attention(ATTENTIONS[case], spec, weights, inputs)
        if case.startswith("preprocess3d_"):
            return _preprocess(spec, inputs)
        if case.startswith("pipeline3d_"):
            return _pipeline(case, weights, inputs)
        if case in handlers:
            return handlers[case](spec, weights, inputs)
    return adapter2d.run(case, spec, weights, inputs)


def _load(module: nn.Module, state: dict) -> nn.Module:
    module.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=True)
    return module.eval()


def _tensors(inputs: dict) -> dict:
    return {key: torch.from_numpy(value) for key, value in inputs.items()}


def _arrays(outputs: dict) -> dict:
    return {key: value.numpy() for key, value in outputs.items()}


def _encoder(sam_spec, spec, weights, inputs):
    encoder = _load(ImageEncoder3D(sam_spec.encoder), weights())
    x = _tensors(inputs)["x"]
    outputs = {"out": encoder(x)}
    if len(spec["outputs"]) > 1:
        stages = encoder.stages(x)
        outputs["embed"] = stages[0]
        outputs.update({f"after_block{i}": stage for i, stage in enumerate(stages) if i})
    return _arrays({name: outputs[name] for name in spec["outputs"]})


def _attention(kind, spec, weights, inputs):
    prefix = spec["facts"]["weights_prefix"]
    encoder = STUDENT.encoder
    state = {key[len(prefix) :]: value for key, value in weights().items() if key.startswith(prefix)}
    module = _load(kind(encoder.width, encoder.heads, encoder.grid, encoder.relative_position), state)
    return {"out": module(_tensors(inputs)["tokens"]).numpy(), "__facts__": {"weights_prefix": prefix}}


def _prompt_encoder(spec, weights, inputs):
    encoder, x = _load(PromptEncoder3D(STUDENT), weights()), _tensors(inputs)
    one = encoder((x["points1"], x["labels1"]), None)
    four = encoder((x["points4"], x["labels4"]), x["mask4"])
    return _arrays(
        {
            "one_point/sparse": one[0],
            "one_point/dense_nomask": one[1],
            "four_points/sparse": four[0],
            "four_points/dense_mask": four[1],
            "mask_only/dense": encoder(None, x["mask1"])[1],
            "dense_pe": encoder.dense_position(),
        }
    )


def _prompt_encoder_mask(spec, weights, inputs):
    encoder = _load(PromptEncoder3D(STUDENT), weights())
    return {"dense": encoder(None, _tensors(inputs)["mask"])[1].numpy()}


def _mask_decoder(spec, weights, inputs):
    decoder, x = _load(MaskDecoder3D(STUDENT), weights()), _tensors(inputs)
    image, pe, sparse, dense = x["image_embedding"], x["image_pe"], x["sparse"], x["dense"]
    single = decoder(image, pe, sparse, dense)
    multi = decoder(image, pe, sparse, dense, multimask=True)
    no_points = decoder(image, pe, sparse[:, :0], dense)
    batch = decoder(image, pe, torch.cat([sparse, -sparse]), dense.expand(2, -1, -1, -1, -1))
    outputs = {"single": single, "multi": multi, "no_points": no_points}
    named = {f"{name}/{part}": value for name, pair in outputs.items() for part, value in zip(("masks", "iou"), pair)}
    return _arrays({**named, "batch2/masks": batch[0]})


def _mask_decoder_single(spec, weights, inputs):
    decoder, x = _load(MaskDecoder3D(STUDENT), weights()), _tensors(inputs)
    masks, iou = decoder(x["image_embedding"], x["image_pe"], x["sparse"], x["dense"])
    return _arrays({"masks": masks, "iou": iou})


def _pipeline(case, weights, inputs):
    model = build_sam(STUDENT)
    _load(model.image_encoder, weights("student3d_encoder_h6"))
    _load(model.prompt_encoder, weights("prompt3d"))
    _load(model.mask_decoder, weights("mask_decoder3d"))
    x = _tensors(inputs)
    embedding = model.encode(x["x"])
    count = 1 if case == "pipeline3d_1click" else 3
    points = torch.cat([x[f"point{i + 1}"] for i in range(count)], dim=1)
    labels = torch.cat([x[f"label{i + 1}"] for i in range(count)], dim=1)
    shown = {  # which clicks each round passes on
        "pipeline3d_3click_all_points": [slice(0, i + 1) for i in range(count)],
        "pipeline3d_3click_oneshot": [slice(0, count)],
    }.get(case, [slice(i, i + 1) for i in range(count)])
    logits = torch.zeros(1, 1, *(STUDENT.mask_size,) * 3)
    outputs = {}
    for i, chosen in enumerate(shown, start=1):
        logits, iou = model.decode(embedding, (points[:, chosen], labels[:, chosen]), logits)
        outputs[f"click{i}/lowres"], outputs[f"click{i}/iou"] = logits, iou
        outputs[f"click{i}/full_logits"] = F.interpolate(logits, size=(STUDENT.patch_size,) * 3, mode="trilinear")
    return _arrays(outputs)


def _znorm(spec, weights, inputs):
    return {"out": intensity.znorm_positive(inputs["x"])}


def _clicks(spec, weights, inputs):
    target = inputs["gt"] > 0
    facts = {}
    for name in spec["facts"]:
        if "/" not in name:
            continue
        simulator, rule = name.partition("/")[0].split("_")
        logits = inputs["prev_logits"][0, 0]
        pred = clicks.simulator_mask(logits, SIMULATORS[simulator])
        if name.endswith("/first"):
            pred = np.zeros_like(pred)
        drawn = [clicks.next_click(pred, target, np.random.RandomState(seed), rule) for seed in range(8)]
        facts[name] = {
            "points_xyz_label_for_seed_0_to_7": [[*click.ijk, int(click.positive)] for click in drawn],
            "candidates": len(clicks.click_candidates(pred, target, rule)[0]),
        }
    return {"__facts__": facts}


def _preprocess(spec, inputs):
    image, label = inputs["image"], inputs["label"]
    grid = geometry.Grid(image.shape, spec["facts"]["affine"])
    resampled, resampled_grid = preprocess.resample_published(image, grid)
    canonical, canonical_grid = preprocess.to_canonical(resampled, resampled_grid)
    frame = preprocess.frame_around_mask(label, grid)
    patch, label_patch = frame.crop(image), frame.crop(label, order=0)
    normalised = intensity.znorm_positive(patch)
    back = preprocess.label_back(label_patch, frame)
    return {
        "resampled_image": resampled[None],
        "roi_image": normalised[None, None],
        "roi_label": label_patch[None, None],
        "label_back": back,
        "__facts__": {
            "resampled_shape": list(resampled.shape),
            "resampled_affine": resampled_grid.affine.tolist(),
            "canonical_shape": list(canonical.shape),
            "canonical_affine": canonical_grid.affine.tolist(),
            "roi_affine": frame.patch_grid.affine.tolist(),
            "positive_voxels": np.count_nonzero(patch > 0),
            "label_voxels_input": np.count_nonzero(label),
            "label_voxels_resampled": np.count_nonzero(preprocess.resample_published(label, grid, order=0)[0]),
            "label_voxels_roi": np.count_nonzero(label_patch),
            "label_voxels_back": np.count_nonzero(back),
        },
    }
