"""Scans are read at a low priority, and nothing else of the process loses its own."""

import os
import sys
import threading

import nibabel as nib
import numpy as np
import pytest
from lib import gentle
from lib.sam.volume_io import VolumeError


def test_the_scan_is_what_read_volume_gives(tmp_path):
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    assert np.array_equal(gentle.read_gently(tmp_path / "scan.nii.gz").array, values)
    with pytest.raises(VolumeError):
        gentle.read_gently(tmp_path / "missing.nii.gz")


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own")
def test_only_the_reader_is_gentle():
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    own = priority()
    assert gentle._reader.submit(priority).result() == min(19, max(own, 10))
    assert priority() == own
