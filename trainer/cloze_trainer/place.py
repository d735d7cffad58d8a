"""Where a launcher stands in the gang, and by which address the others reach it."""

import fcntl
import os
import socket
import struct
import time
from dataclasses import dataclass

from cloze_api.names import ENV_ATTEMPT_DEADLINE, ENV_RENDEZVOUS
from cloze_api.training import Topology
from cloze_trainer.console import log
from cloze_trainer.errors import InputError, PeerLost
from cloze_trainer.run import Run

ENV_INDEX = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes in the pods of an Indexed Job; index 0 hosts the rendezvous."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this launcher stands. endpoint: host:port of the rendezvous; hosts: whether it lives here."""

    nodes: int
    processes: int
    endpoint: str
    hosts: bool
    address: str


def interface_of(address: str) -> str | None:
    """Name of the network interface that carries an IPv4 address (ioctl SIOCGIFADDR, netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(probe.fileno(), 0x8915, request)
            except OSError:
                continue
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None


def place_of(run: Run) -> Place:
    """This launcher's place, from the spec and the environment."""
    topology = run.job.spec.topology
    endpoint = os.environ.get(ENV_RENDEZVOUS)
    if not endpoint:
        if topology.nodes > 1:
            log("nodes run as local ranks", ranks=topology.world_size)
        return Place(1, topology.world_size, "127.0.0.1:0", hosts=True, address="127.0.0.1")
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise InputError("RendezvousInvalid", f"{ENV_RENDEZVOUS} is {endpoint!r}: give host:port")
    hosts = os.environ.get(ENV_INDEX, "0") == "0"
    seconds = rendezvous_seconds(topology)
    local = host in ("127.0.0.1", "localhost")
    address = "127.0.0.1" if local else _own_address(host, int(port), hosts=hosts, seconds=seconds)
    return Place(topology.nodes, topology.processes, endpoint, hosts=hosts, address=address)


def rendezvous_seconds(topology: Topology) -> int:
    """How long the gang may take to be whole; the environment's word counts first."""
    return int(os.environ.get(ENV_ATTEMPT_DEADLINE) or topology.rendezvous_seconds)


def _own_address(host: str, port: int, *, hosts: bool, seconds: int) -> str:
    """The address from which the rendezvous is reached; waits until its name resolves and it listens.

    The other pods start at the same time, and a headless Service names a pod only once it has an address.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if hosts:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.connect((host, port))
                    return str(probe.getsockname()[0])
            with socket.create_connection((host, port), timeout=5) as connection:
                return str(connection.getsockname()[0])
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLost(
                    f"the rendezvous at {host}:{port} didn't answer in time: the pod with index 0 isn't running"
                ) from error
            time.sleep(0.5)
