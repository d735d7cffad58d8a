"""Children of a ModelDeployment as dict literals: what reaches the API server, to the last field."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from cloze_api.deployment import Runtime
from cloze_api.resources import ModelDeployment
from cloze_api.rollout import Autoscaling, DisruptionBudget, Route
from cloze_operator.desired.facts import Facts
from cloze_operator.desired.platform import Platform
from cloze_operator.desired.revision import (
    Revision,
    ServedVersion,
    child_name,
    controller_revision,
    read_revision,
    revision_of,
)
from cloze_operator.desired.route import http_route
from cloze_operator.desired.scaling import autoscaler, disruption_budget
from cloze_operator.desired.serving import server_deployment, server_service
from cloze_server import paths
from cloze_server.settings import Settings, read

Document = dict[str, Any]
Make = Callable[..., Any]

DIGEST = "sha256:" + "a" * 64
SERVED = ServedVersion("spam", "3", DIGEST)
PLATFORM = Platform(train_image="train:1", serve_image="serve:1", tracking_uri="http://mlflow:5000")
LAME_DUCK_SECONDS = next(entry.default for entry in fields(Settings) if entry.name == "lame_duck_seconds")
_ALWAYS = {
    *("CLOZE_MODEL_URI", "CLOZE_MODEL_DIGEST", "MLFLOW_TRACKING_URI", "CLOZE_MODEL_CACHE"),
    *("CLOZE_MAX_QUEUE_TOKENS", "CLOZE_TIMEOUT_SECONDS", "CLOZE_DRAIN_SECONDS"),
    *("CLOZE_DEPLOYMENT", "CLOZE_REVISION", "HOME"),
}
OURS = {"cloze.dev/kind": "ModelDeployment", "cloze.dev/owner": "run"}


def labels(revision: str = "") -> Document:
    return {
        "app.kubernetes.io/name": "cloze",
        "app.kubernetes.io/instance": "run",
        "app.kubernetes.io/component": "server",
        "app.kubernetes.io/managed-by": "cloze",
        **OURS,
        **({"cloze.dev/revision": revision} if revision else {}),
    }


def metadata(name: str, revision: str = "", **annotations: str) -> Document:
    owner = {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "ModelDeployment",
        "name": "run",
        "uid": "uid-1",
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": name,
        "namespace": "ml",
        "labels": labels(revision),
        "annotations": annotations,
        "ownerReferences": [owner],
    }


def bare(manifest: Document) -> Document:
    """A manifest without the digest of its content."""
    annotations = dict(manifest["metadata"]["annotations"])
    assert len(annotations.pop("cloze.dev/content-digest")) == 64
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


@pytest.fixture
def server(resource: Make) -> Callable[..., Document]:
    """The Deployment of version 3 of a ModelDeployment with this spec."""

    def make(replicas: int = 3, platform: Platform = PLATFORM, **spec: Any) -> Document:
        body = resource("ModelDeployment", **spec)
        deployment = ModelDeployment.model_validate(body)
        revision = revision_of(deployment, SERVED, platform)
        return server_deployment(body, deployment, revision, replicas, platform)

    return make


def pod(manifest: Document) -> Document:
    spec: Document = manifest["spec"]["template"]["spec"]
    return spec


def container(manifest: Document) -> Document:
    (found,) = pod(manifest)["containers"]
    assert isinstance(found, dict)
    return found


# ---------------------------------------------------------------- the Deployment of a revision


def test_server_deployment(server: Callable[..., Document]) -> None:
    """The whole Deployment of one revision: it finds its own pods alone, and never has fewer than are wanted."""
    manifest = bare(server(3, drainSeconds=40, runtime={"threads": 2}))
    name = manifest["metadata"]["labels"]["cloze.dev/revision"]
    version = {"cloze.dev/model-version": "3", "cloze.dev/model-digest": DIGEST}
    chosen = {**OURS, "cloze.dev/revision": name}
    assert manifest["metadata"] == metadata(f"run-{name}", name, **version)
    template = manifest["spec"].pop("template")
    assert manifest["spec"] == {
        "replicas": 3,
        "selector": {"matchLabels": chosen},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "minReadySeconds": 2,
        "progressDeadlineSeconds": 600,
        "revisionHistoryLimit": 1,
    }
    assert template["metadata"] == {
        "labels": labels(name),
        "annotations": {
            **version,
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "8080",
            "prometheus.io/path": "/metrics",
        },
    }
    (only,) = template["spec"]["containers"]
    assert only["image"] == "serve:1"
    assert {entry["name"]: entry["value"] for entry in only["env"]} == {
        "CLOZE_MODEL_URI": "models:/spam/3",
        "CLOZE_MODEL_DIGEST": DIGEST,
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "CLOZE_MODEL_CACHE": "/cache",
        "CLOZE_THREADS": "2",
        "CLOZE_MAX_QUEUE_TOKENS": "65536",
        "CLOZE_TIMEOUT_SECONDS": "30",
        "CLOZE_DRAIN_SECONDS": "40",
        "CLOZE_DEPLOYMENT": "run",
        "CLOZE_REVISION": name,
        "HOME": "/tmp",
    }


@pytest.mark.parametrize(
    ("runtime", "told"),
    [
        ({}, {}),
        ({"threads": 1}, {"CLOZE_THREADS": "1"}),
        ({"maxBatchTokens": 64}, {"CLOZE_MAX_BATCH_TOKENS": "64"}),
    ],
)
def test_what_the_spec_leaves_open_the_server_decides(
    server: Callable[..., Document], runtime: Document, told: Document
) -> None:
    """It sees the pod's CPU limit and its device."""
    environment = {entry["name"]: entry["value"] for entry in container(server(runtime=runtime))["env"]}
    open_settings = {"CLOZE_THREADS", "CLOZE_MAX_BATCH_TOKENS"}
    assert {name: value for name, value in environment.items() if name in open_settings} == told


