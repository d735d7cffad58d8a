"""What the chart renders: complete, restricted, and refusing bad values before anything reaches a cluster."""

import json

import pytest
import yaml
from rendering import CHART, helm, of_kind, pod_specs, render, render_monitoring

from cloze_api import crd
from cloze_api.names import MANAGED_BY
from cloze_operator import settings
from cloze_operator.desired.metadata import COMPONENTS

# Helm comes with the local cluster's tools.
pytestmark = pytest.mark.cluster


def test_chart_passes_lint() -> None:
    """`helm lint --strict` finds nothing."""
    done = helm("lint", "--strict", "--kube-version", "1.31.0", str(CHART))
    assert done.returncode == 0, done.stdout


def test_definitions_are_the_contract_and_are_kept() -> None:
    """The chart installs the rendered definitions and never deletes them, as that would delete users' objects."""
    installed = {d["metadata"]["name"]: d for d in render() if d["kind"] == "CustomResourceDefinition"}
    expected = {name.removesuffix(".yaml").split(".", 1)[0]: yaml.safe_load(text) for name, text in crd.files().items()}
    assert {name.split(".")[0] for name in installed} == expected.keys()
    for definition in installed.values():
        assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert definition == expected[definition["spec"]["names"]["plural"]]


def test_definitions_can_be_left_out() -> None:
    """Clusters whose administrators install definitions themselves turn them off."""
    assert not [d for d in render("crds.install=false") if d["kind"] == "CustomResourceDefinition"]


def test_every_pod_is_restricted() -> None:
    """Non-root, read-only root, no escalation, no capabilities, RuntimeDefault, memory limited."""
    for spec in pod_specs(render()):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_roles_name_each_verb_and_resource() -> None:
    """No wildcard, no secrets, no right to create pods."""
    roles = [d for d in render() if d["kind"] in ("ClusterRole", "Role")]
    assert roles
    for rule in (rule for role in roles for rule in role["rules"]):
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        assert "secrets" not in rule["resources"]
        if "pods" in rule["resources"]:
            assert set(rule["verbs"]) <= {"get", "list", "watch", "delete"}


def test_role_can_replace_what_is_outdated() -> None:
    """A run that has not started is made anew when its spec changes, and former revisions are swept."""
    (role,) = [d for d in render() if d["kind"] == "ClusterRole"]
    verbs = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    for resource in ("jobs", "persistentvolumeclaims", "pretrainjobs", "finetunejobs", "deployments", "services"):
        assert "delete" in verbs[resource]
    for resource in ("modeldeployments", "poddisruptionbudgets", "configmaps", "pods"):
        assert "delete" not in verbs[resource]


def test_named_namespaces_need_no_cluster_role() -> None:
    """With `operator.namespaces` the operator has rights there only."""
    documents = render('operator.namespaces=["team-a","team-b"]')
    assert not [d for d in documents if d["kind"].startswith("ClusterRole")]
    roles = {(d["metadata"]["namespace"], d["metadata"]["name"]) for d in documents if d["kind"] == "Role"}
    lease = ("cloze-system", "cloze-operator-lease")
    assert roles == {("team-a", "cloze-operator"), ("team-b", "cloze-operator"), lease}


def test_own_mlflow_replaces_the_charts() -> None:
    """With `mlflow.enabled: false` nothing of MLflow is installed and the operator is given the address."""
    documents = render("mlflow.enabled=false", 'mlflow.uri="https://mlflow.example"')
    assert not [d for d in documents if "mlflow" in d["metadata"]["name"]]
    environment = {e["name"]: e.get("value") for e in pod_specs(documents)[0]["containers"][0]["env"]}
    assert environment["MLFLOW_TRACKING_URI"] == "https://mlflow.example"


def test_images_of_workloads_are_pulled_like_the_charts_own() -> None:
    """Pull policy and secrets go to the operator, which puts them into the pods that it makes."""
    documents = render('images.pullPolicy="Always"', 'images.pullSecrets=["one","two"]')
    (operator,) = [spec for spec in pod_specs(documents) if spec["containers"][0]["name"] == "operator"]
    environment = {entry["name"]: entry.get("value") for entry in operator["containers"][0]["env"]}
    assert environment["CLOZE_IMAGE_PULL_POLICY"] == "Always"
    assert environment["CLOZE_IMAGE_PULL_SECRETS"] == "one,two"


