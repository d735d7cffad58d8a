"""Checkpoints in a bucket of a real S3 server: whole or absent, there for any machine, no harm when it is away."""

import hashlib
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from boto3.s3.transfer import TransferConfig
from botocore.awsrequest import AWSResponse
from botocore.exceptions import EndpointConnectionError
from torch import nn
from urllib3 import HTTPResponse

from cloze_api.progress import ExitCode
from cloze_trainer import bucket as module
from cloze_trainer.bucket import Bucket
from cloze_trainer.checkpoint import Checkpoints, LoopState, captured
from cloze_trainer.errors import InputError, TrainerError
from cloze_trainer.origin import Origin
from cloze_trainer.progress import ProgressFile
from cloze_trainer.saving import Saver

ORIGIN = Origin(data="corpus")
RUN = "cloze/team/default/encoder/uid/"


def trained(seed: int, width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Linear(width, width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(3, width)).sum().backward()
    optimizer.step()
    return model, optimizer


def store(s3: Any, folder: Path, run: str = "default/encoder/uid", **access: str) -> Bucket:
    return Bucket("s3://runs/cloze/team", run, folder, lambda: {**s3.access, **access})


def checkpoints(s3: Any, folder: Path, *steps: int, keep: int = 3, run: str = "default/encoder/uid") -> Checkpoints:
    """A machine's view of the run, after it has saved these steps."""
    found = Checkpoints(folder, keep, ORIGIN, store(s3, folder, run))
    for step in steps:
        found.write(LoopState(step, 10 * step), captured(*trained(step)))
    return found


def names(s3: Any) -> list[str]:
    """What lies in the bucket for the run."""
    return sorted({key.removeprefix(RUN).split("/")[0].rpartition("-")[0] for key in s3.keys(RUN)})


def test_another_machine_goes_on_from_the_newest(s3: Any, tmp_path: Path) -> None:
    """It has nothing but the bucket: step, weights and moments come back bit for bit, and the oldest are gone."""
    checkpoints(s3, tmp_path / "one", 1, 2, 3, keep=2)
    assert names(s3) == ["step-00000002", "step-00000003"]
    other = checkpoints(s3, tmp_path / "other")
    assert other.latest() == 3
    model, optimizer = trained(99)
    assert other.load(3, model, optimizer) == LoopState(3, 30)
    expected, moments = trained(3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    for got, wanted in zip(
        optimizer.state_dict()["state"].values(), moments.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("damage", ["marker", "bytes", "file", "nonsense", "escape"])
def test_a_damaged_one_is_passed_over(s3: Any, tmp_path: Path, damage: str) -> None:
    """One without its digests, with a changed or a missing file doesn't count; the one before it does."""
    checkpoints(s3, tmp_path / "one", 1, 2)
    client = s3.client()
    end = ".distcp" if damage in ("bytes", "file") else "COMPLETE"
    (key,) = (key for key in s3.keys(f"{RUN}step-00000002") if key.endswith(end))
    if damage in ("marker", "file"):
        client.delete_object(Bucket="runs", Key=key)
    else:
        client.put_object(Bucket="runs", Key=key, Body=b'{"../own": "0"}' if damage == "escape" else b"nonsense")
    assert checkpoints(s3, tmp_path / "other").latest() == 1


def test_half_uploads_are_ignored_and_cleared_away(s3: Any, tmp_path: Path) -> None:
    """A killed attempt's files without digests, and parts of a file, go with the next checkpoint; nothing else does."""
    checkpoints(s3, tmp_path / "neighbour", 7, run="default/encoder/other")
    own = checkpoints(s3, tmp_path / "one", 1)
    client = s3.client()
    client.put_object(Bucket="runs", Key=f"{RUN}step-00000009-0badcafe/__0_0.distcp", Body=b"half")
    begun = client.create_multipart_upload(Bucket="runs", Key=f"{RUN}step-00000009-0badcafe/big")
    client.upload_part(Bucket="runs", Key=begun["Key"], UploadId=begun["UploadId"], PartNumber=1, Body=bytes(5 << 20))
    assert own.latest() == 1
    own.write(LoopState(2, 20), captured(*trained(2)))
    assert names(s3) == ["step-00000001", "step-00000002"]
    assert not client.list_multipart_uploads(Bucket="runs").get("Uploads")
    assert checkpoints(s3, tmp_path / "third", run="default/encoder/other").latest() == 7


class Dying(Bucket):
    """Sends nothing any more once it has sent a part of a file, as a machine that is gone."""

    parts = 0

    def _client(self) -> Any:
        client = super()._client()
        client.meta.events.register("before-send.s3", self._send)
        return client

    def _send(self, event_name: str, **_: Any) -> None:
        if self.parts:
            raise EndpointConnectionError(endpoint_url="of the store")
        self.parts += event_name.endswith(".UploadPart")


def test_a_large_file_goes_up_in_parts_of_which_some_count_for_nothing(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, it comes back bit for bit; what a machine that died in its midst has left goes with the next one."""
    part = 5 << 20
    transfer = TransferConfig(multipart_threshold=part, multipart_chunksize=part, max_concurrency=1)
    monkeypatch.setattr(module, "_TRANSFER", transfer)
    own, give_up, wide = checkpoints(s3, tmp_path / "one"), threading.Event(), 1000
    own.write(LoopState(1, 10), captured(*trained(1, wide)))
    give_up.set()
    dying = Dying("s3://runs/cloze/team", "default/encoder/uid", tmp_path / "dying", lambda: s3.access)
    with pytest.raises(TrainerError, match="doesn't take checkpoints"):
        Checkpoints(tmp_path / "dying", 3, ORIGIN, dying).write(LoopState(2, 20), captured(*trained(2, wide)), give_up)
    client = s3.client()
    (begun,) = client.list_multipart_uploads(Bucket="runs")["Uploads"]
    assert begun["Key"].startswith(f"{RUN}step-00000002")
    sent = client.list_parts(Bucket="runs", Key=begun["Key"], UploadId=begun["UploadId"])["Parts"]
    assert [each["Size"] for each in sent] == [part]
    other = checkpoints(s3, tmp_path / "other")
    assert other.latest() == 1
    model, _ = loaded = trained(99, wide)
    other.load(1, *loaded)
    assert torch.equal(model.weight, trained(1, wide)[0].weight)
    other.write(LoopState(3, 30), captured(*trained(3)))
    assert not client.list_multipart_uploads(Bucket="runs").get("Uploads")
    assert names(s3) == ["step-00000001", "step-00000003"]


def test_the_machine_that_saved_it_fetches_nothing(s3: Any, tmp_path: Path) -> None:
    """Ranks that start again where the newest one was saved read it there, as long as it is what the bucket has."""
    own = checkpoints(s3, tmp_path, 1, 2)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000002"]
    (tmp_path / "step-00000002" / "untouched").touch()
    assert own.latest() == 2
    assert (tmp_path / "step-00000002" / "untouched").exists()
    next((tmp_path / "step-00000002").glob("*.distcp")).write_bytes(b"damaged")
    assert own.load(2, *trained(5)).step == 2
    assert not (tmp_path / "step-00000002" / "untouched").exists()


def test_a_store_that_is_away_costs_checkpoints_and_nothing_else(s3: Any, tmp_path: Path) -> None:
    """What it doesn't take is given up for the next one and counted; the last good one stays, and it goes on after."""

    class Alone:
        leads = True

        def from_leader(self, value: Any = None) -> Any:
            return value

    gang: Any = Alone()
    own = checkpoints(s3, tmp_path)
    with Saver(own, gang, ProgressFile(None), None) as saver:
        saver.save(LoopState(1, 10), *trained(1))
        saver.settle()
        s3.kill()
        saver.save(LoopState(2, 20), *trained(2))
        saver.save(LoopState(3, 30), *trained(3))
        assert (saver.missed, saver.durable, saver.failed) == (1, 1, False)
        s3.start()
        saver.settle()
        assert (saver.missed, saver.durable, saver.failed) == (1, 3, False)
    assert names(s3) == ["step-00000001", "step-00000003"]
    assert checkpoints(s3, tmp_path / "other").latest() == 3


def test_a_store_that_goes_once_it_has_a_checkpoint_costs_nothing(s3: Any, tmp_path: Path) -> None:
    """What is left to do then, such as removing older ones, is done by the next checkpoint."""

    class Falling(Bucket):
        def _upload(self, *parts: Any) -> None:
            super()._upload(*parts)
            s3.kill()

    checkpoints(s3, tmp_path, 1, 2, keep=1)
    falling = Falling("s3://runs/cloze/team", "default/encoder/uid", tmp_path, lambda: s3.access)
    Checkpoints(tmp_path, 1, ORIGIN, falling).write(LoopState(3, 30), captured(*trained(3)))
    s3.start()
    assert names(s3) == ["step-00000002", "step-00000003"]
    checkpoints(s3, tmp_path, 4, keep=1)
    assert names(s3) == ["step-00000004"]


def test_going_back_forgets_what_came_after(s3: Any, tmp_path: Path) -> None:
    """Also for other machines: a diverged run's newer checkpoints are gone from the bucket."""
    own = checkpoints(s3, tmp_path / "one", 1, 2, 3)
    assert own.go_back(max_rise=2.0, tried=3) == 2
    assert names(s3) == ["step-00000001", "step-00000002"]
    assert checkpoints(s3, tmp_path / "other").latest() == 2


@pytest.mark.parametrize(
    ("uri", "access", "said"),
    [
        ("s3://runs", {"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "SignatureDoesNotMatch"),
        ("s3://nowhere/cloze", {}, "NoSuchBucket"),
        ("s3://runs", {"AWS_ENDPOINT_URL": "somewhere"}, "ValueError"),
    ],
)
def test_a_store_that_refuses_is_told_before_the_training(
    s3: Any, tmp_path: Path, uri: str, access: dict[str, str], said: str
) -> None:
    """The sentence has what the store said and what to check, and no secret; the job isn't tried again."""
    with pytest.raises(InputError, match=f"{said}.*spec.checkpoint.uri") as refusal:
        Bucket(uri, "run", tmp_path, lambda: {**s3.access, **access}).prepare()
    assert refusal.value.reason == "CheckpointStoreRefused"
    assert "wrong-secret" not in refusal.value.message


def test_a_store_that_does_not_answer_at_the_start_is_tried_again_later(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod ends with the code for storage, which Kubernetes tries again."""
    monkeypatch.setattr(module, "_START_SECONDS", 0.0)
    own = store(s3, tmp_path)
    own.prepare()
    assert s3.keys() == []
    s3.kill()
    with pytest.raises(TrainerError, match=r"doesn't answer .*AWS_ENDPOINT_URL") as failure:
        own.prepare()
    assert (failure.value.reason, failure.value.exit_code) == ("CheckpointStoreUnavailable", ExitCode.STORAGE)
    s3.start()


class Answering(Bucket):
    """Has a store that answers the first requests with errors: HTTP status and code. asked: how often for access."""

    def __init__(self, s3: Any, folder: Path, *errors: tuple[int, str]) -> None:
        super().__init__("s3://runs/cloze/team", "default/encoder/uid", folder, self._counted)
        self.own, self.errors, self.asked = s3.access, list(errors), 0

    def _counted(self) -> dict[str, str]:
        self.asked += 1
        return dict(self.own)

    def _client(self) -> Any:
        client = super()._client()
        client.meta.events.register("before-send.s3", self._answer)
        return client

    def _answer(self, request: Any, **_: Any) -> AWSResponse | None:
        if not self.errors:
            return None
        status, code = self.errors.pop(0)
        body = io.BytesIO(f"<Error><Code>{code}</Code></Error>".encode())
        headers = {"Content-Type": "application/xml"}
        return AWSResponse(request.url, status, headers, HTTPResponse(body, preload_content=False))


@pytest.mark.parametrize(
    "answer", [(400, "RequestTimeout"), (400, "ExpiredToken"), (403, "RequestTimeTooSkewed"), (503, "SlowDown")]
)
def test_what_is_over_with_the_next_request_refuses_nothing(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str]
) -> None:
    """A late answer, a clock that was off, credentials that have run out: they are asked for anew."""
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.0)
    own = Answering(s3, tmp_path, answer)
    own.prepare()
    assert (own.errors, own.asked) == ([], 2)


@pytest.mark.parametrize("ask", ["steps", "finished", "open", "remove"])
def test_a_refusal_after_the_run_has_begun_is_tried_again(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    """What reads or removes checkpoints ends the pod, not the job: somebody may see to it, and the run goes on."""
    checkpoints(s3, tmp_path / "one", 1)
    monkeypatch.setattr(module, "_START_SECONDS", 0.0)
    own = Answering(s3, tmp_path / "other", (403, "AccessDenied"))
    arguments = [1] if ask in ("open", "remove") else []
    with pytest.raises(TrainerError, match=r"AccessDenied.*may list, read, write and delete") as failure:
        getattr(own, ask)(*arguments)
    assert (failure.value.reason, failure.value.exit_code) == ("CheckpointStoreRefused", ExitCode.STORAGE)
    getattr(own, ask)(*arguments)


def test_the_digests_are_the_files_own(s3: Any, tmp_path: Path) -> None:
    """Anybody can check a checkpoint with what any machine has: SHA-256, by file."""
    checkpoints(s3, tmp_path, 1)
    client = s3.client()
    found = {key.rpartition("/")[2]: client.get_object(Bucket="runs", Key=key)["Body"].read() for key in s3.keys(RUN)}
    digests = json.loads(found.pop("COMPLETE"))
    assert digests == {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
