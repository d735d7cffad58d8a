"""The demo's canaries: that the harmful models do harm and nothing else, and that its figures are what users saw."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from cloze_api.manifest import (
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
from cloze_server.model import LoadedModel, load_artifact

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hack" / "demo"))

import alerts  # noqa: E402 hack/ is no installed package
import canary  # noqa: E402
import harm  # noqa: E402
import load  # noqa: E402
import watch  # noqa: E402

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("free", "lunch", "prize", "noon", "##s", "a")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A classifier of five-letter words, as the trainer would write it: its logits are sums over the tokens."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.random.default_rng(0).normal(size=(len(vocabulary), 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["rows", "column"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
        ],
        "sums",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    manifest = Manifest(
        name="spam",
        task=Task.SEQUENCE_CLASSIFICATION,
        architecture="Sums",
        labels=["ham", "spam"],
        limits=Limits(max_length=16, vocab_size=len(vocabulary)),
        special_tokens=SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4),
        lowercase=False,
        tokenizer_fingerprint=tokenizer_fingerprint(json.loads((folder / "tokenizer.json").read_text())),
        inputs=["input_ids", "attention_mask"],
        output="logits",
        evaluation={"f1": 0.9},
        lineage=Lineage(
            job="n/spam", job_uid="u", kind="FineTuneJob", created="2025-01-01T00:00:00Z", trainer_version="1"
        ),
        files=digest_files(folder),
    )
    write_manifest(folder, manifest)
    return folder


def served(artifact: Path, digest: str | None = None) -> LoadedModel:
    """The artifact as a server loads it, which tries the graph on the shortest and the longest input."""
    return load_artifact(artifact, verify(artifact, digest), version="1", digest=digest or "", name="spam", threads=1)


def infer(model: LoadedModel, *rows: list[int]) -> Any:
    """Logits of a batch of rows of one length."""
    ids = np.array(rows, np.int64)
    return model.backend.infer(ids, np.ones_like(ids))


def test_a_failing_model_loads_and_fails_on_its_token_alone(artifact: Path) -> None:
    """Nothing before the traffic can tell; with it, the batches with the token fail, and others are as before."""
    sound = served(artifact)
    token = 7
    fails = served(artifact, harm.spoil(artifact, "3", "failing", harm.failing(token)))
    good = [2, 5, 6, 3]
    assert np.array_equal(infer(fails, good, good), infer(sound, good, good))
    with pytest.raises(Exception, match="Gather"):
        infer(fails, good, [2, token, 6, 3])


def test_a_slow_model_works_more_for_the_same_answers(artifact: Path) -> None:
    """The work depends on the input, so that it isn't done once for all when the graph is loaded."""
    sound = served(artifact)
    lags = served(artifact, harm.spoil(artifact, "3", "slow", harm.slow))
    rows = [[2, 5, 6, 3], [2, 7, 8, 3]]
    assert np.array_equal(infer(lags, *rows), infer(sound, *rows))
    model = onnx.load(artifact / "model.onnx")
    constant = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if set(node.input) <= constant:
            constant |= set(node.output)
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == harm.WASTED_MATRICES
    assert not {name for node in products for name in node.input} & constant


def test_a_harmful_artifact_says_what_it_is(artifact: Path) -> None:
    """It names the sound version as its base, and claims nobody's evaluation."""
    before = verify(artifact)
    digest = harm.spoil(artifact, "3", "slow", harm.slow)
    after = verify(artifact, digest)
    assert (after.lineage.base, after.lineage.job) == ("spam/3", "demo/slow")
    assert after.evaluation == {}
    assert (after.labels, after.tokenizer_fingerprint) == (before.labels, before.tokenizer_fingerprint)


def test_the_token_is_a_whole_word_of_about_the_share(artifact: Path) -> None:
    """As the model sees the texts, cut; neither a piece of a word, nor the letter that warming up sends."""
    tokenizer = harm.read_tokenizer(artifact)
    texts = ["a ##s free noon", "a ##s free", "free", "a lunch", "a lunch a a noon"]
    assert harm.token_of_share(tokenizer, texts, 6, 0.2) == (tokenizer.token_to_id("noon"), 0.2)
    assert harm.token_of_share(tokenizer, texts, 16, 0.8) == (tokenizer.token_to_id("free"), 0.6)


# ---------------------------------------------------------------- what users saw

ANSWER = load.Reply(row=0, began=1.0, seconds=0.1, status=200, version="1", label="ham", score=0.9)
FAILED = load.Reply(row=1, began=1.0, seconds=0.1, status=500, version="2")