@pytest.mark.parametrize("image", ["", "registry.example/cloze-serve-gpu:1"])
def test_the_image_for_gpus_reaches_the_operator(image: str) -> None:
    """Which has none as long as nobody has pushed one."""
    documents = render(f'images.serveGpu="{image}"') if image else render()
    (operator,) = [spec for spec in pod_specs(documents) if spec["containers"][0]["name"] == "operator"]
    environment = {entry["name"]: entry.get("value", "") for entry in operator["containers"][0]["env"]}
    assert settings.read(environment).platform.serve_gpu_image == image


def test_keys_reach_the_serving_pods_through_the_operator() -> None:
    """From the chart's value to what the server takes."""
    pem = "-----BEGIN PUBLIC KEY-----\nMFkw\nEwYH==\n-----END PUBLIC KEY-----\n"
    documents = render(f"serving.verifyKeys={json.dumps([pem, pem.replace('MFkw', 'MHYw')])}")
    (operator,) = [spec for spec in pod_specs(documents) if spec["containers"][0]["name"] == "operator"]
    environment = {entry["name"]: entry.get("value", "") for entry in operator["containers"][0]["env"]}
    assert settings.read(environment).platform.verify_keys == ("key:MFkwEwYH==", "key:MHYwEwYH==")
    (bare,) = [spec for spec in pod_specs(render()) if spec["containers"][0]["name"] == "operator"]
    assert "CLOZE_VERIFY_KEYS" not in {entry["name"] for entry in bare["containers"][0]["env"]}


def test_operators_variables_are_its_own() -> None:
    """A variable that the operator doesn't read would have no effect, and say nothing."""
    (operator,) = [spec for spec in pod_specs(render()) if spec["containers"][0]["name"] == "operator"]
    known = {variable.name for variable in settings.VARIABLES}
    assert {entry["name"] for entry in operator["containers"][0]["env"]} <= known


