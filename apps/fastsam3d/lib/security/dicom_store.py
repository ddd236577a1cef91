"""MONAI Label's datastore on a DICOMweb server: identifiers checked, downloads whole, labels on the image's voxels.

The stock class takes any text as a series (and so as a path), keeps a series that was downloaded by half, stacks slices
whatever their positions, names segments by counting, and reads a SEG on a grid of its own.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import nibabel as nib
import numpy as np
import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.convert import dicom_to_nifti, nifti_to_dicom_seg
from monailabel.datastore.utils.dicom import dicom_web_download_series, dicom_web_upload_dcm
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelException
from pydicom.dataset import Dataset

from ..answered import Answered
from ..dicom_seg import Segments, names_of, read_segments, same_content
from ..infer_route import is_inference
from ..sam.grid import Grid
from ..sam.series_check import check_series
from ..sam.volume_io import VolumeError, read_volume
from .files import PART, copy_whole
from .local_store import SafeLocalDatastore
from .names import check_info, is_uid

logger = logging.getLogger(__name__)

_IMAGE_EXT = ".nii.gz"
_ABANDONED_SECONDS = 6 * 3600.0
_VOLUMES = ("CT", "MR", "PT")
_LEAST_SLICES = 8  # fewer are localizers, mostly
_FINAL = DefaultLabelTag.FINAL.value
_OLDER = "older_segmentations"
"""In a label's metadata: the SEG series of its image that the server had when the label came, whatever their times say."""
_OHIF = "OHIF-VIEWER"
_MIRRORED = (
    "exported by OHIF, whose version 3.10.0-beta.5 (MONAI Label 0.8.5 has it) writes frames in the opposite order of the "
    "slices they were drawn on; look at it in another viewer before training on it"
)
_TURNED = "exported by OHIF with its slices in reverse, and turned back: so it agrees with what this server had answered there"


class _Seg(NamedTuple):
    """A segmentation on the server: its series, the series it belongs to, and when it was made (for comparing)."""

    series: str
    image: str
    made: str


