"""Many clients at once get what each would get alone."""

import threading

import pytest

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
