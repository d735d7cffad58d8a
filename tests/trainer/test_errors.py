"""What a failure means: who is to blame, and whether trying again can help."""

import errno

import pytest
from torch._dynamo.exc import BackendCompilerFailed
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from cloze_api.progress import ExitCode
from cloze_trainer.errors import InputError, PeerLost, classify, technical

LOST = [
    RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.7]:4711"),
    RuntimeError("Read error [10.0.0.7]:4711: Connection reset by peer"),
    RuntimeError("Timed out waiting 900000ms for recv operation to complete"),
    RuntimeError("[gloo/transport/tcp/pair.cc] Application timeout caused pair closure"),
    DistNetworkError("The client socket has timed out after 60000ms while trying to connect to (10.0.0.7, 29500)."),
    DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."),
    DistStoreError("wait timeout after 300000ms, keys: /default_pg/0//cpu//0/0"),
    DistBackendError("NCCL error: remote process exited or there was a network error, ncclRemoteError"),
]
OWN = [
    RuntimeError("could not restore the parameter"),
    RuntimeError("shape '[2, 3]' is invalid for input of size 5"),
    RuntimeError("[gloo/transport/tcp/device.cc:156] ifa != nullptr. Unable to find address for: eth7"),
    DistBackendError("NCCL error: unhandled cuda error. Duplicate GPU detected: rank 0 and rank 1"),
    ValueError("a socket is no store"),
]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_lost_connection_is_a_lost_peers_only_where_there_are_peers(error: Exception) -> None:
    """The gang starts again without counting; a run of one rank has nobody to lose, and its retries are counted."""
    assert classify(error, ranks=2).exit_code == ExitCode.PEER_LOST
    assert classify(error, ranks=1).exit_code == ExitCode.INTERNAL


@pytest.mark.parametrize("error", OWN, ids=str)
def test_own_fault_is_no_lost_peer(error: Exception) -> None:
    """It would be there again at the next start: its retries are counted."""
    assert classify(error, ranks=8).exit_code == ExitCode.INTERNAL


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "DiskFull", ExitCode.STORAGE),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "DiskFull", ExitCode.STORAGE),
        (OSError(errno.EROFS, "Read-only file system"), "StorageUnusable", ExitCode.STORAGE),
        (RuntimeError("PytorchStreamWriter failed writing file"), "DiskFull", ExitCode.STORAGE),
        (MemoryError(), "OutOfMemory", ExitCode.INTERNAL),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "OutOfMemory", ExitCode.INTERNAL),
        (KeyError("x"), "InternalError", ExitCode.INTERNAL),
    ],
    ids=str,
)
def test_kinds_of_failures(error: Exception, reason: str, code: ExitCode) -> None:
    """Volume, memory, and what nobody thought of."""
    failure = classify(error, ranks=2)
    assert (failure.reason, failure.exit_code) == (reason, code)


def test_cause_decides() -> None:
    """A failure is what started it, however it is wrapped."""
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert classify(wrapped).reason == "DiskFull"
    wrapped.__cause__ = InputError("LabelUnknown", "x")
    assert classify(wrapped).reason == "LabelUnknown"
    assert isinstance(classify(PeerLost("x")), PeerLost)


def test_details_are_those_of_libraries_and_no_text_of_the_user() -> None:
    """What torch and the system say is logged; what a Python exception holds may be the user's, and isn't."""
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    error.__cause__ = KeyError("dear diary")
    error.__context__ = OSError(errno.EIO, "Input/output error")
    details = technical(error)
    assert "mat1 and mat2" in details
    assert "Input/output error" in details
    assert "KeyError" in details
    assert "diary" not in details


def test_a_compiler_that_fails_would_fail_again() -> None:
    """A header that is missing, say: it isn't retried, and the sentence names the field."""
    failed = BackendCompilerFailed("inductor", RuntimeError("fatal error: omp.h: No such file or directory"), None)
    failure = classify(failed)
    assert (failure.reason, failure.exit_code) == ("CompilationFailed", ExitCode.INVALID_INPUT)
    assert "optimization.compile" in failure.message
    assert "omp.h" in technical(failed)
