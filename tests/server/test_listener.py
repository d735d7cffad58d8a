"""Closing the port without dropping who is already through."""

import socket

import pytest

from cloze_server.exits import ExitCode, FatalError
from cloze_server.listener import has_waiting, listen, refuse_new


def test_an_opened_connection_can_be_accepted_after_new_ones_are_refused() -> None:
    """And its request is read."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as client:
        client.sendall(b"request")
        refuse_new(listener)
        assert has_waiting(listener)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(16) == b"request"
            client.sendall(b"more")
            assert accepted.recv(16) == b"more"
        assert not has_waiting(listener)


def test_a_new_connection_does_not_begin_any_more() -> None:
    """The kernel ignores it until the port is closed."""
    with listen("127.0.0.1", 0) as listener:
        refuse_new(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.2)
        assert not has_waiting(listener)


def test_a_port_in_use_is_a_configuration_error() -> None:
    """With the address in the message."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(FatalError, match=str(port)) as error:
            listen("127.0.0.1", port)
    assert error.value.code is ExitCode.CONFIGURATION
