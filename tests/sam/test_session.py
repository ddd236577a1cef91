"""Resident images: read once, bounded, never mixed up."""

import os
import threading
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from lib.prefetch import WAITING, Prefetch
from lib.sam.preprocess import VolumeError, read_volume
from lib.sam.session import SessionStore, content_identity, size_in_bytes

VOXELS = 10 * 12 * 14
BYTES = VOXELS * 2


def write_image(path, value=0):
    nib.save(nib.Nifti1Image(np.full((10, 12, 14), value, np.int16), np.eye(4)), path)
    return path


@pytest.fixture
def images(tmp_path):
    return [write_image(tmp_path / f"{n}.nii", n) for n in range(4)]


class CountingReader:
    """Reads for real, counts the reads, and can be slow."""

    def __init__(self, seconds=0.0):
        self.reads = []
        self.seconds = seconds

    def __call__(self, path, max_bytes):
        self.reads.append(str(path))
        time.sleep(self.seconds)
        return read_volume(path, max_bytes=max_bytes)


def first_voxel(store, image_id, path):
    with store.open(image_id, path) as session:
        return int(session.volume.array[0, 0, 0])


def test_an_image_is_read_once(images):
    reader = CountingReader()
    store = SessionStore(10**9, reader)
    for _ in range(3):
        assert first_voxel(store, "one", images[1]) == 1
    assert len(reader.reads) == 1
    assert store.nbytes == BYTES


def test_two_ids_of_one_content_share_it(images, tmp_path):
    reader = CountingReader()
    store = SessionStore(10**9, reader)
    os.symlink(images[2], tmp_path / "link.nii")
    assert first_voxel(store, "a", images[2]) == first_voxel(store, "b", tmp_path / "link.nii") == 2
    assert len(reader.reads) == len(store) == 1


def test_a_replaced_file_is_read_again_and_the_old_content_goes(images):
    store = SessionStore(10**9)
    with store.open("x", images[1]) as session:
        session.put("embedding", np.zeros(1000))
    os.replace(write_image(images[1].with_name("new.nii"), 77), images[1])
    with store.open("x", images[1]) as session:
        assert session.volume.array[0, 0, 0] == 77
        assert session.get("embedding") is None
    assert len(store) == 1
    assert store.nbytes == BYTES


def test_a_file_that_changes_while_it_is_read_is_not_kept_as_its_old_self(images):
    def read(path, max_bytes):
        volume = read_volume(path, max_bytes=max_bytes)
        if volume.array[0, 0, 0] == 1:
            os.replace(write_image(images[1].with_name("new.nii"), 5), images[1])
        return volume

    store = SessionStore(10**9, read)
    assert first_voxel(store, "x", images[1]) == 5
    assert len(store) == 1


def test_a_file_that_never_holds_still_is_an_error(images):
    def read(path, max_bytes):
        volume = read_volume(path, max_bytes=max_bytes)
        write_image(images[1], int(volume.array[0, 0, 0]) + 1)
        os.utime(images[1], ns=(time.time_ns(), time.time_ns()))
        return volume

    store = SessionStore(10**9, read)
    with pytest.raises(VolumeError, match="changed each time it was read"):
        first_voxel(store, "x", images[1])
    assert (len(store), store.nbytes) == (0, 0)


def test_the_least_recently_used_image_goes_first(images):
    reader = CountingReader()
    store = SessionStore(2 * BYTES, reader)
    for n in (0, 1, 0, 2, 0, 1):
        assert first_voxel(store, str(n), images[n]) == n
        assert store.nbytes <= 2 * BYTES
    assert [os.path.basename(p) for p in reader.reads] == ["0.nii", "1.nii", "2.nii", "1.nii"]


def test_an_image_in_use_is_never_dropped(images):
    store = SessionStore(2 * BYTES)
    first_voxel(store, "2", images[2])
    with store.open("0", images[0]) as first:
        with store.open("1", images[1]) as second:
            assert (first.volume.array[0, 0, 0], second.volume.array[0, 0, 0]) == (0, 1)
            assert len(store) == 2
    assert store.nbytes == 2 * BYTES


def test_an_image_that_does_not_fit_beside_those_in_use_waits_until_they_are_left(images):
    store, found = SessionStore(BYTES), []
    with store.open("0", images[0]):
        thread = threading.Thread(target=lambda: found.append(first_voxel(store, "1", images[1])))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert store.nbytes == BYTES
    thread.join(10)
    assert found == [1]
    assert store.nbytes == BYTES


