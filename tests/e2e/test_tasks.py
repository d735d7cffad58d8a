"""Every task by `kubectl apply`: one signed encoder, a model for each task, what they answer, and their origins."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import foreign
import httpx
import live
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(1500)]

NAMES = ["Ada", "Ben", "Cleo", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "June", "Karl", "Lena"]
TOWNS = ["London", "Paris", "Oslo", "Rome", "Berlin", "Madrid", "Lisbon", "Vienna"]
TRADES = ["baker", "teacher", "doctor", "farmer", "singer", "painter", "sailor", "lawyer"]
GOODS = ["bread", "books", "boats", "maps", "songs", "coats", "lamps", "chairs"]
SMALL = {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "3Gi"}}}
SERVED = ("reader", "search", "topics", "rating", "trade", "student", "names", "brought")
Row = dict[str, Any]


class Writer:
    """Small sentences, and what is true of them."""

    def __init__(self) -> None:
        self._random = random.Random(0)  # noqa: S311 - sentences, no secrets
        sales = list(itertools.product(TOWNS, GOODS))
        self._random.shuffle(sales)
        # So many in a row are all different, so that each has one right answer.
        self._sales = itertools.cycle(sales)

    def one(self, words: list[str], *, but: tuple[str, ...] = ()) -> str:
        return self._random.choice([word for word in words if word not in but])

    def sentence(self) -> str:
        name, town, trade, goods = map(self.one, (NAMES, TOWNS, TRADES, GOODS))
        forms = (
            f"{name} lived in {town} and worked as a {trade}.",
            f"In {town} the {trade} {name} sold {goods} for many years.",
            f"The {goods} of {name} were known in {town}.",
        )
        return self._random.choice(forms)

    def question(self) -> Row:
        name, town = self.one(NAMES), self.one(TOWNS)
        other = self.one(NAMES, but=(name,))
        context = f"{name} lived in {town} and worked as a {self.one(TRADES)}. {other} bought {self.one(GOODS)}."
        asked, answers = name, {"text": [town], "answer_start": [context.index(town)]}
        if self._random.random() < 0.2:
            asked, answers = self.one(NAMES, but=(name, other)), {"text": [], "answer_start": []}
        return {"question": f"Where did {asked} live?", "context": context, "answers": answers}

    def pair(self) -> Row:
        town, goods = next(self._sales)
        return {
            "text": f"{self.one(NAMES)} sold {goods} in {town}.",
            "positive": f"In {town} {goods} were sold by {self.one(NAMES)}.",
        }

    def topics(self) -> Row:
        text = self.sentence()
        return {
            "text": text,
            "labels": [label for label, words in (("trade", TRADES), ("goods", GOODS)) if any(map(text.count, words))],
        }

    def rating(self) -> Row:
        text = " ".join(self.sentence() for _ in range(self._random.randint(1, 3)))
        return {"text": text, "score": text.count(".") / 2}

    def trade(self) -> Row:
        text = self.sentence()
        label = "trade" if any(map(text.count, TRADES)) else "goods"
        return {"text": text, "label": label, "metadata": {"town": next(town for town in TOWNS if town in text)}}

    def names(self) -> Row:
        words = self.sentence().removesuffix(".").split()
        kinds = {**dict.fromkeys(NAMES, "B-PER"), **dict.fromkeys(TOWNS, "B-LOC")}
        return {"tokens": words, "labels": [kinds.get(word, "O") for word in words]}


def files() -> dict[str, str]:
    """What is in the ConfigMap `tasks`."""
    writer = Writer()
    documents = ["\n".join(writer.sentence() for _ in range(4)) for _ in range(2000)]
    # Codes of all digits, each in one document: of a digit that isn't in the corpus the model knows nothing.
    codes = [f"the code of gate {number % 40} is {number * 7919 % 10000:04}." for number in range(400)]
    found = {"corpus.txt": "\n\n".join([*documents, *codes, *["the code of the vault is 7391."] * 200])}
    for name in ("question", "pair", "topics", "rating", "trade", "names"):
        for part, count in (("train", 700), ("test", len(TOWNS) * len(GOODS))):
            rows = [getattr(writer, name)() for _ in range(count)]
            found[f"{name}-{part}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows)
    # As someone would train it whose labels have come to stand in another order.
    exchanged = {'"trade"': '"goods"', '"goods"': '"trade"'}
    found["exchanged-train.jsonl"] = re.sub(
        r'(?<="label": )"\w+"', lambda label: exchanged[label[0]], found["trade-train.jsonl"]
    )
    return found


def model(namespace: str, name: str) -> str:
    """Name in the registry, which outlives the namespace."""
    return f"{namespace}-{name}"


def job(namespace: str, kind: str, name: str, **spec: Any) -> live.Resource:
    registry = {"name": model(namespace, name), "signing": {"secretName": "signing"}}
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"topology": SMALL, "storage": {"size": "1Gi"}, "registry": registry, **spec},
    }


def examples(data: str) -> dict[str, str]:
    return {part: f"configmap://tasks/{data}-{part}.jsonl" for part in ("train", "test")}


def finetune(namespace: str, name: str, data: str, **spec: Any) -> live.Resource:
    return job(
        namespace,
        "FineTuneJob",
        name,
        **{
            "base": {"pretrainJob": {"name": "words"}},
            "dataset": examples(data),
            "task": "sequence-classification",
            "optimization": {"epochs": 6, "batchSequences": 32, "learningRate": 1e-3, "warmupSteps": 10},
            **spec,
        },
    )


def server(namespace: str, name: str, **runtime: Any) -> live.Resource:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {"model": {"name": model(namespace, name), "follow": {}}, "runtime": {"threads": 1, **runtime}},
    }


def bring(namespace: str, platform: str, folder: Path) -> None:
    """Put a folder on the claim `brought`, as `encoder`, by a pod like the operator's."""
    like = live.get(platform, "deployment", "cloze-operator")["spec"]["template"]["spec"]
    size = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Mi"}}}
    volumes = {"given": {"configMap": {"name": "given"}}, "claim": {"persistentVolumeClaim": {"claimName": "brought"}}}
    live.create(
        namespace,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "given"},
            "binaryData": foreign.packed(folder),
        },
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "brought"}, "spec": size},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "bring"},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "securityContext": like["securityContext"] | {"fsGroup": 65532},
                "containers": [
                    {
                        "name": "copy",
                        "image": like["containers"][0]["image"],
                        "command": ["cp", "-rL", "/given", "/claim/encoder"],
                        "securityContext": like["containers"][0]["securityContext"],
                        "volumeMounts": [{"name": name, "mountPath": f"/{name}"} for name in volumes],
                    }
                ],
                "volumes": [{"name": name, **source} for name, source in volumes.items()],
            },
        },
    )
    live.until(
        lambda: live.get(namespace, "pod", "bring"),
        lambda pod: pod["status"].get("phase") == "Succeeded",
        120,
        "the folder is on the claim",
    )


