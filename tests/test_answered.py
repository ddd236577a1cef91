"""Which way round an exported label lies, told by what the server had answered."""

import numpy as np
import pytest
from lib.answered import Answered, Profile

IMAGE = "1.2.3"
SHAPE = (40, 36, 30)


def ball(centre, radius):
    axes = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    return sum((a - c) ** 2 for a, c in zip(axes, centre)) <= radius**2


def note(memory, mask):
    """As the server does: the part that is not empty, and its corner."""
    low = np.argwhere(mask).min(0)
    high = np.argwhere(mask).max(0) + 1
    memory.note(IMAGE, mask[tuple(map(slice, low, high))].astype(np.uint8), low.tolist())


@pytest.fixture
def memory(tmp_path):
    return Answered(tmp_path / "answered")


def test_a_label_in_reverse_is_told_from_one_that_is_not(memory, tmp_path):
    liver, kidney = ball((12, 14, 8), 7), ball((28, 20, 20), 5)
    note(memory, ball((12, 14, 8), 3))  # a first click, which was refined
    for mask in (liver, kidney):
        note(memory, mask)
    label = liver + 2 * kidney.astype(np.uint8)
    label[:3] = 0  # a little was drawn by hand
    again = Answered(tmp_path / "answered")  # the server was started again
    assert again.is_reversed(IMAGE, label) is False
    assert again.is_reversed(IMAGE, label[:, :, ::-1]) is True


def test_what_does_not_tell_is_not_taken_for_an_answer(memory):
    mask = ball((12, 14, 8), 7)
    assert memory.is_reversed(IMAGE, mask) is None  # nothing was answered
    note(memory, ball((20, 18, 15), 6))  # nearly the same upside down
    assert memory.is_reversed(IMAGE, ball((20, 18, 14), 6)) is None
    assert memory.is_reversed(IMAGE, mask) is None  # drawn by hand elsewhere
    assert memory.is_reversed(IMAGE, np.zeros(SHAPE, np.uint8)) is None
    assert memory.is_reversed("1.2.4", ball((20, 18, 15), 6)) is None


def test_the_same_slices_elsewhere_in_the_plane_do_not_agree():
    one, other = Profile.of(ball((10, 10, 8), 6)), Profile.of(ball((28, 26, 8), 6))
    assert one.agreement(one) == 1.0
    assert one.agreement(other) == 0.0
    assert one.reversed(30).agreement(Profile.of(ball((10, 10, 8), 6)[:, :, ::-1])) == 1.0


def test_a_damaged_line_is_passed_over(memory, tmp_path):
    file = tmp_path / "answered" / f"{IMAGE}.jsonl"
    note(memory, ball((12, 14, 8), 7))
    file.write_bytes(file.read_bytes()[:20])  # as a power cut leaves it
    assert memory.is_reversed(IMAGE, ball((12, 14, 8), 7)) is None
    file.write_bytes(b"\xff\x00\n7\n[1, [], 3]\n")
    note(memory, ball((12, 14, 8), 7))
    assert memory.is_reversed(IMAGE, ball((12, 14, 8), 7)) is False


def test_memory_is_bounded(memory, tmp_path):
    for n in range(100):
        note(memory, ball((12, 14, 5 + n % 3), 5))
    assert len(memory._read(IMAGE)) == 32
    assert len((tmp_path / "answered" / f"{IMAGE}.jsonl").read_text().splitlines()) <= 64
    assert memory._read(IMAGE)[-1].agreement(Profile.of(ball((12, 14, 5), 5))) == 1.0
    last, again = memory._read(IMAGE)[-1], Answered(tmp_path / "answered")
    note(again, ball((12, 14, 9), 5))
    assert again._read(IMAGE)[-1].agreement(Profile.of(ball((12, 14, 9), 5))) == 1.0
    assert again._read(IMAGE)[-2].as_lists() == last.as_lists()


def test_what_cannot_be_written_is_only_a_memory_less(tmp_path):
    (tmp_path / "answered").write_text("a file where the folder should be")
    memory = Answered(tmp_path / "answered")
    note(memory, ball((12, 14, 8), 7))
    assert memory.is_reversed(IMAGE, ball((12, 14, 8), 7)) is None
