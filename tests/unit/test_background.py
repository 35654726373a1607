"""Work in threads beside the main one: bounded, in order of its results, and with errors that are not lost."""

import threading
import time

import pytest
import torch
from threadpoolctl import threadpool_info

from alight.runtime import threads as runtime_threads
from alight.runtime.background import BackgroundWork, mapped_ahead, mapped_in_threads
from alight.runtime.distributed import Processes
from alight.runtime.threads import all_cores


def fail():
    raise OSError("on purpose")


def test_all_calls_have_ended_when_the_block_has():
    done = []
    with BackgroundWork(threads=3, waiting=5) as work:
        for number in range(20):
            work.begin(lambda n=number: (time.sleep(0.001), done.append(n)))
    assert sorted(done) == list(range(20))


def test_no_more_than_the_bound_is_waiting():
    gate, begun = threading.Event(), []

    def begin_all(work):
        for number in range(6):
            work.begin(gate.wait, 10)
            begun.append(number)

    with BackgroundWork(threads=1, waiting=3) as work:
        filling = threading.Thread(target=begin_all, args=(work,))
        filling.start()
        deadline = time.monotonic() + 10
        while len(begun) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert len(begun) == 3
        gate.set()
        filling.join()
    assert len(begun) == 6


def test_an_error_surfaces_with_the_next_call_or_at_the_end():
    with pytest.raises(OSError, match="on purpose"), BackgroundWork(threads=1, waiting=9) as work:
        work.begin(fail)
    begun = []

    def go_on():
        with BackgroundWork(threads=1, waiting=9) as work:
            for number in range(200):
                begun.append(number)
                work.begin(fail)
                time.sleep(0.01)

    with pytest.raises(OSError, match="on purpose"):
        go_on()
    assert len(begun) < 200


def test_an_error_in_the_block_is_the_one_that_is_raised_and_the_rest_is_dropped():
    done, gate = [], threading.Event()

    def interrupted():
        with BackgroundWork(threads=1, waiting=9) as work:
            work.begin(lambda: (gate.wait(10), done.append("begun")))
            work.begin(done.append, "not begun")
            threading.Timer(0.05, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["begun"]
    assert not any(thread.name.startswith("background") for thread in threading.enumerate())


def test_results_come_in_order_and_only_a_few_are_worked_out_ahead():
    begun = []

    def square(number):
        begun.append(number)
        time.sleep(0.002 * (number % 3))
        return number**2

    results = mapped_ahead(square, range(100), threads=3)
    assert [next(results) for _ in range(10)] == [number**2 for number in range(10)]
    assert len(begun) <= 10 + 2 * 3 + 1
    assert list(results) == [number**2 for number in range(10, 100)]


def test_an_error_comes_in_the_place_of_its_result():
    results = mapped_ahead(lambda number: 1 // (3 - number), range(10), threads=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_all_cores_work_only_while_other_processes_wait(monkeypatch):
    monkeypatch.setattr(runtime_threads, "available_cores", lambda: 3)
    before = torch.get_num_threads()
    with all_cores(Processes(0, 1, torch.device("cpu"))):
        assert torch.get_num_threads() == before
    with all_cores(Processes(0, 2, torch.device("cpu"))):
        assert torch.get_num_threads() == 3
        assert {pool["num_threads"] for pool in threadpool_info()} == {3}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("seconds", "apart"), [(0, False), (0.005, True)], ids=["quick", "slow"])
def test_threads_work_out_what_takes_long_enough(seconds, apart):
    workers = set()

    def work(number):
        if seconds:  # even a sleep of nothing lets other programs go first
            time.sleep(seconds)
        workers.add(threading.get_ident())
        return number**2

    assert list(mapped_in_threads(work, range(200))) == [number**2 for number in range(200)]
    assert (len(workers) > 1) == apart


def test_no_item_in_a_thread_is_begun_after_the_last_one_that_was_wanted():
    begun = []

    def work(number):
        begun.append(number)
        time.sleep(0.002)
        return number

    results = mapped_in_threads(work, range(50_000))
    assert [next(results) for _ in range(40)] == list(range(40))  # the last of them in threads
    results.close()
    done = len(begun)
    time.sleep(0.05)
    assert len(begun) == done < 5_000


@pytest.mark.parametrize("position", [3, 150], ids=["here", "in a thread"])
def test_an_error_of_an_item_surfaces_in_its_place(position):
    def work(number):
        time.sleep(0.002)
        if number == position:
            fail()
        return number

    results, taken = mapped_in_threads(work, range(1_000)), []
    with pytest.raises(OSError, match="on purpose"):
        taken.extend(results)
    assert taken == list(range(min(position, 144)))  # those of a thread's task come together
