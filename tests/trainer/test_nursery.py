"""Where ranks are born: warm, in their own session, with what the launcher decided, and with a GPU to themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

RANK = """
import os, sys
from cloze_trainer import nursery

def look(pipe, environment):
    before = sorted(sys.modules)
    import torch
    nursery.settle_in(environment)
    pipe.send({
        "warm": {"cloze_trainer.worker", "torch"} <= set(before),
        "name": open("/proc/self/comm").read().strip(),
        "leads": os.getsid(0) == os.getpid(),
        "threads": [os.environ["OMP_NUM_THREADS"], len(os.listdir("/proc/self/task"))],
        "decided": [os.environ["DECIDED_LATER"], os.environ["CLOZE_OUTCOME_FOLDER"]],
        "rank": os.environ["RANK"],
        "CUDA is the parent's": torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork(),
    })

"""
# As an image's `cloze-train` is: without a guard against being run a second time.
LAUNCHER = """
import json, multiprocessing, os, sys
from cloze_trainer import nursery
from rank import look

nursery.open_nursery(3)
os.environ.update(DECIDED_LATER="yes", CLOZE_OUTCOME_FOLDER="ours")
context = multiprocessing.get_context(nursery.METHOD)
ours, theirs = context.Pipe()
rank = context.Process(target=look, args=(theirs, dict(os.environ, RANK="7")))
rank.start()
theirs.close()
print(json.dumps(ours.recv() | {"torch here": "torch" in sys.modules}))
rank.join()
"""


def test_a_rank_is_born_warm_and_alone(tmp_path: Path) -> None:
    """What it needs is imported, in a process of one thread that may use a GPU; the launcher has imported nothing."""
    file = tmp_path / "launcher.py"
    file.write_text(LAUNCHER, encoding="utf-8")
    (tmp_path / "rank.py").write_text(RANK, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "RANK")}
    environment["CLOZE_OUTCOME_FOLDER"] = "another run's"
    told = subprocess.run([sys.executable, str(file)], env=environment, check=True, capture_output=True, text=True)
    assert json.loads(told.stdout) == {
        "warm": True,
        "name": "cloze-rank-7",
        "leads": True,
        "threads": ["3", 1],
        "decided": ["yes", "ours"],
        "rank": "7",
        "CUDA is the parent's": False,
        "torch here": False,
    }
