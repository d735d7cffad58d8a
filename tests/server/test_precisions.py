"""Of an artifact's graphs in several precisions the chosen one is served; one that isn't there is refused."""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest

from cloze_api.manifest import ONNX_FILE, digest_files, verify, write_manifest
from cloze_api.names import ENV_PRECISION
from cloze_api.precision import Measured, Precision, graph_file
from cloze_api.task import Task
from cloze_server.app import create_app
from cloze_server.batch import options, run
from cloze_server.echo import write_artifact
from cloze_server.exits import ExitCode, FatalError
from cloze_server.lifecycle import Lifecycle
from cloze_server.loading import current_digest, load_model
from cloze_server.reload import Origin, Reloading
from cloze_server.replies import ReplyCache
from cloze_server.service import Service
from cloze_server.settings import Settings, read
from cloze_server.telemetry import Telemetry
from cloze_server.timing import Timing

pytestmark = pytest.mark.anyio

TEXT = "the cat sat on the mat"


def with_int8(sound: Path, folder: Path, **fields: Any) -> Path:
    """The artifact with one more graph, whose scores are all others: as if it had been quantized badly."""
    shutil.copytree(sound, folder)
    model = onnx.load(folder / ONNX_FILE)
    for node in model.graph.node:
        node.output[:] = ["logits-fp32" if name == "logits" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Neg", ["logits-fp32"], ["logits"]))
    onnx.save(model, folder / graph_file(Precision.INT8))
    changed = {"files": digest_files(folder), "precisions": {Precision.INT8: Measured(difference=1.0)}} | fields
    write_manifest(folder, verify(sound).model_copy(update=changed))
    return folder


@pytest.fixture
def several(artifacts: Callable[[Task], Any], tmp_path: Path) -> Path:
    """An artifact with fp32 and int8."""
    return with_int8(artifacts(Task.SEQUENCE_CLASSIFICATION).folder, tmp_path / "several")


def load(folder: Path | str, precision: Precision) -> Any:
    """As a server does that is told so."""
    settings = Settings(model=(str(folder),), precision=precision, threads=1)
    return load_model(0, settings, threading.Event(), Lifecycle())


async def best(client: httpx.AsyncClient, **body: Any) -> str:
    """The likeliest label."""
    answered = await client.post("/v1/classify", json={"inputs": TEXT, **body})
    assert answered.status_code == 200, answered.text
    return str(answered.json()["results"][0]["predictions"][0]["label"])


async def test_the_chosen_precision_answers_and_is_told(several: Path, serving: Any) -> None:
    """The digest is the artifact's, whichever is served."""
    found = {}
    for precision in (Precision.FP32, Precision.INT8):
        async with serving(partial(load, several, precision)) as client:
            described = (await client.get("/v1/models")).json()["models"][0]
            assert described["precision"] == precision
            found[precision] = (await best(client), described["digest"])
    fp32, int8 = found.values()
    assert fp32[0] != int8[0]
    assert fp32[1] == int8[1]


async def test_what_one_precision_said_another_does_not_repeat(several: Path) -> None:
    """Though name, digest and request are equal."""
    replies = ReplyCache(1 << 20, 60.0)
    said = []
    for precision in (Precision.FP32, Precision.INT8, Precision.FP32):
        telemetry, timing = Telemetry(), Timing()
        service = Service(load(several, precision), Settings(model=(str(several),)), telemetry, replies)
        telemetry.bind("mails", "local", answers=service.handler.answers())
        reply = await service.answer(service.handler.request.model_validate({"inputs": TEXT}), timing)
        said.append((json.loads(reply)["results"][0]["predictions"][0]["label"], timing.cached))
        service.close()
    replies.close()
    assert [cached for _, cached in said] == ["miss", "miss", "hit"]
    assert said[0][0] == said[2][0] != said[1][0]


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_one_that_the_artifact_has_not_is_refused(
    artifacts: Callable[[Task], Any], several: Path, precision: Precision
) -> None:
    """As a wrong setting, naming what there is."""
    folder = several if precision is Precision.FP16 else artifacts(Task.SEQUENCE_CLASSIFICATION).folder
    with pytest.raises(FatalError, match="fp32, int8, not fp16" if folder is several else "fp32, not int8") as refused:
        load(folder, precision)
    assert (refused.value.code, refused.value.reason) == (ExitCode.CONFIGURATION, "PrecisionMissing")


def test_models_without_weights_have_no_other_precision(tmp_path: Path) -> None:
    """They don't pass over the setting."""
    write_artifact(tmp_path / "echo", name="echo")
    for reference in ("dummy:", tmp_path / "echo"):
        with pytest.raises(FatalError) as refused:
            load(reference, Precision.INT8)
        assert refused.value.reason == "PrecisionMissing"


def test_a_graph_that_is_listed_and_not_there_is_refused(artifacts: Callable[[Task], Any], tmp_path: Path) -> None:
    """It is the artifact's fault."""
    sound = artifacts(Task.SEQUENCE_CLASSIFICATION).folder
    folder = with_int8(sound, tmp_path / "odd")
    (folder / graph_file(Precision.INT8)).unlink()
    write_manifest(folder, verify(sound).model_copy(update={"precisions": {Precision.INT8: Measured(difference=1.0)}}))
    with pytest.raises(FatalError, match=r"model_int8\.onnx") as refused:
        load(folder, Precision.INT8)
    assert (refused.value.code, refused.value.reason) == (ExitCode.ARTIFACT_INVALID, "FileMissing")


async def test_a_reload_keeps_the_precision(artifacts: Callable[[Task], Any], several: Path, tmp_path: Path) -> None:
    """An artifact without it is refused, and the former one goes on."""
    place = tmp_path / "served"
    place.symlink_to(several)
    settings = Settings(model=(str(place),), precision=Precision.INT8, threads=1)

    def again() -> Any:
        return load_model(0, settings, threading.Event(), Lifecycle())

    reloading = Reloading([Origin(partial(current_digest, str(place), settings), again)])
    app = create_app(settings, [again], Lifecycle(), reloading)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://a") as client:

        async def described(key: str, wanted: Callable[[Any], bool]) -> dict[str, Any]:
            async with asyncio.timeout(30):
                while True:
                    models = (await client.get("/v1/models")).json()["models"]
                    if models and wanted(models[0].get(key)):
                        return dict(models[0])
                    # Another thread loads.
                    await asyncio.sleep(0.01)

        async def put(folder: Path) -> None:
            (tmp_path / "next").symlink_to(folder)
            (tmp_path / "next").replace(place)
            reloading.asked.put(True)

        first = (await described("digest", bool))["digest"]
        said = await best(client)
        await put(artifacts(Task.SEQUENCE_CLASSIFICATION).folder)
        refused = await described("refused", bool)
        assert (refused["refused"]["reason"], refused["digest"]) == ("PrecisionMissing", first)
        sound = artifacts(Task.SEQUENCE_CLASSIFICATION).folder
        await put(with_int8(sound, tmp_path / "later", evaluation={"accuracy": 1.0}))
        later = await described("digest", lambda digest: digest != first)
        assert (later["precision"], await best(client)) == ("int8", said)


def test_a_batch_run_is_of_one_precision(several: Path, tmp_path: Path) -> None:
    """Its answers are that one's, and a run in another is another run."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"text": TEXT}) + "\n")
    arguments = ["--model", str(several), "--input", str(source), "--output", str(target), "--threads", "1"]

    def score(*more: str) -> str:
        run.run(options.read([*arguments, *more], {}))
        return str(json.loads(target.read_text())["result"]["predictions"][0]["label"])

    fp32 = score()
    receipt = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    # Runs of an older server, which all were in fp32, are still known.
    assert "precision" not in receipt["identity"]
    with pytest.raises(FatalError) as refused:
        score("--precision", "int8")
    assert refused.value.reason == "OutputExists"
    assert score("--precision", "int8", "--overwrite") != fp32


def test_the_setting_names_what_there_is() -> None:
    """On the command line and in the environment."""
    assert read(["--model", "x"], {}).precision is Precision.FP32
    assert read(["--model", "x"], {ENV_PRECISION: "int8"}).precision is Precision.INT8
    with pytest.raises(FatalError, match="fp32, int8, fp16") as refused:
        read(["--model", "x", "--precision", "int4"], {})
    assert refused.value.code is ExitCode.CONFIGURATION
