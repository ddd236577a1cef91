"""MONAI Label's datastore on a folder, made safe against hostile names, crashes and several writers at once.

Three things differ from the stock class. Names from clients are checked before they become paths, and a symbolic link is
replaced, not written through. Labels, images and the list of both are written whole or not at all (`files`,
`label_records`), and a list that a crash of an older version damaged is set aside and made again from the files. The list
is read, changed and written under one lock for all threads and processes: the stock class takes its lock for single steps,
so that its file watcher can drop what a request is just adding.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from ..sam.files import write_text
from . import label_records
from .files import copy_whole, remove_parts
from .names import check_image_id, check_info, check_tag, is_tag

logger = logging.getLogger(__name__)

_LOCK_SECONDS = 60.0


class SafeLocalDatastore(LocalDatastore):
    """See the module. Methods that are not overridden read what these keep consistent."""

    def __init__(self, datastore_path: str, *args: Any, **kwargs: Any) -> None:
        os.makedirs(datastore_path, exist_ok=True)
        self._threads = threading.RLock()
        self._processes = FileLock(os.path.join(datastore_path, ".lock"), timeout=_LOCK_SECONDS)
        self._seen: tuple[int, int, int] | None = None
        super().__init__(datastore_path, *args, **kwargs)
        if getattr(self, "_handler", None) is not None:
            self._handler.on_moved = self._on_moved  # files that other programs write beside and rename

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._threads, self._processes:
            yield

    def labels_folder(self, tag: str) -> Path:
        """The folder of the labels of one tag."""
        return Path(self._datastore.label_path(check_tag(str(getattr(tag, "value", tag)))))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Stores an image.

        Raises:
            UnsafeNameError: an id that is no plain file name, or unusable metadata.
            OSError: it cannot be written; an image that was there stays.
        """
        name, ext = self._to_id(os.path.basename(image_filename))
        image_id = check_image_id(image_id or name)
        return self._put_image(image_id, ext, image_info, partial(copy_whole, image_filename))

    def _put_image(self, image_id: str, ext: str, image_info: dict[str, Any], put: Callable[[str], None]) -> str:
        """As `add_image`; `put` lets the file appear at a path, while all others wait for the list."""
        info = {**check_info(image_info or {}), "ts": int(time.time()), "name": image_id + ext}
        with self._exclusive():
            self._init_from_datastore_file()
            put(os.path.join(self._datastore.image_path(), image_id + ext))
            before = self._datastore.objects.get(image_id)
            if before is not None and before.image.ext != ext:
                Path(self._datastore.image_path(), image_id + before.image.ext).unlink(missing_ok=True)
            labels = dict(before.labels) if before else {}
            self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=ext), labels=labels)
            self._update_datastore_file()
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Removes an image and its labels; of a symbolic link the link.

        Raises:
            ImageNotFoundException: there is no such image.
        """
        with self._exclusive():
            found = self._object(image_id)
            for tag in list(found.labels):
                self._unlink_label(image_id, tag)
            Path(self._datastore.image_path(), image_id + found.image.ext).unlink(missing_ok=True)
            del self._datastore.objects[image_id]
            self._update_datastore_file()

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Stores a label with its metadata, both or neither.

        Raises:
            UnsafeNameError: a tag that is no plain name, or unusable metadata.
            ImageNotFoundException: there is no such image.
            OSError: it cannot be written; a label that was there stays.
        """
        tag = self.labels_folder(label_tag).name
        _, ext = self._to_id(os.path.basename(label_filename))
        info = {**check_info(label_info or {}), "ts": int(time.time()), "name": image_id + ext}
        with self._exclusive():
            self._init_from_datastore_file()
            self._object(image_id)
            folder = self.labels_folder(tag)
            folder.mkdir(parents=True, exist_ok=True)
            label_records.save(label_filename, folder, image_id, ext, info)
            self._object(image_id).labels[tag] = DataModel(info=info, ext=ext)
            self._update_datastore_file()
        logger.info("Saved the label %s of %s", tag, image_id)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Removes a label; nothing happens if there is none."""
        if not is_tag(str(getattr(label_tag, "value", label_tag))):
            return
        with self._exclusive():
            self._init_from_datastore_file()
            if label_id in self._datastore.objects and self._unlink_label(label_id, label_tag):
                self._update_datastore_file()

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Adds to an image's metadata.

        Raises:
            UnsafeNameError: unusable metadata. ImageNotFoundException: there is no such image.
        """
        check_info(info)
        with self._exclusive():
            self._init_from_datastore_file()
            self._object(image_id).image.info.update(info)
            self._update_datastore_file()

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Adds to a label's metadata.

        Raises:
            UnsafeNameError: unusable metadata. LabelNotFoundException: there is no such label.
        """
        check_info(info)
        with self._exclusive():
            self._init_from_datastore_file()
            label = self._datastore.label(label_id, label_tag)
            if not label:
                raise LabelNotFoundException(f"Label: {label_id} Tag: {label_tag} not found")
            label.info.update(info)
            label_records.update(self.labels_folder(label_tag), label_id, label.info)
            self._update_datastore_file()

    # Readers walk over the list, which a request or the watcher may be changing in another thread.

    def list_images(self) -> list[str]:
        with self._threads:
            return super().list_images()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        with self._threads:
            return super().get_labeled_images(label_tag, labels)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        with self._threads:
            return super().get_unlabeled_images(label_tag, labels)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        with self._threads:
            return super().datalist(full_path)

    def local_datalist(self) -> list[dict[str, Any]]:
        """Image and label pairs of what is here, as paths; a DICOMweb server is not asked."""
        with self._threads:
            return LocalDatastore.datalist(self)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        with self._threads:
            return super().get_image_info(image_id)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """A copy, which no other request changes."""
        with self._threads:
            return copy.deepcopy(super().get_label_info(label_id, label_tag))

    def status(self) -> dict[str, Any]:
        with self._threads:
            return super().status()

    def json(self) -> dict[str, Any]:
        with self._threads:
            return super().json()

    def _object(self, image_id: str) -> ImageLabelModel:
        found = self._datastore.objects.get(image_id)
        if found is None:
            raise ImageNotFoundException(f"Image {image_id} not found")
        return found

    def _unlink_label(self, label_id: str, tag: str) -> bool:
        label = self._object(label_id).labels.pop(tag, None)
        if label is None:
            return False
        folder = self.labels_folder(tag)
        (folder / (label_id + label.ext)).unlink(missing_ok=True)
        label_records.remove(folder, label_id)
        return True

    def _list_files(self, path: str, patterns: Any) -> dict[str, str]:
        """As MONAI Label's, without names that could not be given out as JSON."""
        return {name: file for name, file in super()._list_files(path, patterns).items() if _is_text(name)}

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Reads the list again if it changed on disk; one that cannot be read is set aside."""
        with self._exclusive():
            path = Path(self._datastore_config_path)
            try:
                stat = path.stat()
                seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                if seen == self._seen:
                    return
                model = LocalDatastoreModel.model_validate_json(path.read_text("utf-8"))
            except FileNotFoundError:
                return
            except ValueError as error:
                aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
                os.replace(path, aside)
                logger.error("%s is damaged and was set aside as %s; it is made again from the files. %s",
                             path.name, aside.name, str(error)[:200])  # fmt: skip
                return
            model.base_path = self._datastore_path
            model.objects = {name: found for name, found in model.objects.items() if _is_safe(name, found)}
            self._datastore, self._seen = model, seen

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._exclusive():
            content = self._datastore.model_dump(exclude={"base_path"})
            write_text(Path(self._datastore_config_path), json.dumps(content, indent=2, default=str))
            stat = os.stat(self._datastore_config_path)
            self._seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def _on_modify_event(self, event: Any) -> None:
        if event.src_path == self._datastore_config_path:
            self._init_from_datastore_file()

    def _on_moved(self, event: Any) -> None:
        if event.dest_path != self._datastore_config_path:
            self.refresh()

    def _add_non_existing_labels(self, tag: str) -> int:
        return super()._add_non_existing_labels(tag) if is_tag(tag) else 0

    def _reconcile_datastore(self) -> None:
        with self._exclusive():
            folders = [Path(self._datastore.image_path()), Path(self._datastore.label_path(None))]
            for folder in [*folders, *(f for f in folders[1].iterdir() if f.is_dir())]:
                remove_parts(folder)
            super()._reconcile_datastore()
            if self._recover_labels():
                self._update_datastore_file()

    def _recover_labels(self) -> int:
        """Gives every label the metadata of its own record where the list holds other; returns how many."""
        count = 0
        for image_id, found in self._datastore.objects.items():
            for tag, label in found.labels.items():
                folder = self.labels_folder(tag)
                if label_records.newest_info(folder, image_id) in (None, label.info):
                    continue
                record = label_records.find(folder, image_id)
                if record is not None and (record.info, record.ext) != (label.info, label.ext):
                    found.labels[tag] = DataModel(info=record.info, ext=record.ext)
                    count += 1
        return count

    def _remove_non_existing(self) -> int:
        """As MONAI Label's, but the list is replaced in one step, so that requests never see an empty one."""
        self._init_from_datastore_file()
        images, kept, gone = Path(self._datastore.image_path()), {}, 0
        for image_id, found in self._datastore.objects.items():
            if not (images / (image_id + found.image.ext)).exists():
                logger.info("The image %s is no longer there", image_id)
                gone += 1
                continue
            labels = {
                tag: label
                for tag, label in found.labels.items()
                if is_tag(tag) and (self.labels_folder(tag) / (image_id + label.ext)).exists()
            }
            gone += len(found.labels) - len(labels)
            kept[image_id] = ImageLabelModel(image=found.image, labels=labels)
        self._datastore.objects = kept
        return gone


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_safe(image_id: str, found: ImageLabelModel) -> bool:
    """Whether an entry of the list names files of the datastore alone (an older version took any name)."""
    endings = [found.image.ext, *(label.ext for label in found.labels.values())]
    return os.path.basename(image_id) == image_id != "" and not any(os.sep in ending for ending in endings)
