"""Small files that later commands rely on: each is written whole or not at all, also when the power fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.new")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        # A rename can reach the disk before the content does, and would then leave an empty file.
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """What was written as a JSON object, or None when there is no file; ValueError when it is damaged."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")  # noqa: TRY004 - the file's fault, not the caller's
    return found
