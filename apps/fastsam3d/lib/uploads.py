"""Images that a client sends for one session of work (MONAI Label's /session/), kept apart from the studies."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from pathlib import Path

from monailabel.utils.sessions import SessionInfo, Sessions

from .sam.files import write_text

logger = logging.getLogger(__name__)

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")


class UploadSessions(Sessions):
    """MONAI Label's sessions, for which an id is a plain name and a broken folder is no reason to stop."""

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> SessionInfo | None:
        """Returns a session, or None if there is none of that name or its folder is unusable."""
        if not isinstance(session_id, str) or not _ID.fullmatch(session_id):
            return None
        try:
            found = super().get_session(session_id, False, fetch_cache)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.warning("Session %s is unusable: %s", session_id, error)
            return None
        if found is not None and update_ts:
            found.last_access_ts = int(time.time())
            try:
                self._write_meta_info(session_id, found)
            except OSError as error:
                # A full disk, or the session has just been removed: its volume is still what it was.
                logger.warning("The last use of session %s is not noted: %s", session_id, error)
        return found

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> tuple[str, SessionInfo]:
        """Makes a session of a file or folder, which is moved into it; archives are unpacked before, within bounds.

        Raises:
            ValueError: `uncompress` is asked for, which MONAI Label does without bounds, or the id is no plain name.
        """
        if uncompress or session_id is not None and not _ID.fullmatch(session_id):
            raise ValueError("A session takes a plain id and files that are unpacked already.")
        return super().add_session(data_file, expiry, False, session_id)

    def _write_meta_info(self, session_id: str, session_info: SessionInfo) -> None:
        write_text(Path(self.store_path, session_id, "meta.info"), session_info.to_str())

    def remove_expired(self) -> int:
        """Removes sessions whose time is over, and folders that hold none; returns how many."""
        if not os.path.isdir(self.store_path):
            return 0
        count = 0
        for name in os.listdir(self.store_path):
            folder = os.path.join(self.store_path, name)
            if not _ID.fullmatch(name) or not os.path.isdir(folder) or os.path.islink(folder):
                continue
            session = self.get_session(name, update_ts=False, fetch_cache=False)
            if session is None:
                expired = time.time() - os.path.getmtime(folder) > self.expiry if os.path.isdir(folder) else False
            else:
                expired = session.expiry > 0 and session.last_access_ts + session.expiry < time.time()
            if expired:
                self.pop(name, None)
                shutil.rmtree(folder, ignore_errors=True)
                count += 1
        return count

    def contains(self, path: str) -> bool:
        """Whether a path lies inside the folder of a session."""
        root = os.path.realpath(self.store_path)
        return os.path.realpath(path).startswith(root + os.sep)