class SafeDICOMWebDatastore(DICOMWebDatastore, SafeLocalDatastore):
    """See the module. The folder below is a cache of the server's series, and keeps labels of other tags than final."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unusable: set[str] = set()
        self._last: dict[str, list[str]] = {}
        self._choosing = threading.Lock()
        self._at_work: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._segs: dict[str, _Seg] = {}
        self._saving = threading.Lock()
        super().__init__(*args, **kwargs)
        self.answered = Answered(Path(self._datastore.image_path(), ".answered"))
        for part in Path(self._datastore.image_path()).glob(f".fetch-*{PART}"):
            if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:  # by a process that was killed
                shutil.rmtree(part, ignore_errors=True)

    def list_images(self) -> list[str]:
        """Every series of the server that the search filter finds; see `_asked`."""
        return self._asked("images", lambda: DICOMWebDatastore.list_images(self))

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The series that a SEG of the server refers to; see `_asked`."""
        return self._asked("labelled", lambda: DICOMWebDatastore.get_labeled_images(self, label_tag, labels))

    def _asked(self, what: str, ask: Callable[[], list[str]]) -> list[str]:
        """A list of the server; the last one while a click is answered, and as long as the server does not answer.

        Raises:
            requests.RequestException: it has not answered yet.
        """
        if is_inference() and what in self._last:
            return self._last[what]
        try:
            self._last[what] = ask()
        except (requests.ConnectionError, requests.Timeout) as error:
            if what not in self._last:
                raise
            logger.warning("The DICOMweb server does not answer, so its lists are those of before: %s", error)
        return self._last[what]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """As MONAI Label's, without series that were found to be no volume."""
        return [name for name in super().get_unlabeled_images(label_tag, labels) if name not in self._unusable]

    def get_image_uri(self, image_id: str) -> str:
        """Path of a series' volume (or folder of files), fetched first if need be; "" for what is no identifier.

        Raises:
            ImageNotFoundException: the server has no such series.
            VolumeError: its slices do not stack to a volume.
            requests.RequestException: the server does not answer.
        """
        if not is_uid(image_id):
            return ""
        with self._work_on(image_id):
            folder = self._fetched(image_id, Path(self._datastore.image_path(), image_id))
            if not self._convert_to_nifti:
                return str(folder)
            volume = folder.with_name(image_id + _IMAGE_EXT)
            if not volume.exists() or image_id not in self._datastore.objects:
                self._convert(image_id, folder)
        return os.path.realpath(volume)

    @contextmanager
    def _work_on(self, series: str) -> Iterator[None]:
        """Fetches and converts a series once, whoever asks meanwhile; who asks for another one does not wait."""
        with self._choosing:  # not the list's lock, which others wait for
            lock = self._at_work.setdefault(series, threading.RLock())  # kept for as long as somebody has it
        with lock:
            yield

    def find_volumes(self, study: str, series: str | None = None) -> list[str]:
        """The series of a study that may be volumes: of CT, MR or PET, with enough slices; by their numbers, as viewers show them.

        Args:
            study: the study. series: if it is given, this one alone.

        Raises:
            requests.RequestException: the server does not answer.
        """
        filters = {"SeriesInstanceUID": series} if series else None
        rows = [Dataset.from_json(row) for row in self._client.search_for_series(study, search_filters=filters)]
        found = [
            (int(row.get("SeriesNumber") or 0), str(row.SeriesInstanceUID))
            for row in rows
            if row.get("Modality") in _VOLUMES and int(row.get("NumberOfSeriesRelatedInstances") or 0) >= _LEAST_SLICES
        ]
        return [uid for _, uid in sorted(found) if series in (None, uid)]

    def free_share(self) -> float:
        """How much of the disk that holds the cache is free, of 1."""
        usage = shutil.disk_usage(self._datastore.image_path())
        return usage.free / usage.total

    def _fetched(self, series: str, folder: Path) -> Path:
        """The folder of a series' files, all of them."""
        if not (folder.is_dir() and any(folder.iterdir())):
            folder.parent.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=".fetch-", suffix=PART, dir=folder.parent))
            try:
                self._download(series, part)
                with self._threads:
                    if not folder.exists():
                        part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return folder.resolve()

    def _download(self, series: str, folder: Path) -> None:
        try:
            dicom_web_download_series(None, series, str(folder), self._client, self._fetch_by_frame)
        except LookupError as error:  # how the stock function says that the server's answer names no such series
            raise ImageNotFoundException(f"There is no image {series!r} on the DICOMweb server.") from error
        if not any(folder.iterdir()):
            raise ImageNotFoundException(f"The DICOMweb server has no files of the image {series!r}.")

    def _convert(self, image_id: str, folder: Path) -> None:
        try:
            warnings = check_series(sorted(folder.iterdir()), image_id)
        except VolumeError:
            self._unusable.add(image_id)
            raise
        made = dicom_to_nifti(str(folder))
        beside = Path(tempfile.mkdtemp(prefix=".fetch-", suffix=PART, dir=folder.parent))
        try:
            info = self._dicom_info(image_id) | ({"warnings": list(warnings)} if warnings else {})
            copy_whole(made, beside / "volume")  # seconds of a large one, for which nobody waits at the list
            self._put_image(image_id, _IMAGE_EXT, info, partial(os.replace, beside / "volume"))
        finally:
            os.unlink(made)
            shutil.rmtree(beside, ignore_errors=True)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label that is here, by the image's id; "" if there is none. `datalist` fetches those of the server."""
        return LocalDatastore.get_label_uri(self, image_id or label_id, label_tag)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Stores a label; a final one also on the server, as a DICOM SEG that was read back and compared first.

        Raises:
            VolumeError: it cannot become a SEG that holds the same voxels under the same names.
            See `SafeLocalDatastore.save_label` for others.
        """
        info = check_info(dict(label_info or {}))
        volume = self.get_image_uri(image_id)
        if not volume:
            raise ImageNotFoundException(f"There is no image {image_id[:80]!r}.")
        if str(getattr(label_tag, "value", label_tag)) != _FINAL:
            return SafeLocalDatastore.save_label(self, image_id, label_filename, label_tag, info)
        with self._saving:  # of two labels for one image, the second one knows the first one's series
            info |= {_OLDER: [seg.series for seg in self._list_segs() if seg.image == image_id]}
            info |= self._send(image_id, Path(volume), label_filename, info)
            return SafeLocalDatastore.save_label(self, image_id, label_filename, label_tag, info)

    def _send(self, image_id: str, volume: Path, label_file: str, info: dict[str, Any]) -> dict[str, Any]:
        """Makes the SEG, compares it with the label, and stores it on the server; what to remember of it."""
        uneven = self.get_image_info(image_id).get("warnings")
        if uneven:
            raise VolumeError(f"{uneven[0]}: a DICOM SEG would lie beside its slices; nothing was saved")
        label = read_volume(label_file)
        values = [int(value) for value in np.unique(label.array) if value]
        if not values:
            raise VolumeError("a label needs at least one voxel to become a DICOM SEG; this one is empty")
        named = names_of(info, values)
        folder = Path(self._datastore.image_path(), image_id)
        made = nifti_to_dicom_seg(str(folder.resolve()), label_file, named)
        try:
            if not made or not os.path.exists(made):
                raise VolumeError("the label could not be written as a DICOM SEG (see the server's log)")
            segments = read_segments(Path(made), _grid_of(volume))
            if not same_content(segments, label.array, [(v, e["name"]) for v, e in zip(values, named)]):
                raise VolumeError("the DICOM SEG made of the label does not hold the same voxels; nothing was saved")
            series = dicom_web_upload_dcm(made, self._client)
        finally:
            if made and os.path.exists(made):
                os.unlink(made)
        image_info = self.get_image_info(image_id)
        kept = {key: image_info[key] for key in ("Modality", "PatientID", "StudyInstanceUID") if key in image_info}
        return kept | {"SeriesInstanceUID": series}

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Image and label pairs for training: the newest SEG of each series that is among the images.

        A SEG that cannot be put on its image's voxels is left out, with the reason in the log. Labels that the server no
        longer has are left out and never deleted here.
        """
        usable = set()
        for image_id, segs in self._segs_of_images().items():
            seg = self._newest(image_id, segs)
            try:
                self._bring(seg, [other.series for other in segs if other != seg])
            except (VolumeError, MONAILabelException, OSError) as error:
                logger.warning("The segmentation %s of %s is left out: %s", seg.series, image_id, error)
            if self._is_here(seg):
                usable.add(image_id)
        keep = {os.path.realpath(LocalDatastore.get_image_uri(self, image_id)) for image_id in usable}
        return [
            pair for pair in SafeLocalDatastore.datalist(self, full_path) if os.path.realpath(pair["image"]) in keep
        ]

    def _newest(self, image_id: str, segs: list[_Seg]) -> _Seg:
        """Of the SEGs of one image the one that came last to the server, as far as this datastore can know.

        A label that is here beats what was there before it, and what came after it beats the label: machines' clocks
        differ. Only SEGs that came between two looks are compared by the times that they name.
        """
        info = self.get_label_info(image_id, _FINAL)
        here, older = info.get("SeriesInstanceUID"), info.get(_OLDER)
        ours = [seg for seg in segs if seg.series == here]
        if ours and isinstance(older, list):
            segs = [seg for seg in segs if seg.series != here and seg.series not in older] or ours
        return max(segs, key=lambda seg: seg.made)

    def _segs_of_images(self) -> dict[str, list[_Seg]]:
        """The SEGs of each series that is among the images and has some."""
        images, found = set(self.list_images()), {}
        for seg in self._list_segs():
            if seg.image not in images or not is_uid(seg.series):
                logger.warning("The segmentation %s belongs to no series of the list and is left out", seg.series)
                continue
            found.setdefault(seg.image, []).append(seg)
        return found

    def _list_segs(self) -> Iterator[_Seg]:
        """Every SEG series of the server; the header of each is fetched once."""
        for found in self._client.search_for_series(search_filters={"Modality": "SEG"}):
            row = Dataset.from_json(found)
            series = str(row.SeriesInstanceUID)
            if series not in self._segs:
                try:
                    metadata = self._client.retrieve_series_metadata(str(row.StudyInstanceUID), series)
                    self._segs[series] = _seg_of(series, Dataset.from_json(metadata[0]))
                except (requests.HTTPError, LookupError, AttributeError) as error:  # removed just now, or malformed
                    logger.warning("The segmentation %s cannot be read and is left out: %s", series, error)
                    continue
            yield self._segs[series]

    def _is_here(self, seg: _Seg) -> bool:
        return self.get_label_info(seg.image, _FINAL).get("SeriesInstanceUID") == seg.series

    def _bring(self, seg: _Seg, older: list[str]) -> None:
        """Fetches a segmentation unless it is here, and stores it as the final label of its image.

        Args:
            seg: the segmentation.
            older: the series that it beat.
        """
        if self._is_here(seg):
            return
        grid = _grid_of(Path(self.get_image_uri(seg.image)))
        with tempfile.TemporaryDirectory() as folder:
            files = self._fetched(seg.series, Path(folder, seg.series))
            segments, warnings = self._upright(seg, read_segments(next(files.iterdir()), grid))
            path = Path(folder, "label" + _IMAGE_EXT)
            nib.save(nib.Nifti1Image(_smallest(segments), grid.affine), path)
            info = _info_of(seg, segments, warnings) | {_OLDER: older}
            SafeLocalDatastore.save_label(self, seg.image, str(path), _FINAL, info)

    def _upright(self, seg: _Seg, segments: Segments) -> tuple[Segments, list[str]]:
        """An export of OHIF the way round that the answers of this server have, and what its user should know."""
        if not segments.program.startswith(_OHIF):
            return segments, []
        turned = self.answered.is_reversed(seg.image, segments.array)
        if turned is False:
            return segments, []
        text = _TURNED if turned else _MIRRORED
        logger.warning("The segmentation %s of %s: %s", seg.series, seg.image, text)
        return (segments._replace(array=segments.array[:, :, ::-1].copy()) if turned else segments), [text]


