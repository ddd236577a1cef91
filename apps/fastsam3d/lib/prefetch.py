"""Images are read before somebody clicks on them: the next sample that was offered, and a volume that was just sent.

Reading is most of what a first click waits for. One image at a time, the newest wish first, and only where there is room beside all
images that are kept: nothing is dropped for a click that may never come.
"""

from __future__ import annotations

import logging
import threading

from .sam.session import SessionStore
from .sam.volume_io import VolumeError

logger = logging.getLogger(__name__)


class Prefetch:
    """Reads images into a store in a thread of its own, which begins with the first wish.

    Args:
        store: where clicks look for their image.
    """

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._wish: tuple[str, str] | None = None
        self._busy = False
        self._thread: threading.Thread | None = None

    def offer(self, image_id: str, path: str) -> None:
        """Asks for an image, in place of one that is still waited for; returns at once.

        Args:
            image_id: what clients call it. path: its file, or the folder of its series.
        """
        with self._changed:
            self._wish = (image_id, path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Waits until nothing is left to be read; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._wish is None and not self._busy, timeout=seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._wish is not None)
                (image_id, path), self._wish, self._busy = self._wish, None, True
            try:
                if not self._store.prepare(image_id, path):
                    logger.info("There is no room to read %s before it is clicked on", image_id)
            except (VolumeError, OSError, MemoryError) as error:  # the click will say so, if it ever comes
                logger.info("%s could not be read before it is clicked on: %s", image_id, error)