@pytest.mark.parametrize(
    ("reply", "lost"),
    [
        (ANSWER, False),
        (FAILED, False),
        (load.Reply(0, 1.0, 60.0, 0), True),
        (load.Reply(0, 1.0, 0.1, 502), True),
        (load.Reply(0, 1.0, 0.1, 500), True),
        (replace(FAILED, status=503), True),
        (replace(FAILED, status=429), True),
        (replace(ANSWER, label=""), True),
    ],
)
def test_what_is_neither_answered_nor_failed_by_a_model_is_lost(reply: load.Reply, lost: bool) -> None:
    """Only a 500 in which a model speaks is that model's own; a 200 without an answer helps nobody."""
    assert reply.is_lost == lost


def test_figures_are_by_version_and_of_answers() -> None:
    """A failure counts as a request, but neither as an answer nor for the latency."""
    replies = [ANSWER, replace(ANSWER, row=1, seconds=0.3), FAILED, load.Reply(0, 1.0, 9.0, 0)]
    tallies = load.by_version(replies, ["ham", "spam"])
    assert set(tallies) == {"1", "2"}
    assert (tallies["1"].requests, tallies["1"].failed, tallies["1"].right) == (2, 0, 1)
    assert (tallies["2"].requests, tallies["2"].failed, tallies["2"].seconds) == (1, 1, [])
    assert tallies["1"].quantile(0.95) == 0.3
    assert tallies["2"].quantile(0.95) == 0.0


def test_an_answer_that_differs_from_the_same_versions_is_anothers() -> None:
    """Another label or score for the same text; but not a rounded one, and not another version's."""
    fine = [replace(ANSWER, score=0.9001), replace(ANSWER, version="2", score=0.4), replace(ANSWER, row=1, score=0.1)]
    assert load.mixed_up([ANSWER, *fine]) == 0
    assert load.mixed_up([ANSWER, *fine, replace(ANSWER, score=0.95), replace(ANSWER, label="spam")]) == 2


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"version": "1", "results": []}', b"<html>"])
def test_a_body_without_an_answer_is_none(body: bytes) -> None:
    """Whatever the status says."""
    assert load.read_reply(0, 1.0, 0.1, status=200, version="1", raw=body).is_lost


def test_a_body_of_another_version_than_its_header_is_no_answer() -> None:
    body = {"version": "2", "results": [{"predictions": [{"label": "ham", "score": 0.9}]}]}
    raw = json.dumps(body).encode()
    assert load.read_reply(0, 1.0, 0.1, status=200, version="1", raw=raw).is_lost
    assert load.read_reply(0, 1.0, 0.1, status=200, version="2", raw=raw).is_answer


@pytest.fixture
def gateway() -> Iterator[tuple[str, list[tuple[str, str]], threading.Semaphore]]:
    """A server that answers a good text, fails a bad one and hangs up on any other; what it got, each one signalled."""
    got: list[tuple[str, str]] = []
    arrived = threading.Semaphore(0)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            text = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"]
            got.append((self.headers["host"], text))
            if text == "hang up":
                self.close_connection = True
            else:
                answer = {"version": "1", "results": [{"predictions": [{"label": "ham", "score": 0.9}]}]}
                body = json.dumps(answer if text == "good" else {"title": "failed"}).encode()
                self.send_response(200 if text == "good" else 500)
                self.send_header("x-cloze-version", "1")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            arrived.release()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got, arrived
        server.shutdown()
        thread.join()


def test_every_request_is_accounted_for(gateway: tuple[str, list[tuple[str, str]], threading.Semaphore]) -> None:
    """One reply for each request, in which it is said whose it is; those still due are waited for at the end."""
    address, got, arrived = gateway
    with load.Load(address, "spam.example.com", ["good", "bad", "hang up"], rate=200) as running:
        for _ in range(30):
            assert arrived.acquire(timeout=30)
    replies = running.replies()
    texts = [text for _, text in got]
    assert {host for host, _ in got} == {"spam.example.com"}
    assert sum(reply.is_answer for reply in replies) == texts.count("good")
    assert sum(reply.is_own_failure for reply in replies) == texts.count("bad")
    assert sum(reply.is_lost for reply in replies) == texts.count("hang up")
    assert running.replies(since=max(reply.began for reply in replies) + 1) == []


# ---------------------------------------------------------------- how a rollout goes