def _seg_of(series: str, header: Dataset) -> _Seg:
    references = header.get("ReferencedSeriesSequence")
    image = str(references[0].SeriesInstanceUID) if references else ""
    return _Seg(series, image, "".join(str(header.get(key) or "") for key in ("ContentDate", "ContentTime")))


def _info_of(seg: _Seg, segments: Segments, warnings: list[str]) -> dict[str, Any]:
    names = [{"name": name, "idx": value} for value, name in segments.names.items()]
    if segments.overlap:
        warnings = [*warnings, f"{segments.overlap} voxels belong to several segments; the last one has them"]
    return {"label_info": names, "SeriesInstanceUID": seg.series} | ({"warnings": warnings} if warnings else {})


def _smallest(segments: Segments) -> np.ndarray:
    return segments.array.astype(np.uint8 if max(segments.names, default=0) < 256 else np.uint16)


def _grid_of(volume: Path) -> Grid:
    """The grid of a volume in the cache, from its header."""
    image = nib.load(volume)
    return Grid(tuple(int(n) for n in image.shape[:3]), np.array(image.affine, dtype=np.float64))


def connect(address: str) -> SafeDICOMWebDatastore:
    """The datastore of a DICOMweb server, by MONAI Label's settings."""
    session = None
    if "googleapis.com" in address:
        from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials

        client = DICOMwebClient(url=address, session=create_session_from_gcp_credentials())
    else:
        if settings.MONAI_LABEL_DICOMWEB_USERNAME and settings.MONAI_LABEL_DICOMWEB_PASSWORD:
            session = create_session_from_user_pass(
                settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
            )
        client = DICOMwebClientX(
            url=address,
            session=session,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
    return SafeDICOMWebDatastore(
        client=client,
        search_filter=settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER,
        cache_path=(settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or "").strip() or None,
        fetch_by_frame=settings.MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME,
        convert_to_nifti=settings.MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI,
    )
