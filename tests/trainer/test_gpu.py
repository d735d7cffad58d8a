"""What can be seen only where a GPU is; elsewhere it is left out, and said so."""

from pathlib import Path

import pytest
import torch
from packed_texts import learnt, workload_of
from torch import Tensor
from whole_runs import Trainer, pretrain

from cloze_api.pretrain import Architecture
from cloze_api.training import Arithmetic
from cloze_trainer.arithmetic import multiplying
from cloze_trainer.encoders.attention import Attention
from cloze_trainer.worker import initial_model

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs an NVIDIA GPU, from Ampere on",
)

GPU = torch.device("cuda")


@pytest.mark.parametrize("arithmetic", [Arithmetic.BF16, Arithmetic.FP16])
@pytest.mark.parametrize("architecture", [Architecture.BERT, Architecture.MODERNBERT])
def test_kernels_without_padding_are_as_exact_as_masks(
    architecture: Architecture, arithmetic: Arithmetic, tmp_path: Path
) -> None:
    """In 16 bits both are about as far from what masks give in 32: logits, and the gradient's direction."""
    workload = workload_of(tmp_path, architecture, "cuda")
    model = initial_model(workload, 1).to(GPU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)

    def found(attention: Attention, used: Arithmetic) -> tuple[Tensor, Tensor]:
        workload.attention = attention
        (chunk, *_) = workload.share(0, 0, 1, 0.0)
        with multiplying(GPU, used):
            logits, gradient = learnt(workload, model, chunk)
        return logits.float(), gradient.float()

    exact, masked, flat = (
        found(Attention.MASKED, Arithmetic.FP32),
        found(Attention.MASKED, arithmetic),
        found(Attention.UNPADDED, arithmetic),
    )
    assert (flat[0] - exact[0]).abs().max() <= 2 * (masked[0] - exact[0]).abs().max() + 1e-3
    assert torch.cosine_similarity(flat[1], exact[1], dim=0) > 0.999


def test_a_job_trains_on_the_gpu(corpus: Path, tmp_path: Path) -> None:
    """By the command, in what the GPU is fastest in; the loss falls, and the artifact is checked against torch."""
    trainer = Trainer(tmp_path, {}, cold=True)
    job = pretrain(corpus, topology={"processesPerNode": 1})
    assert trainer.run(job) == 0, trainer.log
    assert '"attention": "unpadded"' in trainer.log
