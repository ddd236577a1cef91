"""The MONAI Label module of 3D Slicer, as the server sees it: its client, its calls, its order of calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from lib.sam.prompts import Click
from monailabel.client import MONAILabelClient

EXTENSION = ".nrrd"


class Slicer:
    """One user's session with the module.

    Args:
        url: the server's address.
        folder: for answers; it must exist.
        model: the model of the SmartEdit section.
    """

    def __init__(self, url: str, folder: Path, model: str = "fastsam3d") -> None:
        self.model, self.folder = model, folder
        self._url = url
        self.info: dict[str, Any] = {}

    def client(self) -> MONAILabelClient:
        """A new client for each call, which first asks whether a login is needed."""
        client = MONAILabelClient(self._url, str(self.folder), "slicer-user")
        assert client.auth_enabled() is False
        return client

    def connect(self) -> dict[str, Any]:
        """The connect button: what the server offers, and whether a training runs."""
        self.info = self.client().info()
        self.training()
        return self.info

    def training(self) -> bool:
        """Whether a training runs; asked after each inference."""
        return self.client().train_status(True)

    def next_sample(self, strategy: str) -> dict[str, Any]:
        """The next-sample button."""
        return self.client().next_sample(strategy, {})

    def upload(self, volume: Path) -> str:
        """Sends a volume that is not among the studies; returns the session's id."""
        return self.client().create_session(str(volume))["session_id"]

    def click(
        self,
        image: str,
        label: str,
        clicks: list[Click],
        roi: list[int] | None = None,
        session: str | None = None,
        reset: bool = False,
    ) -> tuple[Path, dict[str, Any]]:
        """What each click sends, with all clicks so far; returns the answer's file and parameters."""
        params: dict[str, Any] = {
            "label": label,
            "foreground": [list(c.ijk) for c in clicks if c.positive],
            "background": [list(c.ijk) for c in clicks if not c.positive],
            "reset_state": reset,
        }
        if roi:
            params["roi"] = roi
        if self.info["models"][self.model]["dimension"] == 2:
            # The slice of the last point; its other points stay at home. Without a point there is no slice.
            at = clicks[-1].ijk[2] if clicks else None
            params |= {key: [p for p in params[key] if p[2] == at] for key in ("foreground", "background")}
            params["slice"] = at
        for key, value in self.info["models"][self.model]["config"].items():
            params[key] = value[0] if isinstance(value, list) else value
        params |= {"result_extension": EXTENSION, "result_dtype": "uint8"}
        if session:
            assert self.client().get_session(session)["image"]
        file, answer = self.client().infer(self.model, image, params, None, None, session)
        self.training()
        return Path(file), answer

    def mask(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """As `click`: (I, J, K) bool."""
        file, _ = self.click(*args, **kwargs)
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).transpose(2, 1, 0)
        file.unlink()
        return voxels > 0

    def save(self, image: str, label: Path, names: dict[str, int]) -> dict[str, Any]:
        """The submit button: a label map with the names of its values becomes the study's final label."""
        info = [{"name": name, "idx": value} for name, value in names.items()]
        return self.client().save_label(image, str(label), params={"label_info": info})