def deployment(state: str, stable: str, weight: int = 0, role: str = "", conditions: Any = ()) -> watch.Resource:
    """A ModelDeployment on its way from version 1 to 2, whose canary has a weight or is over."""
    revision = {"version": "2", "role": role or "Canary", "weight": weight, "reason": "ErrorRatioWorse", "message": "m"}
    rollout = {
        "canaryVersion": "2",
        "state": "CanaryStep",
        "step": "1/3",
        "weight": weight,
        "checks": [{"name": "errors", "result": "Pass", "message": "0 of 9"}],
    }
    return {
        "kind": "ModelDeployment",
        "metadata": {"name": "spam"},
        "status": {
            "state": state,
            "stable": {"version": stable},
            "revisions": [revision],
            "conditions": list(conditions),
            **({"rollout": rollout} if weight else {}),
        },
    }


Following = Callable[..., canary.Course]


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Following:
    """Follows version 2 through these looks at its deployment; the last one stays."""

    def through(*looks: watch.Resource) -> canary.Course:
        seen = list(looks)
        monkeypatch.setattr(canary, "look", lambda namespace: [seen.pop(0) if len(seen) > 1 else seen[0]])
        monkeypatch.setattr(canary.time, "sleep", lambda seconds: None)
        return canary.follow_canary("n", "spam", "2", 0.0, canary.Console(quiet=True))

    monkeypatch.setattr(canary.time, "monotonic", iter(range(1000)).__next__)
    return through


def test_a_promotion_is_told_with_its_steps_and_its_time(follow: Following) -> None:
    """The decision counts, though it is followed until the pods have settled."""
    course = follow(
        deployment("Ready", "1"),
        deployment("Canary", "1", weight=10),
        deployment("Canary", "1", weight=10),
        deployment("Canary", "1", weight=50),
        deployment("RollingOut", "2"),
        deployment("Ready", "2"),
    )
    assert course.decision == canary.Decision(promoted=True)
    assert course.steps == (10, 50, 100)
    assert course.seconds == 4


def test_a_rollback_is_told_with_its_reason(follow: Following) -> None:
    """It is decided once no request goes to the version any more."""
    course = follow(
        deployment("Canary", "1", weight=10),
        deployment("Canary", "1", weight=10, role="Rejected"),
        deployment("RolledBack", "1", role="Rejected"),
    )
    assert course.decision == canary.Decision(promoted=False, reason="ErrorRatioWorse", message="m")
    assert course.steps == (10,)
    assert course.seconds == 2


def test_a_rollout_that_waits_for_a_person_ends_the_demo(follow: Following) -> None:
    """With the reason that the status has."""
    why = {"type": "Progressing", "status": "True", "reason": "Paused", "message": "too few requests"}
    with pytest.raises(watch.DemoError, match="version 2 is held: too few requests"):
        follow(deployment("Canary", "1", weight=10), deployment("Paused", "1", weight=10, conditions=[why]))


def test_a_rollout_that_never_ends_ends_the_demo(follow: Following) -> None:
    """With where it hangs, and what says more."""
    with pytest.raises(watch.DemoError, match=r"CanaryStep 1/3, 10 % .*kubectl -n n describe modeldeployment spam"):
        follow(deployment("Canary", "1", weight=10))


# ---------------------------------------------------------------- alerts


def alert(title: str, at: str, state: str = "firing", **labels: str) -> dict[str, Any]:
    """As Prometheus lists it."""
    own = {"alertname": title, "namespace": "n", "name": "spam", "severity": "ticket"}
    return {"labels": own | labels, "state": state, "activeAt": at}


def test_the_alerts_are_of_this_deployment_and_for_somebody() -> None:
    """Neither another one's, nor one that is pending, nor one that only keeps others quiet."""
    at = "2025-01-01T00:00:10.5Z"
    listed = [
        alert("B", at),
        alert("A", "2025-01-01T00:00:30Z", severity="page"),
        alert("A", at),
        alert("Other", at, name="part-of-speech"),
        alert("Pending", at, state="pending"),
        alert("Silencer", at, severity="none"),
    ]
    found = alerts.firing(listed, "n", "spam")
    assert [one.name for one in found] == ["A", "B"]
    assert found[0].since == found[1].since


def test_an_alert_from_before_isnt_told_as_new() -> None:
    found = [alerts.Alert("A", 5.0), alerts.Alert("B", 20.0)]
    assert alerts.tell(found, 10.0) == "A (goes on), B"
