"""The listening socket: opened before the model is loaded, and closed without dropping who is already through."""

import ctypes
import resource
import select
import socket
import struct

from cloze_server.exits import ExitCode, FatalError

_BACKLOG = 2048
# For all that is no connection: models, logs, the registry, feedback.
_RESERVED_FILES = 128

# Linux' number; Python's socket module doesn't name it.
_SO_ATTACH_FILTER = 26

# Classic BPF over the TCP header, as (code, jump if true, jump if false, operand): drop segments that have SYN set.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # yes: keep nothing of the segment
    (0x06, 0, 0, 0xFFFFFFFF),  # no: keep all
)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises FatalError (CONFIGURATION) when the address can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        message = f"{host}:{port} can't be listened on: {error}"
        raise FatalError(ExitCode.CONFIGURATION, "AddressUnavailable", message) from error


def connections_within(wanted: int) -> int:
    """As many connections as the process may have open files for, at most those wanted; it gets more where it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _RESERVED_FILES))


def refuse_new(listener: socket.socket) -> None:
    """Let no new connection begin; those that the kernel has already opened can still be accepted.

    Closing a listening socket resets connections that wait to be accepted, whose clients may have sent a request. So
    first the kernel is told to ignore new ones; a client that is ignored tries again, and finds the port closed. Raises
    OSError where the kernel can't do that.
    """
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN)
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the count of instructions and their address, which the kernel copies.
    option = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(buffer))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def has_waiting(listener: socket.socket) -> bool:
    """Whether a connection waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
