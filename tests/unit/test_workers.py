"""Worker processes: exceptions reach the caller as they were, and one that is killed leaves nothing behind."""

import os
import pickle
import signal
import threading
from concurrent.futures.process import BrokenProcessPool

import pytest

from alight.runtime.errors import InputError
from alight.runtime.interrupt import Interrupted
from alight.studies.workers import Workers


def _fail(error):
    raise error


@pytest.mark.parametrize("error", [InputError("a mistake"), Interrupted(15, True), Interrupted(2)], ids=repr)
def test_exceptions_keep_what_they_say(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, vars(again)) == (type(error), error.args, vars(error))


def test_a_worker_outlives_the_interruption_of_a_call_and_not_a_kill():
    threads = set(threading.enumerate())
    with Workers(["cpu"], 1) as workers:
        number = workers.call(os.getpid)
        with pytest.raises(Interrupted, match="SIGTERM"):
            workers.call(_fail, Interrupted(signal.SIGTERM, agreed=True))
        assert workers.call(os.getpid) == number
        with pytest.raises(BrokenProcessPool):
            workers.call(os.kill, number, signal.SIGKILL)
        assert set(threading.enumerate()) == threads  # one left would close queues while this process ends
        assert workers.call(os.getpid) != number
