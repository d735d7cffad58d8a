"""The API server itself refuses bad objects, with a sentence that names the field and, for rules, the remedy."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client, dynamic

pytestmark = pytest.mark.cluster

Document = dict[str, Any]

GOOD: dict[str, Document] = {
    "PretrainJob": {
        "corpus": [{"uri": "configmap://text/corpus.txt"}],
        "registry": {"name": "encoder"},
    },
    "FineTuneJob": {
        "base": {"pretrainJob": {"name": "encoder"}},
        "task": "sequence-classification",
        "dataset": {"train": "pvc://data/train.jsonl", "test": "pvc://data/test.jsonl"},
        "registry": {"name": "spam"},
    },
    "ModelDeployment": {"model": {"name": "spam", "follow": {}}},
}


def document(kind: str, name: str = "sample") -> Document:
    return {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": copy.deepcopy(GOOD[kind]),
    }


def put(path: str, value: object) -> Callable[[Document], None]:
    """A change that sets one field, given as `a.b.0.c`."""

    def change(target: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            target = target[int(key)] if key.isdigit() else target.setdefault(key, {})
        target[last] = value

    return change


def both(*changes: Callable[[Document], None]) -> Callable[[Document], None]:
    """One change after another."""

    def change(target: Document) -> None:
        for each in changes:
            each(target)

    return change


def drop(path: str) -> Callable[[Document], None]:
    """A change that removes one field."""

    def change(target: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            target = target[key]
        del target[last]

    return change


P, F, M = GOOD


def audit(**probes: Any) -> Callable[[Document], None]:
    """A change to a PretrainJob whose model is probed."""
    return lambda target: target["spec"].update({"evaluation": {"audit": probes}})


def optional_base(**spec: Any) -> Callable[[Document], None]:
    """A change to a job that continues from a base, with more of the spec."""
    return lambda target: target["spec"].update({"base": {"uri": "hf://owner/name"}, **spec})


FALLBACK: Document = {"name": "spam-large", "version": "2"}
#: Everything that servers can be told; the rules let it through.
OPTIONS: Document = {
    "model": {"name": "spam", "follow": {}, "fallback": FALLBACK},
    "runtime": {"replyCache": {"size": "64Mi"}, "limits": {"maxInputs": 8, "maxCharacters": 500, "maxBodyBytes": 9000}},
    "resources": {"limits": {"memory": "1Gi"}},
    "requestMetadata": {f"key{number}": ["a", "b", "c", "d", "e", "f"] for number in range(8)},
    "access": {"apiKeys": {"name": "keys", "key": "keys"}, "corsOrigins": ["https://a.example"], "playground": False},
    "tracing": {"endpoint": "http://collector:4318", "sampleRatio": 0.5},
    "feedback": {"url": "http://labels/in", "token": {"name": "labels", "key": "token"}},
}


def optional(**spec: Any) -> Callable[[Document], None]:
    """A change of everything that servers can be told."""
    return lambda target: target["spec"].update({**copy.deepcopy(OPTIONS), **spec})


PARENT: Document = {"parentRefs": [{"name": "gateway"}]}
ROUTE: Document = {"provider": "GatewayAPI", "route": PARENT}


def routed(spec: Document) -> Callable[[Document], None]:
    """A change that leads requests through a gateway, with more of the spec."""
    return lambda target: target["spec"].update({"traffic": ROUTE, **spec})


def scaled(autoscaling: Document) -> Callable[[Document], None]:
    """A change that makes it follow the load."""
    return routed({"autoscaling": autoscaling, "resources": {"requests": {"cpu": "1"}}})


# kind, change, what the message must contain: the field, and for rules the remedy.
BAD: list[tuple[str, Callable[[Document], None], tuple[str, ...]]] = [
    (P, drop("spec.corpus"), ("spec.corpus", "Required")),
    (P, put("spec.corpus", []), ("spec.corpus", "at least 1 items")),
    (P, put("spec.corpus.0.uri", "ftp://host/file"), ("spec.corpus[0].uri",)),
    (P, put("spec.corpus.0.uri", "configmap://text"), ("spec.corpus[0].uri",)),
    (P, put("spec.corpus.0.format", "docx"), ("spec.corpus[0].format", "paragraphs")),
    (P, drop("spec.registry"), ("spec.registry", "Required")),
    (P, put("spec.registry.name", "has spaces"), ("spec.registry.name",)),
    (P, put("spec.registry.alias", "Champion!"), ("spec.registry.alias",)),
    (P, put("spec.model.hiddenSize", 250), ("spec.model", "multiple of spec.model.heads", "change one")),
    (
        P,
        put("spec.model", {"architecture": "modernbert", "hiddenSize": 12, "heads": 4}),
        ("spec.model", "even multiple"),
    ),
    (P, put("spec.tokenizer", {"algorithm": "byte-level-bpe", "vocabSize": 300}), ("spec.tokenizer", "at least 512")),
    (P, put("spec.tokenizer.algorithm", "sentencepiece"), ("spec.tokenizer.algorithm", "wordpiece")),
    (P, optional_base(model={"layers": 2}), ("spec.base", "remove spec.model")),
    (P, optional_base(tokenizer={"vocabSize": 500}), ("spec.base", "remove spec.tokenizer")),
    (P, put("spec.base", {}), ("spec.base", "exactly one of model and uri")),
    (P, put("spec.base", {"uri": "https://host/model"}), ("spec.base.uri",)),
    (P, put("spec.base", {"uri": "pvc://models/../x"}), ("spec.base", "claim's own root")),
    (P, put("spec.base", {"uri": "file:///m", "revision": "v1"}), ("spec.base", "hf:// alone")),
    (P, put("spec.base", {"uri": "pvc://m/x", "credentials": {"secretName": "s"}}), ("spec.base", "remove them")),
    (P, put("spec.base", {"model": {"name": "encoder"}}), ("spec.base.model", "version and alias")),
    (
        P,
        put("spec.tokenizer", {"reuse": {"uri": "hf://owner/name"}, "lowercase": True}),
        ("spec.tokenizer", "remove algorithm, vocabSize and lowercase"),
    ),
    (P, put("spec.masking.unit", "sentence"), ("spec.masking.unit", "span")),
    (P, put("spec.cleaning.languages", ["English"]), ("spec.cleaning.languages[0]",)),
    (P, put("spec.cleaning.languages", ["en", "en"]), ("spec.cleaning.languages[1]", "Duplicate value")),
    (P, put("spec.cleaning", {"minCharacters": 9, "maxCharacters": 8}), ("spec.cleaning", "change one of them")),
    (P, put("spec.cleaning.names", {}), ("spec.cleaning.names.uri", "Required")),
    (P, put("spec.cleaning.names", {"uri": "https://a/b"}), ("spec.cleaning.names.uri", "should match")),
    (P, put("spec.cleaning.names", {"uri": "pvc://a/../b"}), ("spec.cleaning.names.uri has `..`",)),
    (P, put("spec.cleaning.names", {"uri": "pvc://a/b", "revision": "x"}), ("names.revision is for hf:// alone",)),
    (
        P,
        put("spec.cleaning.names", {"uri": "pvc://a/b", "credentials": {"secretName": "x"}}),
        ("spec.cleaning.names.credentials are for", "remove them"),
    ),
    (P, put("spec.cleaning.names", {"uri": "pvc://a/b", "minProbability": 0}), ("minProbability", "greater than 0")),
    (
        P,
        put("spec.topology", {"processesPerNode": 3, "resources": {"limits": {"nvidia.com/gpu": 2}}}),
        ("processesPerNode", "set it to that number"),
    ),
    (
        P,
        both(
            put("spec.topology.resources", {"limits": {"nvidia.com/gpu": 4}}),
            put("spec.optimization.batchSequences", 3),
        ),
        ("batchSequences is smaller than the number of ranks",),
    ),
    (P, put("spec.model.layers", 0), ("spec.model.layers", "greater than or equal to 1")),
    (P, put("spec.model.dropout", 1), ("spec.model.dropout", "less than 1")),
    (P, put("spec.model.architecture", "gpt"), ("spec.model.architecture",)),
    (P, put("spec.masking", {"maskShare": 0.9, "randomShare": 0.2}), ("spec.masking", "lower one of them")),
    (P, put("spec.masking.probability", 0), ("spec.masking.probability", "greater than 0")),
    (P, put("spec.optimization", {"steps": 10, "warmupSteps": 20}), ("spec.optimization", "lower it")),
    (P, put("spec.optimization", {"warmupSteps": 1001}), ("spec.optimization", "lower it")),
    (P, put("spec.optimization", {"steps": 9, "maxTokens": 9}), ("spec.optimization", "remove one of them")),
    (P, put("spec.optimization", {"steps": 9, "warmupTokens": 9}), ("spec.optimization", "use warmupSteps")),
    (P, put("spec.optimization", {"maxTokens": 9, "warmupSteps": 1}), ("spec.optimization", "use warmupTokens")),
    (P, put("spec.optimization", {"maxTokens": 9, "warmupTokens": 10}), ("spec.optimization", "lower it")),
    (
        P,
        put("spec.optimization", {"batchSequences": 8, "batchWarmup": {"fromSequences": 9, "steps": 5}}),
        ("spec.optimization", "fromSequences", "lower it"),
    ),
    (
        P,
        lambda target: target["spec"].update(
            optimization={"batchWarmup": {"fromSequences": 1, "steps": 5}}, topology={"nodes": 2}
        ),
        ("fromSequences", "use fewer processes"),
    ),
    (P, put("spec.optimization.learningRate", -1), ("spec.optimization.learningRate",)),
    (P, put("spec.optimization.steps", "many"), ("spec.optimization.steps", "integer")),
    (P, put("spec.topology", {"nodes": 64}), ("batchSequences", "raise the batch")),
    (P, put("spec.topology.nodes", 65), ("spec.topology.nodes", "less than or equal to 64")),
    (P, put("spec.topology.nccl", {"NCCL_DEBUG": "INFO"}), ("spec.topology.nccl", "without NCCL_")),
    (F, put("spec.topology.nccl", {"NET_PLUGIN": "x"}), ("spec.topology.nccl", "SOCKET_IFNAME")),
    (F, put("spec.topology.tolerations", [{"operator": "In"}]), ("spec.topology.tolerations", "Exists")),
    (P, put("spec.topology.sharedMemory", "much"), ("spec.topology.sharedMemory",)),
    (P, put("spec.topology.resources", {"limits": {"memory": "2 GB"}}), ("spec.topology.resources.limits",)),
    (P, put("spec.storage.accessMode", "ReadOnly"), ("spec.storage.accessMode", "ReadWriteOnce")),
    (P, put("spec.tokenizer.vocabSize", 10), ("spec.tokenizer.vocabSize",)),
    (P, put("metadata.name", "x" * 41), ("metadata.name", "shorten it")),
    (P, put("spec.ttlSecondsAfterFinished", -1), ("spec.ttlSecondsAfterFinished",)),
    (P, put("spec.optimisation", {}), ("spec.optimisation", "unknown field")),
    (P, put("metadata.name", "my.encoder"), ("metadata.name", "rename it")),
    (P, put("metadata.name", "2nd-try"), ("metadata.name", "rename it")),
    (P, put("spec.corpus.0.uri", "pvc://books/../../etc/passwd"), ("spec.corpus", "claim's own root")),
    (P, put("spec.corpus.0.uri", "pvc://books/a/.."), ("spec.corpus", "claim's own root")),
    (P, put("spec.registry.alias", "latest"), ("spec.registry.alias", "MLflow", "choose another")),
    (P, put("spec.registry.alias", "v12"), ("spec.registry.alias", "MLflow", "choose another")),
    (P, put("spec.storage.size", 0), ("spec.storage.size", "give a size such as 10Gi")),
    (P, put("spec.storage.size", "0Gi"), ("spec.storage.size", "give a size such as 10Gi")),
    (P, put("spec.storage.size", "-1Gi"), ("spec.storage.size",)),
    (P, put("spec.topology.sharedMemory", "0"), ("spec.topology.sharedMemory", "give a size such as 64Mi")),
    (P, put("spec.topology.sharedMemory", -1), ("spec.topology.sharedMemory", "greater than or equal to 0")),
    (P, put("spec.topology.resources", {"requests": {"cpu": -1}}), ("spec.topology.resources.requests.cpu", "0")),
    (P, put("spec.topology.resources", {"limits": {"memory": -1}}), ("spec.topology.resources.limits.memory", "0")),
    (
        P,
        put("spec.topology.resources", {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}),
        ("spec.topology.resources.requests", "lower the request or raise the limit"),
    ),
    (
        P,
        put("spec.topology.resources", {"requests": {"memory": "1Gi"}, "limits": {"memory": "1000M"}}),
        ("spec.topology.resources.requests", "lower the request or raise the limit"),
    ),
    (
        P,
        put("spec.topology.resources", {"limits": {"gpu": 1}}),
        ("spec.topology.resources", "such as nvidia.com/gpu"),
    ),
    (P, put("spec.checkpoint", {"uri": "gs://runs/cloze"}), ("spec.checkpoint.uri",)),
    (P, put("spec.checkpoint", {"uri": "s3://runs/a/../b"}), ("spec.checkpoint.uri",)),
    (
        F,
        put("spec.checkpoint", {"credentials": {"secretName": "runs"}}),
        ("spec.checkpoint", "name the bucket, or remove them"),
    ),
    (P, put("spec.storage", {"ephemeral": True}), ("spec.storage.ephemeral", "set spec.checkpoint.uri")),
    (
        F,
        lambda target: target["spec"].update(
            {"storage": {"ephemeral": True}, "checkpoint": {"uri": "s3://runs"}, "topology": {"nodes": 2}}
        ),
        ("spec.storage.ephemeral", "one pod"),
    ),
    (
        P,
        put("spec.storage", {"ephemeral": True, "storageClassName": "fast"}),
        ("spec.storage.storageClassName", "remove one"),
    ),
    (F, put("spec.base", {}), ("spec.base", "exactly one", "set one")),
    (F, put("spec.base.model", {"name": "encoder", "version": "1"}), ("spec.base", "exactly one")),
    (F, put("spec.base.uri", "hf://owner/name"), ("spec.base", "exactly one of model, pretrainJob and uri")),
    (F, put("spec.base", {"uri": "https://host/model"}), ("spec.base.uri",)),
    (F, put("spec.base", {"uri": "pvc://models/../x"}), ("spec.base", "claim's own root")),
    (F, put("spec.base", {"uri": "file:///m", "revision": "v1"}), ("spec.base", "hf:// alone")),
    (F, put("spec.base.credentials", {"secretName": "s"}), ("spec.base", "remove them")),
    (F, put("spec.base", {"model": {"name": "encoder"}}), ("spec.base.model", "version and alias", "set one")),
    (F, put("spec.base", {"model": {"name": "encoder", "version": "v1"}}), ("spec.base.model.version",)),
    (F, put("spec.task", "fill-mask"), ("spec.task", "token-classification")),
    (F, put("spec.privacy", {"epsilon": 0, "delta": 0.1}), ("spec.privacy.epsilon", "greater than 0")),
    (F, put("spec.privacy", {"epsilon": 1}), ("spec.privacy.delta", "Required")),
    (F, put("spec.evaluation.seeds", 11), ("spec.evaluation.seeds", "less than or equal to 10")),
    (
        F,
        lambda target: target["spec"].update(privacy={"epsilon": 1, "delta": 0.1}, evaluation={"seeds": 2}),
        ("spec.evaluation.seeds", "remove one"),
    ),
    (
        F,
        lambda target: target["spec"].update(privacy={"epsilon": 1, "delta": 0.1}, optimization={"sharding": "full"}),
        ("spec.privacy cuts", "remove the sharding"),
    ),
    (
        F,
        lambda target: target["spec"].update(privacy={"epsilon": 1, "delta": 0.1}, optimization={"arithmetic": "fp16"}),
        ("spec.privacy cuts", "of which fp16 loses small parts"),
    ),
    (
        F,
        lambda target: target["spec"].update(
            privacy={"epsilon": 1, "delta": 0.1}, distillation={"teacher": {"model": {"name": "t", "version": "1"}}}
        ),
        ("spec.privacy can promise nothing", "remove one"),
    ),
    (
        F,
        lambda target: target["spec"].update(
            distillation={"teacher": {"model": {"name": "t", "version": "1"}}, "relation": {}},
            optimization={"compile": True},
        ),
        ("spec.distillation.relation listens within a layer", "remove one"),
    ),
    (
        F,
        lambda target: target["spec"].update(
            privacy={"epsilon": 1, "delta": 0.1}, optimization={"classWeights": "balanced"}
        ),
        ("spec.optimization.classWeights tells", "remove one"),
    ),
    (
        F,
        lambda target: target["spec"].update(
            privacy={"epsilon": 1, "delta": 0.1}, task="question-answering", labels=[]
        ),
        ("spec.privacy is for examples that count one by one", "remove it"),
    ),
    (
        F,
        lambda target: target["spec"].update(
            distillation={"teacher": {"model": {"name": "t", "version": "1"}}}, problem="multi-label"
        ),
        ("spec.distillation is for one label", "remove it"),
    ),
    (F, put("spec.distillation", {"teacher": {}}), ("spec.distillation.teacher.model", "Required")),
    (F, put("spec.distillation", {"teacher": {"model": {"name": "t"}}}), ("version and alias", "set one")),
    (
        F,
        put("spec.distillation", {"teacher": {"model": {"name": "t", "version": "1"}}, "weight": 0}),
        ("spec.distillation.weight is 0", "raise the weight"),
    ),
    (
        F,
        put("spec.distillation", {"teacher": {"model": {"name": "t", "version": "1"}}, "layers": [0, 0]}),
        ("spec.distillation.layers[1]", "Duplicate"),
    ),
    (F, put("spec.evaluation.gates", [{"figure": "f1"}]), ("spec.evaluation.gates", "give minimum, maximum or both")),
    (F, put("spec.evaluation.champion", {"alias": "latest"}), ("spec.evaluation.champion.alias",)),
    (F, put("spec.evaluation.gates", [{"figure": "", "minimum": 1}]), ("spec.evaluation.gates[0].figure",)),
    (F, put("spec.evaluation.maxSeenShare", 1.5), ("spec.evaluation.maxSeenShare",)),
    (F, put("spec.labels", ["only"]), ("spec.labels", "at least two")),
    (F, put("spec.labels", ["a", ""]), ("spec.labels[1]",)),
    (F, both(put("spec.labels", ["a", "b"]), put("spec.task", "question-answering")), ("labels", "classification")),
    (F, both(put("spec.labels", ["a", "b"]), put("spec.problem", "regression")), ("labels", "classification")),
    (
        F,
        both(put("spec.optimization.classWeights", "balanced"), put("spec.problem", "regression")),
        ("classWeights", "remove it"),
    ),
    (F, both(put("spec.problem", "multi-label"), put("spec.task", "embedding")), ("spec.problem", "remove it")),
    (
        F,
        both(put("spec.optimization.batchSequences", 1), put("spec.task", "embedding")),
        ("batchSequences", "raise it"),
    ),
    (
        F,
        both(put("spec.evaluation.abstainBelowPrecision", 0.9), put("spec.task", "question-answering")),
        ("abstainBelowPrecision", "sequence-classification"),
    ),
    (
        F,
        both(put("spec.evaluation.abstainKeepingRecall", 0.9), put("spec.task", "question-answering")),
        ("abstainKeepingRecall", "sequence-classification"),
    ),
    (
        F,
        both(put("spec.evaluation.abstainBelowPrecision", 0.9), put("spec.evaluation.abstainKeepingRecall", 0.9)),
        ("abstainBelowPrecision and abstainKeepingRecall", "remove one"),
    ),
    (F, put("spec.labels", ["a", "b", "a"]), ("spec.labels[2]", "Duplicate value")),
    (F, put("spec.base", {"pretrainJob": {"name": "my.encoder"}}), ("spec.base.pretrainJob.name",)),
    (F, put("spec.base", {"model": {"name": "encoder", "alias": "v1"}}), ("spec.base.model.alias", "choose another")),
    (F, put("spec.dataset.train", "pvc://data/../x"), ("spec.dataset.train", "claim's own root")),
    (F, put("spec.dataset.test", "pvc://data/../x"), ("spec.dataset.test", "claim's own root")),
    (F, put("spec.dataset.validation", "pvc://data/../x"), ("spec.dataset.validation", "claim's own root")),
    (F, put("spec.dataset.validation", "pvc://data/test.jsonl"), ("spec.dataset.validation", "name others")),
    (F, put("spec.dataset.validation", "pvc://data/train.jsonl"), ("spec.dataset.validation", "name others")),
    (
        F,
        both(put("spec.dataset.validation", "pvc://data/x"), put("spec.dataset.validationFraction", 0.1)),
        ("validationFraction", "remove the other"),
    ),
    (F, put("spec.dataset.format", "tsv"), ("spec.dataset.format", "parquet")),
    (F, put("spec.dataset.fields", {"texts": "body"}), ("spec.dataset.fields.texts",)),
    (F, put("spec.dataset.fields", {"text": ""}), ("spec.dataset.fields.text",)),
    (F, put("spec.dataset.maxBrokenLines", -1), ("spec.dataset.maxBrokenLines",)),
    (F, put("spec.dataset.revision", "v1"), ("spec.dataset.revision is for hf:// alone", "remove it")),
    (F, put("spec.dataset.credentials", {"secretName": "s"}), ("spec.dataset.credentials are for", "remove them")),
    (F, put("spec.dataset.validationFraction", 0.1), ("earlyStopping", "or none of them")),
    (F, put("spec.optimization", {"lora": {"rank": 0}}), ("spec.optimization.lora.rank",)),
    (F, put("spec.optimization", {"lora": {"targets": "query"}}), ("spec.optimization.lora.targets",)),
    (F, put("spec.optimization", {"lora": {}, "sharding": "full"}), ("spec.optimization.lora", "remove one")),
    (
        F,
        lambda target: target["spec"].update(
            optimization={"lora": {}}, distillation={"teacher": {"model": {"name": "t", "version": "1"}}}
        ),
        ("spec.optimization.lora", "remove one"),
    ),
    (F, both(put("spec.truncate", "window"), put("spec.task", "embedding")), ("spec.truncate", "remove it")),
    (
        F,
        both(put("spec.truncate", "window"), put("spec.privacy", {"epsilon": 1, "delta": 0.1})),
        ("spec.truncate", "one by one"),
    ),
    (F, put("spec.optimization.earlyStopping", {}), ("earlyStopping", "or none of them")),
    (F, put("spec.optimization.earlyStopping", {"patience": 0}), ("spec.optimization.earlyStopping.patience",)),
    (F, put("spec.optimization.earlyStopping", {"figure": " "}), ("spec.optimization.earlyStopping.figure",)),
    (
        F,
        both(
            put("spec.dataset.validationFraction", 0.1),
            put("spec.optimization.earlyStopping", {}),
            put("spec.privacy", {"epsilon": 1, "delta": 0.1}),
        ),
        ("earlyStopping", "doesn't account"),
    ),
    (F, put("spec.registry.alias", "latest"), ("spec.registry.alias", "choose another")),
    (P, audit(canaries=[{"name": "a", "template": "no place", "secret": "123"}]), ("audit.canaries[0].template",)),
    (P, audit(canaries=[{"name": "a", "template": "{}", "secret": "a-b"}]), ("audit.canaries[0].secret",)),
    (P, audit(personalData={}), ("spec.evaluation.audit.personalData", "set spec.cleaning.pii to keep")),
    (P, audit(personalData={"sample": 9}), ("audit.personalData.sample", "greater than or equal to 10")),
    (P, audit(bias=[{"name": "a", "first": "she"}]), ("spec.evaluation.audit.bias", "with itself")),
    (P, audit(bias=[{"name": "a"}, {"name": "a"}]), ("spec.evaluation.audit.bias[1]", "Duplicate value")),
    (P, put("spec.evaluation", {"gates": [{"figure": "exposure"}]}), ("give minimum, maximum or both",)),
    (F, put("spec.registry.card", {"license": "two\nlines"}), ("spec.registry.card.license",)),
    (P, put("spec.registry.card", {"limitations": "x" * 2001}), ("spec.registry.card.limitations",)),
    (F, put("spec.registry.signing", {}), ("spec.registry.signing.secretName",)),
    (P, put("spec.registry.signing", {"secretName": "s", "key": "../model.key"}), ("spec.registry.signing.key",)),
    (F, put("spec.dataset.test", "pvc://data/train.jsonl"), ("spec.dataset.test", "not trained on")),
    (F, drop("spec.dataset.test"), ("spec.dataset.test", "Required")),
    (F, put("spec.failurePolicy.maxRestarts", -1), ("spec.failurePolicy.maxRestarts",)),
    (M, put("spec.model", {"name": "spam"}), ("spec.model", "exactly one", "follow: {}")),
    (M, put("spec.model.version", "3"), ("spec.model", "exactly one", "remove the other")),
    (M, put("spec.model.follow", {"alias": "challenger"}), ("spec.model.follow", "two names")),
    (M, put("metadata.name", "spam.v2"), ("metadata.name", "rename it")),
    (M, put("spec.model.follow", {"alias": "latest"}), ("spec.model.follow.alias", "choose another")),
    (M, put("spec.model.follow", {"candidateAlias": "v3"}), ("spec.model.follow.candidateAlias", "choose another")),
    (
        M,
        put("spec.resources", {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}),
        ("spec.resources.requests", "raise the limit"),
    ),
    (M, put("spec.resources", {"limits": {"disk": 1}}), ("spec.resources", "such as nvidia.com/gpu")),
    (
        M,
        optional(model={"name": "spam", "version": "2", "fallback": {"name": "spam", "version": "2"}}),
        ("spec.model", "the model itself", "name another"),
    ),
    (
        M,
        optional(model={"name": "spam", "follow": {}, "fallback": {"name": "spam", "version": "2"}}),
        ("spec.model", "name another"),
    ),
    (M, optional(runtime={"replyCache": {"size": "1k"}}), ("spec.runtime.replyCache", "between 1Mi and 1Ti")),
    (M, optional(runtime={"replyCache": {"size": "1Gi"}}), ("spec", "leaves nothing of spec.resources.limits.memory")),
    (M, optional(requestMetadata={"Language": ["de"]}), ("spec.requestMetadata", "with a letter first")),
    (M, optional(requestMetadata={"language": ["de", "en", "de"]}), ("spec.requestMetadata", "remove one")),
    (
        M,
        optional(requestMetadata={"a": [f"v{n}" for n in range(26)], "b": [f"v{n}" for n in range(25)]}),
        ("spec.requestMetadata", "declare fewer"),
    ),
    (M, optional(requestMetadata={f"key{n}": ["a"] for n in range(9)}), ("spec.requestMetadata", "at most 8")),
    (M, optional(requestMetadata={"language": ["de,en"]}), ("spec.requestMetadata.language[0]",)),
    (M, optional(access={"apiKeys": {"name": "keys"}}), ("spec.access.apiKeys.key", "Required")),
    (M, optional(access={"corsOrigins": ["app.example"]}), ("spec.access.corsOrigins[0]",)),
    (M, optional(tracing={"sampleRatio": 0.5}), ("spec.tracing.endpoint", "Required")),
    (
        M,
        optional(tracing={"endpoint": "http://collector:4318", "sampleRatio": 0}),
        ("spec.tracing.sampleRatio", "greater than 0"),
    ),
    (M, optional(feedback={"url": "labels"}), ("spec.feedback.url",)),
    (M, put("spec.replicas", -1), ("spec.replicas",)),
    (
        M,
        put("spec.runtime", {"maxBatchTokens": 101, "maxQueueTokens": 100}),
        ("spec.runtime.maxQueueTokens", "raise it"),
    ),
    (
        M,
        lambda target: target["spec"].update({"runtime": {"threads": 3}, "resources": {"limits": {"cpu": "1500m"}}}),
        ("spec.runtime.threads", "leave threads out"),
    ),
    (M, put("spec.drainSeconds", 0), ("spec.drainSeconds",)),
    (M, put("spec.drainSeconds", 10), ("spec.drainSeconds", "spec.runtime.timeoutSeconds")),
    (M, put("spec.traffic", {"provider": "GatewayAPI"}), ("spec.traffic.route", "set both")),
    (M, put("spec.traffic", {"route": ROUTE["route"]}), ("spec.traffic.route", "or neither")),
    (M, put("spec.traffic", {"provider": "Istio"}), ("spec.traffic.provider", "ReplicaRatio")),
    (M, put("spec.traffic", {**ROUTE, "route": {"parentRefs": []}}), ("spec.traffic.route.parentRefs", "at least 1")),
    (M, put("spec.traffic", {**ROUTE, "route": {**PARENT, "path": "spam"}}), ("spec.traffic.route.path",)),
    (M, put("spec.traffic", {**ROUTE, "route": {**PARENT, "hostnames": ["a b"]}}), ("spec.traffic.route.hostnames",)),
    (M, put("spec.rollout.steps", [{"holdSeconds": 5}]), ("spec.rollout.steps", "exactly one", "set one")),
    (M, put("spec.rollout.steps", [{"weight": 5, "replicas": 1}]), ("spec.rollout.steps", "remove the other")),
    (M, put("spec.rollout.steps", [{"weight": 100}]), ("spec.rollout.steps[0].weight", "less than or equal to 99")),
    (M, put("spec.rollout.steps", [{"weight": 5}]), ("spec.rollout.steps", "ReplicaRatio", "change one")),
    (M, routed({"rollout": {"steps": [{"replicas": 1}]}}), ("spec.rollout.steps", "GatewayAPI", "change one")),
    (
        M,
        put("spec.rollout.steps", [{"replicas": 1}, {"weight": 5}]),
        ("spec.rollout.steps mixes weight and replicas", "use one"),
    ),
    (M, put("spec.rollout.steps", [{"replicas": 2}, {"replicas": 1}]), ("spec.rollout.steps", "goes down")),
    (M, routed({"rollout": {"steps": [{"weight": 50}, {"weight": 10}]}}), ("spec.rollout.steps", "goes down")),
    (
        M,
        routed({"rollout": {"steps": [{"weight": 10}, {"weight": 50}, {"weight": 20}]}}),
        ("spec.rollout.steps", "goes down"),
    ),
    (
        M,
        put("spec.rollout", {"strategy": "BlueGreen", "steps": [{"replicas": 1}]}),
        ("spec.rollout.steps", "BlueGreen", "remove one"),
    ),
    (M, put("spec.rollout.previewSeconds", 5), ("spec.rollout.previewSeconds", "BlueGreen", "set it")),
    (M, put("spec.rollout.strategy", "Recreate"), ("spec.rollout.strategy", "BlueGreen")),
    (M, put("spec.rollout.onFailure", "Ignore"), ("spec.rollout.onFailure", "Rollback")),
    (M, put("spec.rollout.analysis.onNoData", "Pass"), ("spec.rollout.analysis.onNoData", "Pause")),
    (M, put("spec.rollout.analysis.falseAlarmRatio", 0), ("spec.rollout.analysis.falseAlarmRatio",)),
    (M, put("spec.rollout.analysis.latency.quantile", 1), ("spec.rollout.analysis.latency.quantile",)),
    (M, put("spec.rollout.analysis.errors.threshold", 1), ("spec.rollout.analysis.errors.threshold", "unknown field")),
    (
        M,
        put("spec.rollout.analysis.queries", [{"name": "mine", "query": "up"}]),
        ("spec.rollout.analysis.queries", "without a bound", "give it a minimum"),
    ),
    (
        M,
        put("spec.rollout.analysis.queries", [{"name": "mine", "query": "up", "minimum": 1}] * 2),
        ("spec.rollout.analysis.queries[1]", "Duplicate value"),
    ),
    (
        M,
        put("spec.objectives.latencySeconds", 0.21),
        ("spec.objectives.latencySeconds", "isn't a boundary", "use one of"),
    ),
    (M, put("spec.objectives.availability", 1), ("spec.objectives.availability", "less than 1")),
    (M, put("spec.autoscaling", {"maxReplicas": 3}), ("spec.autoscaling", "GatewayAPI")),
    (M, routed({"autoscaling": {"maxReplicas": 3}}), ("spec.autoscaling", "spec.resources.requests.cpu", "set it")),
    (M, scaled({"minReplicas": 2}), ("spec.autoscaling.maxReplicas", "Required")),
    (M, scaled({"minReplicas": 4, "maxReplicas": 3}), ("spec.autoscaling.minReplicas", "lower it")),
    (M, put("spec.disruptionBudget", {"maxUnavailable": 0}), ("spec.disruptionBudget.maxUnavailable",)),
    (M, put("spec.scheduling.tolerations", [{"operator": "In"}]), ("spec.scheduling.tolerations", "Exists")),
]


@pytest.fixture(scope="module")
def kubernetes_client(api_client: client.ApiClient) -> dynamic.DynamicClient:
    return dynamic.DynamicClient(api_client)


def create(kubernetes_client: dynamic.DynamicClient, body: Document, *, dry_run: bool) -> None:
    resource = kubernetes_client.resources.get(api_version=body["apiVersion"], kind=body["kind"])
    options: dict[str, Any] = {"query_params": [("fieldValidation", "Strict")]}
    if dry_run:
        options["dry_run"] = "All"
    kubernetes_client.create(resource, body=body, namespace="default", **options)


@pytest.mark.parametrize("kind", GOOD)
def test_good_object_is_accepted(kubernetes_client: dynamic.DynamicClient, kind: str) -> None:
    """The smallest object of each kind is enough; every other field has a default."""
    create(kubernetes_client, document(kind), dry_run=True)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (P, optional_base()),
        (P, audit(canaries=[{"name": "a", "template": "code {}", "secret": "12-34"}], bias=[{"name": "work"}])),
        (P, both(audit(personalData={}), put("spec.cleaning.pii", "keep"))),
        (F, both(put("spec.optimization", {"lora": {}}), put("spec.privacy", {"epsilon": 1, "delta": 0.1}))),
        (F, put("spec.evaluation", {"seeds": 10, "gates": [{"figure": "seed_range_accuracy", "maximum": 0.1}]})),
        (P, put("spec.base", {"model": {"name": "encoder", "alias": "champion"}})),
        (P, put("spec.tokenizer", {"reuse": {"uri": "s3://models/bert", "credentials": {"secretName": "store"}}})),
        (P, put("spec.tokenizer", {"algorithm": "byte-level-bpe"})),
        (F, optional_base()),
        (F, put("spec.base", {"uri": "hf://a/b", "revision": "v1", "credentials": {"secretName": "hub"}})),
        (F, put("spec.base", {"model": {"name": "encoder", "alias": "champion"}})),
    ],
)
def test_models_that_are_there_are_accepted(
    kubernetes_client: dynamic.DynamicClient, kind: str, change: Callable[[Document], None]
) -> None:
    """The rules let what they are meant for through, though defaults are written into the object."""
    body = document(kind)
    change(body)
    create(kubernetes_client, body, dry_run=True)


@pytest.mark.parametrize(
    "change",
    [
        scaled({"minReplicas": 3, "maxReplicas": 3}),
        routed({"rollout": {"steps": [{"weight": 1}, {"weight": 1}, {"weight": 99}]}}),
        routed({"traffic": {**ROUTE, "route": {**PARENT, "path": "/spam/v1", "filters": [{"type": "Any", "x": {}}]}}}),
        put("spec.rollout.steps", [{"replicas": 2}, {"replicas": 2, "holdSeconds": 0}]),
        put("spec.rollout", {"strategy": "BlueGreen", "previewSeconds": 5}),
        put("spec.rollout.analysis.queries", [{"name": "mine", "query": "up", "maximum": -1.5}]),
        put("spec.objectives", {"latencySeconds": 0.1, "availability": 0.99}),
        optional(),
        optional(model={"name": "spam", "version": "2", "fallback": {"name": "spam", "version": "1"}}),
    ],
)
def test_what_rollouts_need_is_accepted(
    kubernetes_client: dynamic.DynamicClient, change: Callable[[Document], None]
) -> None:
    """What is close to a mistake, and none."""
    body = document(M)
    change(body)
    create(kubernetes_client, body, dry_run=True)


@pytest.mark.parametrize(
    "change",
    [
        put("spec.topology.resources", {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1024Mi"}}),
        put(
            "spec.topology",
            {"processesPerNode": 8, "resources": {"limits": {"nvidia.com/gpu": "8", "hugepages-2Mi": "64Mi"}}},
        ),
        put("spec.topology.resources", {"requests": {"cpu": 0, "ephemeral-storage": "0.5Gi"}}),
        put(
            "spec.topology",
            {
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "nccl": {"SOCKET_IFNAME": "eth0", "IB_HCA": "mlx5_0:1,mlx5_1:1"},
            },
        ),
        put("spec.corpus.0.uri", "pvc://books/a..b/*.txt"),
        put("spec.registry.alias", "v1beta"),
        put("spec.checkpoint", {"uri": "s3://runs.example/a/b=1/", "credentials": {"secretName": "runs"}}),
        lambda target: target["spec"].update(
            {"storage": {"ephemeral": True, "size": "5Gi"}, "checkpoint": {"uri": "s3://runs"}}
        ),
        put("metadata.name", "a-2"),
    ],
)
def test_what_is_close_to_a_mistake_is_accepted(
    kubernetes_client: dynamic.DynamicClient, change: Callable[[Document], None]
) -> None:
    """The rules refuse what can't work, and nothing else."""
    body = document(P)
    change(body)
    create(kubernetes_client, body, dry_run=True)


@pytest.mark.parametrize(
    ("kind", "change", "expected"), BAD, ids=[f"{index}-{expected[0]}" for index, (_, _, expected) in enumerate(BAD)]
)
def test_bad_object_is_refused_by_name(
    kubernetes_client: dynamic.DynamicClient, kind: str, change: Callable[[Document], None], expected: tuple[str, ...]
) -> None:
    """The object is refused, and the message has the field's path and what to do."""
    body = document(kind)
    change(body)
    with pytest.raises(client.ApiException) as refusal:
        create(kubernetes_client, body, dry_run=True)
    assert refusal.value.status in (400, 422)
    for part in expected:
        assert part in str(refusal.value.body)
