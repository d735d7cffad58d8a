"""Tiny artifacts with random weights, applications in this process, and servers in processes of their own."""

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloze_api.manifest import (
    ONNX_FILE,
    TOKENIZER_FILE,
    Embedding,
    Limits,
    Lineage,
    Manifest,
    SpecialTokens,
    digest_files,
    tokenizer_fingerprint,
    verify,
    write_manifest,
)
from cloze_api.task import Task
from cloze_server import garbage
from cloze_server.app import create_app
from cloze_server.lifecycle import Lifecycle, State
from cloze_server.model import LoadedModel, load_artifact
from cloze_server.providers import ANYWHERE, Placement
from cloze_server.settings import Settings

MAX_LENGTH = 48
LABELS = {
    Task.FILL_MASK: [],
    Task.SEQUENCE_CLASSIFICATION: ["billing", "delivery", "praise", "other"],
    Task.TOKEN_CLASSIFICATION: ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    Task.QUESTION_ANSWERING: [],
    Task.EMBEDDING: [],
}
HIDDEN = 32
TEXTS = [
    "Ada Lovelace lived in London, near St. James's Square.",
    "my card was charged twice and nobody answers the phone",
    "The parcel arrived late",
    "Grace Hopper found a moth in the relay of the computer at Harvard University",
    "hello",
]


@dataclass(frozen=True)
class Artifact:
    """A folder with an artifact, and the torch model of the same weights."""

    folder: Path
    digest: str
    task: Task
    model: Any
    tokenizer: Any

    def load(self, placement: Placement = ANYWHERE) -> LoadedModel:
        """Verify and load it as version 3."""
        manifest = verify(self.folder, self.digest)
        digest, name = self.digest, manifest.name
        return load_artifact(
            self.folder, manifest, version="3", digest=digest, name=name, threads=1, placement=placement
        )


def export(folder: Path, task: Task) -> Artifact:
    """Write an artifact with a two-layer model and a vocabulary of a few hundred word pieces."""
    import torch  # noqa: PLC0415 - takes seconds, and most tests do without
    from transformers import (  # noqa: PLC0415
        BertConfig,
        BertForMaskedLM,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertModel,
        BertTokenizerFast,
    )

    from cloze_trainer.data.tokenizer import train  # noqa: PLC0415

    folder.mkdir()
    # Ours gives the same pieces in every process, and so the same answers.
    train(TEXTS * 2, vocab_size=200, lowercase=True).save(str(folder / TOKENIZER_FILE))
    tokenizer = BertTokenizerFast(tokenizer_file=str(folder / TOKENIZER_FILE), model_max_length=MAX_LENGTH)
    # Saved as the tokenizer that the reference pipelines use, so that both sides frame texts alike.
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_FILE))
    labels = LABELS[task]
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
        # Large, so that scores of random weights differ.
        initializer_range=0.4,
        **({"id2label": dict(enumerate(labels)), "label2id": {v: k for k, v in enumerate(labels)}} if labels else {}),
    )
    head = {
        Task.FILL_MASK: BertForMaskedLM,
        Task.SEQUENCE_CLASSIFICATION: BertForSequenceClassification,
        Task.TOKEN_CLASSIFICATION: BertForTokenClassification,
        Task.QUESTION_ANSWERING: BertForQuestionAnswering,
        Task.EMBEDDING: BertModel,
    }[task]
    model = head(config).eval()
    if task is Task.TOKEN_CLASSIFICATION:
        with torch.no_grad():
            # Whatever the vocabulary that was trained, there are entities to compare.
            model.classifier.bias[0] = -4

    class Graph(torch.nn.Module):
        """The model with the one output that an artifact's graph has."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            output = self.model(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            if task is Task.QUESTION_ANSWERING:
                return torch.stack([output.start_logits, output.end_logits], dim=-1)
            if task is Task.EMBEDDING:
                weights = attention_mask.unsqueeze(-1).to(torch.float32)
                mean = (output.last_hidden_state * weights).sum(1) / weights.sum(1)
                return torch.nn.functional.normalize(mean, dim=-1)
            return output.logits

    # One tensor for each: the exporter would take a shared one for one input under three names.
    example = [torch.full((2, 7), value, dtype=torch.int64) for value in (5, 1, 0)]
    names = ["input_ids", "attention_mask", "token_type_ids"]
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2, max=MAX_LENGTH)
    torch.onnx.export(
        Graph().eval(),
        kwargs=dict(zip(names, example, strict=True)),
        f=str(folder / ONNX_FILE),
        input_names=names,
        output_names=["logits"],
        dynamic_shapes={name: {0: batch, 1: length} for name in names},
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    ids = {name: tokenizer.convert_tokens_to_ids(f"[{name.upper()}]") for name in ("pad", "unk", "cls", "sep", "mask")}
    manifest = Manifest(
        name="mails",
        task=task,
        architecture="bert",
        labels=labels,
        embedding=Embedding(dimensions=HIDDEN, pooling="mean", normalized=True, matryoshka=[8])
        if task is Task.EMBEDDING
        else None,
        limits=Limits(max_length=MAX_LENGTH, vocab_size=len(tokenizer)),
        special_tokens=SpecialTokens(**ids),
        lowercase=True,
        tokenizer_fingerprint=tokenizer_fingerprint(json.loads((folder / TOKENIZER_FILE).read_text())),
        inputs=names,
        output="logits",
        lineage=Lineage(job="test", job_uid="", kind="test", created="2025-01-01T00:00:00Z", trainer_version="0"),
        files=digest_files(folder),
    )
    return Artifact(folder, write_manifest(folder, manifest), task, model, tokenizer)


@pytest.fixture(scope="session")
def artifacts(shared: Callable[[str], AbstractContextManager[Path]]) -> Callable[[Task], Artifact]:
    """Artifacts by task, each exported once in a test run."""
    made: dict[Task, Artifact] = {}

    def get(task: Task) -> Artifact:
        if task not in made:
            with shared("artifacts") as root:
                kept = root / f"{task}.pickle"
                if not kept.exists():
                    kept.write_bytes(pickle.dumps(export(root / task, task)))
                made[task] = pickle.loads(kept.read_bytes())  # noqa: S301 - what this test run wrote
        return made[task]

    return get


@pytest.fixture(scope="session", autouse=True)
def _garbage() -> Iterator[None]:
    """A server's look at everything once its model is loaded would be at all that this process has imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(garbage, "set_aside", lambda: None)
        yield


