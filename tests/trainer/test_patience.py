"""How long ranks wait for their leader."""

import json
from pathlib import Path

import ranks

PROGRAM = Path(__file__).with_name("waiting_rank.py")


def test_a_leader_may_work_for_longer_than_a_collective_may_take(tmp_path: Path) -> None:
    """As when it prepares the data: the other one waits on, and the training's own collectives go on as before."""
    processes = ranks.gang(tmp_path, 2, [str(PROGRAM), str(tmp_path)])
    ranks.finish(tmp_path, processes)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [["prepared", 1.0]] * 2