@pytest.mark.parametrize(
    ("resources", "runtime", "threads"),
    [
        ({"requests": {"cpu": "1500m"}}, {}, "2"),
        ({"requests": {"cpu": "1500m"}}, {"threads": 4}, "4"),
        ({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}}, {}, None),
        ({"requests": {"memory": "1Gi"}}, {}, None),
    ],
)
def test_without_a_cpu_limit_threads_are_as_many_as_the_cpus_asked_for(
    server: Callable[..., Document], resources: Document, runtime: Document, threads: str | None
) -> None:
    """Else a server would take all CPUs of its node, however little it asked for."""
    assert environment(server(resources=resources, runtime=runtime)).get("CLOZE_THREADS") == threads


# ---------------------------------------------------------------- GPUs

GPU_PLATFORM = replace(PLATFORM, serve_gpu_image="serve-gpu:1")


def environment(manifest: Document) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(manifest)["env"]}


@pytest.mark.parametrize(
    ("resources", "given"),
    [
        ({"limits": {"nvidia.com/gpu": 1}}, {"limits": {"nvidia.com/gpu": "1"}}),
        ({"requests": {"nvidia.com/gpu": 2}}, {"limits": {"nvidia.com/gpu": "2"}}),
        (
            {"requests": {"cpu": 1, "nvidia.com/mig-1g.10gb": 1}, "limits": {"nvidia.com/mig-1g.10gb": 1}},
            {"requests": {"cpu": "1"}, "limits": {"nvidia.com/mig-1g.10gb": "1"}},
        ),
    ],
)
def test_a_pod_with_a_gpu_has_the_image_that_uses_it(
    server: Callable[..., Document], resources: Document, given: Document
) -> None:
    """And fails rather than compute beside it."""
    manifest = server(platform=GPU_PLATFORM, resources=resources)
    assert container(manifest)["image"] == "serve-gpu:1"
    assert environment(manifest)["CLOZE_PROVIDER"] == "cuda"
    assert container(manifest)["resources"] == given


@pytest.mark.parametrize("resources", [{}, {"limits": {"nvidia.com/gpu": 0}}, {"limits": {"memory": "1Gi"}}])
def test_a_pod_without_one_is_as_ever(server: Callable[..., Document], resources: Document) -> None:
    """Also with none of them."""
    manifest = server(platform=GPU_PLATFORM, resources=resources)
    assert container(manifest)["image"] == "serve:1"
    assert "CLOZE_PROVIDER" not in environment(manifest)


