"""What the training loops share: a checkpoint is whole, or the old one stays."""

import resource

import pytest
import torch
from lib.sam.training.loop import save_atomic


@pytest.mark.parametrize("room", [0, 1000, 1 << 20])
def test_a_checkpoint_on_a_full_disk_says_so_and_leaves_the_old_one(tmp_path, room):
    path = tmp_path / "checkpoint.pt"
    save_atomic({"step": 1}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_atomic({"step": 2, "model": torch.zeros(1 << 20), "average": torch.zeros(1 << 20)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert torch.load(path, weights_only=True) == {"step": 1}
