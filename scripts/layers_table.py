"""What the layers of the 3D encoder contribute to the default model: Dice with them, without them, without an
embedding, and with other cases' images.

    .venv/bin/python scripts/layers_table.py [--weights NAME] [--cases 8]

Generated cases that no training draws; the mask grid's cells after 1, 3 and 5 simulated clicks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "apps" / "fastsam3d"))

from lib.conf import DEFAULT_MODEL, MODEL_DIR  # noqa: E402
from lib.sam import weights  # noqa: E402
from lib.sam.build import Sam3D  # noqa: E402
from lib.sam.training.pretrain import dice_per_click, validation_cases, with_others_images  # noqa: E402


class WithoutEmbedding(nn.Module):
    """An encoder that keeps the stem's features and gives zeros for the embedding."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward_features(self, x: Tensor, window: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As ImageEncoder3D's."""
        embedding, skips = self.encoder.forward_features(x, window)
        return torch.zeros_like(embedding), skips


def without_layers(model: Sam3D) -> Sam3D:
    """Takes the layers out; tokens go from the stem to the neck."""
    model.image_encoder.blocks = nn.ModuleList()
    return model


def without_embedding(model: Sam3D) -> Sam3D:
    """Makes the embedding zero."""
    model.image_encoder = WithoutEmbedding(model.image_encoder)
    return model


def main() -> int:
    """Prints a line a form."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", help="a name or a file (default: what the server would use)")
    parser.add_argument("--cases", type=int, default=8, help="generated cases (default: %(default)s)")
    args = parser.parse_args()
    found = weights.resolve(DEFAULT_MODEL, MODEL_DIR, configured=args.weights)
    cases = validation_cases(found.spec, args.cases)
    for name, change, shown in (
        ("as it is", lambda model: model, cases),
        ("other cases' images", lambda model: model, with_others_images(cases)),
        ("without layers", without_layers, cases),
        ("without an embedding", without_embedding, cases),
    ):
        scores = dice_per_click(change(weights.load_sam(found)).eval(), shown)
        sys.stdout.write(f"{name:22s} " + "  ".join(f"{key} {value:.4f}" for key, value in scores.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