def test_an_image_that_is_named_is_taken_with_a_gpu_too(server: Callable[..., Document]) -> None:
    """Whether the installation has one or not."""
    for platform in (PLATFORM, GPU_PLATFORM):
        manifest = server(platform=platform, resources={"limits": {"nvidia.com/gpu": 1}}, runtime={"image": "mine:1"})
        assert container(manifest)["image"] == "mine:1"
        assert environment(manifest)["CLOZE_PROVIDER"] == "cuda"


def test_gpus_stay_with_their_revision(resource: Make) -> None:
    """While the spec has changed already: a server is made for a GPU or for the CPU, and memory is memory."""
    before = resource("ModelDeployment", resources={"limits": {"nvidia.com/gpu": 1, "memory": "1Gi"}})
    after = resource("ModelDeployment", resources={"limits": {"memory": "2Gi"}})
    documents = [ModelDeployment.model_validate(body) for body in (before, after)]
    with_gpu, without = (revision_of(each, SERVED, GPU_PLATFORM) for each in documents)
    assert with_gpu.name != without.name
    kept = server_deployment(after, documents[1], with_gpu, 1, GPU_PLATFORM)
    assert container(kept)["resources"] == {"limits": {"nvidia.com/gpu": "1", "memory": "2Gi"}}
    assert environment(kept)["CLOZE_PROVIDER"] == "cuda"
    other = server_deployment(before, documents[0], without, 1, GPU_PLATFORM)
    assert container(other)["resources"] == {"limits": {"memory": "1Gi"}}
    assert "CLOZE_PROVIDER" not in environment(other)


def test_a_stored_revision_knows_its_gpus(resource: Make) -> None:
    """Another number of them is another revision."""
    bodies = [resource("ModelDeployment", resources={"limits": {"nvidia.com/gpu": count}}) for count in (1, 2)]
    one, two = (revision_of(ModelDeployment.model_validate(body), SERVED, GPU_PLATFORM) for body in bodies)
    assert one.name != two.name
    again = read_revision(controller_revision(bodies[0], one, 1))
    assert (again, again.name) == (one, one.name)


# ---------------------------------------------------------------- what signs, how it ends


def test_keys_reach_the_server(server: Callable[..., Document]) -> None:
    """As it takes them, and without making another revision; without any the variable is absent."""
    keyed = server(platform=replace(PLATFORM, verify_keys=("key:AA", "key:BB")))
    assert keyed["metadata"]["name"] == server()["metadata"]["name"]
    added = [entry for entry in container(keyed)["env"] if entry not in container(server())["env"]]
    assert added == [{"name": "CLOZE_VERIFY_KEY", "value": "key:AA key:BB"}]


def test_options_of_the_spec_reach_the_server(server: Callable[..., Document]) -> None:
    """In the variables that the server's own flags have, with values that it takes."""
    manifest = server(
        model={"name": "spam", "version": "3", "fallback": {"name": "large", "version": "2"}},
        runtime={
            "maxWaitSeconds": 2,
            "replyCache": {"size": "64Mi", "ttlSeconds": 60},
            "limits": {"maxInputs": 8, "maxCharacters": 500, "maxBodyBytes": 9000},
        },
        requestMetadata={"language": ["de", "en"], "channel": ["mail"]},
        access={"corsOrigins": ["https://a.example", "https://b.example"], "playground": False},
        tracing={"endpoint": "http://collector:4318", "sampleRatio": 0.25},
        feedback={"url": "http://labels/in"},
    )
    settings = read([], environment(manifest))
    assert (settings.max_wait_seconds, settings.cache_bytes, settings.cache_ttl_seconds) == (2, 64 << 20, 60)
    assert (settings.max_inputs, settings.max_characters, settings.max_body_bytes) == (8, 500, 9000)
    assert settings.metadata == ("channel=mail", "language=de,en")
    assert (settings.cors_origins, settings.playground) == (("https://a.example", "https://b.example"), False)
    assert (settings.otlp_endpoint, settings.trace_sample_ratio) == ("http://collector:4318", 0.25)
    assert (settings.feedback_url, settings.feedback_token_file, settings.api_keys) == ("http://labels/in", None, None)
    # What was resolved, not what the spec names.
    assert (settings.model, settings.digest, settings.fallback) == (("models:/spam/3",), (DIGEST,), ())


