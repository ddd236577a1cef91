"""What stays together when the suite runs in several processes: a file, or the files that share what is slow to start."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

SHARING = (
    ("tests/app/dicom/",),  # an Orthanc full of series, a server on it, labels for all
    ("tests/clients/",),  # the phantoms, Orthanc with one of them, the servers of the clients
    tuple(
        f"tests/app/test_{name}.py"  # the server of tests/app/conftest.py
        for name in ("bad_input", "concurrency", "evaluate", "infer", "info", "reverse_proxy", "slices")
    ),
)
"""Beginnings of the paths of files that run in one process, one set after another. A file that is missing here costs no more
than the time of a second start."""


def unit(file: str) -> str:
    """Name of the unit of work that a test file, as a path in the repository, belongs to."""
    return next((set_[0] for set_ in SHARING if file.startswith(set_)), file)


class FilesThatShare(LoadFileScheduling):
    """Gives each process a unit at a time."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(super()._split_scope(nodeid))
