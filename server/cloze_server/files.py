"""Files that outlive a loss of power."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Have the disk hold what a file has, or which entries a folder has. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
