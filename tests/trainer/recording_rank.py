"""One rank of a job that writes down which samples it takes: `recording_rank.py JOB RECORD`.

A line of the file RECORD is a global batch's number, and the rows of the data that this rank has of it, once they are
asked for.
"""

import json
import sys
from pathlib import Path
from typing import Any

from cloze_trainer import worker
from cloze_trainer.pretrain import Pretraining


def main(job: Path, record: Path) -> None:
    share = Pretraining.share

    def recorded(self: Pretraining, batch: int, rank: int, world: int, done: float) -> Any:
        chunks = share(self, batch, rank, world, done)
        rows = [int(row) for chunk in chunks if chunk.weight for row in chunk.rows_B]
        with record.with_name(f"{record.name}-{rank}").open("a") as file:
            file.write(json.dumps([batch, rows]) + "\n")
        return chunks

    Pretraining.share = recorded  # type: ignore[method-assign]
    worker.main(job)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
