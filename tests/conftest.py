"""What all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Several test processes share the processors, where threads of torch would wait for each other's turns. Read when torch
# is imported; what tests start sets its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
