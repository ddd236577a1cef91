"""Which series somebody has open in a viewer: there the first click will come, so it is fetched, converted and read before.

A viewer tells by what it asks of the DICOMweb server through this one. OHIF asks for the metadata of the whole study (of each
series, where it loads studies lazily), then for one image of each series, for the thumbnails, and then for all images
of the series that it shows. Nothing is asked here that a click would not ask, and who asks may click: both take the same role.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable

from .images import resolve_image
from .prefetch import Prefetch
from .security.dicom_store import SafeDICOMWebDatastore

FREE_SHARE = 0.05
"""Series are fetched before a click as long as so much of the disk is free: looking at studies must not fill it."""
_KEPT = 256  # series of which an image was asked for
_UID = r"([0-9.]{1,64})"
_METADATA = re.compile(rf"/?studies/{_UID}(?:/series/{_UID})?/metadata/?")
_IMAGE = re.compile(rf"/?studies/{_UID}/series/{_UID}/instances/{_UID}(?:/frames/[0-9,]+)?/?")


class Opened:
    """Listens to what viewers ask for, and offers the series that they open.

    Args:
        datastore: gives the server's images.
        prefetch: prepares one after another.
    """

    def __init__(self, datastore: Callable[[], SafeDICOMWebDatastore], prefetch: Prefetch) -> None:
        self._datastore = datastore
        self._prefetch = prefetch
        self._lock = threading.Lock()
        self._first_images: OrderedDict[str, str | None] = OrderedDict()

    def asked(self, path: str) -> None:
        """Notes that a viewer got an answer from the DICOMweb server; returns at once.

        Args:
            path: of the request, below the server's address.
        """
        metadata = _METADATA.fullmatch(path)
        if metadata:
            self._offer(*metadata.groups())
            return
        image = _IMAGE.fullmatch(path)
        if image and self._is_shown(*image.groups()[1:]):
            self._offer(*image.groups()[:2])

    def _is_shown(self, series: str, instance: str) -> bool:
        """Whether this is the second image of a series that is asked for: the first one may be a thumbnail's."""
        with self._lock:
            if series not in self._first_images:
                self._first_images[series] = instance
                if len(self._first_images) > _KEPT:
                    self._first_images.popitem(last=False)
                return False
            if self._first_images[series] in (None, instance):
                return False
            self._first_images[series] = None  # once is enough
            return True

    def _offer(self, study: str, series: str | None) -> None:
        self._prefetch.offer_found(series or study, lambda: self._fetched(study, series))

    def _fetched(self, study: str, series: str | None) -> tuple[str, str] | None:
        """A series in the cache; of a study its first volume, which viewers show first."""
        datastore = self._datastore()
        volumes = datastore.find_volumes(study, series)
        if not volumes or datastore.free_share() < FREE_SHARE:
            return None
        return resolve_image({"image": volumes[0]}, datastore, sessions=None, uploaded=False)
