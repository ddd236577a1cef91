"""Steps in one thread: one at a time, in the order in which they came, and no other thread gets a team of helpers."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import lib
import pytest
import torch
from lib.sam import compute
from lib.sam.compute import ComputeThread, computed


@pytest.fixture
def in_thread(monkeypatch):
    """This process computes in a thread, as a server does."""
    monkeypatch.setattr(compute, "_thread", None)
    compute.start_compute_thread()


def test_one_at_a_time_and_whoever_asked_first():
    thread, order, inside = ComputeThread(), [], []
    running, begin = threading.Event(), threading.Event()

    def hold():
        running.set()
        begin.wait(10)

    def step(number):
        inside.append(number)
        assert len(inside) == 1
        order.append(number)
        time.sleep(0.001)
        inside.pop()

    first = threading.Thread(target=thread.run, args=(hold,))
    first.start()
    assert running.wait(10)
    callers = [threading.Thread(target=thread.run, args=(step, n)) for n in range(20)]
    for waiting, caller in enumerate(callers, start=1):
        caller.start()
        while thread._pool._work_queue.qsize() < waiting:
            time.sleep(0.001)
    begin.set()
    for caller in (first, *callers):
        caller.join(10)
    assert order == list(range(20))


@pytest.mark.alone
def test_a_caller_of_step_after_step_lets_others_in_between():
    thread, done, waited = ComputeThread(), threading.Event(), []

    def steps():
        while not done.is_set():
            thread.run(time.sleep, 0.02)

    caller = threading.Thread(target=steps)
    caller.start()
    for _ in range(5):
        time.sleep(0.005)
        begin = time.monotonic()
        thread.run(lambda: waited.append(time.monotonic() - begin))  # noqa: B023 (run before the next one)
    done.set()
    caller.join(10)
    assert max(waited) < 0.2  # a step or so, and not until all steps are done


def test_an_error_reaches_the_caller_and_the_thread_goes_on():
    thread = ComputeThread()
    with pytest.raises(KeyError):
        thread.run({}.__getitem__, "nothing")
    assert thread.run(int, "7") == 7


def test_a_step_infers_in_the_one_thread_and_a_step_of_a_step_too(in_thread):
    @computed
    def where():
        assert torch.is_inference_mode_enabled()
        return threading.get_ident()

    @computed
    def within():
        return where()

    assert where() == within() != threading.get_ident()
    assert not torch.is_inference_mode_enabled()


def test_a_command_computes_where_it_is_called(monkeypatch):
    monkeypatch.setattr(compute, "_thread", None)
    assert compute.compute(threading.get_ident) == threading.get_ident()


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process's threads in /proc")
def test_requests_threads_get_no_team(tmp_path):
    """Clicks and boxes, with uncertainty, from several threads: all helpers are the compute thread's."""
    app = Path(lib.__file__).parents[1]
    program = Path(__file__).with_name("thread_count.py")
    made = subprocess.run(
        [sys.executable, str(program), str(app), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    alone, together = (int(n) for n in made.stdout.split())
    assert together == alone
