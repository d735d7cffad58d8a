"""Children as dict literals: what reaches the API server, to the last field."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import yaml

from cloze_operator.desired.metadata import sealed
from cloze_operator.desired.origins import Origins, ResolvedModel, read_origins
from cloze_operator.desired.platform import Platform
from cloze_operator.desired.revision import ServedVersion, revision_of
from cloze_operator.desired.serving import server_deployment
from cloze_operator.desired.training import claim, config_map, indexed_job, service

Document = dict[str, Any]
Make = Callable[..., Any]

DIGEST = "sha256:" + "a" * 64
BASE = Origins(base=ResolvedModel("encoder", "4", DIGEST))
NOTHING = Origins()


def labels(kind: str) -> Document:
    return {
        "app.kubernetes.io/name": "cloze",
        "app.kubernetes.io/instance": "run",
        "app.kubernetes.io/component": "trainer",
        "app.kubernetes.io/managed-by": "cloze",
        "cloze.dev/kind": kind,
        "cloze.dev/owner": "run",
    }


def metadata(kind: str, name: str, **annotations: str) -> Document:
    return {
        "name": name,
        "namespace": "ml",
        "labels": labels(kind),
        "annotations": annotations,
        "ownerReferences": [
            {
                "apiVersion": "cloze.dev/v1alpha1",
                "kind": kind,
                "name": "run",
                "uid": "uid-1",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def bare(manifest: Document) -> Document:
    """A manifest without the digest of its content."""
    annotations = dict(manifest["metadata"]["annotations"])
    assert len(annotations.pop("cloze.dev/content-digest")) == 64
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def test_claim(training: Make) -> None:
    """Size, class and access mode are the resource's."""
    storage = {"size": "5Gi", "storageClassName": "fast", "accessMode": "ReadWriteMany"}
    snapshot = training(spec={"storage": storage})
    assert bare(claim(snapshot.resource, snapshot.job)) == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata("PretrainJob", "run-pretrain-run"),
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "5Gi"}},
            "storageClassName": "fast",
        },
    }


def test_service(training: Make) -> None:
    """Headless, and names resolve before pods are ready."""
    snapshot = training()
    assert bare(service(snapshot.resource, snapshot.job)) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata("PretrainJob", "run-pretrain"),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"cloze.dev/kind": "PretrainJob", "cloze.dev/owner": "run"},
            "ports": [{"name": "rendezvous", "port": 29400, "targetPort": 29400, "protocol": "TCP"}],
        },
    }


def test_config_map_has_an_exact_base(training: Make) -> None:
    """The pods read the resource with its base resolved, and without what only the operator acts on."""
    policy = {"maxRestarts": 1, "stuckSeconds": 900}
    spec = {"suspend": True, "ttlSecondsAfterFinished": 5, "activeDeadlineSeconds": 9, "failurePolicy": policy}
    snapshot = training("FineTuneJob", spec=spec)
    manifest = config_map(snapshot.resource, snapshot.job, BASE)
    assert manifest["metadata"]["name"] == "run-finetune-spec"
    assert read_origins(manifest) == BASE
    assert yaml.safe_load(manifest["data"]["job.yaml"]) == {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "run", "namespace": "ml", "uid": "uid-1"},
        "spec": {
            "base": {"model": {"name": "encoder", "version": "4"}},
            "task": "sequence-classification",
            "dataset": {"train": "configmap://mails/train.jsonl", "test": "configmap://mails/test.jsonl"},
            "failurePolicy": {"stuckSeconds": 900},
            "registry": {"name": "spam"},
        },
    }


