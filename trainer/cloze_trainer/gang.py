"""The ranks of a run and what they tell each other."""

import datetime
import os
import resource
import time
from typing import Any

import torch
import torch.distributed as dist

from cloze_api.training import Arithmetic
from cloze_trainer import arithmetic, flops
from cloze_trainer.encoders import attention
from cloze_trainer.encoders.attention import Attention

# A rank that is dead closes its connections, which ends a collective at once; one that hangs is named before this.
_COLLECTIVE_TIMEOUT_SECONDS = 300
# Data preparation, export and registration happen on rank 0 alone and may take hours.
_PATIENCE = datetime.timedelta(days=3)
_POLL_SECONDS = 0.05


class Gang:
    """This process's place among the ranks, joined from torch elastic's environment.

    stuck_seconds: after which a rank that hangs is named; collectives wait longer.
    """

    def __init__(self, threads: int, stuck_seconds: float) -> None:
        timeout = datetime.timedelta(seconds=stuck_seconds + _COLLECTIVE_TIMEOUT_SECONDS)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
        # Fills each new tensor, for code that reads what nobody wrote: a twentieth of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch leaves it untyped
        self.rank = int(os.environ["RANK"])
        self.world = int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ["LOCAL_RANK"])
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank)
            self.device = torch.device("cuda", local_rank)
            dist.init_process_group("nccl", timeout=timeout, device_id=self.device)
        else:
            self.device = torch.device("cpu")
            dist.init_process_group("gloo", timeout=timeout)
        # A group of its own, so that a long wait never meets a collective of the training.
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        # A number stands for "not a member", and every rank is one.
        assert isinstance(group, dist.ProcessGroup)
        self._patient = group

    def arithmetic(self, asked: Arithmetic, *, scalable: bool = True) -> Arithmetic:
        """What all ranks multiply in; as `arithmetic.chosen`. All ranks call it."""
        offers = self.from_all(arithmetic.offered(self.device))
        return arithmetic.chosen(asked, offers, gpus=self.device.type == "cuda", scalable=scalable)

    @property
    def survives_out_of_memory(self) -> bool:
        """Whether a rank can go on after an allocation that failed: on processors the system kills it instead."""
        return self.device.type == "cuda"

    def memory_bytes(self) -> int:
        """Most memory that this rank has had: of its GPU, or of its process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def attention(self, used: Arithmetic, head_width: int) -> Attention:
        """How this rank's device keeps texts apart best."""
        capability = torch.cuda.get_device_capability(self.device) if self.device.type == "cuda" else None
        return attention.chosen(self.device.type, capability, used, head_width)

    def peak_flops(self, used: Arithmetic) -> float | None:
        """Operations a second that the devices of all ranks can do at most; None where that isn't known."""
        kind = self.device.type
        one = flops.peak(torch.cuda.get_device_name(self.device) if kind == "cuda" else kind, used)
        return None if one is None else one * self.world

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sums over the ranks, the same on each, as float64."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def least(self, value: float) -> float:
        """The smallest of the ranks' values."""
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return float(found)

    def most(self, value: float) -> float:
        """The largest of the ranks' values."""
        return -self.least(-value)

    def sum_array(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sums over the ranks."""
        total = values.to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def spread(self, values: torch.Tensor) -> None:
        """Fill a tensor of each rank with rank 0's."""
        dist.broadcast(values, src=0)

    def from_leader(self, value: Any = None) -> Any:
        """Rank 0's value on every rank; the others wait for it however long it takes.

        The wait polls, so that signals are heard during it.
        """
        ready = torch.zeros(1)
        work = dist.broadcast(ready, src=0, group=self._patient, async_op=True)
        assert work is not None
        # What is there at once, as in a gang of one, shouldn't cost a whole poll of each checkpoint.
        pause = _POLL_SECONDS / 64
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS)
        work.wait()
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._patient)
        return box[0]

    def from_all(self, value: Any) -> list[Any]:
        """Every rank's value, in their order."""
        found = [None] * self.world
        dist.all_gather_object(found, value, group=self._patient)
        return found

    def leave(self) -> None:
        """Close the connections; a rank that goes without is taken for dead by the others."""
        dist.destroy_process_group()