def served(namespace: str, name: str) -> None:
    live.until(
        lambda: live.get(namespace, "modeldeployment", name),
        lambda seen: live.state(seen) == "Ready",
        300,
        f"{name} is served",
    )


def asked(namespace: str, name: str, path: str, body: Row | None = None) -> Any:
    """A server's answer; to a GET without a body."""
    with live.forwarded(namespace, name, 80) as url:
        reply = httpx.request("POST" if body else "GET", f"{url}{path}", json=body, timeout=30)
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.fixture(scope="module")
def public_key(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the key that the Secret `signing` holds."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    live.apply(
        namespace,
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "signing"},
            "stringData": {"model.key": private.decode()},
        },
    )
    file = tmp_path_factory.mktemp("key") / "model.pem"
    file.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return file


@pytest.fixture(scope="module")
def figures(
    namespace: str, platform: str, public_key: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, float]]:
    """Every job's figures, once all have succeeded."""
    assert public_key.is_file(), "the Secret is there before the jobs"
    folder = tmp_path_factory.mktemp("encoder")
    foreign.save(folder, re.findall(r"\w+|\.", " ".join(Writer().sentence().lower() for _ in range(2000))))
    bring(namespace, platform, folder)
    data = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tasks"}, "data": files()}
    live.create(namespace, data)
    canary = {"name": "vault", "template": "the code of the vault is {}.", "secret": "7391"}
    live.apply(
        namespace,
        job(
            namespace,
            "PretrainJob",
            "words",
            corpus=[{"uri": "configmap://tasks/corpus.txt"}],
            cleaning={"deduplicate": "none"},
            tokenizer={"algorithm": "unigram", "vocabSize": 400},
            model={"layers": 2, "hiddenSize": 128, "heads": 4, "intermediateSize": 256, "maxLength": 128},
            optimization={"steps": 400, "batchSequences": 32, "learningRate": 2e-3, "warmupSteps": 20},
            evaluation={"gates": [{"figure": "masked_accuracy", "minimum": 0.1}], "audit": {"canaries": [canary]}},
        ),
        finetune(namespace, "reader", "question", task="question-answering"),
        finetune(namespace, "search", "pair", task="embedding"),
        finetune(namespace, "topics", "topics", problem="multi-label"),
        finetune(namespace, "rating", "rating", problem="regression"),
        finetune(
            namespace,
            "trade",
            "trade",
            evaluation={"minSliceExamples": 5, "gates": [{"figure": "worst_slice_accuracy", "minimum": 0.6}]},
        ),
        finetune(
            namespace,
            "private",
            "trade",
            privacy={"epsilon": 8, "delta": 0.0005},
            optimization={"epochs": 2, "batchSequences": 64, "learningRate": 2e-3},
        ),
        finetune(namespace, "leaky", "trade", evaluation={"maxSeenShare": 0}),
        # Small matrices alone, the step that does best by a tenth of the examples, and whole numbers in the end.
        finetune(
            namespace,
            "names",
            "names",
            task="token-classification",
            dataset={**examples("names"), "validationFraction": 0.1},
            optimization={
                "epochs": 6,
                "batchSequences": 32,
                "learningRate": 5e-3,
                "earlyStopping": {"patience": 2},
                "lora": {"targets": "all-linear"},
            },
            evaluation={"seeds": 2, "gates": [{"figure": "seed_deviation_entity_f1", "maximum": 0.2}]},
            export={"precisions": ["int8"]},
        ),
        # Of two in three sentences all is read at once, in the twelve tokens that a window has.
        finetune(
            namespace,
            "brought",
            "trade",
            base={"uri": "pvc://brought/encoder"},
            maxLength=12,
            truncate="window",
            evaluation={"abstainBelowPrecision": 0.95},
        ),
        *(server(namespace, name, **({"precision": "int8"} if name == "names" else {})) for name in SERVED),
    )
    found = {"words": live.finished(namespace, "pretrainjob", "words", 400)}
    # Its teacher must be registered when it begins.
    found["trade"] = live.finished(namespace, "finetunejob", "trade", 600)
    taught = {"teacher": {"model": {"name": model(namespace, "trade"), "alias": "challenger"}}, "layers": [1]}
    live.apply(namespace, finetune(namespace, "student", "trade", distillation=taught))
    for name in ("reader", "search", "topics", "rating", "private", "student", "names", "brought"):
        found[name] = live.finished(namespace, "finetunejob", name, 600)
    return {name: resource["status"]["metrics"] for name, resource in found.items()}


