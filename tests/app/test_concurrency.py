"""Many clients at once get what each would get alone."""

import gzip
import os
import threading
import time

import nibabel as nib
import numpy as np
import pytest
import requests

from tests.app.load import label_map, packed, unpacked
from tests.app.serving import within
from tests.app.volumes import CENTRE_IJK

pytestmark = pytest.mark.e2e


def test_parallel_clicks_equal_serial_clicks(server):
    jobs = [
        (image, {"foreground": [[c + d for c in CENTRE_IJK]], "background": background, "result_extension": ".nrrd"})
        for image in ("case1", "case2")
        for d in (0, 3)
        for background in ([], [[3, 3, 3]])
    ]
    alone = [server.infer(image, params, output="image").content for image, params in jobs]
    together: list[bytes] = [b""] * len(jobs)

    def click(n: int) -> None:
        together[n] = server.infer(jobs[n][0], jobs[n][1], output="image").content

    threads = [threading.Thread(target=click, args=(n,)) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert len(set(alone)) > 1


def test_a_first_look_at_a_large_scan_keeps_nobody_waiting(server, studies):
    """Others are answered before it is: refinements of another scan, and what needs no model."""
    noise = np.random.default_rng(0).integers(-200, 200, (340, 340, 300), dtype=np.int16)  # hard to inflate
    file = studies / "large.nii.gz"
    with gzip.open(studies / ".large", "wb", compresslevel=1) as content:
        content.write(nib.Nifti1Image(noise, np.eye(4)).to_bytes())
    (studies / ".large").rename(file)
    try:
        assert within(20, lambda: "large" in server.get("/datastore/?output=all").json()["objects"])
        _first_look_comes_last(server)
    finally:
        file.unlink()
        assert within(20, lambda: "large" not in server.get("/datastore/?output=all").json()["objects"])


def _first_look_comes_last(server) -> None:
    large = {"foreground": [[170, 170, 150]], "result_extension": ".nrrd"}
    small = {"foreground": [list(CENTRE_IJK)], "result_extension": ".nrrd"}
    server.infer("case1", small, output="image").raise_for_status()
    asked = {
        "first look": lambda: server.infer("large", large, output="image"),
        "info": lambda: server.get("/info/"),
        "refinement": lambda: server.infer("case1", {**small, "background": [[3, 3, 3]]}, output="image"),
    }
    done: dict[str, float] = {}

    def ask(name: str) -> None:
        asked[name]().raise_for_status()
        done[name] = time.monotonic()

    threads = [threading.Thread(target=ask, args=(name,)) for name in asked]
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # the first look comes first
    for thread in threads:
        thread.join()
    assert max(done, key=done.get) == "first look", done


CLIENTS = int(os.environ.get("FASTSAM3D_CLIENTS", "8"))
"""`scripts/fuzz.py --clients 32` takes more."""


def test_clients_that_click_save_and_ask_for_the_next_image_at_once(server):
    """Each client's masks are those of a serial run, and its labels come back as it sent them."""
    jobs = [("case1", 0), ("case2", 1), ("case1", 2), ("case2", 3)]

    def mask(image: str, shift: int) -> bytes:
        params = {"foreground": [[c + shift for c in CENTRE_IJK]], "result_extension": ".nrrd"}
        answer = server.infer(image, params, output="image")
        answer.raise_for_status()
        return answer.content

    alone = [mask(*job) for job in jobs]
    wrong: list[str] = []

    def work(client: int) -> None:
        try:
            for turn in range(2):
                number = 1 + client + 100 * turn
                if mask(*jobs[(client + turn) % len(jobs)]) != alone[(client + turn) % len(jobs)]:
                    wrong.append(f"client {client}: another mask than alone")
                query, tag = {"image": jobs[client % 2][0], "tag": f"client{client}"}, f"client{client}"
                files = {"label": ("l.nii.gz", packed(label_map(number)))}
                requests.put(f"{server.url}/datastore/label", params=query, files=files, timeout=120).raise_for_status()
                requests.post(f"{server.url}/activelearning/random", json={}, timeout=120).raise_for_status()
                stored = server.get(f"/datastore/label?label={query['image']}&tag={tag}")
                if not np.array_equal(unpacked(stored.content), label_map(number)):
                    wrong.append(f"client {client}: another label than it sent")
        except (requests.RequestException, OSError) as error:
            wrong.append(f"client {client}: {error!r}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    tags = server.get("/datastore/").json()["label_tags"]
    assert {f"client{n}" for n in range(CLIENTS)} <= set(tags)
