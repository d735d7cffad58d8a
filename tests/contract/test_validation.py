"""What the models refuse outside a cluster, with the same sentences as the API server; and what our examples are."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloze_api.resources import KINDS, ModelDeployment, Resource, parse_job
from cloze_api.source import parse_source
from cloze_api.training import Topology

Document = dict[str, Any]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GOOD: dict[str, Document] = {
    "PretrainJob": {"corpus": [{"uri": "pvc://books/a.txt"}], "registry": {"name": "encoder"}},
    "FineTuneJob": {
        "base": {"model": {"name": "encoder", "alias": "champion"}},
        "task": "sequence-classification",
        "dataset": {"train": "pvc://data/train.jsonl", "test": "pvc://data/test.jsonl"},
        "registry": {"name": "spam"},
    },
    "ModelDeployment": {"model": {"name": "spam", "follow": {}}},
}
MODELS = {kind.kind_name(): kind for kind in KINDS}


def validate(body: Document) -> Resource:
    return MODELS[body["kind"]].model_validate(body)


def with_spec(kind: str, name: str = "run", **spec: Any) -> Document:
    body = {"apiVersion": "cloze.dev/v1alpha1", "kind": kind, "metadata": {"name": name}}
    return {**body, "spec": {**copy.deepcopy(GOOD[kind]), **spec}}


def examples() -> list[tuple[str, Document]]:
    paths = sorted(EXAMPLES.glob("*.yaml"))
    found = [(path.name, document) for path in paths for document in yaml.safe_load_all(path.read_text("utf-8"))]
    return [(name, document) for name, document in found if document["kind"] in MODELS]


@pytest.mark.parametrize(("file", "document"), examples(), ids=lambda value: value if isinstance(value, str) else "")
def test_examples_are_valid(file: str, document: Document) -> None:
    """What people copy is accepted as it stands."""
    assert validate(document).kind_name() == document["kind"], file


def test_there_are_examples_of_every_kind() -> None:
    """A check of no examples would always pass."""
    assert {document["kind"] for _, document in examples()} == set(MODELS)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (with_spec("PretrainJob", "my.encoder"), "metadata.name"),
        (with_spec("PretrainJob", "2nd"), "metadata.name"),
        (with_spec("PretrainJob", "x" * 41), "shorten it"),
        (with_spec("PretrainJob", registry={"name": "e", "alias": "latest"}), "spec.registry.alias"),
        (with_spec("FineTuneJob", base={"model": {"name": "e", "alias": "v1"}}), "spec.base.model.alias"),
        (with_spec("PretrainJob", base={"uri": "file:///m"}, model={}), "remove spec.model"),
        (with_spec("PretrainJob", base={"uri": "file:///m"}, tokenizer={}), "remove spec.tokenizer"),
        (with_spec("PretrainJob", tokenizer={"reuse": {"uri": "file:///m"}, "vocabSize": 999}), "remove algorithm"),
        (with_spec("PretrainJob", base={"uri": "hf://a/b", "model": {"name": "e", "version": "1"}}), "exactly one"),
        (with_spec("FineTuneJob", labels=["a", "b", "a"]), "a: named more than once"),
        (with_spec("FineTuneJob", task="question-answering", labels=["a", "b"]), "spec.labels is for classification"),
        (with_spec("FineTuneJob", problem="regression", labels=["a", "b"]), "spec.labels is for classification"),
        (
            with_spec("FineTuneJob", task="embedding", problem="multi-label"),
            "spec.problem is for sequence-classification",
        ),
        (
            with_spec("FineTuneJob", problem="regression", optimization={"classWeights": "balanced"}),
            "spec.optimization.classWeights is for one label",
        ),
        (
            with_spec("FineTuneJob", task="embedding", optimization={"batchSequences": 1}),
            "spec.optimization.batchSequences is 1",
        ),
        (
            with_spec("FineTuneJob", task="question-answering", evaluation={"abstainBelowPrecision": 0.9}),
            "spec.evaluation.abstainBelowPrecision is for labels",
        ),
        (
            with_spec("FineTuneJob", problem="regression", evaluation={"abstainKeepingRecall": 0.9}),
            "spec.evaluation.abstainKeepingRecall is for labels",
        ),
        (
            with_spec("FineTuneJob", evaluation={"abstainBelowPrecision": 0.9, "abstainKeepingRecall": 0.9}),
            "abstainBelowPrecision and abstainKeepingRecall ask for different thresholds of the same labels",
        ),
        (
            with_spec("FineTuneJob", evaluation={"gates": [{"figure": "f1"}]}),
            "spec.evaluation.gates has a gate without",
        ),
        (
            with_spec("FineTuneJob", evaluation={"gates": [{"figure": "f1", "minimum": 0.9, "maximum": 0.8}]}),
            "its minimum is above its maximum",
        ),
        (
            with_spec("FineTuneJob", privacy={"epsilon": 1, "delta": 0.1}, optimization={"arithmetic": "fp16"}),
            "of which fp16 loses small parts",
        ),
        (
            with_spec(
                "FineTuneJob",
                distillation={"teacher": {"model": {"name": "t", "version": "1"}}, "relation": {}},
                optimization={"compile": True},
            ),
            "spec.distillation.relation listens within a layer",
        ),
        (
            with_spec("FineTuneJob", privacy={"epsilon": 1, "delta": 0.1}, evaluation={"seeds": 2}),
            "spec.evaluation.seeds trains several models",
        ),
        (
            with_spec("PretrainJob", evaluation={"audit": {"personalData": {}}}),
            "spec.cleaning.pii takes out",
        ),
        (
            with_spec("FineTuneJob", privacy={"epsilon": 1, "delta": 0.1}, optimization={"sharding": "full"}),
            "remove the sharding",
        ),
        (
            with_spec(
                "FineTuneJob",
                privacy={"epsilon": 1, "delta": 0.1},
                distillation={"teacher": {"model": {"name": "t", "version": "1"}}},
            ),
            "spec.privacy can promise nothing",
        ),
        (
            with_spec("FineTuneJob", distillation={"teacher": {"model": {"name": "t", "version": "1"}}, "weight": 0}),
            "spec.distillation.weight is 0",
        ),
        (with_spec("FineTuneJob", evaluation={"champion": {"alias": "v1"}}), "spec.evaluation.champion.alias"),
        (with_spec("ModelDeployment", model={"name": "e", "follow": {"candidateAlias": "v1"}}), "candidateAlias"),
        (with_spec("PretrainJob", storage={"size": 0}), "spec.storage.size"),
        (with_spec("PretrainJob", topology={"sharedMemory": "0Mi"}), "spec.topology.sharedMemory"),
        (with_spec("PretrainJob", topology={"resources": {"limits": {"gpu": 1}}}), "spec.topology.resources"),
        (with_spec("PretrainJob", topology={"nccl": {"NET_PLUGIN": "x"}}), "spec.topology.nccl has a name"),
        (
            with_spec("ModelDeployment", resources={"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}),
            "spec.resources.requests asks for more",
        ),
        (with_spec("ModelDeployment", resources={"requests": {"cpu": -1}}), "spec.resources.requests.cpu"),
        (with_spec("PretrainJob", corpus=[{"uri": "pvc://books/../x"}]), "spec.corpus[].uri"),
        (with_spec("PretrainJob", corpus=[{"uri": "hf://datasets/o/n@v2/x"}]), "uri"),
        (with_spec("PretrainJob", corpus=[{"uri": "s3://a/b", "revision": "v2"}]), "spec.corpus[].revision"),
        (
            with_spec("PretrainJob", corpus=[{"uri": "http://a/b", "credentials": {"secretName": "s"}}]),
            "spec.corpus[].credentials",
        ),
    ],
)
def test_models_refuse_what_the_api_server_refuses(body: Document, said: str) -> None:
    """A job file is as good outside a cluster as inside."""
    with pytest.raises(ValueError, match=r".") as refusal:
        validate(body)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    "spec",
    [
        {"optimization": {"lora": {}}, "privacy": {"epsilon": 1, "delta": 0.1}},
        {"optimization": {"lora": {"dropout": 0.1}}, "evaluation": {"seeds": 2}, "truncate": "window"},
        {"optimization": {"arithmetic": "bf16"}, "privacy": {"epsilon": 1, "delta": 0.1}},
    ],
    ids=str,
)
def test_what_goes_together_is_accepted(spec: dict[str, Any]) -> None:
    """The rules refuse what can't work, and nothing else."""
    validate(with_spec("FineTuneJob", **spec))


