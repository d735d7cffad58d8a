"""Saving a state beside a training, and with torch.save: `saving.py PLAN RESULT`, as a job's only rank."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "18399"}

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict

from cloze_api.task import Task
from cloze_api.training import Optimization
from cloze_trainer import optimizer as optimizers
from cloze_trainer.checkpoint import Checkpoints, LoopState, captured, size_bytes
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.files import sync_folder
from cloze_trainer.gang import Gang
from cloze_trainer.model import build
from cloze_trainer.origin import Origin
from cloze_trainer.progress import ProgressFile
from cloze_trainer.saving import Saver

_ROWS, _LENGTH = 8, 128
_STUCK_SECONDS = 600


def main(plan: dict[str, Any]) -> dict[str, Any]:
    """In each round: steps alone, steps beside a checkpoint of ours, and a torch.save of the same state."""
    gang = Gang(plan["threads"], _STUCK_SECONDS)
    sizes = EncoderConfig(
        vocab_size=plan["vocab"],
        layers=plan["layers"],
        hidden_size=plan["width"],
        heads=plan["width"] // 64,
        intermediate_size=4 * plan["width"],
        max_length=_LENGTH,
        dropout=0.1,
    )
    model = build(Task.FILL_MASK, sizes)
    optimizer = optimizers.build(model, Optimization())
    tokens = torch.randint(plan["vocab"], (_ROWS, _LENGTH))
    positions = torch.arange(0, _ROWS * _LENGTH, 7)

    def steps(count: int) -> float:
        """Seconds that so many took."""
        began = time.perf_counter()
        for _ in range(count):
            model(tokens, None, None, positions).logsumexp(-1).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - began

    folder = Path(plan["scratch"])
    folder.mkdir(parents=True)
    ours, theirs, beside = [], [], []
    with Saver(Checkpoints(folder / "ours", 1, Origin("bench")), gang, ProgressFile(None), None) as saver:
        # The first copy is into new memory, as once in a run.
        steps(1)
        saver.save(LoopState(0, 0), model, optimizer)
        saver.wait()
        for number in range(1, plan["rounds"] + 1):
            one = steps(2) / 2
            os.sync()
            before = saver.blocked_seconds
            began = time.perf_counter()
            saver.save(LoopState(number, 0), model, optimizer)
            ours.append(saver.blocked_seconds - before)
            done = 0
            # Until it is durable the training shares processors and disk with it.
            while saver.durable != number:
                steps(1)
                done += 1
                assert not saver.failed
            beside.append(time.perf_counter() - began - done * one)
            os.sync()
            began = time.perf_counter()
            weights, moments = get_state_dict(model, optimizer)
            with (folder / "theirs").open("wb") as file:
                torch.save({"model": weights, "optimizer": moments}, file)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(folder)
            theirs.append(time.perf_counter() - began)
    size = size_bytes(captured(model, optimizer))
    gang.leave()
    return {"bytes": size, "ours": ours, "theirs": theirs, "beside": beside}


if __name__ == "__main__":
    torch.set_num_interop_threads(1)
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))), encoding="utf-8")