def test_indexed_job(training: Make) -> None:
    """The whole Job of a gang of two on one ReadWriteOnce volume."""
    topology = {
        "nodes": 2,
        "threadsPerProcess": 3,
        "sharedMemory": "1Gi",
        "nodeSelector": {"gpu": "yes"},
        "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "4Gi"}},
    }
    snapshot = training(spec={"topology": topology, "activeDeadlineSeconds": 60})
    selector = {"cloze.dev/kind": "PretrainJob", "cloze.dev/owner": "run"}
    manifest = bare(indexed_job(snapshot.resource, snapshot.job, NOTHING, snapshot.platform))
    assert manifest["metadata"] == metadata("PretrainJob", "run-pretrain")
    template = manifest["spec"].pop("template")
    assert manifest["spec"] == {
        "completions": 2,
        "parallelism": 2,
        "completionMode": "Indexed",
        "podReplacementPolicy": "Failed",
        "suspend": False,
        "activeDeadlineSeconds": 60,
        "backoffLimit": 7,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [10, 11, 12, 13]},
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "Ignore",
                    "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [21, 22, 23]},
                },
            ]
        },
    }
    assert template["metadata"]["labels"] == labels("PretrainJob")
    assert template["spec"] == {
        "restartPolicy": "Never",
        "subdomain": "run-pretrain",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 60,
        "nodeSelector": {"gpu": "yes"},
        "affinity": {
            "podAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": {"matchLabels": selector}, "topologyKey": "kubernetes.io/hostname"}
                ]
            }
        },
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "trainer",
                "image": "train:1",
                "args": ["run", "/etc/cloze/job.yaml"],
                "env": [
                    {"name": "CLOZE_RENDEZVOUS", "value": "run-pretrain-0.run-pretrain:29400"},
                    {"name": "CLOZE_JOB_UID", "value": "uid-1"},
                    {"name": "CLOZE_WORKSPACE", "value": "/workspace"},
                    {"name": "CLOZE_CORPUS_ROOT", "value": "/corpus"},
                    {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"},
                    {"name": "OMP_NUM_THREADS", "value": "3"},
                    {"name": "HOME", "value": "/tmp"},
                ],
                "ports": [{"name": "progress", "containerPort": 9400, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "4Gi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [
                    {"name": "job", "mountPath": "/etc/cloze", "readOnly": True},
                    {"name": "run", "mountPath": "/workspace"},
                    {"name": "shared-memory", "mountPath": "/dev/shm"},
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "corpus-0", "mountPath": "/corpus/configmap/extra", "readOnly": True},
                    {"name": "corpus-1", "mountPath": "/corpus/pvc/books", "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "job", "configMap": {"name": "run-pretrain-spec"}},
            {"name": "run", "persistentVolumeClaim": {"claimName": "run-pretrain-run"}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "corpus-0", "configMap": {"name": "extra"}},
            {"name": "corpus-1", "persistentVolumeClaim": {"claimName": "books"}},
        ],
    }


def test_pods_go_where_others_may_not(training: Make) -> None:
    """Taints, priority and the time to save a checkpoint are the topology's; what isn't asked for isn't there."""
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    asked = {"tolerations": [taint], "priorityClassName": "batch", "graceSeconds": 300}
    for kind, origins in (("PretrainJob", NOTHING), ("FineTuneJob", BASE)):
        plain, placed = (
            indexed_job(made.resource, made.job, origins, made.platform)["spec"]["template"]["spec"]
            for made in (training(kind, spec={"topology": topology}) for topology in ({}, asked))
        )
        assert placed == {
            **plain,
            "tolerations": [taint],
            "priorityClassName": "batch",
            "terminationGracePeriodSeconds": 300,
        }
        assert not {"tolerations", "priorityClassName", "nodeSelector"} & plain.keys()


def test_secrets_of_sources_are_mounted_one_by_one(training: Make) -> None:
    """Each Secret once, apart from the others: what gives access to one source is no other's."""
    corpus = [
        {"uri": f"s3://books/{number}", "credentials": {"secretName": name}}
        for number, name in enumerate(("theirs", "ours", "theirs"))
    ]
    snapshot = training(spec={"corpus": [*corpus, {"uri": "https://host/a.txt"}]})
    pod = indexed_job(snapshot.resource, snapshot.job, NOTHING, snapshot.platform)["spec"]["template"]["spec"]
    assert [volume for volume in pod["volumes"] if "secret" in volume] == [
        {"name": "credentials-0", "secret": {"secretName": "ours", "defaultMode": 0o440}},
        {"name": "credentials-1", "secret": {"secretName": "theirs", "defaultMode": 0o440}},
    ]
    assert pod["containers"][0]["volumeMounts"][-2:] == [
        {"name": "credentials-0", "mountPath": "/etc/cloze/secrets/ours", "readOnly": True},
        {"name": "credentials-1", "mountPath": "/etc/cloze/secrets/theirs", "readOnly": True},
    ]


def test_the_secret_of_examples_is_mounted(training: Make) -> None:
    """For stores that training or test examples are in."""
    dataset = {"train": "s3://mails/train.csv", "test": "pvc://data/test.csv", "credentials": {"secretName": "mails"}}
    snapshot = training("FineTuneJob", spec={"dataset": dataset})
    pod = indexed_job(snapshot.resource, snapshot.job, NOTHING, snapshot.platform)["spec"]["template"]["spec"]
    assert {"name": "credentials-0", "secret": {"secretName": "mails", "defaultMode": 0o440}} in pod["volumes"]
    assert {"name": "credentials-0", "mountPath": "/etc/cloze/secrets/mails", "readOnly": True} in (
        pod["containers"][0]["volumeMounts"]
    )


def test_what_finds_names_is_mounted_as_a_source_is(training: Make) -> None:
    """Its claim, or the Secret that gives access to its store."""
    named = [{"uri": "pvc://models/ner"}, {"uri": "s3://models/ner", "credentials": {"secretName": "models"}}]
    volumes = []
    for names in named:
        snapshot = training(spec={"corpus": [{"uri": "https://host/a.txt"}], "cleaning": {"names": names}})
        pod = indexed_job(snapshot.resource, snapshot.job, NOTHING, snapshot.platform)["spec"]["template"]["spec"]
        volumes.append(pod["volumes"][-1])
    assert volumes == [
        {"name": "corpus-0", "persistentVolumeClaim": {"claimName": "models"}},
        {"name": "credentials-0", "secret": {"secretName": "models", "defaultMode": 0o440}},
    ]


def test_the_signing_key_is_mounted_alone(training: Make) -> None:
    """Of its Secret the one key, readable by the pod's group; nothing of it is in the environment but its place."""
    registry = {"name": "encoder", "signing": {"secretName": "keys", "key": "cloze.key"}}
    for kind, origins in (("PretrainJob", NOTHING), ("FineTuneJob", BASE)):
        snapshot = training(kind, spec={"registry": registry})
        pod = indexed_job(snapshot.resource, snapshot.job, origins, snapshot.platform)["spec"]["template"]["spec"]
        items = [{"key": "cloze.key", "path": "cloze.key"}]
        secret = {"secretName": "keys", "items": items, "defaultMode": 0o440}
        assert pod["volumes"][-1] == {"name": "signing", "secret": secret}
        (container,) = pod["containers"]
        assert container["volumeMounts"][-1] == {"name": "signing", "mountPath": "/etc/cloze/signing", "readOnly": True}
        assert {"name": "CLOZE_SIGNING_KEY", "value": "/etc/cloze/signing/cloze.key"} in container["env"]
        assert "envFrom" not in container
        assert not any("valueFrom" in variable for variable in container["env"])


def test_a_cache_of_data_is_mounted_where_the_trainer_looks(training: Make) -> None:
    """In every pod of the gang, to be written to; nothing of it is there without one."""
    for kind, origins in (("PretrainJob", NOTHING), ("FineTuneJob", BASE)):
        before, after = (
            indexed_job(snapshot.resource, snapshot.job, origins, snapshot.platform)["spec"]["template"]["spec"]
            for snapshot in (training(kind), training(kind, spec={"storage": {"dataCache": {"claimName": "prepared"}}}))
        )
        volume = {"name": "data-cache", "persistentVolumeClaim": {"claimName": "prepared"}}
        assert [each for each in after["volumes"] if each not in before["volumes"]] == [volume]
        (old,), (new,) = before["containers"], after["containers"]
        mount = {"name": "data-cache", "mountPath": "/data-cache"}
        assert [each for each in new["volumeMounts"] if each not in old["volumeMounts"]] == [mount]
        added = [entry for entry in new["env"] if entry not in old["env"]]
        assert added == [{"name": "CLOZE_DATA_CACHE", "value": "/data-cache"}]


def test_keys_of_the_platform_reach_the_trainer(training: Make) -> None:
    """As it takes them; without any the variable is absent."""
    for kind, origins in (("PretrainJob", NOTHING), ("FineTuneJob", BASE)):
        snapshot = training(kind)
        keyed = replace(snapshot.platform, verify_keys=("key:AA", "key:BB"))
        (before,), (after,) = (
            indexed_job(snapshot.resource, snapshot.job, origins, platform)["spec"]["template"]["spec"]["containers"]
            for platform in (snapshot.platform, keyed)
        )
        added = [entry for entry in after["env"] if entry not in before["env"]]
        assert added == [{"name": "CLOZE_VERIFY_KEY", "value": "key:AA key:BB"}]
        assert {**after, "env": before["env"]} == before


def test_a_run_without_a_volume_has_its_pods_own_disk(training: Make) -> None:
    """Checkpoints are in a bucket, whose Secret is mounted like any other; no claim is named in the pod."""
    spec = {
        "topology": {"nodes": 1},
        "storage": {"ephemeral": True, "size": "5Gi"},
        "checkpoint": {"uri": "s3://runs/cloze", "credentials": {"secretName": "runs"}},
    }
    snapshot = training("FineTuneJob", spec=spec)
    pod = indexed_job(snapshot.resource, snapshot.job, BASE, snapshot.platform)["spec"]["template"]["spec"]
    assert {"name": "run", "emptyDir": {"sizeLimit": "5Gi"}} in pod["volumes"]
    assert not [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert {"name": "credentials-0", "secret": {"secretName": "runs", "defaultMode": 0o440}} in pod["volumes"]
    assert {"name": "credentials-0", "mountPath": "/etc/cloze/secrets/runs", "readOnly": True} in (
        pod["containers"][0]["volumeMounts"]
    )


def test_fine_tuning_pod_knows_its_bases_digest(training: Make) -> None:
    """The digest that was decided on reaches the pods; the spec's own image wins over the default."""
    snapshot = training("FineTuneJob", spec={"image": "mine:2"})
    manifest = indexed_job(snapshot.resource, snapshot.job, BASE, snapshot.platform)
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert {"name": "CLOZE_BASE_DIGEST", "value": DIGEST} in container["env"]
    assert container["image"] == "mine:2"
    assert "affinity" not in manifest["spec"]["template"]["spec"]
    assert read_origins(manifest) == BASE


def test_examples_to_choose_a_step_by_are_mounted(training: Make) -> None:
    """As those of the training and the test are."""
    dataset = {name: f"pvc://{name}-data/{name}.jsonl" for name in ("train", "test", "validation")}
    snapshot = training("FineTuneJob", spec={"dataset": dataset, "optimization": {"earlyStopping": {}}})
    manifest = indexed_job(snapshot.resource, snapshot.job, BASE, snapshot.platform)
    volumes = manifest["spec"]["template"]["spec"]["volumes"]
    claims = {each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each}
    assert {"train-data", "test-data", "validation-data"} <= claims


def test_digest_ignores_what_may_change(training: Make) -> None:
    """Suspending a Job doesn't make it another one; another model does."""

    def digest(**spec: Any) -> str:
        snapshot = training(spec=spec)
        manifest = indexed_job(snapshot.resource, snapshot.job, NOTHING, snapshot.platform)
        return str(manifest["metadata"]["annotations"]["cloze.dev/content-digest"])

    assert (
        digest() == digest(suspend=True) == digest(activeDeadlineSeconds=9) == digest(failurePolicy={"maxRestarts": 9})
    )
    assert digest() != digest(image="other")


def test_every_pod_meets_the_restricted_standard(training: Make, serving: Make) -> None:
    """No container of any template asks for more than the `restricted` Pod Security Standard allows."""

    def templates() -> Iterator[Document]:
        for kind, origins in (("PretrainJob", NOTHING), ("FineTuneJob", BASE)):
            snapshot = training(kind)
            yield indexed_job(snapshot.resource, snapshot.job, origins, snapshot.platform)["spec"]["template"]["spec"]
        one = serving()
        yield _server(one, one.platform)["spec"]["template"]["spec"]

    for spec in templates():
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec["automountServiceAccountToken"]
        assert not spec["enableServiceLinks"]
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]


def _server(snapshot: Any, platform: Platform) -> Document:
    revision = revision_of(snapshot.deployment, ServedVersion("spam", "3", DIGEST), platform)
    return server_deployment(snapshot.resource, snapshot.deployment, revision, 1, platform)


def test_images_are_pulled_as_the_installation_says(training: Make, serving: Make) -> None:
    """Pull policy and secrets of the installation reach training and serving pods."""
    platform = replace(training().platform, pull_policy="Always", pull_secrets=("one", "two"))
    job, one = training(), serving()
    for manifest in (indexed_job(job.resource, job.job, NOTHING, platform), _server(one, platform)):
        spec = manifest["spec"]["template"]["spec"]
        assert spec["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
        assert [container["imagePullPolicy"] for container in spec["containers"]] == ["Always"]


def test_digest_follows_the_content() -> None:
    """Equal content, equal digest, whatever the order of its fields."""
    one = sealed({"metadata": {"annotations": {}}, "spec": {"a": 1, "b": 2}})
    other = sealed({"spec": {"b": 2, "a": 1}, "metadata": {"annotations": {}}})
    assert one == other
    assert one != sealed({"metadata": {"annotations": {}}, "spec": {"a": 1, "b": 3}})