def test_a_spec_without_options_leaves_them_to_the_server(server: Callable[..., Document]) -> None:
    """So that none of them rolls pods with an upgrade; what the server does then is what the schema says."""
    assert environment(server()).keys() == _ALWAYS
    limits, settings = Runtime().limits, read([], environment(server()))
    assert (settings.max_wait_seconds, settings.max_inputs) == (Runtime().max_wait_seconds, limits.max_inputs)
    assert (settings.max_characters, settings.max_body_bytes) == (limits.max_characters, limits.max_body_bytes)
    assert (settings.cache_bytes, settings.metadata, settings.cors_origins, settings.playground) == (0, (), (), True)
    assert (settings.trace_sample_ratio, settings.feedback_url, settings.api_keys) == (0, "", None)


def test_the_fallback_is_pinned_beside_the_model(resource: Make) -> None:
    """Both in one process, each held to its digest, in the same order; the model is the one that is reported."""
    body = resource("ModelDeployment")
    deployment, large = ModelDeployment.model_validate(body), ServedVersion("large", "2", "sha256:" + "c" * 64)
    manifest = server_deployment(body, deployment, revision_of(deployment, SERVED, PLATFORM, large), 1, PLATFORM)
    settings = read([], environment(manifest))
    assert settings.model == ("models:/spam/3", "models:/large/2")
    assert settings.digest == (DIGEST, large.digest)
    assert settings.fallback == ("spam/3=large/2",)
    assert manifest["spec"]["template"]["metadata"]["annotations"]["cloze.dev/model-digest"] == DIGEST


def test_secrets_are_mounted_as_folders(server: Callable[..., Document]) -> None:
    """Read-only, and readable for the server's group; a file that is mounted by itself would never change."""
    manifest = server(
        access={"apiKeys": {"name": "spam-keys", "key": "clients"}},
        feedback={"url": "http://labels/in", "token": {"name": "labels", "key": "token"}},
    )
    secrets = {entry["name"]: entry["secret"] for entry in pod(manifest)["volumes"] if "secret" in entry}
    assert secrets == {
        name: {"secretName": secret, "items": [{"key": key, "path": "value"}], "defaultMode": 0o440}
        for name, secret, key in (("api-keys", "spam-keys", "clients"), ("feedback-token", "labels", "token"))
    }
    mounts = {entry["name"]: entry for entry in container(manifest)["volumeMounts"]}
    folders = {name: mounts[name]["mountPath"] for name in secrets}
    assert all(mounts[name]["readOnly"] and "subPath" not in mounts[name] for name in secrets)
    settings = read([], environment(manifest))
    assert str(settings.api_keys) == f"{folders['api-keys']}/value"
    assert str(settings.feedback_token_file) == f"{folders['feedback-token']}/value"
    assert "spam-keys" not in str(environment(manifest)), "a Secret is never a variable"
    assert [entry["name"] for entry in pod(server())["volumes"]] == ["cache", "tmp"]


