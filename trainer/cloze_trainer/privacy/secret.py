"""The randomness that privacy rests on: nobody who sees the model may know it.

A job's seed stands in its spec for all to read. Noise that follows from it could be taken off again, so that it follows
from a key instead, which is drawn once for each run and lies in its workspace as long as it is needed: a run that
was killed goes on with the same noise, as a step whose noise is drawn twice would have told twice.
"""

import os
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cloze_trainer.files import write_atomically

_BYTES = 16
_SAMPLING, _NOISE = 1, 2


def obtain(file: Path) -> bytes:
    """The run's key; drawn where there is none yet."""
    if file.is_file() and len(key := file.read_bytes()) == _BYTES:
        return key
    key = secrets.token_bytes(_BYTES)
    write_atomically(file, key)
    file.chmod(0o600)
    return key


def forget(file: Path) -> None:
    """Remove the key of a run that is done."""
    if file.is_file():
        # Overwritten first, for what a volume keeps of a removed file.
        with file.open("r+b") as stream:
            stream.write(bytes(_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        file.unlink()


def _generator(key: bytes, domain: int, step: int) -> np.random.Generator:
    bits = np.random.Philox(
        key=np.frombuffer(key, dtype=np.uint64), counter=np.array([0, domain, step, 0], dtype=np.uint64)
    )
    return np.random.Generator(bits)


def sample(key: bytes, step: int, examples: int, rate: float) -> npt.NDArray[np.int64]:
    """Indices of the examples that are in a step: each with the same probability, whatever the others are."""
    return np.flatnonzero(_generator(key, _SAMPLING, step).random(examples) < rate).astype(np.int64)


def noise(key: bytes, step: int, count: int) -> npt.NDArray[np.float32]:
    """Normal noise of deviation 1 for a step, the same on every rank."""
    return _generator(key, _NOISE, step).standard_normal(count, dtype=np.float32)
