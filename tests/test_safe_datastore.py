"""The datastore through crashes, full disks, several writers, damaged lists and clocks that jump."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import signal
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from lib.security.files import remove_parts
from lib.security.local_store import SafeLocalDatastore
from lib.security.names import UnsafeNameError
from lib.uploads import UploadSessions
from monailabel.datastore.local import LocalDatastore

SHAPE = (12, 10, 8)
OLD, NEW = ({"label_info": [{"name": name, "idx": 1}]} for name in ("liver", "spleen"))


def volume(path: Path, value: int) -> str:
    nib.save(nib.Nifti1Image(np.full(SHAPE, value, np.uint8), np.eye(4)), path)
    return str(path)


def value_of(path: str | Path) -> int:
    return int(np.asarray(nib.load(path).dataobj)[0, 0, 0])


def opened(folder: Path) -> SafeLocalDatastore:
    return SafeLocalDatastore(str(folder), extensions=["*.nii.gz", "*.nii", "*.nrrd"], auto_reload=False)


@pytest.fixture
def studies(tmp_path):
    """Three images, case1 with an old final label."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("case1", "case2", "case3"):
        volume(folder / f"{name}.nii.gz", 50)
    opened(folder).save_label("case1", volume(tmp_path / "old.nii.gz", 1), "final", dict(OLD))
    return folder


def in_child(work) -> int:
    """Runs a function in a child that ends without cleaning up; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def name_of(store, image: str = "case1") -> str:
    return store.get_label_info(image, "final")["label_info"][0]["name"]


def check_pair(studies: Path) -> str:
    """After a crash: the label and its names belong together; which of the two it is."""
    store = opened(studies)
    value, name = value_of(store.get_label_uri("case1", "final")), name_of(store)
    assert (value, name) in ((1, "liver"), (2, "spleen"))
    json.loads((studies / "datastore_v2.json").read_text())
    assert not list(studies.rglob("*.part"))
    assert len(store.datalist()) == 1
    return name


class CrashAt:
    """Ends the process at the n-th step of the file system that it takes, before or after the step."""

    def __init__(self, n: int, after: bool) -> None:
        self.left, self.after = n, after
        for step in ("replace", "fsync", "unlink", "open"):
            setattr(os, step, self._counting(getattr(os, step)))

    def _counting(self, step):
        def counted(*args, **kwargs):
            self.left -= 1
            if self.left == 0 and not self.after:
                os._exit(9)
            try:
                return step(*args, **kwargs)
            finally:
                if self.left == 0:
                    os._exit(9)

        return counted


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_step_leaves_a_label_with_its_own_names(studies, tmp_path, after):
    new, seen, n, status = volume(tmp_path / "new.nii.gz", 2), set(), 0, 9
    while status == 9:
        n += 1

        def save(n=n):
            store = opened(studies)
            CrashAt(n, after)
            store.save_label("case1", new, "final", dict(NEW))

        status = in_child(save)
        seen.add(check_pair(studies))
        opened(studies).save_label("case1", str(tmp_path / "old.nii.gz"), "final", dict(OLD))
    assert status == 0
    assert n > 8
    assert seen == {"liver", "spleen"}


def test_kills_at_random_moments(studies, tmp_path):
    rng = random.Random(8)
    files = {1: str(tmp_path / "old.nii.gz"), 2: volume(tmp_path / "new.nii.gz", 2)}
    for _ in range(12):
        child = os.fork()
        if child == 0:
            try:
                store = opened(studies)
                while True:
                    store.save_label("case1", files[1], "final", dict(OLD))
                    store.save_label("case1", files[2], "final", dict(NEW))
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        check_pair(studies)


@pytest.mark.parametrize("limit", [0, 1, 100, 400])
def test_a_full_disk_leaves_the_old_label_and_says_so(studies, tmp_path, limit):
    noise = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "noise.nii")

    def save():
        store = opened(studies)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            store.save_label("case1", str(tmp_path / "noise.nii"), "final", dict(NEW))
        except OSError:
            os._exit(3)

    assert in_child(save) == 3
    assert check_pair(studies) == "liver"


def test_many_processes_lose_nothing(studies, tmp_path):
    """What MONAI Label's class loses: each process writes the list as it knew it."""
    label = volume(tmp_path / "label.nii.gz", 7)
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            store = opened(studies)
            for n in range(5):
                store.save_label(f"case{1 + n % 3}", label, f"tag{number}-{n}", {"who": number, "n": n})
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    store = opened(studies)
    for number in range(4):
        for n in range(5):
            assert store.get_label_info(f"case{1 + n % 3}", f"tag{number}-{n}")["who"] == number


def test_readers_never_see_an_empty_list_while_the_watcher_works(studies):
    store, counts, done = opened(studies), set(), threading.Event()

    def watch():
        for _ in range(60):
            store.refresh()
        done.set()

    thread = threading.Thread(target=watch)
    thread.start()
    while not done.is_set():
        counts.add(len(store.list_images()))
    thread.join()
    assert counts == {3}


