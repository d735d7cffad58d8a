"""What a signal does, by when it comes."""

import os
import signal
from collections.abc import Iterator

import pytest

from cloze_trainer.errors import Suspended
from cloze_trainer.stopping import StopSignal


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    """The process's own way with signals is back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield StopSignal()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_outside_of_training_it_ends_the_work_at_once(stop: StopSignal) -> None:
    with pytest.raises(Suspended):
        os.kill(os.getpid(), signal.SIGTERM)


def test_in_training_it_is_noted_until_the_step_is_done(stop: StopSignal) -> None:
    seen = []

    def step() -> None:
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append(stop.requested)

    with pytest.raises(Suspended):
        step()
    assert seen == [True]


def test_it_cannot_disturb_the_writing_of_an_outcome(stop: StopSignal) -> None:
    """Another rank has failed, this one says so, and the launcher ends it in the middle of that."""
    stop.ignore()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested
