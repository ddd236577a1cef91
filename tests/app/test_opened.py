"""A study that is opened in a viewer is read before the first click: what OHIF asks for, a real Orthanc, real clicks."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monailabel.client import MONAILabelClient
from pydicom.uid import generate_uid

from tests.app import orthanc
from tests.app.dicom.world import CENTRE, SLICES, save, segs, volume
from tests.app.serving import shipped_model, start, stop, within
from tests.app.volumes import scan, target

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

CLICK = {"foreground": [list(CENTRE)]}
PIXELS = scan(1)[:, :, SLICES]
SECONDS = 60
_seeds = count(1)


pacs = pytest.fixture(scope="module")(orthanc.served)


@pytest.fixture(scope="module")
def server(pacs, tmp_path_factory):
    running = start(f"{pacs}/dicom-web", tmp_path_factory.mktemp("home"), *shipped_model())
    yield running
    stop(running)


@pytest.fixture
def study():
    return generate_uid()


@pytest.fixture
def send(pacs, study, tmp_path):
    """Sends voxels as a series of the study."""

    def send_(array=PIXELS, **attributes):
        return orthanc.send_series(pacs, array, tmp_path, next(_seeds), study=study, **attributes)

    return send_


@pytest.fixture
def click(server, tmp_path):
    """Clicks on a series; gives the mask and the seconds by stage."""
    client = MONAILabelClient(server.url, str(tmp_path), "user-xyz")

    def click_(series):
        path, params = client.infer("fastsam3d", series, CLICK)
        return sitk.GetArrayFromImage(sitk.ReadImage(path)), params["latencies"]

    return click_


def ask(server, study, below):
    answer = server.get(f"/proxy/dicom/wado/studies/{study}{below}")
    assert answer.status_code == 200
    return answer


def show_image(server, study, series, k):
    ask(server, study, f"/series/{series}/instances/{orthanc.instance_uid(series, k)}/frames/1")


def is_there(server, series):
    return f"{series} is there before it is clicked on" in server.log.read_text()


def is_left(server, name):
    return f"{name} holds nothing to be read before it is clicked on" in server.log.read_text()


def cached(server, series):
    """What was fetched and made of it."""
    return sorted(path.name for path in (server.temporary.parent / ".cache").rglob(f"{series}*"))


def made(server):
    """How many series were fetched, and how many were converted."""
    text = server.log.read_text()
    return {what: text.count(what) for what in ("Time to download:", "dicom_to_nifti latency")}


def test_of_a_study_the_volume_that_is_shown_first_is_there_before_the_click(server, send, study, click):
    later, first = send(SeriesNumber=12), send(SeriesNumber=3)
    localizer, pictures = send(PIXELS[:, :, :3], SeriesNumber=1), send(Modality="OT", SeriesNumber=2)
    ask(server, study, "/metadata")
    assert within(SECONDS, lambda: is_there(server, first))
    mask, latencies = click(first)
    assert "read" not in latencies and "encode" in latencies
    assert not any(cached(server, series) for series in (later, localizer, pictures))
    plain, latencies = click(later)
    assert "read" in latencies
    assert np.array_equal(mask, plain) and mask.any()


def test_another_volume_is_there_when_its_images_are_shown(server, send, study, click):
    first, shown = send(SeriesNumber=1), send(SeriesNumber=2)
    ask(server, study, "/metadata")
    for series in (first, shown):
        show_image(server, study, series, PIXELS.shape[2] // 2)  # the thumbnails
        show_image(server, study, series, PIXELS.shape[2] // 2)
    assert within(SECONDS, lambda: is_there(server, first))
    assert not cached(server, shown)
    show_image(server, study, shown, 0)
    assert within(SECONDS, lambda: is_there(server, shown))
    assert "read" not in click(shown)[1]


@pytest.mark.parametrize("modality", ["MR", "PT"])
def test_a_series_alone_whose_metadata_are_asked_for(server, send, study, click, modality):
    send(SeriesNumber=1)
    series = send(Modality=modality, SeriesNumber=2)
    metadata = ask(server, study, f"/series/{series}/metadata").json()
    assert len(metadata) == PIXELS.shape[2]
    assert within(SECONDS, lambda: is_there(server, series))
    assert "read" not in click(series)[1]


def test_a_segmentation_and_pictures_are_not_fetched(server, pacs, send, study, tmp_path):
    series = send()
    image = volume(server, series, tmp_path)
    label = target()[:, :, SLICES].astype(np.uint8)
    assert save(server, series, nib.Nifti1Image(label, image.affine), [{"name": "ball", "idx": 1}]).status_code == 200
    (seg,) = segs(pacs, series)
    others = [str(seg.SeriesInstanceUID), send(Modality="SEG"), send(Modality="US"), send(PIXELS[:, :, :1])]
    for other in others:
        ask(server, study, f"/series/{other}/metadata")
        assert within(SECONDS, lambda other=other: is_left(server, other))
        assert not cached(server, other)


def test_what_is_not_there_is_said_as_before_and_prepares_nothing(server, pacs, study):
    before = server.log.read_text().count("before it is clicked on")
    answer = server.get(f"/proxy/dicom/wado/studies/{study}/series/1.2.3/metadata")
    assert answer.status_code == 404
    assert server.get(f"/proxy/dicom/wado/studies/{study}/../metadata").status_code == 404
    assert server.get("/proxy/dicom/qido/studies").status_code == 200
    assert server.log.read_text().count("before it is clicked on") == before


def test_a_series_that_is_no_volume_ends_nothing(server, send, study):
    several = send(geometry=orthanc.Geometry(step=(0.0, 0.0, 0.0)))
    ask(server, study, f"/series/{several}/metadata")
    assert within(SECONDS, lambda: f"{several} could not be read before" in server.log.read_text())
    series = send()
    ask(server, study, f"/series/{series}/metadata")
    assert within(SECONDS, lambda: is_there(server, series))


def test_clicks_that_come_meanwhile_wait_for_their_volume_and_for_no_other(server, send, study, click):
    noise = np.random.default_rng(0).normal(0, 30, (320, 320, 60)).astype(np.int16)
    large, small = send(noise), send()
    click(small)
    before = made(server)
    ask(server, study, f"/series/{large}/metadata")
    answered = 0
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(click, large)
        while not waiting.done():
            click(small)
            answered += f"{large}.nii.gz" not in cached(server, large)
        waiting.result()
    assert answered > 0
    assert within(SECONDS, lambda: is_there(server, large))
    assert made(server) == {what: n + 1 for what, n in before.items()}
