"""Helper processes: the answers' order, what is in memory, and how they and their work end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloze_api.pretrain import Cleaning
from cloze_trainer.data import crew
from cloze_trainer.data.cleaning import Fitting
from cloze_trainer.data.crew import Crew, affordable
from cloze_trainer.errors import InputError, TrainerError


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers begin with the first task."""
    monkeypatch.setattr(crew, "_ALONE", 0)


def test_answers_come_in_the_order_of_the_tasks_and_few_are_in_memory() -> None:
    """Though the first ones take longest, and though nobody takes the answers."""
    taken = 0

    def tasks() -> Iterator[float]:
        nonlocal taken
        for number in range(40):
            taken = number + 1
            yield 0.2 if number < 2 else 0.0

    with Crew(2) as helpers:
        answers = helpers.map(time.sleep, tasks())
        assert next(answers) is None
        assert taken == 4
        assert sum(1 for _ in answers) == 39
        assert list(helpers.map(sorted, ([number, -number] for number in range(30)))) == [
            [-number, number] for number in range(30)
        ]


@pytest.mark.parametrize(
    ("cpus", "gibibytes", "helpers"),
    [(2, None, 2), (64, None, 16), (64, 2, 4), (64, 100, 16), (1, 100, 1), (8, 0.1, 1)],
)
def test_helpers_are_as_many_as_the_pod_has_room_for(cpus: int, gibibytes: float | None, helpers: int) -> None:
    """They take a small part of its memory."""
    assert affordable(cpus, gibibytes and int(gibibytes * (1 << 30))) == helpers


def test_little_work_starts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a crew of one, however much it is."""
    monkeypatch.setattr(crew, "_ALONE", 4)
    monkeypatch.setattr(crew, "_Helper", None)
    with Crew(2) as helpers:
        for _ in range(3):
            assert list(helpers.map(len, ["a"] * 4)) == [1] * 4
    with Crew(1) as alone:
        assert list(alone.map(len, ["a"] * 40)) == [1] * 40


def test_what_fails_in_a_helper_is_told_without_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Its kind and its place; a wrong job as it would be told by this process."""
    with Crew(2) as helpers:
        with pytest.raises(TrainerError, match="failed with ValueError") as failure:
            list(helpers.map(int, ["1", "Ada Lovelace"]))
        assert failure.value.reason == "HelperFailed"
        assert list(helpers.map(int, ["1", "2", "3"])) == [1, 2, 3], "it goes on"
        unknown = Fitting(Cleaning(languages=["xx"]), digesting=False)
        with pytest.raises(InputError, match="names xx") as refusal:
            list(helpers.map(unknown, [["a text of some length"]]))
        assert refusal.value.reason == "LanguageUnknown"
    assert "Lovelace" not in capsys.readouterr().err + str(failure.value)


def test_a_killed_helper_is_told() -> None:
    """As by the system, for its memory."""
    with Crew(2) as helpers, pytest.raises(TrainerError, match=r"ended with code -9.*memory") as failure:
        list(helpers.map(signal.raise_signal, [signal.SIGKILL]))
    assert failure.value.reason == "HelperKilled"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_helper_outlives_its_crew() -> None:
    """Not even one that is at work."""
    with Crew(2) as helpers:
        next(helpers.map(time.sleep, [0.0, 60.0, 60.0, 60.0, 60.0]))
        pids = [helper.process.pid for helper in helpers._helpers]
        assert all(map(alive, pids))
    assert not any(map(alive, pids))


KILLED = """
import os, signal
from cloze_trainer.data import crew

crew._ALONE = 0
with crew.Crew(2) as helpers:
    print(*helpers.map(eval, ["__import__('os').getpid()"] * 12), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_helper_outlives_a_process_that_is_killed() -> None:
    """They read the end of their pipe."""
    ended = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    pids = {int(pid) for pid in ended.stdout.split()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    deadline = time.monotonic() + 30
    while any(map(alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
