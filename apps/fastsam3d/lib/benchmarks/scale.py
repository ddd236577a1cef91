"""How a click's time grows: with the scan's size, with the number of clicks, and with others on the same server."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from ..sam.benchmark_rows import BenchRow, dtype_name
from .ct import Scan, same_scan, size_text, write_scan
from .servers import OURS, WARM_UP_SHAPE, Server, ServerError, our_server, studies_folder

SIZES = ((128, 128, 128), (256, 256, 150), (512, 512, 300))
COUNTS = (1, 5, 20, 100)
CLIENTS = 8
_REFINEMENTS = 4
_WAIT_SECONDS = 300.0
_MOST_TOGETHER = 10
"""Clicks on an annotator's object before the next object is begun."""


@dataclass(frozen=True)
class ScaleRow(BenchRow):
    """Round trips of one kind of request over HTTP.

    Attributes:
        part: "scale". case: what was asked.
        median_ms, largest_ms: of the requests. requests: how many.
        dtype: of our weights.
    """

    median_ms: float
    largest_ms: float
    requests: int
    threads: int
    dtype: str
    device: str

    def line(self) -> str:
        """For the terminal."""
        return (
            f"{self.part:7s} median {self.median_ms:9.1f} ms  largest {self.largest_ms:9.1f} ms  "
            f"({self.case}; {self.requests} requests, {self.ran_with})"
        )

    def bars(self) -> dict[str, float]:
        """For the plot: name -> milliseconds."""
        return {"median": self.median_ms, "largest": self.largest_ms}


@dataclass(frozen=True)
class TogetherRow(BenchRow):
    """Refinement clicks of several annotators, with and without another's first click on a large scan going on.

    Attributes:
        part: "scale". case: who did what.
        clients: annotators; one of them opens scans.
        pause_s: seconds between an annotator's answer and next click.
        alone_median_ms, alone_largest_ms, alone_requests: refinements while nothing was opened.
        beside_median_ms, beside_largest_ms, beside_requests: refinements that overlapped a first click.
        added_median_ms: beside_median_ms - alone_median_ms.
        added_largest_ms: beside_largest_ms - alone_median_ms, which leaves nothing to luck.
        first_clicks_ms: the median of the first clicks. loads: how many.
    """

    clients: int
    pause_s: float
    alone_median_ms: float
    alone_largest_ms: float
    alone_requests: int
    beside_median_ms: float
    beside_largest_ms: float
    beside_requests: int
    added_median_ms: float
    added_largest_ms: float
    first_clicks_ms: float
    loads: int
    threads: int
    dtype: str
    device: str

    def line(self) -> str:
        """For the terminal."""
        return (
            f"{self.part:7s} alone {self.alone_median_ms:.1f} ms (largest {self.alone_largest_ms:.1f}, {self.alone_requests})  "
            f"beside a first click {self.beside_median_ms:.1f} ms (largest {self.beside_largest_ms:.1f}, "
            f"{self.beside_requests}): {self.added_median_ms:+.1f} ms, at most {self.added_largest_ms:+.1f} ms "
            f"({self.case}; {self.loads} first clicks of {self.first_clicks_ms:.0f} ms, {self.ran_with})"
        )

    def bars(self) -> dict[str, float]:
        """For the plot: name -> milliseconds."""
        return {
            "alone, median": self.alone_median_ms,
            "alone, largest": self.alone_largest_ms,
            "beside, median": self.beside_median_ms,
            "beside, largest": self.beside_largest_ms,
        }


@dataclass(frozen=True)
class _Bench:
    """A server, where its scans lie, and what to write into rows."""

    server: Server
    studies: Path
    threads: int
    dtype: torch.dtype
    device: torch.device

    def ask(self, scan: Scan, clicks: Sequence) -> float:
        """Milliseconds of the round trip."""
        return self.server.click(OURS, scan.name, clicks)[0]

    @property
    def last_fields(self) -> tuple[int, str, str]:
        """Threads, dtype and device, with which rows end."""
        return self.threads, dtype_name(self.dtype), str(self.device)

    def row(self, case: str, taken: Sequence[float]) -> ScaleRow:
        return ScaleRow("scale", case, round(median(taken), 1), round(max(taken), 1), len(taken), *self.last_fields)


def measure_scale(
    sizes: Sequence[tuple[int, int, int]],
    counts: Sequence[int],
    clients: int,
    pause_s: float,
    rounds: int,
    threads: int,
    device: torch.device,
    dtype: torch.dtype,
    conf: dict[str, str],
    say: Callable[[str], None] = lambda text: None,
) -> list[ScaleRow | TogetherRow]:
    """Times all three on one server.

    Args:
        sizes: (I, J, K) of the scans; the largest is what one annotator opens while the others refine, on scans of the
            smallest.
        counts: numbers of clicks.
        clients: annotators, of whom one opens scans.
        pause_s: seconds between an annotator's answer and next click.
        rounds: scans of each size, sequences of clicks, and first clicks beside others.
        threads: of the server. dtype: of our weights, for the rows.
        conf: the server's `--conf` pairs.

    Raises:
        ServerError: the server does not start or answers with an error.
    """
    ordered = sorted(sizes, key=lambda shape: shape[0] * shape[1] * shape[2])
    with studies_folder() as studies:
        warm_up = write_scan(studies / "warmup.nii.gz", WARM_UP_SHAPE, 3, 0)
        by_size = {
            shape: _links(studies, shape, rounds, 1 + _REFINEMENTS, f"size{n}") for n, shape in enumerate(ordered)
        }
        most = max(counts)
        replayed = _links(studies, ordered[len(ordered) // 2], rounds * (len(counts) + 1), most + 2, "clicks")
        own = [write_scan(studies / f"own{n}.nii.gz", ordered[0], 150, 100 + n) for n in range(clients - 1)]
        opened = _links(studies, ordered[-1], rounds, 1, "opened")
        with our_server(studies, conf, threads) as server:
            bench = _Bench(server, studies, threads, dtype, device)
            for count in range(1, len(warm_up.clicks) + 1):
                bench.ask(warm_up, warm_up.clicks[:count])
            rows: list[ScaleRow | TogetherRow] = []
            for shape, scans in by_size.items():
                say(f"{rounds} scans of {size_text(shape)}")
                rows += _size_rows(bench, shape, scans)
            say(
                f"{rounds} times {', '.join(map(str, counts))} clicks on scans of {size_text(ordered[len(ordered) // 2])}"
            )
            rows += _count_rows(bench, replayed, counts, rounds)
            say(f"{clients} annotators, {rounds} first clicks on {size_text(ordered[-1])}")
            rows.append(_together(bench, own, opened, ordered, pause_s))
    return rows


def _links(studies: Path, shape: tuple[int, int, int], count: int, clicks: int, name: str) -> list[Scan]:
    """One scan under so many names, each of which a server reads anew."""
    first = write_scan(studies / f"{name}_0.nii.gz", shape, clicks, 1)
    return [first, *(same_scan(first, studies / f"{name}_{n}.nii.gz") for n in range(1, count))]


def _size_rows(bench: _Bench, shape: tuple[int, int, int], scans: Sequence[Scan]) -> list[ScaleRow]:
    """A first click, then refinements, each request with all clicks so far."""
    first, later = [], []
    for scan in scans:
        first.append(bench.ask(scan, scan.clicks[:1]))
        later += [bench.ask(scan, scan.clicks[:n]) for n in range(2, len(scan.clicks) + 1)]
    text = size_text(shape)
    return [bench.row(f"first click on {text}", first), bench.row(f"refinement click on {text}", later)]


def _count_rows(bench: _Bench, scans: Sequence[Scan], counts: Sequence[int], rounds: int) -> list[ScaleRow]:
    """The click of that number after all those before it, and so many clicks at once where the scan has answered one."""
    added: dict[int, list[float]] = {count: [] for count in counts}
    at_once: dict[int, list[float]] = {count: [] for count in counts}
    fresh = iter(scans)
    for _ in range(rounds):
        scan = next(fresh)
        for n in range(1, max(counts) + 1):
            elapsed = bench.ask(scan, scan.clicks[:n])
            if n in added:
                added[n].append(elapsed)
        for count in counts:
            scan = next(fresh)
            elsewhere = [click for click in scan.clicks if click[1]][-1:]  # none of those that are measured
            bench.ask(scan, elsewhere)
            at_once[count].append(bench.ask(scan, scan.clicks[:count]))
    return [
        *(bench.row(f"click number {count} after those before it", added[count]) for count in counts),
        *(bench.row(f"{count} click{'s' * (count > 1)} at once on an open scan", at_once[count]) for count in counts),
    ]


class _Annotator(threading.Thread):
    """Refines objects on a scan of its own until told to stop; `made` holds (begin, end) of every refinement, in seconds."""

    def __init__(self, server: Server, scan: Scan, pause_s: float, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.made: list[tuple[float, float]] = []
        self.error: Exception | None = None
        self._server, self._scan, self._pause, self._stop_asked = server.another_client(), scan, pause_s, stop
        self._random = random.Random(seed)

    def run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                first, *later = self._scan.clicks
                chosen = [first, *self._random.sample(later, min(len(later), _MOST_TOGETHER - 1))]
                for n in range(2, len(chosen) + 1):
                    if self._stop_asked.wait(self._pause * self._random.uniform(0.5, 1.5)):
                        return
                    begin = time.perf_counter()
                    self._server.click(OURS, self._scan.name, chosen[:n])
                    self.made.append((begin, time.perf_counter()))
        except (ServerError, OSError) as error:
            self.error = error


def _together(
    bench: _Bench, own: Sequence[Scan], opened: Sequence[Scan], sizes: Sequence[tuple[int, int, int]], pause_s: float
) -> TogetherRow:
    """All but one annotator refine throughout; the last opens a scan, lets them go on alone, opens the next."""
    for scan in own:
        bench.ask(scan, scan.clicks[:1])
    stop = threading.Event()
    others = [_Annotator(bench.server, scan, pause_s, n, stop) for n, scan in enumerate(own)]
    loads: list[tuple[float, float]] = []
    try:
        for annotator in others:
            annotator.start()
        _alone(others)  # each of them asks something for the first time
        begun = time.perf_counter()
        for scan in opened:
            _alone(others)
            begin = time.perf_counter()
            bench.ask(scan, scan.clicks[:1])
            loads.append((begin, time.perf_counter()))
        _alone(others)
    finally:
        stop.set()
        for annotator in others:
            annotator.join(60)
    requests = [request for annotator in others for request in annotator.made if request[0] >= begun]
    beside = [_ms(r) for r in requests if any(r[0] < load[1] and load[0] < r[1] for load in loads)]
    alone = [_ms(r) for r in requests if not any(r[0] < load[1] and load[0] < r[1] for load in loads)]
    if not beside or not alone:
        raise ServerError(
            f"no refinement came {'while' if not beside else 'before or after'} a scan was opened; try more --rounds"
        )
    quiet, busy = median(alone), median(beside)
    case = (
        f"{len(own) + 1} annotators, a click every {pause_s:g} s on scans of {size_text(sizes[0])}; one opens "
        f"{size_text(sizes[-1])} .nii.gz"
    )
    return TogetherRow(
        "scale", case, len(own) + 1, pause_s, round(quiet, 1), round(max(alone), 1), len(alone), round(busy, 1),
        round(max(beside), 1), len(beside), round(busy - quiet, 1), round(max(beside) - quiet, 1),
        round(median(map(_ms, loads)), 1), len(loads), *bench.last_fields,
    )  # fmt: skip


def _alone(others: Sequence[_Annotator]) -> None:
    """Returns when the others have got twice as many answers more as they are.

    Raises:
        ServerError: one of them got none.
    """
    enough = sum(len(annotator.made) for annotator in others) + 2 * len(others)
    deadline = time.monotonic() + _WAIT_SECONDS
    while sum(len(annotator.made) for annotator in others) < enough:
        for annotator in others:
            if annotator.error is not None:
                raise ServerError(f"an annotator got no answer: {annotator.error}") from annotator.error
        if time.monotonic() > deadline:
            raise ServerError(f"the annotators got no {enough} answers in {_WAIT_SECONDS:g} s")
        time.sleep(0.02)


def _ms(span: tuple[float, float]) -> float:
    return 1000 * (span[1] - span[0])
