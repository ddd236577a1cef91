"""The next image without a model."""

import random
import time
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
from lib.activelearning.strategies import First, Random
from monailabel.datastore.local import LocalDatastore


@pytest.fixture
def datastore(tmp_path):
    for name in ("b", "a", "c"):
        nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4)), tmp_path / f"{name}.nii.gz")
    return LocalDatastore(str(tmp_path), extensions=["*.nii.gz"])


def label(datastore, image):
    datastore.save_label(image, datastore.get_image_uri(image), "final", {})


def test_first_goes_by_name_and_skips_what_is_labelled(datastore):
    for expected in ("a", "b", "c"):
        assert First()({"strategy": "first"}, datastore)["id"] == expected
        label(datastore, expected)
    assert First()({"strategy": "first"}, datastore) is None
    assert Random()({"strategy": "random"}, datastore) is None


def test_random_prefers_what_was_not_offered_lately(datastore):
    datastore.update_image_info("a", {"strategy": {"random": {"ts": int(time.time())}}})
    pick = Random(random.Random(0))
    chosen = Counter(pick({"strategy": "random"}, datastore)["id"] for _ in range(300))
    assert chosen["b"] > 100
    assert chosen["c"] > 100
    assert chosen["a"] < 5


def test_random_offers_the_last_image_again_within_a_second(datastore):
    label(datastore, "a")
    label(datastore, "b")
    for _ in range(5):
        assert Random()({"strategy": "random"}, datastore)["id"] == "c"
        datastore.update_image_info("c", {"strategy": {"random": {"ts": int(time.time()) + 1}}})


def test_strange_records_do_no_harm(datastore):
    for image, record in (("a", "x"), ("b", {"random": "yesterday"}), ("c", {"random": {"ts": "soon"}})):
        datastore.update_image_info(image, {"strategy": record if isinstance(record, dict) else {"random": record}})
    assert Random()({"strategy": "random"}, datastore)["id"] in "abc"
