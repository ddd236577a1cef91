"""Accepted versions: served at once, in order, back and forth, and never half there."""

import json
import resource
import shutil
from dataclasses import replace

import pytest
from lib.sam import versions, weights
from lib.sam.build import build_sam
from lib.sam.versions import Record, history, publish, rollback, write_candidate, write_record
from lib.sam.weights import WeightsError
from lib.sam.zoo import get_spec

SPEC = get_spec("fastsam3d_compact")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Three candidates' files."""
    folder = tmp_path_factory.mktemp("candidates")
    network, files = build_sam(SPEC), []
    for n in range(3):
        network.mask_decoder.iou_prediction_head.layers[-1].bias.data.fill_(n)
        files.append(folder / f"{n}.safetensors")
        write_candidate(network, files[-1], {"licence": "test"})
    return files


def record(n, event="accepted"):
    return Record(f"fastsam3d-{n}", f"2026-01-0{n + 1}T00:00:00+00:00", event, "", f"fastsam3d-{n - 1}", "why", {})


def serving(folder):
    return weights.resolve("fastsam3d", folder)


@pytest.fixture
def published(tmp_path, networks, app_dir):
    for path in (app_dir / "model").glob("*.*"):
        if path.is_file():
            shutil.copy(path, tmp_path)
    shipped = serving(tmp_path)
    for n in (0, 1, 2):
        publish(networks[n], tmp_path, SPEC, record(n))
        found = serving(tmp_path)
        assert (found.name, found.origin) == (f"fastsam3d-{n}", "accepted")
        weights.load_sam(found)
    return tmp_path, shipped


def test_a_rollback_goes_back_one_by_one_to_what_ships(published):
    folder, shipped = published
    for expected in ("fastsam3d-1", "fastsam3d-0"):
        assert rollback(folder, "fastsam3d", None, "2026-02-01T00:00:00+00:00") == expected
        assert serving(folder).name == expected
    assert rollback(folder, "fastsam3d", None, "2026-02-02T00:00:00+00:00") == "default"
    assert serving(folder) == shipped
    with pytest.raises(WeightsError, match="no accepted version to leave"):
        rollback(folder, "fastsam3d", None, "2026-02-03T00:00:00+00:00")
    assert rollback(folder, "fastsam3d", "fastsam3d-2", "2026-02-04T00:00:00+00:00") == "fastsam3d-2"
    assert serving(folder).name == "fastsam3d-2"
    events = [r.event for r in history(folder, "fastsam3d")]
    assert events.count("rollback") >= 3
    with pytest.raises(WeightsError, match="there are fastsam3d-0"):
        rollback(folder, "fastsam3d", "nothing", "2026-02-05T00:00:00+00:00")


def test_a_damaged_pointer_is_left_by_a_rollback(published):
    folder, shipped = published
    (folder / "accepted" / "fastsam3d" / "current.json").write_text("{")
    with pytest.raises(WeightsError):
        serving(folder)
    rollback(folder, "fastsam3d", "default", "2026-02-01T00:00:00+00:00")
    assert serving(folder) == shipped


def test_a_refused_candidate_is_in_the_history_and_serves_nothing(published):
    folder, _ = published
    write_record(folder, "fastsam3d", replace(record(3), event="refused"))
    assert serving(folder).name == "fastsam3d-2"
    assert history(folder, "fastsam3d")[-1].event == "refused"


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", range(3))
def test_a_publication_that_is_killed_at_any_write_leaves_a_model_that_loads(published, networks, monkeypatch, at):
    folder, _ = published
    real, count = versions.whole_file, iter(range(100))

    def dying(path):
        if next(count) == at:
            raise Killed
        return real(path)

    from lib.sam import files

    monkeypatch.setattr(versions, "whole_file", dying)
    monkeypatch.setattr(files, "whole_file", dying)
    with pytest.raises(Killed):
        publish(networks[0], folder, SPEC, record(5))
    found = serving(folder)
    assert found.name == "fastsam3d-2"
    weights.load_sam(found)
    monkeypatch.undo()
    publish(networks[0], folder, SPEC, record(5))
    assert serving(folder).name == "fastsam3d-5"


@pytest.mark.parametrize("room", [0, 100, 1 << 20])  # of a file: for nothing, for no record, for no weights
def test_a_publication_on_a_full_disk_says_so_and_serves_what_it_served(published, networks, room):
    folder, _ = published
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            publish(networks[0], folder, SPEC, record(5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert serving(folder).name == "fastsam3d-2"
    assert not list(folder.rglob("fastsam3d-5*"))
    publish(networks[0], folder, SPEC, record(5))
    assert serving(folder).name == "fastsam3d-5"


def test_old_versions_lose_their_files_and_keep_their_records(published, networks, monkeypatch):
    folder, _ = published
    monkeypatch.setattr(versions, "KEPT", 2)
    publish(networks[0], folder, SPEC, record(6))
    left = {path.stem for path in (folder / "accepted" / "fastsam3d").glob("*.safetensors")}
    assert left == {"fastsam3d-2", "fastsam3d-6"}
    assert len(history(folder, "fastsam3d")) == 4
    assert json.loads((folder / "accepted" / "fastsam3d" / "current.json").read_text())["name"] == "fastsam3d-6"
