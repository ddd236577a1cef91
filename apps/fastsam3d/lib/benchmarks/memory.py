"""The memory of a server: with one large scan open, and after many."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..sam.benchmark_rows import BenchRow
from .ct import same_scan, size_text, write_scan
from .servers import OURS, Server, ServerError, our_server, studies_folder

SETTLED = 20
"""Volumes after which the cache is full and memory should grow no more; a tenth of all where those are fewer than 200."""

_DIFFERENT = 4
"""Scans that are written; the others are links to these under names of their own, which the server reads and keeps anew."""

_SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class MemoryRow(BenchRow):
    """Resident memory of a server's process and those below it, MB of 10**6 bytes.

    Attributes:
        part: "memory".
        case: what was opened.
        volumes: how many, each with a click.
        before_mb: with one scan, when the server had loaded its model and answered no click; with many, after `settled_after`
            of them.
        after_mb: when the last click was answered.
        peak_mb: the most that was seen meanwhile.
        growth_mb: after_mb - before_mb. growth_percent: of before_mb.
        settled_after: volumes opened when before_mb was taken.
        cache_gb: the server's budget for scans and embeddings, GiB.
    """

    volumes: int
    before_mb: float
    after_mb: float
    peak_mb: float
    growth_mb: float
    growth_percent: float
    settled_after: int
    cache_gb: float
    threads: int
    device: str

    @classmethod
    def of(
        cls, case: str, volumes: int, before: float, after: float, peak: float, settled_after: int, cache_gb: float,
        threads: int, device: torch.device | str,
    ) -> MemoryRow:  # fmt: skip
        """From memory in MB."""
        growth = after - before
        return cls(
            "memory", case, volumes, round(before, 1), round(after, 1), round(peak, 1), round(growth, 1),
            round(100 * growth / before, 2), settled_after, cache_gb, threads, str(device),
        )  # fmt: skip

    def line(self) -> str:
        """For the terminal."""
        since = f"after {self.settled_after} of them" if self.settled_after else "at its start"
        return (
            f"{self.part:7s} {self.after_mb:9.1f} MB, {since} {self.before_mb:.1f} MB: {self.growth_mb:+.1f} MB, "
            f"{self.growth_percent:+.1f} %; at most {self.peak_mb:.1f} MB "
            f"({self.case}; cache_gb {self.cache_gb:g}, {self.threads} threads, {self.device})"
        )

    def bars(self) -> dict[str, float]:
        """For the plot: name -> MB."""
        return {"before": self.before_mb, "after": self.after_mb, "peak": self.peak_mb}


def measure_memory(
    shape: tuple[int, int, int],
    volumes: int,
    volume_shape: tuple[int, int, int],
    cache_gb: float,
    threads: int,
    device: torch.device,
    conf: dict[str, str],
    say: Callable[[str], None] = lambda text: None,
) -> list[MemoryRow]:
    """One server: a click on a scan, then a click on each of many scans.

    Args:
        shape: (I, J, K) of the one int16 scan. volume_shape: of the many.
        volumes: how many those are.
        cache_gb: the server's budget, GiB: small enough that the first volumes fill it.
        conf: more of the server's `--conf` pairs.

    Returns:
        A row for either.

    Raises:
        ServerError: the server does not start or answers with an error.
    """
    settled = min(SETTLED, max(1, volumes // 10))
    with studies_folder() as studies:
        large = write_scan(studies / "large.nii.gz", shape, 1, 1)
        different = min(_DIFFERENT, volumes)
        scans = [write_scan(studies / f"scan{n}.nii.gz", volume_shape, 1, n + 2) for n in range(different)]
        scans += [same_scan(scans[n % different], studies / f"scan{n}.nii.gz") for n in range(different, volumes)]
        with our_server(studies, conf | {"cache_gb": f"{cache_gb:g}"}, threads) as server:
            start = server.resident_mb()
            with _Peak(server) as peak:
                server.click(OURS, large.name, large.clicks)
            opened = server.resident_mb()
            case = f"one {size_text(shape)} int16 scan open"
            row = MemoryRow.of(case, 1, start, opened, max(peak.mb, opened), 0, cache_gb, threads, device)
            say(f"{case}: {opened:.0f} MB; then {volumes} of {size_text(volume_shape)}")
            before = 0.0
            with _Peak(server) as peak:
                for n, scan in enumerate(scans, start=1):
                    server.click(OURS, scan.name, scan.clicks)
                    if n == settled:
                        before = server.resident_mb()
                    if n == settled or n % SETTLED == 0:
                        say(f"volume {n} of {volumes}: {server.resident_mb():.0f} MB")
            after = server.resident_mb()
    case = f"{volumes} int16 scans of {size_text(volume_shape)} opened in turn"
    many = MemoryRow.of(case, volumes, before, after, max(peak.mb, after), settled, cache_gb, threads, device)
    return [row, many]


class _Peak:
    """The most memory that a server has while the block runs, looked at ten times a second: `mb`."""

    def __init__(self, server: Server) -> None:
        self.mb = 0.0
        self._server, self._over = server, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Peak:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            try:
                self.mb = max(self.mb, self._server.resident_mb())
            except ServerError:
                return
