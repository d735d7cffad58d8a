"""Kernel settings that belong to the whole machine: a running cluster changes them, the last `down` puts them back."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from . import state
from .process import boot

_ROOT = Path("/proc/sys")
# The kubelet insists on these and writes them when it starts.
_KUBELET = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def remember(record: Path, egress: str | None) -> None:
    """Write down the values from before the first cluster; later clusters find the record and keep it."""
    names = [*_KUBELET, *([_forwarding(egress)] if egress else [])]
    kept = _recorded(record)
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            kept.setdefault(name, _path(name).read_text().strip())
    state.write(record, json.dumps({"boot": boot(), "values": kept}, indent=2) + "\n")


def restore(record: Path) -> None:
    """Put the values back and forget them; harmless when there is nothing to put back."""
    if not record.exists():
        return
    for name, value in _recorded(record).items():
        with contextlib.suppress(FileNotFoundError):  # an interface may have left since
            if _path(name).read_text().strip() != value:
                _path(name).write_text(value)
    record.unlink()


def forward(interface: str) -> None:
    """Let packets that come in on this interface travel on."""
    _path(_forwarding(interface)).write_text("1")


def _recorded(record: Path) -> dict[str, str]:
    """The values recorded since this boot; a restart has put every setting back by itself."""
    try:
        found = state.read(record) or {}
    except ValueError:  # damaged by a power cut, which put the settings back as well
        return {}
    values: dict[str, str] = found["values"] if found.get("boot") == boot() else {}
    return values


def _forwarding(interface: str) -> str:
    return f"net/ipv4/conf/{interface}/forwarding"


def _path(name: str) -> Path:
    return _ROOT / name