def test_readers_and_writers_in_many_threads(studies, tmp_path):
    """Requests for lists while others add and remove images and labels: no list changes below its reader."""
    store, label, failed, done = opened(studies), volume(tmp_path / "label.nii.gz", 1), [], threading.Event()
    readers = (
        store.list_images,
        store.get_unlabeled_images,
        store.get_labeled_images,
        store.status,
        store.json,
        store.datalist,
        store.local_datalist,
        lambda: store.get_image_info("case1"),
        lambda: copy.deepcopy(store.get_label_info("case2", "final")),
    )

    def read(reader):
        while not done.is_set():
            try:
                reader()
            except Exception as error:  # whatever it is, it is the finding
                failed.append(repr(error))
                return

    threads = [threading.Thread(target=read, args=(reader,)) for reader in readers]
    for n in range(120):  # a long list takes long to walk over
        store._datastore.objects[f"x{n}"] = store._datastore.objects["case1"].model_copy(deep=True)
        store._datastore.objects["case1"].image.info[f"x{n}"] = [n] * 9
    for thread in threads:
        thread.start()
    for n in range(8):
        store.add_image(f"new{n}", label, {})
        store.save_label(f"new{n}", label, f"tag{n}", {})
        store.update_image_info("case1", {f"key{n}": n})
    done.set()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize("text", ["", "{", '{"objects": 5}', "\0" * 40])
def test_a_damaged_list_is_set_aside_and_made_again(studies, text):
    (studies / "datastore_v2.json").write_text(text)
    with pytest.raises(ValueError):
        LocalDatastore(str(studies), extensions=["*.nii.gz"])  # the server would not start
    store = opened(studies)
    assert sorted(store.list_images()) == ["case1", "case2", "case3"]
    assert name_of(store) == "liver"
    assert list(studies.glob("datastore_v2.json.damaged-*"))


def test_names_come_back_with_a_folder_that_was_away(studies, tmp_path):
    """A network folder that is not there for a moment: MONAI Label forgets the names of all labels for good."""
    store = opened(studies)
    (studies / "case1.nii.gz").rename(tmp_path / "away.nii.gz")
    store.refresh()
    assert "case1" not in store.list_images()
    (tmp_path / "away.nii.gz").rename(studies / "case1.nii.gz")
    store.refresh()
    assert name_of(store) == "liver"


def test_a_label_in_another_format_replaces_the_first(studies, tmp_path):
    store = opened(studies)
    nib.save(nib.Nifti1Image(np.full(SHAPE, 2, np.uint8), np.eye(4)), tmp_path / "new.nii")
    store.save_label("case1", str(tmp_path / "new.nii"), "final", dict(NEW))
    assert sorted(p.name for p in (studies / "labels" / "final").iterdir()) == [".case1.json", "case1.nii"]
    assert check_pair(studies) == "spleen"


def test_a_label_that_somebody_replaced_by_hand_keeps_what_the_list_says(studies):
    volume(studies / "labels" / "final" / "case1.nii.gz", 9)
    store = opened(studies)
    assert value_of(store.get_label_uri("case1", "final")) == 9
    assert name_of(store) == "liver"


@pytest.mark.parametrize("name", ["../../x", "..", "/etc/x", "a/b", "a\0b", ".x", "", "x" * 300])
def test_names_are_checked_below_http_too(studies, tmp_path, name):
    store, label = opened(studies), volume(tmp_path / "label.nii.gz", 1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafeNameError):
        store.save_label("case1", label, name or "/", {})
    if name:
        with pytest.raises(UnsafeNameError):
            store.add_image(name, label, {})
    store.remove_label("case1", name)
    assert store.get_label_uri("case1", name) == store.get_image_uri(name) == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_list_poisoned_by_an_older_version_leads_nowhere(studies, tmp_path):
    volume(tmp_path / "secret.nii.gz", 3)
    path = studies / "datastore_v2.json"
    content = json.loads(path.read_text())
    content["objects"]["../secret"] = {"image": {"ext": ".nii.gz", "info": {}}, "labels": {}}
    path.write_text(json.dumps(content))
    store = opened(studies)
    assert store.get_image_uri("../secret") == ""
    assert (tmp_path / "secret.nii.gz").exists()


def test_only_parts_of_our_own_are_swept(tmp_path):
    for name in (".a.nii.gz.0123456789abcdef.part", "mine.part", ".x.part", ".a.0123456789abcdeg.part"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.0123456789abcdeg.part", ".x.part", "mine.part"]


@pytest.mark.parametrize("jump", [-400 * 86400, -1800, 1800, 400 * 86400])
def test_a_clock_that_jumps(studies, tmp_path, monkeypatch, jump):
    store = opened(studies)
    sessions = UploadSessions(str(tmp_path / "sessions"), 3600)
    session, _ = sessions.add_session(volume(tmp_path / "upload.nii.gz", 1))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    store.save_label("case1", volume(tmp_path / "new.nii.gz", 2), "final", dict(NEW))
    os.utime(studies / "datastore_v2.json", (real() + jump, real() + jump))
    assert check_pair(studies) == "spleen"
    store.save_label("case1", str(tmp_path / "old.nii.gz"), "final", dict(OLD))
    assert check_pair(studies) == "liver"
    removed = sessions.remove_expired()  # forward, the upload's time is over; the client sends it again
    assert (removed == 1) == (jump > 3600)
    assert (sessions.get_session(session) is None) == (jump > 3600)
