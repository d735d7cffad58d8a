"""Fine-tunings of a tiny encoder within the test's process."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import torch

from cloze_api.finetune import FineTuneJobSpec
from cloze_api.manifest import verify_with_digest
from cloze_api.task import Task
from cloze_server.app import create_app
from cloze_server.lifecycle import Lifecycle, State
from cloze_server.model import load_artifact
from cloze_server.settings import Settings
from cloze_trainer import artifact, preparation
from cloze_trainer.base import BaseModel
from cloze_trainer.data import tokenizer
from cloze_trainer.data.source import locate
from cloze_trainer.data.tokenizer import SPECIAL_IDS
from cloze_trainer.encoders.config import EncoderConfig
from cloze_trainer.finetune import FineTuning
from cloze_trainer.model import build
from cloze_trainer.preparation import PreparedDataset
from cloze_trainer.quality.judgement import Judgement, judge
from cloze_trainer.tasks.kind import Reader

# One rank, whose sums over the ranks are its own.
ALONE: Any = SimpleNamespace(rank=0, world=1, sum=lambda *values: values, sum_array=lambda values: values)


class Tuned:
    """A model of a task, trained for so many steps on lines that are also a tokenizer's text."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        train: Sequence[dict[str, Any]],
        test: Sequence[dict[str, Any]],
        *,
        max_length: int = 32,
        steps: int = 0,
        **spec: Any,
    ) -> None:
        paths = []
        for name, rows in (("train", train), ("test", test)):
            paths.append(folder / f"{name}.jsonl")
            paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        base = folder / "base"
        base.mkdir()
        trained = tokenizer.train([json.dumps(row) for row in train] * 3, vocab_size=200, lowercase=True)
        tokenizer.write(trained, base, max_length=max_length, lowercase=True)
        config = EncoderConfig(
            vocab_size=trained.get_vocab_size(),
            layers=2,
            hidden_size=32,
            heads=2,
            intermediate_size=64,
            max_length=max_length,
            dropout=0,
        )
        self.spec = FineTuneJobSpec.model_validate(
            {
                "base": {"model": {"name": "x", "version": "1"}},
                "task": task,
                "dataset": {"train": "file:///a", "test": "file:///b"},
                "registry": {"name": "tuned"},
                "optimization": {"batchSequences": len(train), "seed": 1},
                **spec,
            }
        )
        model = BaseModel(
            folder=base, name="x/1", digest="sha256:0", special_tokens=SPECIAL_IDS, lowercase=True, config=config
        )
        sources = [locate(f"file://{path}", corpus_root=folder, downloads=folder) for path in paths]
        preparation.publish_examples(folder / "data", self.spec, sources, base=model, max_length=max_length)
        self.folder = folder
        self.reader = Reader(tokenizer.read(base), SPECIAL_IDS, max_length)
        self.workload = FineTuning(self.spec, PreparedDataset(folder / "data", model, {}), torch.device("cpu"))
        torch.manual_seed(1)
        self.model = build(task, config, len(self.workload.labels))
        self.train(steps)

    def train(self, steps: int) -> None:
        """Go on for so many steps."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=4e-3)
        for step in range(steps):
            chunks = self.workload.share(step, 0, 1, 0.0)
            weight = sum(chunk.weight for chunk in chunks)
            for chunk in chunks:
                (self.workload.loss_sum(self.model, chunk) / weight).backward()
            optimizer.step()
            optimizer.zero_grad()

    def judge(self) -> Judgement:
        """As the worker does after the training."""
        scores = self.workload.score(self.model, ALONE)
        return judge(
            *(scores, self.workload.labels, self.spec.evaluation), task=self.spec.task, problem=self.spec.problem
        )

    def publish(self, judged: Judgement) -> Path:
        """The artifact's folder."""
        run: Any = SimpleNamespace(
            job=SimpleNamespace(spec=self.spec),
            artifact=self.folder / "artifact",
            label="a/b",
            identity="u",
            kind="FineTuneJob",
        )
        artifact.write(run, self.workload, self.model, judged, {})
        return self.folder / "artifact"

    @asynccontextmanager
    async def serving(self, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
        """A client of a server of the artifact, in this process."""
        manifest, digest = verify_with_digest(folder)
        lifecycle = Lifecycle()
        app = create_app(
            Settings(model=(str(folder),)),
            [lambda: load_artifact(folder, manifest, version="1", digest=digest, name=manifest.name, threads=1)],
            lifecycle,
        )
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client,
        ):
            async with asyncio.timeout(60):
                while lifecycle.state is State.LOADING:  # noqa: ASYNC110 - a thread of the application, which tells nobody
                    await asyncio.sleep(0.005)
            yield client
