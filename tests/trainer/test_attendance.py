"""Who is named when a rank doesn't come."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import ranks

from cloze_api.progress import ExitCode
from cloze_trainer.attendance import Mark, Part, Place, missing

pytestmark = pytest.mark.timeout(400)


def mark(step: int, part: Part, beat: int) -> Mark:
    return Mark(Place(step, part), beat)


def test_the_silent_and_those_behind_are_missing() -> None:
    """A process that tells nothing more, and one that lives and is at an earlier place than the others."""
    before = [mark(7, Part.BATCH, 10), mark(7, Part.DATA, 3), mark(6, Part.GRADIENT, 8), mark(7, Part.BATCH, 4)]
    after = [mark(7, Part.BATCH, 14), mark(7, Part.DATA, 7), mark(6, Part.GRADIENT, 8), mark(7, Part.BATCH, 8)]
    assert missing(before, after) == {1: "reads its share of step 7", 2: "doesn't respond"}


def test_nobody_is_missing_where_all_are_at_the_same_place() -> None:
    """Then it is one of them, or the network, and no mark tells which."""
    assert missing([mark(7, Part.GRADIENT, 1)] * 3, [mark(7, Part.GRADIENT, 5)] * 3) == {}


def test_marks_survive_the_store() -> None:
    """What is told is what is read."""
    assert Mark.decode(mark(41, Part.GRADIENT, 9).encode()) == mark(41, Part.GRADIENT, 9)


def gang(folder: Path, **scenario: Any) -> dict[int, dict[str, Any] | None]:
    """Two ranks of which one doesn't come to the third step; what each ended with, None for one that is still there."""
    processes = ranks.start(folder, 2, {"name": "stuck", **scenario})
    frozen = None if scenario.get("asleep") else scenario["freeze"]
    try:
        for rank, process in enumerate(processes):
            if rank != frozen:
                process.wait(timeout=180)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    left = {rank: folder / f"2-{rank}.json" for rank in (0, 1)}
    return {rank: json.loads(path.read_text()) if path.exists() else None for rank, path in left.items()}


@pytest.mark.parametrize("frozen", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_stopped_rank_is_named_by_the_other(tmp_path: Path, frozen: int) -> None:
    """With its machine, whether it holds the store or not; the other is blameless, so that the gang starts again."""
    ended = gang(tmp_path, freeze=frozen)[1 - frozen]
    assert ended is not None
    assert (ended["reason"], ended["code"]) == ("RankStuck", ExitCode.PEER_LOST)
    assert f"rank {frozen} on {socket.gethostname()} doesn't respond" in ended["message"]
    assert f"rank {1 - frozen} on {socket.gethostname()} waits for the others at step 2" in ended["message"]


@pytest.mark.full
def test_a_rank_that_lives_and_does_not_come_names_itself(tmp_path: Path) -> None:
    """It is its own failure, and counted; the other one's is not."""
    ended = gang(tmp_path, freeze=1, asleep=True)
    assert ended[1] is not None
    assert (ended[1]["reason"], ended[1]["code"]) == ("RankStuck", ExitCode.INTERNAL)
    for each in filter(None, ended.values()):
        assert f"rank 1 on {socket.gethostname()} reads its share of step 2" in each["message"]
        assert "rank 0 on" not in each["message"].partition(":")[2]