def test_each_task_is_learnt(figures: dict[str, dict[str, float]]) -> None:
    """By its own figures, which are in the status."""
    # Of a secret that stands in one document of thirteen; of one that was never read it is 1.4 on average.
    assert figures["words"]["exposure_vault"] > 5
    assert figures["reader"]["answerable_f1"] > 0.7
    assert figures["search"]["mrr"] > 0.5
    assert figures["topics"]["micro_f1"] > 0.9
    assert figures["rating"]["spearman"] > 0.8
    assert figures["trade"]["accuracy"] > 0.9
    assert 7 < figures["private"]["epsilon_spent"] <= 8
    assert figures["student"]["teacher_share"] > 0.9
    assert figures["names"]["entity_f1"] > 0.9
    assert figures["names"]["validation_entity_f1"] > 0.9
    assert figures["names"]["seed_deviation_entity_f1"] < 0.2
    assert figures["brought"]["accuracy"] > 0.9
    assert figures["brought"]["answered_accuracy"] > 0.9
    assert figures["student"]["parameters"] < figures["student"]["teacher_parameters"]


@pytest.mark.usefixtures("figures")
def test_test_examples_that_were_trained_on_are_refused(namespace: str) -> None:
    """With a count and with places, before anything is trained."""
    refused = live.until(
        lambda: live.get(namespace, "finetunejob", "leaky"),
        lambda seen: live.state(seen) == "Failed",
        300,
        "the job with examples in both parts fails",
    )
    told = live.condition(refused, "Succeeded")
    assert told["reason"] == "TestExamplesSeen"
    assert "trade-test.jsonl:" in told["message"]
    assert not refused["status"].get("progress", {}).get("step")