def test_operator_survives_the_loss_of_a_machine() -> None:
    """Two replicas apart from each other, replaced and drained one by one, and a lease for one to act."""
    documents = render()
    (operator,) = [d for d in documents if d["kind"] == "Deployment" and d["metadata"]["name"] == "cloze-operator"]
    pods = operator["spec"]["selector"]["matchLabels"]
    assert operator["spec"]["replicas"] == 2
    assert operator["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }
    spec = operator["spec"]["template"]["spec"]
    (spread,) = spec["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert spread["labelSelector"]["matchLabels"] == pods
    (budget,) = [d for d in documents if d["kind"] == "PodDisruptionBudget"]
    assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": pods}}
    environment = {entry["name"]: entry for entry in spec["containers"][0]["env"]}
    (role,) = [d for d in documents if d["kind"] == "Role"]
    named, created, _ = role["rules"]
    assert named["resourceNames"] == [environment["CLOZE_LEASE_NAME"]["value"]]
    assert (set(named["verbs"]), created["verbs"]) == ({"get", "update"}, ["create"])
    field = environment["CLOZE_LEASE_NAMESPACE"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert (field, role["metadata"]["namespace"]) == ("metadata.namespace", "cloze-system")


def test_upgrade_does_not_restart_mlflow() -> None:
    """The pod template carries no version of the chart: SQLite's one writer goes on through an upgrade."""
    (mlflow,) = [d for d in render() if d["kind"] == "Deployment" and d["metadata"]["name"].endswith("mlflow")]
    assert mlflow["spec"]["template"]["metadata"]["labels"] == mlflow["spec"]["selector"]["matchLabels"]


def test_monitoring_is_off_unless_it_is_asked_for() -> None:
    """A cluster without Prometheus Operator or Grafana gets none of their objects."""
    assert {document["kind"] for document in render()}.isdisjoint({"PrometheusRule", "ServiceMonitor", "PodMonitor"})
    assert {each["metadata"]["name"] for each in of_kind(render(), "ConfigMap")} == {
        "cloze-mlflow-scripts",
        "cloze-test",
    }


@pytest.mark.parametrize("setting", ["rules", "serviceMonitor", "podMonitors"])
def test_missing_definitions_are_named_before_anything_is_installed(setting: str) -> None:
    """Helm's own message would speak of a kind that has no match."""
    flag = f"monitoring.{setting}.enabled=true"
    done = helm("template", "cloze", str(CHART), "--kube-version", "1.31.0", "--set-json", flag)
    assert done.returncode != 0
    assert f"monitoring.{setting}.enabled needs the Prometheus Operator's definitions" in done.stderr


def test_rules_say_whose_they_are_and_where_to_read_on() -> None:
    """Team and runbooks by values, in rule objects and in the ConfigMap alike; all else as committed."""
    documents = render_monitoring(
        "monitoring.rules.enabled=true",
        "monitoring.rules.configMap=true",
        'monitoring.rules.labels={"release":"prometheus"}',
        'monitoring.rules.team="language"',
        'monitoring.rules.runbookBaseUrl="https://runbooks.example/cloze/"',
    )
    objects = of_kind(documents, "PrometheusRule")
    assert {each["metadata"]["labels"]["release"] for each in objects} == {"prometheus"}
    (config,) = [each for each in of_kind(documents, "ConfigMap") if each["metadata"]["name"] == "cloze-rules"]
    assert [yaml.safe_load(text) for _, text in sorted(config["data"].items())] == [each["spec"] for each in objects]
    committed = CHART / "files" / "rules"
    for each in objects:
        name = each["metadata"]["name"].removeprefix("cloze-")
        expected = yaml.safe_load((committed / f"{name}.yaml").read_text(encoding="utf-8"))
        for rule in (rule for group in expected["groups"] for rule in group["rules"] if "alert" in rule):
            rule["labels"]["team"] = "language"
            page = rule["annotations"]["runbook_url"].removeprefix("docs/runbooks/")
            rule["annotations"]["runbook_url"] = f"https://runbooks.example/cloze/{page}"
        assert each["spec"] == expected


def test_gateways_rules_come_with_its_counter() -> None:
    """Without a gateway there is nothing to count."""
    on = "monitoring.rules.enabled=true"
    names = {
        counter: [
            each["metadata"]["name"]
            for each in of_kind(render_monitoring(on, f'gateway.counter="{counter}"'), "PrometheusRule")
        ]
        for counter in ("none", "traefik")
    }
    assert names["none"] == ["cloze-alerts", "cloze-recording"]
    assert names["traefik"] == ["cloze-alerts", "cloze-gateway-traefik", "cloze-recording"]


def test_what_is_scraped_is_there() -> None:
    """The selectors find the operator's Service alone, and the pods that the operator makes, by their ports' names."""
    documents = render_monitoring("monitoring.serviceMonitor.enabled=true", "monitoring.podMonitors.enabled=true")
    (operator,) = of_kind(documents, "ServiceMonitor")
    wanted = operator["spec"]["selector"]["matchLabels"].items()
    services = [
        s["metadata"]["name"] for s in of_kind(documents, "Service") if wanted <= s["metadata"]["labels"].items()
    ]
    assert services == ["cloze-operator"]
    # The operator tells of resources of other namespaces.
    assert [endpoint["honorLabels"] for endpoint in operator["spec"]["endpoints"]] == [True]
    pods = of_kind(documents, "PodMonitor")
    assert {p["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] for p in pods} == set(
        COMPONENTS.values()
    )
    for monitor in pods:
        assert monitor["spec"]["namespaceSelector"] == {"any": True}
        assert monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/managed-by"] == MANAGED_BY
    ports = {p["metadata"]["name"]: p["spec"]["podMetricsEndpoints"][0]["port"] for p in pods}
    assert ports == {"cloze-servers": "http", "cloze-trainers": "progress"}


def test_dashboards_are_found_by_grafana() -> None:
    """Each in a ConfigMap with the label that its sidecar looks for, and as committed."""
    found = of_kind(render_monitoring("monitoring.dashboards.enabled=true"), "ConfigMap")
    documents = [each for each in found if each["metadata"]["name"].startswith("cloze-dashboard-")]
    assert {each["metadata"]["labels"]["grafana_dashboard"] for each in documents} == {"1"}
    shipped = {
        name.removeprefix("cloze-"): json.loads(text) for each in documents for name, text in each["data"].items()
    }
    committed = {path.name: json.loads(path.read_text("utf-8")) for path in (CHART / "files" / "dashboards").glob("*")}
    assert shipped == committed


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("operator.resyncSeconds=1", "resyncSeconds"),
        ('operator.logLevel="LOUD"', "logLevel"),
        ('mlflow.storage.size="big"', "storage/size"),
        ("operator.replicaCount=3", "replicaCount"),
        ("operator.replicas=9", "operator/replicas"),
        ('images.train=""', "images/train"),
        ("mlflow.replicas=2", "mlflow.replicas above 1 needs both stores outside"),
        ("mlflow.workers=2", "mlflow.workers above 1 needs a database server"),
        ('networkPolicy.mlflow.from=[{"namespace":"notebooks"}]', "networkPolicy/mlflow/from/0"),
        ("networkPolicy.apiServerPorts=[]", "networkPolicy/apiServerPorts"),
        ("mlflow.enabled=false", "mlflow.uri must name your MLflow server"),
        ('mlflow.uri="https://mlflow.example"', "mlflow/uri"),
        ('images.pullSecrets=["Not a name"]', "images/pullSecrets"),
        ('serving.verifyKeys=["key.pem"]', "serving/verifyKeys/0"),
        ('monitoring.serviceMonitor.interval="often"', "monitoring/serviceMonitor/interval"),
    ],
)
def test_bad_value_is_refused_by_name(setting: str, message: str) -> None:
    """The message names the value."""
    done = helm("template", "cloze", str(CHART), "--kube-version", "1.31.0", "--set-json", setting)
    assert done.returncode != 0
    assert message in done.stderr


def test_scheduling_reaches_every_pod() -> None:
    """Priority, machines, taints and affinity are settings of each component; the test's are the operators'."""
    values = {
        "priorityClassName": '"platform"',
        "nodeSelector": '{"pool":"system"}',
        "tolerations": '[{"key":"system","operator":"Exists"}]',
        "affinity": '{"podAntiAffinity":{}}',
        "resources": '{"limits":{"memory":"1Gi"}}',
    }
    given = [f"{part}.{key}={value}" for part in ("operator", "mlflow") for key, value in values.items()]
    specs = pod_specs(render(*given))
    assert len(specs) == 3
    for spec in specs:
        assert spec["priorityClassName"] == "platform"
        assert spec["nodeSelector"] == {"pool": "system"}
        assert spec["tolerations"] == [{"key": "system", "operator": "Exists"}]
        assert spec["affinity"] == {"podAntiAffinity": {}}
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["resources"]["limits"] == {"memory": "1Gi"}


def notes(*values: str) -> str:
    """What `helm install` says at its end."""
    flags = [flag for value in values for flag in ("--set-json", value)]
    # The cluster may have the definitions already, from whoever.
    options = ("--namespace", "cloze-system", "--dry-run=client", "--take-ownership")
    done = helm("install", "cloze", str(CHART), *options, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("NOTES:", 1)[1]


def test_notes_say_what_is_left_to_do() -> None:
    """With the defaults: no Prometheus, no alerts, one volume, an MLflow that few may reach."""
    text = notes()
    for said in ("helm test cloze", "set prometheus.url", "monitoring.rules", "production-stores.md", "mlflow.from"):
        assert said in text
    assert "\n\n\n" not in text


def test_notes_are_silent_about_what_is_done() -> None:
    """Nobody reads the same hints at every upgrade."""
    text = notes(
        'prometheus.url="http://prometheus.metrics.svc:9090"',
        'gateway.counter="traefik"',
        "monitoring.rules.configMap=true",
        'mlflow.backendStoreUri="postgresql://db/mlflow"',
        'mlflow.artifactsDestination="s3://models"',
        "networkPolicy.enabled=false",
    )
    for said in ("set prometheus.url", "with gateway.counter", "monitoring.rules", "production-stores.md", "the claim"):
        assert said not in text
    assert "judged by http://prometheus.metrics.svc:9090, with the counter of the gateway." in text
    assert "\n\n\n" not in text
