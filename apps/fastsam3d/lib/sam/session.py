"""Resident volumes, and what was computed from them, within one budget of bytes.

Opening an image twice reads it once: the second click on a volume finds the voxels, the image embedding and the last
logits where the first click left them. What is kept is found by the *content* of the file (real path, size, time of
change, inode) and never by its name alone, so an image that is replaced on disk is read again.

Locks: the store's lock guards its tables and is held for moments; each session's own lock is held for as long as a
caller works with it, so two requests for one image take turns while requests for two images do not wait.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .header_check import voxel_file
from .volume_io import TooLargeError, Volume, VolumeError, read_volume

Identity = tuple[Hashable, ...]
Bytes = int | Callable[[Any], int] | None

_READ_ATTEMPTS = 3
_WAIT_SECONDS = 120.0  # for others to leave their images
_MAY_NAME_ANOTHER_FILE = (".mhd", ".mha", ".nhdr", ".nrrd")


def content_identity(path: str | os.PathLike) -> Identity:
    """Names the content that lies at a path, without reading its voxels.

    Args:
        path: an image file, or a folder that holds a DICOM series.

    Returns:
        The real path, and size, time of change (ns) and inode: of the file; or, as a digest, of every file of the folder,
        or of a header and the file beside it that holds its voxels.

    Raises:
        VolumeError: if nothing lies at the path.
    """
    real = os.path.realpath(path)
    try:
        if os.path.isdir(real):
            return (real, _digest(sorted(p for p in Path(real).rglob("*") if p.is_file())))
        stat = os.stat(real)
        if real.lower().endswith(_MAY_NAME_ANOTHER_FILE):
            voxels, _ = voxel_file(Path(path))
            if voxels is not None and voxels != Path(path):
                return (real, _digest([Path(real), voxels.resolve()]))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it has no usable name"
        raise VolumeError(f"An image must be a readable file or folder; {_name(path)} is not: {reason}") from error
    return (real, stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _name(path: str | os.PathLike) -> str:
    """The last part of a path, for messages that reach clients."""
    return repr(os.path.basename(os.path.normpath(os.fspath(path))))


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}\n".encode())
    return digest.hexdigest()


def size_in_bytes(value: Any) -> int:
    """Returns the bytes that an array, a tensor, or a nest of them holds; small objects count as themselves."""
    nbytes = getattr(value, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    if isinstance(value, Mapping):
        return sum(size_in_bytes(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return sum(size_in_bytes(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return sum(size_in_bytes(getattr(value, field.name)) for field in fields(value))
    return sys.getsizeof(value)


class ImageSession:
    """One resident image and the values computed from it. Get one from `SessionStore.open`; use it inside the `with`.

    Attributes:
        image_id: the id under which it was first opened.
        identity: the content it holds, see `content_identity`.
        volume: voxels and grid as stored on disk.
        read_seconds: how long this opening took to read the image; None if it was resident.
    """

    def __init__(self, image_id: str, identity: Identity, store: SessionStore) -> None:
        self.image_id = image_id
        self.identity = identity
        self.read_seconds: float | None = None
        self._store = store
        self._lock = threading.RLock()
        self._users = 0
        self._nbytes = 0
        self._volume: Volume | None = None
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    @property
    def volume(self) -> Volume:
        if self._volume is None:
            raise RuntimeError("A session's volume is there only inside `with store.open(image_id, path) as session`.")
        return self._volume

    @property
    def nbytes(self) -> int:
        """Bytes of the volume and of every cached value."""
        return self._nbytes

    def get(self, key: Hashable, default: Any = None) -> Any:
        """Returns a cached value, which counts as its use, or the default."""
        if key not in self._values:
            return default
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Hashable, value: Any, nbytes: Bytes = None) -> None:
        """Caches a value.

        Room is made by dropping the least recently used idle images first, then this image's least recently used
        values. A value for which there is no room even then is not kept.

        Args:
            key: must name everything that the value depends on apart from the image (weights, patch, prompts).
            value: anything; arrays and tensors inside it are counted.
            nbytes: its size, or a function of the value; None counts it with `size_in_bytes`.
        """
        size = size_in_bytes(value) if nbytes is None else nbytes(value) if callable(nbytes) else nbytes
        self.forget(key)
        if self._store._reserve(self, int(size)):
            self._values[key] = (value, int(size))

    def forget(self, key: Hashable) -> None:
        """Drops a cached value, if it is there."""
        _, size = self._values.pop(key, (None, 0))
        self._nbytes -= size


class SessionStore:
    """Keeps images resident within a budget; the least recently used idle image goes first.

    Volumes are read one after another. One that does not fit beside those in use waits until they are left; each one alone must
    fit in the budget.

    Args:
        max_bytes: budget for volumes and cached values.
        read: reads a volume, called as `read(path, max_bytes=max_bytes)`.
    """

    def __init__(self, max_bytes: int, read: Callable[..., Volume] = read_volume) -> None:
        if max_bytes <= 0:
            raise ValueError(f"A session store needs a positive budget of bytes, got {max_bytes}.")
        self.max_bytes = int(max_bytes)
        self._read = read
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._reading = threading.Lock()
        self._sessions: OrderedDict[Identity, ImageSession] = OrderedDict()
        self._by_image: dict[str, Identity] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held by all sessions."""
        with self._lock:
            return self._total()

    def __len__(self) -> int:
        with self._lock:
            return len(self._sessions)

    @contextmanager
    def open(self, image_id: str, path: str | os.PathLike) -> Iterator[ImageSession]:
        """Opens an image for exclusive use; reads it unless the same content is resident.

        Args:
            image_id: what clients call the image. A new content under a known id replaces the old one.
            path: the file, or the folder of a DICOM series.

        Yields:
            The session, locked for this caller.

        Raises:
            VolumeError: if the image is missing, unreadable, larger than the budget, or keeps changing.
        """
        for _ in range(_READ_ATTEMPTS):
            session = self._enter(image_id, content_identity(path))
            try:
                with session._lock:
                    if self._load(session, path):
                        yield session
                        return
            finally:
                self._leave(session)
        raise VolumeError(f"The image {_name(path)} changed each time it was read; try again when it is complete.")

    def prepare(self, image_id: str, path: str | os.PathLike) -> bool:
        """Reads an image that is about to be asked for, if there is room for it beside everything that is kept.

        Returns:
            Whether it is resident now.

        Raises:
            VolumeError: if it is missing or unreadable.
        """
        session = self._enter(image_id, content_identity(path))
        try:
            with session._lock:
                try:
                    return self._load(session, path, room=lambda: self.max_bytes - self.nbytes)
                except TooLargeError:
                    return False
        finally:
            self._leave(session)

    def forget_values(self, session: ImageSession) -> None:
        """Drops every cached value of an open session and of all idle ones; the volumes stay.

        Args:
            session: one that the caller has open.
        """
        with self._lock:
            for other in self._sessions.values():
                if other is session or other._users == 0:
                    for key in list(other._values):
                        other.forget(key)

    def _load(self, session: ImageSession, path: str | os.PathLike, room: Callable[[], int] | None = None) -> bool:
        """Reads the volume if it is not there; False if the file changed meanwhile.

        Args:
            room: bytes that it may take; None for what the images in use leave of the budget.
        """
        session.read_seconds = None
        if session._volume is not None:
            return True
        begin = time.perf_counter()
        with self._reading:  # so that each read knows what the ones before it hold
            volume = self._read(path, max_bytes=room()) if room else self._read_beside_others(session, path)
            if content_identity(path) != session.identity:
                return False
            with self._lock:
                self._drop_idle(self.max_bytes - int(volume.array.nbytes))
                session._nbytes += int(volume.array.nbytes)
        session._volume = volume
        session.read_seconds = time.perf_counter() - begin
        return True

    def _read_beside_others(self, session: ImageSession, path: str | os.PathLike) -> Volume:
        """The volume, read into what the images in use leave of the budget; waits for them where that is too little.

        Raises:
            TooLargeError: it is larger than the whole budget.
            MemoryError: others do not leave their images.
        """
        while True:
            with self._lock:
                used = self._in_use(session)
            try:
                return self._read(path, max_bytes=self.max_bytes - used)
            except TooLargeError as error:
                if not used:
                    raise TooLargeError(f"{error}, or give a server's images more memory: --conf cache_gb") from error
            with self._left:
                if not self._left.wait_for(partial(self._has_room_since, session, used), timeout=_WAIT_SECONDS):
                    raise MemoryError("images that others have open")

    def _has_room_since(self, session: ImageSession, used: int) -> bool:
        return self._in_use(session) < used

    def _in_use(self, session: ImageSession) -> int:
        """Bytes of the images that others have open."""
        others = (other for other in self._sessions.values() if other is not session and other._users > 0)
        return sum(other.nbytes for other in others)

    def _enter(self, image_id: str, identity: Identity) -> ImageSession:
        with self._lock:
            previous = self._by_image.get(image_id)
            if previous is not None and previous != identity:
                stale = self._sessions.get(previous)
                if stale is not None and stale._users == 0:
                    self._drop(stale)
            session = self._sessions.get(identity)
            if session is None:
                session = self._sessions[identity] = ImageSession(image_id, identity, self)
            self._by_image[image_id] = identity
            self._sessions.move_to_end(identity)
            session._users += 1
            return session

    def _leave(self, session: ImageSession) -> None:
        with self._lock:
            session._users -= 1
            if session._users == 0 and session._volume is None:
                self._drop(session)
            self._drop_idle(self.max_bytes)
            self._left.notify_all()

    def _reserve(self, session: ImageSession, size: int) -> bool:
        """Charges `size` bytes to a session, or returns False if there is no room for them.

        Idle images are dropped first, then the session's own oldest values. The caller holds the session's lock.
        """
        with self._lock:
            self._drop_idle(self.max_bytes - size)
            while self._total() > self.max_bytes - size and session._values:
                session.forget(next(iter(session._values)))
            fits = self._total() <= self.max_bytes - size
            session._nbytes += size if fits else 0
            return fits

    def _drop_idle(self, limit: int) -> None:
        idle = [session for session in self._sessions.values() if session._users == 0]
        for session in idle:
            if self._total() <= limit:
                return
            self._drop(session)

    def _drop(self, session: ImageSession) -> None:
        self._sessions.pop(session.identity, None)
        for image_id in [i for i, identity in self._by_image.items() if identity == session.identity]:
            del self._by_image[image_id]

    def _total(self) -> int:
        return sum(session.nbytes for session in self._sessions.values())
