"""Challenge archives: what is read, what is refused, what is written."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from lib.sam.boxes import MAX_BOXES
from lib.sam.build import build_sam2d
from lib.sam.challenge import ArchiveError, read_archive, segment_archive, write_answer
from lib.sam.slice_segmenter import SliceSegmenter
from lib.sam.zoo import get_spec2d

from tests.sam.models2d import SMALL, small_state

STACK = np.random.default_rng(0).integers(0, 256, (5, 30, 40), dtype=np.uint8)
BOXES_2D = np.array([[3, 4, 20, 22], [10, 2, 38, 29]])
BOXES_3D = np.array([[3, 4, 0, 20, 22, 2], [10, 2, 3, 38, 29, 4]])


@pytest.fixture(scope="module")
def segmenter():
    model = build_sam2d(get_spec2d(SMALL))
    model.load_state_dict(small_state())
    return SliceSegmenter(model, "untrained", "0" * 12)


@pytest.fixture
def archive(tmp_path):
    def write(**arrays):
        np.savez_compressed(tmp_path / "case.npz", **arrays)
        return tmp_path / "case.npz"

    return write


def test_a_stack(archive, segmenter):
    case = read_archive(archive(imgs=STACK, boxes=BOXES_3D, spacing=np.array([0.7, 0.7, 3])))
    assert case.is_stack
    assert case.spacing.tolist() == [0.7, 0.7, 3]
    segs, warnings = segment_archive(segmenter, case)
    assert (segs.shape, segs.dtype, warnings) == (STACK.shape, np.uint8, [])
    assert set(np.unique(segs[:3])) <= {0, 1}
    assert set(np.unique(segs[3:])) <= {0, 2}


@pytest.mark.parametrize("image", [STACK[0], np.repeat(STACK[0][..., None], 3, axis=2)], ids=["grey", "colour"])
def test_an_image(archive, segmenter, image):
    segs, _ = segment_archive(segmenter, read_archive(archive(imgs=image, boxes=BOXES_2D)))
    assert segs.shape == (30, 40)
    later = segmenter.segment_image(image, BOXES_2D[1:])[0]
    (y, x), (h, w) = later.corner, later.mask.shape
    assert (segs == 2).sum() == later.mask.sum()  # the later box is on top
    assert np.array_equal(segs[y : y + h, x : x + w] == 2, later.mask)


def test_bad_boxes_are_left_out_and_said(archive, segmenter):
    boxes = np.array([[np.nan, 4, 20, 22], [38, 29, 10, 2], [99, 2, 120, 29], [5, 5, 5, 9]])
    segs, warnings = segment_archive(segmenter, read_archive(archive(imgs=STACK[0], boxes=boxes)))
    assert set(np.unique(segs)) <= {0, 2}
    assert sum("left out" in text for text in warnings) == 3
    assert any("swapped" in text for text in warnings)


def test_thousands_of_boxes_are_refused_and_hundreds_have_room(archive, segmenter):
    many = np.tile(BOXES_2D[:1], (MAX_BOXES + 1, 1))
    with pytest.raises(ValueError, match="at most 1000 boxes"):
        segment_archive(segmenter, read_archive(archive(imgs=STACK[0], boxes=many)))
    outside = np.tile([[900, 900, 901, 901]], (256, 1))
    segs, _ = segment_archive(segmenter, read_archive(archive(imgs=STACK[0], boxes=outside)))
    assert segs.dtype == np.uint16


def test_other_numbers_are_brought_to_eight_bits(archive):
    case = read_archive(archive(imgs=STACK.astype(np.float32) * 100 - 7, boxes=BOXES_3D))
    assert case.images.dtype == np.uint8
    assert "8 bits" in case.warnings[0]
    broken = STACK.astype(np.float32)
    broken[0, 0, 0] = np.nan
    assert "not finite" in read_archive(archive(imgs=broken, boxes=BOXES_3D)).warnings[1]


@pytest.mark.parametrize(
    "arrays, what",
    [
        ({"imgs": STACK}, "must hold imgs and boxes, found imgs.npy"),
        ({"imgs": STACK, "boxes": BOXES_2D}, "imgs must be numbers .H, W"),
        ({"imgs": STACK[0], "boxes": BOXES_3D}, "imgs must be numbers .D, H, W"),
        ({"imgs": STACK, "boxes": np.zeros((2, 5))}, "boxes must be"),
        ({"imgs": STACK[:, :0], "boxes": BOXES_3D}, "imgs must be numbers"),
        ({"imgs": STACK > 9, "boxes": BOXES_3D}, "imgs must be numbers"),
        ({"imgs": np.array([object()]), "boxes": BOXES_3D}, "Python objects"),
        ({"imgs": STACK, "boxes": np.array([None])}, "Python objects"),
    ],
)
def test_what_cannot_be_used_is_said(archive, arrays, what):
    with pytest.raises(ArchiveError, match=what):
        read_archive(archive(**arrays))


def test_sizes_are_checked_before_anything_is_read(archive):
    path = archive(imgs=STACK, boxes=BOXES_3D)
    with pytest.raises(ArchiveError, match="may take 100 bytes, its header asks for 6000"):
        read_archive(path, max_bytes=100)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (50_000, 50_000)})
    with zipfile.ZipFile(path, "w") as liar:
        liar.writestr("imgs.npy", header.getvalue() + bytes(100))
        liar.writestr("boxes.npy", header.getvalue())
    with pytest.raises(ArchiveError, match="names 2500000000 bytes, the archive holds fewer"):
        read_archive(path)


def test_damaged_files_and_pickles_are_refused(tmp_path):
    with pytest.raises(ArchiveError, match="no such archive"):
        read_archive(tmp_path / "none.npz")
    np.savez_compressed(tmp_path / "x.npz", imgs=STACK, boxes=BOXES_3D)
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"imgs": 3}))
    (tmp_path / "flipped.npz").write_bytes(whole[:300] + bytes(reversed(whole[300:400])) + whole[400:])
    for name in ("half", "pickle", "flipped"):
        with pytest.raises(ArchiveError, match=f"{name}.npz: not a whole .npz archive"):
            read_archive(tmp_path / f"{name}.npz")


def test_an_answer_is_read_back(tmp_path):
    write_answer(tmp_path / "out.npz", STACK, np.ones(3))
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert np.array_equal(found["segs"], STACK)
        assert found["spacing"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"]
