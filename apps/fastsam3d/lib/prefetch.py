"""Images are read before somebody clicks on them: the next sample that was offered, a volume that was just sent, and a
series that a viewer opened (opened.py).

Fetching and reading is most of what a first click waits for. One image at a time, the newest wish first, at a low priority, and
read only where there is room beside all images that are kept: nothing is dropped for a click that may never come.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

from .gentle import be_gentle
from .sam.session import SessionStore

logger = logging.getLogger(__name__)

WAITING = 3
"""So many of the newest wishes wait; who opens a study after another waits for the last ones only."""

Find = Callable[[], "tuple[str, str] | None"]
"""Finds an image (and fetches it): its id and path as a click would give them, None if there is none after all."""


class Prefetch:
    """Reads images into a store in a thread of its own, which begins with the first wish.

    Args:
        store: where clicks look for their image.
    """

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._wishes: OrderedDict[str, Find] = OrderedDict()
        self._busy = False
        self._thread: threading.Thread | None = None

    def offer(self, image_id: str, path: str) -> None:
        """Asks for an image, before those that are still waited for; returns at once.

        Args:
            image_id: what clients call it. path: its file, or the folder of its series.
        """
        self.offer_found(image_id, lambda: (image_id, path))

    def offer_found(self, name: str, find: Find) -> None:
        """As `offer`, for an image that must be looked for first.

        Args:
            name: of the wish; a newer one of the same name takes its place.
            find: called in the thread of this object; whatever it raises is logged.
        """
        with self._changed:
            self._wishes.pop(name, None)
            self._wishes[name] = find
            if len(self._wishes) > WAITING:
                self._wishes.popitem(last=False)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Waits until nothing is left to be read; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._wishes and not self._busy, timeout=seconds)

    def _work(self) -> None:
        be_gentle()
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._wishes))
                (name, find), self._busy = self._wishes.popitem(), True
            try:
                found = find()
                if found is None:
                    logger.info("%s holds nothing to be read before it is clicked on", name)
                elif self._store.prepare(*found):
                    logger.info("%s is there before it is clicked on", found[0])
                else:
                    logger.info("There is no room to read %s before it is clicked on", found[0])
            except Exception as error:  # of whatever kind: the click will say so, if it ever comes, and others go on
                logger.info("%s could not be read before it is clicked on: %s", name, error)