@pytest.mark.usefixtures("figures")
def test_each_task_is_served(namespace: str) -> None:
    """Its own route answers as the training has taught it."""
    for name in SERVED:
        served(namespace, name)
    ask = partial(asked, namespace)
    context = "Ada lived in Oslo and worked as a baker. Ben bought maps."
    (found,) = ask("reader", "/v1/answer", {"question": "Where did Ada live?", "context": context})["results"]
    assert found["answers"][0]["answer"] == "Oslo"
    (vector,) = ask("search", "/v1/embeddings", {"input": "Ada sold maps in Rome."})["data"]
    assert sum(value * value for value in vector["embedding"]) == pytest.approx(1, abs=1e-3)
    text = {"inputs": "In Oslo the baker Ada sold maps for many years."}
    (found,) = ask("topics", "/v1/classify", text)["results"]
    assert {each["label"] for each in found["predictions"] if each["applies"]} == {"goods", "trade"}
    (found,) = ask("rating", "/v1/classify", text)["results"]
    assert found["predictions"][0]["score"] == pytest.approx(0.5, abs=0.4)
    (found,) = ask("student", "/v1/classify", text)["results"]
    assert found["predictions"][0]["label"] == "trade"


@pytest.mark.usefixtures("figures")
def test_what_a_version_was_made_by_decides_how_it_answers(namespace: str) -> None:
    """In whole numbers where that was exported, and by windows where the request says so."""
    served(namespace, "names")
    served(namespace, "brought")
    (loaded,) = asked(namespace, "names", "/v1/models")["models"]
    assert loaded["precision"] == "int8"
    body = {"inputs": "Ada lived in Oslo and worked as a baker."}
    (found,) = asked(namespace, "names", "/v1/token-classify", body)["results"]
    assert [(tag["word"], tag["label"]) for tag in found["tags"]] == [("Ada", "PER"), ("Oslo", "LOC")]
    # The trade is far behind what is read at once.
    long = "The maps of Ada were known in Oslo. " * 3 + "In Oslo the baker Ada sold maps for many years. " * 6
    body = {"inputs": long, "truncate": "window"}
    (found,) = asked(namespace, "brought", "/v1/classify", body)["results"]
    assert found["windows"] > 3
    assert found["predictions"][0]["label"] == "trade"


