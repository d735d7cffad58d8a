"""A cluster in miniature for rollouts: children that are applied become live, pods become ready, time passes when told.

Everything between decisions is as simple as it can be, so that what is tested is the decisions. Writes happen one by
one, and any of them can be the last before the operator is killed.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cloze_api.resources import ModelDeployment
from cloze_operator.analysis.checks import Evidence
from cloze_operator.decide.answers import Answer, Loaded, NotFound, Unavailable, Version
from cloze_operator.decide.record import Record, load
from cloze_operator.decide.serving import decide_serving
from cloze_operator.decide.snapshot import ServingSnapshot, StoredRevision
from cloze_operator.decide.target import is_settled, known_fallback
from cloze_operator.decide.verdict import Verdict, render_status
from cloze_operator.desired.facts import UNKNOWN, Facts
from cloze_operator.desired.platform import Platform
from cloze_operator.desired.record import record_name
from cloze_operator.desired.revision import read_revision

Document = dict[str, Any]

PLATFORM = Platform(train_image="train:1", serve_image="serve:1", tracking_uri="http://mlflow:5000")
START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


class KilledError(Exception):
    """The operator was killed."""


def digest(version: str) -> str:
    """A digest for a version."""
    return "sha256:" + f"{int(version):064x}"


@dataclass
class World:
    """One ModelDeployment and everything around it. broken: revisions' versions whose pods never get ready.

    crashing: versions whose pods crash-loop. quarantined: versions' tags in the registry.
    fallback: what the registry says about the fallback.
    """

    spec: Document
    name: str = "spam"
    now: datetime = START
    children: dict[tuple[str, str], Document] = field(default_factory=dict)
    versions: set[str] = field(default_factory=lambda: {"1", "2", "3"})
    aliases: dict[str, str] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    crashing: set[str] = field(default_factory=set)
    annotations: dict[str, str] = field(default_factory=dict)
    status: Document = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    evidence: Callable[["World"], Evidence | None] = lambda _: None
    fallback: Answer = None
    route_accepted: bool = True
    slow_gateway: bool = False
    registry_is_up: bool = True
    state: str = ""
    writes: int = 0
    kill_at: int | None = None
    served: list[dict[str, int]] = field(default_factory=list)
    _versions: int = 0

    # ------------------------------------------------------------ what the operator sees

    @property
    def record(self) -> Record:
        """The record as it is stored."""
        return load(self.children.get(("ConfigMap", record_name(self.name))))

    def resource(self) -> Document:
        """The ModelDeployment."""
        metadata = {
            "name": self.name,
            "namespace": "ml",
            "uid": "uid-1",
            "generation": 1,
            "resourceVersion": "7",
            "creationTimestamp": "2026-03-01T11:00:00Z",
            "annotations": dict(self.annotations),
        }
        kind = {"apiVersion": "cloze.dev/v1alpha1", "kind": "ModelDeployment"}
        return {**kind, "metadata": metadata, "spec": self.spec, "status": self.status}

    def snapshot(self) -> ServingSnapshot:
        """What an observer would see."""
        resource = self.resource()
        deployment = ModelDeployment.model_validate(resource)
        children = deepcopy(self.children)
        pods = tuple(self._pods())
        snapshot = ServingSnapshot(
            now=self.now,
            platform=PLATFORM,
            resource=resource,
            deployment=deployment,
            children=children,
            record=load(children.get(("ConfigMap", record_name(self.name)))),
            revisions={
                child["metadata"]["labels"]["cloze.dev/revision"]: StoredRevision(
                    child["metadata"]["labels"]["cloze.dev/revision"], child["revision"], read_revision(child)
                )
                for (kind, _), child in children.items()
                if kind == "ControllerRevision"
            },
            pods=pods,
            alias=self._behind(deployment.spec.model.follow.alias) if deployment.spec.model.follow else None,
            loaded={
                pod["metadata"]["name"]: Loaded(
                    pod["metadata"]["annotations"]["cloze.dev/model-version"],
                    pod["metadata"]["annotations"]["cloze.dev/model-digest"],
                )
                for pod in pods
            },
            evidence=self.evidence(self),
        )
        return replace(
            snapshot,
            model=None if is_settled(snapshot) else self._model(deployment),
            fallback=None if known_fallback(snapshot) else self.fallback,
        )

    def _model(self, deployment: ModelDeployment) -> Answer:
        model = deployment.spec.model
        if model.follow:
            return self._behind(model.follow.candidate_alias)
        assert model.version
        return self._version(model.version)

    def _behind(self, alias: str) -> Answer:
        return self._version(self.aliases[alias]) if alias in self.aliases else NotFound(f"no alias {alias}")

    def _version(self, version: str) -> Answer:
        if not self.registry_is_up:
            return Unavailable("the registry is away")
        if version not in self.versions:
            return NotFound(f"no version {version}")
        facts = self.facts.get(version, UNKNOWN)
        return Version("spam", version, digest(version), "", self.quarantined.get(version, ""), facts)

    def _pods(self) -> Iterator[Document]:
        for (kind, name), child in self.children.items():
            if kind != "Deployment":
                continue
            template = child["spec"]["template"]["metadata"]
            version = template["annotations"]["cloze.dev/model-version"]
            for place in range(child["spec"]["replicas"]):
                ready = version not in self.broken | self.crashing
                container: Document = {"name": "server", "restartCount": 0, "state": {"running": {}}, "lastState": {}}
                if version in self.crashing:
                    ended = {"exitCode": 1, "finishedAt": self.now.strftime("%Y-%m-%dT%H:%M:%SZ")}
                    container |= {"restartCount": 3, "lastState": {"terminated": ended}}
                yield {
                    "metadata": {"name": f"{name}-x-{place}", "namespace": "ml", **deepcopy(template)},
                    "status": {
                        "phase": "Running",
                        "conditions": [{"type": "Ready", "status": str(ready)}],
                        "containerStatuses": [container],
                    },
                }

    # ------------------------------------------------------------ what the operator does

    def look(self) -> Verdict:
        """One reconciliation. Raises KilledError when the operator is killed in it."""
        verdict, state = decide_serving(self.snapshot())
        for target in verdict.delete:
            self._write(lambda target=target: self.children.pop((target.kind, target.name), None))
        for manifest in verdict.apply:
            self._write(lambda manifest=manifest: self._apply(manifest))
        if verdict.remember:
            self._write(lambda: self._apply(verdict.remember))
        if verdict.ended:
            self.ended.append(verdict.ended)
        if verdict.obeyed:
            self._write(self.annotations.clear)
        if verdict.tag:
            tag = verdict.tag
            self._write(lambda: self.quarantined.update({tag.version: tag.value}))
        if verdict.alias:
            move = verdict.alias
            assert self.aliases.get(move.alias) == move.expected
            self._write(lambda: self.aliases.update({move.alias: move.version}))
        self.status = render_status(self.resource(), verdict, state, self.now)
        self.events += [(event.reason, event.message) for event in verdict.events]
        self.state = state
        return verdict

    def _write(self, write: Callable[[], Any]) -> None:
        if self.kill_at is not None and self.writes >= self.kill_at:
            self.kill_at = None
            raise KilledError
        write()
        self.writes += 1
        self.served.append(self.weights())

    def _apply(self, manifest: Document) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        old = self.children.get((kind, name))
        known = manifest["metadata"].pop("resourceVersion", None) if kind == "ConfigMap" else None
        if kind == "ConfigMap":
            assert known == (old["metadata"]["resourceVersion"] if old else None), "a record was overwritten unseen"
        if kind == "ControllerRevision" and old:
            assert manifest["data"] == old["data"], "the API server refuses to change a ControllerRevision's data"
        self._versions += 1
        live = deepcopy(manifest)
        live["metadata"] |= {
            "uid": f"uid-{kind}-{name}",
            "resourceVersion": str(self._versions),
            "generation": (old or {"metadata": {"generation": 0}})["metadata"]["generation"] + 1,
        }
        self.children[kind, name] = live
        self._settle(live)

    def _settle(self, live: Document) -> None:
        """What the cluster's own controllers make of a child."""
        generation = live["metadata"]["generation"]
        if live["kind"] == "Deployment":
            wanted = live["spec"]["replicas"]
            version = live["spec"]["template"]["metadata"]["annotations"]["cloze.dev/model-version"]
            ready = 0 if version in self.broken | self.crashing else wanted
            live["status"] = {
                "observedGeneration": generation,
                "replicas": wanted,
                "updatedReplicas": wanted,
                "availableReplicas": ready,
            }
        if live["kind"] == "HTTPRoute":
            status = "True" if self.route_accepted else "False"
            seen = generation - 1 if self.slow_gateway else generation
            conditions = [
                {"type": kind, "status": status, "observedGeneration": seen, "reason": "Refused"}
                for kind in ("Accepted", "ResolvedRefs")
            ]
            live["status"] = {
                "parents": [{"parentRef": entry, "conditions": conditions} for entry in live["spec"]["parentRefs"]]
            }

    # ------------------------------------------------------------ what a test does

    def settle(self, limit: int = 60) -> None:
        """Look until there is nothing to do now."""
        for _ in range(limit):
            before = self.writes
            verdict = self.look()
            if self.writes == before and verdict.requeue != 0:
                return
        raise AssertionError("it never settles")

    def after(self, seconds: float, step: float = 5) -> None:
        """Let time pass, with looks in between."""
        end = self.now + timedelta(seconds=seconds)
        while self.now < end:
            self.now = min(end, self.now + timedelta(seconds=step))
            self.settle()

    def ask_for(self, version: str) -> None:
        """Another fixed version."""
        self.spec = {**self.spec, "model": {"name": "spam", "version": version}}

    def heal(self, *versions: str) -> None:
        """Pods of these versions get ready from now on."""
        self.broken -= set(versions)
        for (kind, _), child in self.children.items():
            if kind == "Deployment":
                self._settle(child)

    def fail(self, *versions: str) -> None:
        """Pods of these versions aren't ready any more."""
        self.broken |= set(versions)
        for (kind, _), child in self.children.items():
            if kind == "Deployment":
                self._settle(child)

    def version_of(self, revision: str) -> str:
        """The model version of a revision; empty for none."""
        for (kind, _), child in self.children.items():
            if kind == "ControllerRevision" and child["metadata"]["labels"]["cloze.dev/revision"] == revision:
                return str(child["data"]["model"]["version"])
        return ""

    def weights(self) -> dict[str, int]:
        """Per cent of the requests by model version, as the gateway or the Service divides them now."""
        if route := self.children.get(("HTTPRoute", self.name)):
            refs = route["spec"]["rules"][0]["backendRefs"]
            named = {ref["name"].removeprefix(f"{self.name}-"): ref["weight"] for ref in refs}
            return {self.version_of(name): weight for name, weight in named.items() if weight}
        service = self.children.get(("Service", self.name))
        if not service:
            return {}
        chosen = service["spec"]["selector"]
        counts: dict[str, int] = {}
        for pod in self._pods():
            labels = pod["metadata"]["labels"]
            ready = pod["status"]["conditions"][0]["status"] == "True"
            if ready and all(labels.get(key) == value for key, value in chosen.items()):
                version = pod["metadata"]["annotations"]["cloze.dev/model-version"]
                counts[version] = counts.get(version, 0) + 1
        total = sum(counts.values())
        return {version: round(100 * count / total) for version, count in counts.items()}

    def pods_of(self, version: str) -> int:
        """Pods of a model version."""
        return sum(pod["metadata"]["annotations"]["cloze.dev/model-version"] == version for pod in self._pods())

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason."""
        found = next((entry for entry in self.status["conditions"] if entry["type"] == kind), {})
        return found.get("status", ""), found.get("reason", "")

    def reasons(self) -> list[str]:
        """Of all events so far."""
        return [reason for reason, _ in self.events]

    def copy(self) -> "World":
        """Another world that is in the same state."""
        return replace(
            self,
            children=deepcopy(self.children),
            aliases=dict(self.aliases),
            quarantined=dict(self.quarantined),
            annotations=dict(self.annotations),
            events=list(self.events),
            ended=list(self.ended),
            broken=set(self.broken),
            crashing=set(self.crashing),
            served=list(self.served),
        )
