"""What all tests share."""

import contextlib
import fcntl
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import settings

# Several test processes share the processors, where threads of torch would wait for each other's turns. Read when torch
# is imported; what tests start sets its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No registry but where a test asks for one: else it would be in a file of the checkout.
os.environ.setdefault("MLFLOW_TRACKING_URI", "")

# How long an example takes says more about the machine than about the code.
settings.register_profile("cloze", deadline=None)
settings.load_profile("cloze")

# Minutes each. A worker that begins with one when the others have nothing left keeps them all waiting.
LONGEST = ("trainer/test_task_runs.py", "trainer/test_runs.py", "trainer/test_loop.py", "trainer/test_import.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, and the others in their order: files are given to workers as they come."""
    tests = Path(__file__).parent
    first = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path, len(first)))


def pytest_collection_finish() -> None:
    """Keep Python's search for garbage off what the tests import, which is millions of objects and stays."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end libraries report what they find that nobody has freed."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], AbstractContextManager[Path]]:
    """A folder by its name that all processes of a test run have, and one at a time."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    @contextlib.contextmanager
    def hold(name: str) -> Iterator[Path]:
        folder = root / f"shared-{name}"
        folder.mkdir(exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder

    return hold