def test_waiting_for_memory_ends(images, monkeypatch):
    monkeypatch.setattr("lib.sam.session._WAIT_SECONDS", 0.1)
    store = SessionStore(BYTES)
    with store.open("0", images[0]):
        with pytest.raises(MemoryError, match="others have open"):
            first_voxel(store, "1", images[1])
    assert first_voxel(store, "1", images[1]) == 1


def test_values_count_and_the_oldest_goes_first(images):
    store = SessionStore(BYTES + 250)
    with store.open("0", images[0]) as session:
        session.put("a", np.zeros(100, np.uint8))
        session.put("b", torch.zeros(25, dtype=torch.float32))
        assert store.nbytes == session.nbytes == BYTES + 200
        session.get("a")
        session.put("c", np.zeros(100, np.uint8))
        assert session.get("b") is None
        assert session.get("a") is not None
        assert session.get("c") is not None
        session.put("c", np.zeros(10, np.uint8))
        assert session.nbytes == BYTES + 110
        session.put("too large", np.zeros(251, np.uint8))
        assert session.get("too large") is None
        session.forget("a")
        session.forget("never there")
        assert store.nbytes == session.nbytes <= BYTES + 250


def test_a_value_makes_idle_images_go_before_other_values(images):
    store = SessionStore(2 * BYTES)
    first_voxel(store, "1", images[1])
    with store.open("0", images[0]) as session:
        session.put("a", np.zeros(50, np.uint8))
        session.put("b", np.zeros(50, np.uint8))
        assert session.get("a") is not None
        assert session.get("b") is not None
    assert len(store) == 1


def test_values_can_be_forgotten_while_the_images_stay(images):
    reader = CountingReader()
    store = SessionStore(10**9, reader)
    with store.open("0", images[0]) as idle:
        idle.put("a", "v", nbytes=8)
    with store.open("1", images[1]) as busy, store.open("2", images[2]) as session:
        busy.put("a", "v", nbytes=8)
        session.put("a", "v", nbytes=8)
        session.put("b", "v", nbytes=8)
        store.forget_values(session)
        assert (idle.get("a"), session.get("a"), session.get("b")) == (None, None, None)
        assert busy.get("a") == "v"  # in use by somebody else
        assert store.nbytes == 3 * BYTES + 8
    assert first_voxel(store, "0", images[0]) == 0
    assert len(reader.reads) == 3


def test_an_opening_tells_whether_it_read(images):
    store = SessionStore(10**9, CountingReader(seconds=0.01))
    with store.open("0", images[0]) as session:
        assert session.read_seconds >= 0.01
    with store.open("0", images[0]) as session:
        assert session.read_seconds is None


def test_an_image_larger_than_the_budget_names_both_remedies(images):
    with pytest.raises(VolumeError, match=f"may take {BYTES - 1} bytes.*asks for {BYTES}.*crop.*--conf cache_gb"):
        first_voxel(SessionStore(BYTES - 1), "x", images[0])


def test_many_threads_read_once_and_never_meet_inside_one_image(images):
    reader = CountingReader(seconds=0.05)
    store = SessionStore(10**9, reader)
    inside, most, results = [], [], []

    def work():
        with store.open("0", images[0]) as session:
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            results.append(int(session.volume.array.sum()))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(12)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(reader.reads) == 1
    assert max(most) == 1
    assert results == [0] * 12


def test_two_images_do_not_wait_for_each_other(images):
    store = SessionStore(10**9)
    with store.open("0", images[0]):
        done = threading.Event()
        thread = threading.Thread(target=lambda: (first_voxel(store, "1", images[1]), done.set()))
        thread.start()
        assert done.wait(5)
        thread.join()


def test_random_traffic_stays_bounded_and_right(images):
    store = SessionStore(2 * BYTES + 500)
    errors = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(40):
            n = int(rng.integers(4))
            with store.open(str(n), images[n]) as session:
                size = int(rng.integers(1, 300))
                value = session.get(("v", size))
                if value is None:
                    value = np.full(size, n, np.uint8)
                    session.put(("v", size), value)
                if session.volume.array[0, 0, 0] != n or (value != n).any():
                    errors.append(n)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors
    assert store.nbytes <= store.max_bytes
    assert store.nbytes == sum(s.nbytes for s in store._sessions.values())
    for session in store._sessions.values():
        assert session.nbytes == BYTES + sum(size for _, size in session._values.values())