def test_probes_need_no_key(server: Callable[..., Document]) -> None:
    """Kubernetes has none."""
    probed = container(server(access={"apiKeys": {"name": "spam-keys", "key": "clients"}}))
    asked = {probed[kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert asked <= paths.WITHOUT_KEY


@pytest.mark.parametrize("drain", [1, 30, 600])
def test_pod_outlives_its_drain(server: Callable[..., Document], drain: int) -> None:
    """Kubernetes kills no server that may still be answering: the grace period is the drain and some time to end."""
    manifest = server(drainSeconds=drain, runtime={"timeoutSeconds": 1})
    told = next(entry["value"] for entry in container(manifest)["env"] if entry["name"] == "CLOZE_DRAIN_SECONDS")
    # First the server answers as before, for as long as endpoints may take to notice, then it drains, then it ends.
    assert pod(manifest)["terminationGracePeriodSeconds"] >= LAME_DUCK_SECONDS + int(told) + 17


def test_pod_leaves_the_endpoints_within_its_lame_duck_time(server: Callable[..., Document]) -> None:
    """A server that says that it isn't ready is believed sooner than it stops answering; a short hiccup isn't."""
    probe = container(server())["readinessProbe"]
    assert probe["httpGet"] == {"path": "/readyz", "port": "http"}
    assert probe["failureThreshold"] > 1
    assert probe["periodSeconds"] * probe["failureThreshold"] < LAME_DUCK_SECONDS


def test_server_that_never_gets_ready_is_restarted(server: Callable[..., Document]) -> None:
    """Its process answers at once, so that only readiness tells that the model is loaded."""
    probe = container(server())["startupProbe"]
    assert probe["httpGet"]["path"] == "/readyz"
    assert probe["periodSeconds"] * probe["failureThreshold"] == 600


def test_a_slow_server_is_no_dead_one(server: Callable[..., Document]) -> None:
    """Only one that doesn't answer for half a minute is killed, and never for not being ready."""
    probe = container(server())["livenessProbe"]
    assert probe["httpGet"]["path"] == "/healthz"
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 30


def test_pods_are_spread_over_machines_as_far_as_possible(server: Callable[..., Document]) -> None:
    """Each revision's own, so that a canary's pods don't push the stable ones together; one machine is enough."""
    manifest = server()
    (spread,) = pod(manifest)["topologySpreadConstraints"]
    assert spread == {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": manifest["spec"]["selector"]["matchLabels"]},
    }


def test_pods_run_where_the_spec_says(server: Callable[..., Document]) -> None:
    scheduling = {
        "nodeSelector": {"disk": "fast"},
        "priorityClassName": "high",
        "tolerations": [{"key": "gpu", "operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoSchedule"}],
    }
    spec = pod(server(scheduling=scheduling))
    assert (spec["nodeSelector"], spec["priorityClassName"]) == ({"disk": "fast"}, "high")
    assert spec["tolerations"] == scheduling["tolerations"]
    assert not {"nodeSelector", "priorityClassName", "tolerations"} & pod(server()).keys()


def test_servers_are_told_another_precision_than_the_usual_one(server: Callable[..., Document]) -> None:
    """fp32 isn't said: pods of a former Cloze would be replaced for it."""

    def told(**runtime: Any) -> str | None:
        env = pod(server(runtime=runtime))["containers"][0]["env"]
        return next((entry["value"] for entry in env if entry["name"] == "CLOZE_PRECISION"), None)

    assert (told(precision="int8"), told(precision="fp32"), told()) == ("int8", None, None)


def test_digest_ignores_the_number_of_pods(server: Callable[..., Document]) -> None:
    """A step or an autoscaler makes no other Deployment; other resources do."""

    def digest(replicas: int = 3, **spec: Any) -> str:
        return str(server(replicas, **spec)["metadata"]["annotations"]["cloze.dev/content-digest"])

    assert digest() == digest(7) == digest(replicas=0)
    assert digest() != digest(resources={"limits": {"memory": "2Gi"}})


# ---------------------------------------------------------------- revisions


@pytest.fixture
def revision(resource: Make) -> Callable[..., Revision]:
    """The revision of a spec."""

    def make(
        served: ServedVersion = SERVED,
        platform: Platform = PLATFORM,
        fallback: ServedVersion | None = None,
        **spec: Any,
    ) -> Revision:
        deployment = ModelDeployment.model_validate(resource("ModelDeployment", **spec))
        return revision_of(deployment, served, platform, fallback)

    return make


@pytest.mark.parametrize(
    "change",
    [
        {"served": replace(SERVED, version="4")},
        {"served": replace(SERVED, digest="sha256:" + "b" * 64)},
        {"served": replace(SERVED, name="ham")},
        {"platform": replace(PLATFORM, serve_image="serve:2")},
        {"runtime": {"image": "mine:1"}},
        {"runtime": {"threads": 1}},
        {"runtime": {"threads": 2}},
        {"runtime": {"maxBatchTokens": 2048}},
        {"runtime": {"timeoutSeconds": 20}},
        {"runtime": {"maxBatchTokens": 4096}},
        {"runtime": {"precision": "int8"}},
        {"runtime": {"replyCache": {"size": "64Mi"}}},
        {"runtime": {"limits": {"maxInputs": 8}}},
        {"fallback": ServedVersion("large", "2", DIGEST)},
    ],
)
def test_what_runs_names_the_revision(revision: Callable[..., Revision], change: Document) -> None:
    """Version, digest, image and settings of the server: another one of them is another revision."""
    assert revision(**change).name != revision().name


@pytest.mark.parametrize(
    "change",
    [
        {"served": replace(SERVED, facts=Facts(task="embedding"))},
        {"platform": replace(PLATFORM, tracking_uri="http://other", train_image="train:2")},
        {"runtime": {"image": "serve:1"}},
        {"runtime": {"maxQueueTokens": 65536}},
        {"runtime": {"maxWaitSeconds": 10}},
        {"runtime": {"precision": "fp32"}},
        {"replicas": 9},
        {"drainSeconds": 90},
        {"resources": {"limits": {"memory": "2Gi"}}},
        {"scheduling": {"priorityClassName": "high"}},
        {"rollout": {"progressDeadlineSeconds": 60}},
        {"objectives": {"availability": 0.9}},
        {"access": {"apiKeys": {"name": "keys", "key": "keys"}, "playground": False}},
        {"requestMetadata": {"language": ["de"]}},
        {"tracing": {"endpoint": "http://collector:4318"}},
        {"feedback": {"url": "http://labels/in"}},
        {"runtime": {"limits": {"maxInputs": 256}}},
    ],
)
def test_nothing_else_names_the_revision(revision: Callable[..., Revision], change: Document) -> None:
    """What can change under a running server without making it answer otherwise is no rollout."""
    assert revision(**change).name == revision().name


def test_a_setting_that_is_added_later_renames_nothing(revision: Callable[..., Revision]) -> None:
    """Where it has its default: an upgrade must not roll everybody's servers."""

    class Later(Runtime):
        """With one more setting."""

        nice: int = 0

    now = revision()
    assert replace(now, runtime=Later()).name == now.name
    assert replace(now, runtime=Later(nice=1)).name != now.name


def test_names_are_the_same_with_every_cloze(revision: Callable[..., Revision]) -> None:
    """One that changes would roll every server out anew with an upgrade."""
    # As the API server has completed every spec while these two had defaults.
    assert revision(runtime={"threads": 1, "maxBatchTokens": 2048}).name == "ef177ac4"
    assert revision().name == "9c678300"


def test_controller_revision(revision: Callable[..., Revision], resource: Make) -> None:
    """All that a revision is can be read again, without the registry and without the spec."""
    one = revision(served=replace(SERVED, facts=Facts(task="fill-mask", tokenizer="t")), runtime={"threads": 2})
    manifest = controller_revision(resource("ModelDeployment"), one, 4)
    assert bare(manifest) == {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": metadata(f"run-{one.name}", one.name),
        "revision": 4,
        "data": {
            "model": {"name": "spam", "version": "3", "digest": DIGEST},
            "image": "serve:1",
            "runtime": {
                "threads": 2,
                "precision": "fp32",
                "maxQueueTokens": 65536,
                "maxWaitSeconds": 10,
                "timeoutSeconds": 30,
                "limits": {"maxInputs": 256, "maxCharacters": 65536, "maxBodyBytes": 1048576},
            },
            "facts": {"task": "fill-mask", "schema": "", "tokenizer": "t", "labels": "", "precisions": ""},
        },
    }
    again = read_revision(manifest)
    assert (again, again.name, again.served.facts) == (one, one.name, one.served.facts)


def test_a_stored_revision_knows_its_options(revision: Callable[..., Revision], resource: Make) -> None:
    """Its fallback with the digest, and the cache: a return to it brings them back. What is absent isn't stored."""
    one = revision(fallback=ServedVersion("large", "2", "sha256:" + "c" * 64), runtime={"replyCache": {"size": "64Mi"}})
    stored = controller_revision(resource("ModelDeployment"), one, 4)
    again = read_revision(stored)
    assert (again, again.name) == (one, one.name)
    assert "fallback" not in controller_revision(resource("ModelDeployment"), revision(), 5)["data"]
    assert None not in stored["data"]["runtime"].values()


@pytest.mark.parametrize("data", [{}, {"model": {"name": "spam"}}, {"model": {}, "image": "x"}])
def test_what_isnt_ours_is_no_revision(data: Document) -> None:
    with pytest.raises((KeyError, ValueError)):
        read_revision({"data": data})


# ---------------------------------------------------------------- what leads to the pods, and keeps them


@pytest.mark.parametrize("revision_name", ["abc", None])
def test_server_service(resource: Make, revision_name: str | None) -> None:
    """Port 80 before the servers' 8080: of one revision, or of all."""
    chosen = {**OURS, "cloze.dev/revision": revision_name} if revision_name else OURS
    assert bare(server_service(resource("ModelDeployment"), "run", revision_name)) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata("run", revision_name or ""),
        "spec": {
            "selector": chosen,
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def test_http_route(resource: Make) -> None:
    """The whole route: the prefix is taken away, the user's own filters come after, weights are in the names' order."""
    header = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x-debug"]}}
    route = Route.model_validate(
        {
            "parentRefs": [{"name": "cloze", "namespace": "gateway", "sectionName": "web"}, {"name": "other"}],
            "hostnames": ["spam.example.org"],
            "path": "/spam/v1",
            "filters": [header],
            "timeoutSeconds": 40,
        }
    )
    rewrite = {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}
    backend = {"group": "", "kind": "Service", "port": 80}
    assert bare(http_route(resource("ModelDeployment"), route, {"bbb": 10, "aaa": 90})) == {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata("run"),
        "spec": {
            "parentRefs": [{"name": "cloze", "namespace": "gateway", "sectionName": "web"}, {"name": "other"}],
            "hostnames": ["spam.example.org"],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/spam/v1"}}],
                    "filters": [{"type": "URLRewrite", "urlRewrite": rewrite}, header],
                    "timeouts": {"request": "40s"},
                    "backendRefs": [
                        {**backend, "name": "run-aaa", "weight": 90},
                        {**backend, "name": "run-bbb", "weight": 10},
                    ],
                }
            ],
        },
    }


def test_smallest_route_says_nothing_that_isnt_asked_for(resource: Make) -> None:
    """No host names, no filters and no time limit of ours."""
    route = Route.model_validate({"parentRefs": [{"name": "cloze"}]})
    spec = http_route(resource("ModelDeployment"), route, {"aaa": 100})["spec"]
    assert spec.keys() == {"parentRefs", "rules"}
    assert spec["rules"][0].keys() == {"matches", "backendRefs"}


@pytest.mark.parametrize(("least", "minimum"), [(0, 2), (1, 2), (4, 4), (9, 6)])
def test_autoscaler(resource: Make, least: int, minimum: int) -> None:
    """Of the stable revision's Deployment; it goes below no size that is still needed, nor above the spec's."""
    scaling = Autoscaling.model_validate({"minReplicas": 2, "maxReplicas": 6, "targetCpuPercent": 50})
    target = {"type": "Utilization", "averageUtilization": 50}
    assert bare(autoscaler(resource("ModelDeployment"), scaling, "abc", least)) == {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata("run"),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": child_name("run", "abc")},
            "minReplicas": minimum,
            "maxReplicas": 6,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        },
    }


def test_disruption_budget(resource: Make) -> None:
    """Of all pods, whichever revision's; one that doesn't run may always go."""
    assert bare(disruption_budget(resource("ModelDeployment"), DisruptionBudget(max_unavailable=2))) == {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata("run"),
        "spec": {
            "maxUnavailable": 2,
            "selector": {"matchLabels": OURS},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
