"""Triton's Python stub brings an interpreter of its own, which may be older than the standard library that it finds."""

import threading
from multiprocessing import resource_tracker


class _Lock:
    """A lock that says how often its holder has taken it, as newer ones do."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._count = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        self._lock.release()

    def _recursion_count(self) -> int:
        return self._count


if not hasattr(threading.RLock(), "_recursion_count"):
    resource_tracker._resource_tracker._lock = _Lock()  # type: ignore[attr-defined, assignment]