@pytest.mark.parametrize(
    ("topology", "ranks"),
    [
        ({}, 1),
        ({"nodes": 3}, 3),
        ({"nodes": 2, "processesPerNode": 4}, 8),
        ({"nodes": 2, "resources": {"limits": {"nvidia.com/gpu": 8}}}, 16),
        ({"resources": {"limits": {"nvidia.com/gpu": "8", "cpu": 4}}, "processesPerNode": 8}, 8),
        ({"resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}}, 1),
    ],
)
def test_a_pod_has_a_process_for_each_gpu(topology: dict[str, Any], ranks: int) -> None:
    """Where nothing else is said; without GPUs one."""
    assert Topology.model_validate(topology).world_size == ranks
    body = with_spec("PretrainJob", topology=topology, optimization={"batchSequences": max(1, ranks - 1)})
    if ranks == 1:
        validate(body)
    else:
        with pytest.raises(ValueError, match="smaller than the number of ranks"):
            validate(body)


@pytest.mark.parametrize("uri", ["pvc://claim/..", "pvc://claim/../other", "pvc://claim/a/../../b", "file:///a/../b"])
def test_source_never_leads_upwards(uri: str) -> None:
    """A path out of the claim's mount would read the container's own files."""
    with pytest.raises(ValueError, match="without"):
        parse_source(uri)


@pytest.mark.parametrize("uri", ["pvc://claim/a..b", "pvc://claim/..a/*.txt", "pvc://claim/a.../b"])
def test_dots_in_names_are_names(uri: str) -> None:
    """Only a step upwards is refused."""
    assert parse_source(uri).container == "claim"


@pytest.mark.parametrize(
    "uri", ["s3://books/a b/*.txt", "gs://books/a", "hf://datasets/o/n", "hf://datasets/o/n/a/*.parquet"]
)
def test_stores_are_sources(uri: str) -> None:
    """They are fetched, not mounted, and may need credentials."""
    source = parse_source(uri)
    assert (source.remote, source.container) == (True, "")
    assert uri == f"{source.kind}://{source.path}"


@pytest.mark.parametrize("parse", [parse_job, ModelDeployment.model_validate])
def test_wrong_kind_is_refused(parse: Callable[[Document], Resource]) -> None:
    """A document of another kind isn't taken for ours."""
    with pytest.raises(ValueError, match="kind"):
        parse({**with_spec("PretrainJob"), "kind": "Job"})
