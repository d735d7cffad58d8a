"""How soon a server answers, and the memory and the disk that it takes."""

import subprocess
import time
from contextlib import suppress
from pathlib import Path

import measure
import servers
from measure import Spread
from servers import DEFAULT_BATCH, PEER_SERVERS
from workload import Workload


def resident_mib(process: int) -> float:
    """Memory of a process and of all that it started, as the kernel shares it out among them (PSS)."""
    total = 0
    for number in servers.family(process):
        with suppress(OSError):
            rollup = Path(f"/proc/{number}/smaps_rollup").read_text(encoding="ascii")
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def installed_mib(server: servers.Server) -> float:
    """Size of its packages with all that they need, without Python itself."""
    command = [server.python(), str(servers.PEERS / "installed.py"), *server.packages]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / (1 << 20)


def footprint(artifact: Path, work: Workload, *, threads: int, rounds: int, seconds: float) -> None:
    """Seconds until a server is ready, its memory after a load of eight connections, and the size of its packages."""
    rows = []
    for server in (servers.ours(threads), *(make(DEFAULT_BATCH[name]) for name, make in PEER_SERVERS.items())):
        starts, memory = [], []
        for _ in range(rounds):
            began = time.monotonic()
            with servers.running(server, artifact, threads) as process:
                starts.append(time.monotonic() - began)
                measure.load(server, work, connections=8, seconds=seconds)
                memory.append(resident_mib(process))
        rows.append((server.name, Spread(tuple(starts)), Spread(tuple(memory)), Spread((installed_mib(server),))))
    measure.table(("server", "ready after, s", "memory after load, MiB", "packages, MiB"), rows)