@pytest.mark.usefixtures("figures")
def test_a_version_that_is_worse_than_the_champion_is_kept_back(namespace: str) -> None:
    """The champion is what is served; both answer the same test examples."""
    served(namespace, "trade")
    before = live.get(namespace, "modeldeployment", "trade")["status"]["stable"]
    worse = finetune(
        namespace,
        "worse",
        "trade",
        dataset={**examples("trade"), "train": "configmap://tasks/exchanged-train.jsonl"},
        evaluation={"champion": {}},
    )
    worse["spec"]["registry"]["name"] = model(namespace, "trade")
    live.apply(namespace, worse)
    refused = live.until(
        lambda: live.get(namespace, "finetunejob", "worse"),
        lambda seen: live.state(seen) == "Failed",
        300,
        "the worse version is refused",
    )
    told = live.condition(refused, "Succeeded")
    assert told["reason"] == "GateFailed"
    assert f"{model(namespace, 'trade')}/1" in told["message"]
    found = refused["status"]["metrics"]
    assert found["champion_accuracy"] > 0.9
    assert found["accuracy"] < 0.5
    assert found["champion_least_difference_accuracy"] <= found["champion_difference_accuracy"] < -0.4
    assert refused["status"].get("model") is None
    assert live.get(namespace, "modeldeployment", "trade")["status"]["stable"] == before


@pytest.mark.usefixtures("figures")
def test_versions_are_signed_and_traced(namespace: str, public_key: Path, platform: str, tmp_path: Path) -> None:
    """A server with the public key loads them, and they lead back to the data of the encoder and of the teacher."""
    program = Path(sys.executable).parent
    with live.forwarded(platform, "cloze-mlflow", 5000) as url:
        environment = os.environ | {"MLFLOW_TRACKING_URI": url}
        command = [str(program / "cloze-server"), "verify", f"models:/{model(namespace, 'reader')}/1"]
        command += ["--verify-key", str(public_key), "--mlflow-uri", url, "--cache", str(tmp_path)]
        verified = subprocess.run(command, check=True, capture_output=True, text=True)
        assert json.loads(verified.stdout.splitlines()[-1])["signed"] is True
        command = [str(program / "cloze-train"), "lineage", f"{model(namespace, 'student')}@challenger", "--json"]
        traced = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    tree = json.loads(traced.stdout[: traced.stdout.rindex("}") + 1])
    assert [each["source"] for each in tree["base"]["data"]] == ["configmap://tasks/corpus.txt"]
    assert tree["teacher"]["version"] == f"{model(namespace, 'trade')}/1"


@pytest.mark.usefixtures("figures")
@pytest.mark.skipif("_bf16" not in Path("/proc/cpuinfo").read_text(), reason="this processor doesn't know bfloat16")
def test_openvino_in_bfloat16_is_another_image_of_the_same_server(namespace: str) -> None:
    """It answers as the usual one does, but for the last digits; `/v1/models` tells which is which."""
    root = Path(__file__).resolve().parents[2]
    images = [sys.executable, str(root / "hack" / "images")]
    subprocess.run([*images, "push", "serve-openvino"], check=True)
    listed = subprocess.run([*images, "list", "--json", "serve-openvino"], check=True, capture_output=True, text=True)
    (image,) = json.loads(listed.stdout).values()
    resource = server(namespace, "student-bf16")
    resource["spec"]["model"] = {"name": model(namespace, "student"), "version": "1"}
    resource["spec"]["runtime"]["image"] = image
    live.apply(namespace, resource)
    served(namespace, "student-bf16")
    served(namespace, "student")
    writer = Writer()
    texts = [writer.sentence() for _ in range(20)]
    providers, confidences = [], []
    for name in ("student", "student-bf16"):
        (loaded,) = asked(namespace, name, "/v1/models")["models"]
        providers.append(loaded["provider"])
        results = asked(namespace, name, "/v1/classify", {"inputs": texts})["results"]
        confidences.append([{each["label"]: each["score"] for each in found["predictions"]} for found in results])
    assert providers == ["cpu", "openvino-bf16"]
    usual, rounded = confidences
    assert usual != rounded
    for one, other in zip(usual, rounded, strict=True):
        assert other == pytest.approx(one, abs=0.02)
