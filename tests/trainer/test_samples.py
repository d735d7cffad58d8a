"""Which samples a training takes, whatever happens to it."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ranks
from whole_runs import pretrain

from cloze_api.names import ENV_MLFLOW_URI
from cloze_trainer.outcome import ENV_FOLDER

pytestmark = pytest.mark.timeout(300)

PROGRAM = Path(__file__).with_name("recording_rank.py")


class Recorded:
    """A job whose ranks write down what they take."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self.folder = folder
        self.begins: list[int] = []
        """The step of the newest checkpoint that each attempt found."""
        folder.mkdir()
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")

    def train(self, world: int, *, until: int | None = None) -> None:
        """Train with as many ranks, to the end, or until they are killed in this batch or a later one."""
        record = self.folder / f"attempt-{len(self.begins)}"
        markers = (self.folder / "workspace" / "checkpoints").glob("step-*/COMPLETE")
        self.begins.append(max((int(path.parent.name[5:]) for path in markers), default=0))
        words = [str(PROGRAM), str(self.folder / "job.json"), str(record)]
        places = {"CLOZE_WORKSPACE": str(self.folder / "workspace"), ENV_FOLDER: str(self.folder)}
        # Another test's MLflow client leaves its server's address in this process's environment.
        places[ENV_MLFLOW_URI] = ""
        processes = ranks.gang(self.folder, world, words, **places)
        if until is not None:
            last = record.with_name(f"{record.name}-{world - 1}")
            while not last.exists() or not (lines := last.read_text()) or json.loads(lines.splitlines()[-1])[0] < until:
                assert processes[0].poll() is None, ranks.log(self.folder, world, 0).read_text()
                time.sleep(0.01)
            for process in processes:
                os.kill(process.pid, signal.SIGKILL)
        codes = [process.wait(timeout=120) for process in processes]
        assert until is not None or codes == [0] * world, ranks.log(self.folder, world, 0).read_text()

    def taken(self) -> dict[int, list[int]]:
        """The samples of each batch that an attempt took whose update a later one went on from, or the last one."""
        found: dict[int, list[int]] = {}
        for attempt, (begin, end) in enumerate(zip(self.begins, [*self.begins[1:], None], strict=True)):
            for path in self.folder.glob(f"attempt-{attempt}-*"):
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                # Each batch from the first one on whose update isn't in the checkpoint, and each once.
                assert [batch for batch, _ in lines] == list(range(begin, begin + len(lines)))
                for batch, rows in lines:
                    if end is None or batch < end:
                        found.setdefault(batch, []).extend(rows)
        return {batch: sorted(rows) for batch, rows in sorted(found.items())}


def test_each_sample_is_taken_once_an_epoch_whatever_happens(corpus: Path, tmp_path: Path) -> None:
    """Killed with two ranks, gone on with by one, killed again and ended by two: batch by batch the samples are those
    of a run that nothing happened to, and none is taken twice before all were taken.
    """
    text = tmp_path / "text.txt"
    text.write_text(corpus.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    job = pretrain(text, optimization={"steps": 60, "batchSequences": 40, "learningRate": 2e-3})
    steady, killed = Recorded(tmp_path / "steady", job), Recorded(tmp_path / "killed", job)
    steady.train(1)
    killed.train(2, until=17)
    killed.train(1, until=36)
    killed.train(2)
    assert 0 < killed.begins[1] < killed.begins[2] < 60
    taken = steady.taken()
    assert list(taken) == list(range(60))
    assert {len(rows) for rows in taken.values()} == {40}
    assert killed.taken() == taken
    counts = Counter(row for rows in taken.values() for row in rows)
    assert sorted(counts) == list(range(max(counts) + 1))
    assert min(counts.values()) >= 1
    assert max(counts.values()) - min(counts.values()) == (60 * 40 % len(counts) != 0)
