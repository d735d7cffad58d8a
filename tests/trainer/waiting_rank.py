"""One rank of a gang whose leader has long work to do: `waiting_rank.py FOLDER`.

The leader does it until the other has waited for longer than a collective may take. What each heard then, and the sum
of their ranks, is in FOLDER.
"""

import json
import os
import sys
import time
from pathlib import Path

from cloze_trainer import gang as module
from cloze_trainer.gang import Gang

SECONDS = 2.0


def main(folder: Path) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # So that they meet within the time of a collective, however late one of them was started.
    (folder / f"started-{rank}").touch()
    while len(list(folder.glob("started-*"))) < world:
        time.sleep(0.01)
    vars(module)["_COLLECTIVE_TIMEOUT_SECONDS"] = 0
    gang = Gang(1, SECONDS)
    if gang.leads:
        waits = folder / "waits"
        while not waits.exists():
            time.sleep(0.01)
        # What the other waits for may not come any sooner.
        time.sleep(1.5 * SECONDS)
    else:
        (folder / "waits").touch()
    heard = gang.from_leader("prepared" if gang.leads else None)
    (folder / f"{rank}.json").write_text(json.dumps([heard, *gang.sum(rank)]))
    gang.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