def test_errors_leave_nothing_behind(images, tmp_path):
    store = SessionStore(10**9)
    with pytest.raises(VolumeError, match="readable file or folder"):
        first_voxel(store, "x", tmp_path / "missing.nii")
    (tmp_path / "damaged.nii").write_bytes(b"not an image")
    with pytest.raises(VolumeError):
        first_voxel(store, "x", tmp_path / "damaged.nii")
    with pytest.raises(VolumeError):
        first_voxel(SessionStore(BYTES - 1), "x", images[0])
    assert (len(store), store.nbytes) == (0, 0)
    with pytest.raises(ZeroDivisionError), store.open("0", images[0]):
        raise ZeroDivisionError
    assert first_voxel(store, "0", images[0]) == 0
    with pytest.raises(ValueError, match="positive budget"):
        SessionStore(0)


def test_a_folder_is_known_by_all_its_files(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"1")
    before = content_identity(tmp_path)
    assert content_identity(tmp_path) == before
    (tmp_path / "b.dcm").write_bytes(b"2")
    assert content_identity(tmp_path) != before


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mhd", "ElementDataFile = voxels[1].raw\n"),
        ("a[1].MHD", "ElementDataFile = voxels[1].raw\n"),
        ("a.mha", "ElementDataFile = voxels[1].raw\n"),
        ("a.nhdr", "NRRD0004\ndata file: voxels[1].raw\n\n"),
        ("a[1].nrrd", "NRRD0004\ndata file: voxels[1].raw\n\n"),
    ],
)
def test_a_header_is_known_by_its_data_file_too(tmp_path, name, header):
    image, voxels = tmp_path / name, tmp_path / "voxels[1].raw"
    image.write_text(header)
    voxels.write_bytes(b"1")
    before = content_identity(image)
    (tmp_path / "another.raw").write_bytes(b"1")
    assert content_identity(image) == before
    voxels.write_bytes(b"22")
    after = content_identity(image)
    assert after != before
    image.write_text(header + "\n")
    assert content_identity(image) != after


def test_a_header_with_its_own_voxels_is_known_by_itself(tmp_path):
    image = tmp_path / "a.nrrd"
    image.write_text("NRRD0004\nencoding: raw\n\n1234")
    before = content_identity(image)
    image.write_text("NRRD0004\nencoding: raw\n\n12345")
    assert content_identity(image) != before


def test_sizes_of_nests():
    assert size_in_bytes({"a": np.zeros(10), "b": [torch.zeros(3), (np.zeros(2, np.uint8),)]}) == 80 + 12 + 2


def test_an_image_is_prepared_where_there_is_room_and_nothing_is_dropped_for_it(images):
    reader = CountingReader()
    store = SessionStore(int(2.5 * BYTES), reader)
    assert store.prepare("one", images[1]) is True
    assert first_voxel(store, "one", images[1]) == 1
    assert first_voxel(store, "two", images[2]) == 2
    assert len(reader.reads) == 2
    assert store.prepare("three", images[3]) is False
    assert first_voxel(store, "one", images[1]) == 1 and first_voxel(store, "two", images[2]) == 2
    assert len(reader.reads) == 3  # the third was given up when its header was read
    with pytest.raises(VolumeError):
        store.prepare("none", images[0].parent / "none.nii")


def test_the_newest_wishes_are_read_first_and_a_bad_one_ends_nothing(images, tmp_path):
    reader = CountingReader(seconds=0.2)
    store = SessionStore(10**9, reader)
    prefetch = Prefetch(store)
    prefetch.offer("none", str(images[0].parent / "none.nii"))
    prefetch.offer_found("nothing", lambda: None)
    assert prefetch.wait(10)
    prefetch.offer("zero", str(images[0]))
    while len(reader.reads) < 1:
        time.sleep(0.01)
    more = [write_image(tmp_path / f"more{n}.nii", n) for n in range(WAITING + 2)]
    for path in (*more, more[2]):
        prefetch.offer(path.stem, str(path))
    assert prefetch.wait(10)
    waited = [more[2], *reversed(more[3:])]  # asked for again, so the newest
    assert len(waited) == WAITING
    assert reader.reads == [str(images[0]), *map(str, waited)]
    assert first_voxel(store, "more2", more[2]) == 2
    assert len(reader.reads) == 1 + WAITING