@asynccontextmanager
async def serving(
    load: Callable[[], LoadedModel] | Sequence[Callable[[], LoadedModel]],
    lifecycle: Lifecycle | None = None,
    **settings: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application in this process, once its model is loaded, or all of several."""
    loaders = [load] if callable(load) else load
    lifecycle = lifecycle or Lifecycle()
    app = create_app(Settings(model=("dummy:",) * len(loaders), **settings), loaders, lifecycle)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client,
    ):
        # Loading is a thread of the application, which tells nobody but the lifecycle.
        async with asyncio.timeout(60):
            while lifecycle.state is State.LOADING:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        yield client


Serving = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


class ServerProcess:
    """`cloze-server` in a process of its own, listening on a port that the kernel chose."""

    def __init__(self, *arguments: str, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.log_path = folder / "server.log"
        self.termination_log = folder / "termination-log"
        self.termination_log.touch()
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cloze_server.main", "--host", "127.0.0.1", "--port", "0", *arguments],
                stderr=log,
                env={**os.environ, "CLOZE_TERMINATION_LOG": str(self.termination_log), **(environment or {})},
            )

    def log(self) -> list[dict[str, Any]]:
        """The log so far."""
        lines = self.log_path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for_event(self, event: str, seconds: float = 30) -> dict[str, Any]:
        """The first log line with this event."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in self.log():
                if line["event"] == event:
                    return line
            assert self.process.poll() is None or event == "ends", self.log_path.read_text()
            time.sleep(0.02)
        raise AssertionError(f"no event {event!r} in:\n{self.log_path.read_text()}")

    @property
    def url(self) -> str:
        """Its address, once it listens."""
        return f"http://127.0.0.1:{self.wait_for_event('listening')['port']}"

    def end(self) -> None:
        """Stop it if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


def _start_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ServerProcess]]:
    started: list[ServerProcess] = []

    def start(*arguments: str, environment: dict[str, str] | None = None) -> ServerProcess:
        started.append(ServerProcess(*arguments, folder=tmp_path_factory.mktemp("server"), environment=environment))
        return started[-1]

    yield start
    for server in started:
        server.end()


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers that end with the test."""
    yield from _start_servers(tmp_path_factory)


@pytest.fixture(scope="module")
def start_shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers that end with the module's last test."""
    yield from _start_servers(tmp_path_factory)


@pytest.fixture(scope="module")
def all_tasks(start_shared_server: Callable[..., ServerProcess]) -> Iterator[ServerProcess]:
    """A server with a stand-in for each task, by its name, which at the end has nothing left to do, nor met anything
    unexpected.
    """
    server = start_shared_server(*(part for task in Task for part in ("--model", f"{task}=dummy:{task}")))
    server.wait_for_event("ready")
    yield server
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    gauges = [line for line in lines if line.startswith(("cloze_in_flight_requests{", "cloze_queue_tokens{"))]
    assert gauges
    assert all(line.endswith(" 0.0") for line in gauges), gauges
    assert httpx.get(server.url + "/healthz").status_code == 200
    assert [line for line in server.log() if line["level"] in ("error", "critical")] == []


@pytest.fixture(name="serving")
def serving_fixture() -> Serving:
    """`serving`, for tests, which can't import this file."""
    return serving


@pytest.fixture
def anyio_backend() -> str:
    """asyncio alone: the server runs on nothing else."""
    return "asyncio"
