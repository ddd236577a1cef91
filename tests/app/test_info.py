"""What the viewers read before the first click."""

import math

import pytest
from lib.conf import DEFAULT_LABELS

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def info(server):
    answer = server.get("/info/")
    assert answer.status_code == 200
    return answer.json()


def test_labels_are_a_list_and_each_models_labels_a_dict_of_positive_numbers(info):
    assert info["labels"] == list(DEFAULT_LABELS)
    for model in info["models"].values():
        assert list(model["labels"]) == list(DEFAULT_LABELS)
        assert all(isinstance(n, int) and n >= 1 for n in model["labels"].values())


def test_the_model_is_a_three_dimensional_deepgrow_with_a_description(info):
    model = info["models"]["fastsam3d"]
    assert (model["type"], model["dimension"]) == ("deepgrow", 3)
    assert model["description"]
    assert not {"foreground", "background", "label", "roi"} & set(model["config"])


def test_no_top_level_config(info):
    assert "config" not in info


def test_what_learns_and_chooses_is_named(info):
    assert list(info["trainers"]) == list(info["train_stats"]) == ["fastsam3d", "repmedsam"]  # Slicer shows the first
    assert set(info["scoring"]) == {"uncertainty"}
    assert set(info["strategies"]) == {"first", "random", "uncertainty"}


def test_the_datastore_is_counted(info, studies):
    assert info["datastore"]["total"] == len([p for p in studies.iterdir() if p.name.endswith((".nii.gz", ".nrrd"))])


def test_numbers_are_finite(info):
    def numbers(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [n for item in value for n in numbers(item)]
        return [value] if isinstance(value, float) else []

    assert all(math.isfinite(n) for n in numbers(info))


def test_slicers_other_questions_are_answered(server):
    assert server.get("/auth/").status_code == 404  # which its client takes for "no authentication"
    assert server.get("/train/?check_if_running=true").status_code == 404
    assert "No Train Tasks" in server.get("/train/").json()["detail"]
    assert server.get("/datastore/?output=all").status_code == 200
    assert server.get("/logs/?lines=5").status_code == 200


def test_nothing_ran_in_the_background_at_start(server):
    assert server.get("/scoring/").status_code == 404
    log = server.log.read_text()
    assert "Traceback" not in log.split("Application startup complete")[0]
