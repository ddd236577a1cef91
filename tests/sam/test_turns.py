"""Turns on a device: one at a time, in the order in which they were asked for."""

import threading
import time

import pytest
from lib.sam.turns import Turns, turns_on


def test_one_at_a_time_and_whoever_asked_first():
    turns, order, inside = Turns(), [], []

    def ask(number):
        with turns:
            inside.append(number)
            assert len(inside) == 1
            order.append(number)
            time.sleep(0.001)
            inside.pop()

    with turns:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
            while len(turns._waiting) <= threads.index(thread):
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == list(range(20))
    with turns:  # it is free again
        pass


@pytest.mark.alone
def test_a_thread_that_takes_turn_after_turn_lets_others_in_between():
    turns, done, waited = Turns(), threading.Event(), []

    def steps():
        while not done.is_set():
            with turns:
                time.sleep(0.02)

    thread = threading.Thread(target=steps)
    thread.start()
    for _ in range(5):
        time.sleep(0.005)
        begin = time.monotonic()
        with turns:
            waited.append(time.monotonic() - begin)
    done.set()
    thread.join(10)
    assert max(waited) < 0.2  # a step or so, and not until all steps are done


def test_an_error_gives_the_turn_back():
    turns = Turns()
    with pytest.raises(KeyError), turns:
        raise KeyError
    with turns:
        pass


def test_all_networks_of_a_device_share_its_turns():
    assert turns_on("cpu") is turns_on("cpu")
    assert turns_on("cpu") is not turns_on("cuda:1")
