"""The two-dimensional cases of the conformance set; `adapter.run` comes here for them."""

from dataclasses import replace

import numpy as np
import torch
from lib.sam.build import Sam2D, build_sam2d
from lib.sam.networks.fuse import fused_encoder
from lib.sam.slices import SliceFrame, next_slice_box2d, preprocess_image
from lib.sam.zoo import get_spec2d
from torch import nn

PARTS = {
    "litemedsam_tinyvit": "image_encoder",
    "repvit_sam_encoder": "image_encoder",
    "sam2d_prompt": "prompt_encoder",
    "sam2d_mask_decoder": "mask_decoder",
}


def run(case, spec, weights, inputs):
    """Runs one two-dimensional case, see `adapter.run`; None for others."""
    x = {key: torch.from_numpy(value) for key, value in inputs.items()}
    with torch.inference_mode():
        if case.startswith("litemedsam_encoder"):
            return _litemedsam_encoder(spec, weights, x)
        if case == "repvit_fused_weights":
            return _fused_weights(spec, weights)
        if case.startswith("repvit_encoder"):
            return _repvit_encoder(case, spec, weights, x)
        if case.startswith("prompt_encoder2d"):
            return _prompt_encoder(spec, weights, x)
        if case.startswith("mask_decoder2d"):
            return _mask_decoder(case, spec, weights, x)
        if case == "litemedsam_pipeline":
            return _pipeline(spec, weights, x)
        if case.startswith("preprocess2d_"):
            return _preprocess(spec, inputs)
        if case == "next_slice_box2d":
            return _next_slice_box(spec, inputs)
    return None


def _model(name: str, spec, weights, **changes) -> Sam2D:
    """The row of the zoo with the weights of every part that the case names."""
    model = build_sam2d(replace(get_spec2d(name), **changes))
    manifests = spec["manifest"] if isinstance(spec["manifest"], list) else [spec["manifest"]]
    for manifest in manifests:
        state = {key: torch.from_numpy(value) for key, value in weights(manifest).items()}
        getattr(model, PARTS[manifest.removesuffix("_eps")]).load_state_dict(state, strict=True)
    return model.eval()


def _named(spec, outputs: dict) -> dict:
    return {name: outputs[name].numpy() for name in spec["outputs"]}


def _litemedsam_encoder(spec, weights, x):
    encoder = _model("litemedsam", spec, weights).image_encoder
    outputs = {"out": encoder(x["x"])}
    if len(spec["outputs"]) > 1:
        outputs["patch_embed"], *stages = encoder.stages(x["x"])
        # The reference holds tokens: (B, h * w, C).
        outputs.update({f"after_layer{i}": stage.flatten(2).transpose(1, 2) for i, stage in enumerate(stages)})
    return _named(spec, outputs)


def _repvit_encoder(case, spec, weights, x):
    encoder: nn.Module = _model("repmedsam_grid16", spec, weights).image_encoder
    if case == "repvit_encoder_fused":
        encoder = fused_encoder(encoder)
    outputs = {"out": encoder(x["x"])}
    if len(spec["outputs"]) > 1:
        outputs.update({f"after_feature{i}": stage for i, stage in enumerate(encoder.stages(x["x"]))})
    return _named(spec, outputs)


def _fused_weights(spec, weights):
    return _named(spec, fused_encoder(_model("repmedsam_grid16", spec, weights).image_encoder).state_dict())


def _prompt_encoder(spec, weights, x):
    name = "repmedsam_grid16" if spec["outputs"]["dense_pe"]["shape"][-1] == 16 else "litemedsam"
    encoder = _model(name, spec, weights).prompt_encoder
    sparse, dense = encoder(boxes=x["box"])
    outputs = {"box/sparse": sparse, "box/dense_nomask": dense, "dense_pe": encoder.dense_position()}
    if "points3" in x:
        points = (x["points3"], x["labels3"])
        outputs["boxes3/sparse"] = encoder(boxes=x["boxes3"])[0]
        outputs["points3/sparse"] = encoder(points)[0]
        outputs["points_and_box/sparse"] = encoder(points, x["box"])[0]
        outputs["mask/dense"] = encoder(mask=x["mask"])[1]
    return _named(spec, outputs)


def _mask_decoder(case, spec, weights, x):
    model = _model("repmedsam_grid16" if case.endswith("_grid16") else "litemedsam", spec, weights)
    answers = {
        "single": model.decode(x["image_embedding"], boxes=x["box"]),
        "multi": model.decode(x["image_embedding"], boxes=x["box"], multimask=True),
        "boxes3": model.decode(x["image_embedding"], boxes=x["boxes3"]),
    }
    return _named(
        spec, {f"{name}/{part}": value for name, pair in answers.items() for part, value in zip(("masks", "iou"), pair)}
    )


def _pipeline(spec, weights, x):
    # In float64, like the reference's counts: one logit is 6e-7, and float32 may put it on the other side of 0.
    model = _model("litemedsam", spec, weights).double()
    frame = SliceFrame(tuple(spec["facts"]["original"]), model.spec.image_size)
    lowres, iou = model.decode(model.encode(x["x"].double()), boxes=x["box"].double())
    full = frame.logits_to_source(lowres)
    facts = {
        "voxels_gt_0": int((full > 0).sum()),
        "within_1e-3_of_0": int((full.abs() < 1e-3).sum()),
        "resized": list(frame.resized),
        "original": list(full.shape[-2:]),
    }
    return {**_named(spec, {"lowres": lowres, "iou": iou, "full_logits": full}), "__facts__": facts}


def _preprocess(spec, inputs):
    image = np.moveaxis(inputs["image"][0], 0, -1)
    frame = SliceFrame(image.shape[:2])
    box = spec["facts"]["box"]
    facts = {"resized": list(frame.resized), "box": box, "box256": frame.boxes_to_model(box).tolist()}
    return {"out": preprocess_image(image)[None], "__facts__": facts}


def _next_slice_box(spec, inputs):
    facts = {
        name: next_slice_box2d(inputs["mask"], published_label=int(name.removeprefix("label_value_"))).tolist()
        for name in spec["facts"]
    }
    return {"__facts__": facts}
