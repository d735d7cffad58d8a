"""How the ranks share a model: each has all of it, or each has a part of every tensor."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cloze_api.training import Sharding
from cloze_trainer.data.labelled import IGNORED
from cloze_trainer.gang import Gang
from cloze_trainer.workload import Chunk


class Replicated:
    """Each rank has the whole model; gradients are averaged. module: what chunks go through."""

    survives_failed_chunks = True

    def __init__(self, model: nn.Module, gang: Gang) -> None:
        self.model = model.to(gang.device)
        self.module: nn.Module = DistributedDataParallel(
            self.model,
            gradient_as_bucket_view=True,
            # Otherwise the buckets are put in another order after the first step of each start, and the sums of more
            # than two ranks would differ between a run that was resumed and one that wasn't.
            find_unused_parameters=True,
        )

    def alone(self) -> AbstractContextManager[Any]:
        """Within it, gradients are added up on this rank alone."""
        return cast(DistributedDataParallel, self.module).no_sync()

    def evened(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """Chunks as they are: ranks may have unlike numbers of them."""
        return chunks

    def clip(self, most: float) -> float:
        """Scale the gradient down to this norm; the norm before."""
        return float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), most))

    def whole(self) -> nn.Module:
        """The model with all its weights. All ranks call it."""
        return self.model


class Sharded:
    """Each rank has a part of weights, gradients and optimizer state (FSDP2); layers are gathered as they are run."""

    # The others would wait in the middle of a chunk.
    survives_failed_chunks = False

    def __init__(self, model: nn.Module, gang: Gang) -> None:
        self._gang, self._spare = gang, copy.deepcopy(model).cpu()
        self.model = self.module = model.to(gang.device)
        mesh = init_device_mesh(gang.device.type, (gang.world,))
        for layer in cast(Any, model).encoder.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def alone(self) -> AbstractContextManager[Any]:
        """As of Replicated."""
        return _Unsynced(cast(FSDPModule, self.module))

    def evened(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """As many chunks as the rank with most has, as all run each together. The added ones weigh nothing."""
        missing = int(self._gang.most(len(chunks))) - len(chunks)
        targets = torch.full_like(chunks[-1].targets, IGNORED)
        return [*chunks, *[replace(chunks[-1], targets=targets, weight=0, tokens=0)] * missing]

    def clip(self, most: float) -> float:
        """As of Replicated."""
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), most)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def whole(self) -> nn.Module:
        """A copy with all the weights, which the next call overwrites. All ranks call it."""
        self._spare.load_state_dict(get_model_state_dict(self.module, options=StateDictOptions(full_state_dict=True)))
        return self._spare.to(self._gang.device)


class _Unsynced:
    def __init__(self, module: FSDPModule) -> None:
        self._module = module

    def __enter__(self) -> None:
        self._module.set_requires_gradient_sync(False)

    def __exit__(self, *_: object) -> None:
        self._module.set_requires_gradient_sync(True)


def share_out(model: nn.Module, sharding: Sharding, gang: Gang) -> Replicated | Sharded:
    """Prepare a model for training by all ranks; it is changed in place."""
    return Sharded(model, gang) if sharding is Sharding.FULL else Replicated(model, gang)
