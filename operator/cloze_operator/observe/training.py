"""The snapshot of a training job."""

from collections.abc import Callable, Iterator
from datetime import datetime

from pydantic import ValidationError

from cloze_api.pretrained import PretrainedVersion
from cloze_api.resources import FineTuneJob, TrainingJob, parse_job
from cloze_api.source import SourceKind, parse_source
from cloze_operator.cluster import Cluster
from cloze_operator.decide.answers import Answer
from cloze_operator.decide.deletions import witnessed
from cloze_operator.decide.fields import Object, dig, is_going, is_true
from cloze_operator.decide.origins import frozen_origins
from cloze_operator.decide.pods import name_of, phase, registered
from cloze_operator.decide.snapshot import TrainingSnapshot
from cloze_operator.desired.origins import registered_base, registered_teacher
from cloze_operator.desired.platform import Platform
from cloze_operator.desired.trainer import source_uris
from cloze_operator.desired.training import claim_name, run_name, spec_name
from cloze_operator.observe.children import read_children, read_pods
from cloze_operator.observe.validity import explain
from cloze_operator.registry import Registry
from cloze_operator.reports import Reports


class TrainingObserver:
    """Asks the API server, the registry and the pods, and of these only what the next decision needs."""

    def __init__(
        self,
        cluster: Cluster,
        registry: Registry,
        reports: Reports,
        platform: Platform,
        clock: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._registry = registry
        self._reports = reports
        self._platform = platform
        self._clock = clock

    async def observe(self, resource: Object) -> TrainingSnapshot:
        """The snapshot. Raises ClusterError."""
        try:
            job = parse_job(dict(resource))
        except ValidationError as error:
            return self._snapshot(resource, None, invalid=explain(error))
        if is_going(resource):
            return self._snapshot(resource, job)
        if is_true(resource, "Succeeded"):
            return await self._observe_finished(resource, job)

        namespace = resource["metadata"]["namespace"]
        names = {
            "PersistentVolumeClaim": claim_name(job),
            "ConfigMap": spec_name(job),
            "Service": run_name(job),
            "Job": run_name(job),
        }
        children = await read_children(self._cluster, namespace, names)
        live = children.get("Job")
        found = await read_pods(self._cluster, resource, live["metadata"]["uid"] if live else None)
        pods = witnessed(found, live) if live else ()
        bare = self._snapshot(resource, job, children=children)
        frozen = frozen_origins(bare)
        base, base_job = (None, None) if frozen.base else await self._base(job)
        outcome = registered(pods, job.spec.registry.name)
        return self._snapshot(
            resource,
            job,
            children=children,
            pods=pods,
            leaving=() if live else tuple(name_of(pod) for pod in found if phase(pod) in ("Running", "Terminating")),
            missing=() if live else await self._missing(namespace, job),
            base=base,
            base_job=base_job,
            teacher=None if frozen.teacher else await self._named(registered_teacher(job)),
            progress=await self._reports.progress(pods),
            registered=await self._registered(job) if is_true(live, "Complete") and not outcome else None,
        )

    def _snapshot(self, resource: Object, job: TrainingJob | None, **parts: object) -> TrainingSnapshot:
        return TrainingSnapshot(
            now=self._clock(),
            platform=self._platform,
            resource=resource,
            job=job,
            **parts,  # type: ignore[arg-type] # the callers above give the snapshot's own fields
        )

    async def _observe_finished(self, resource: Object, job: TrainingJob) -> TrainingSnapshot:
        if is_true(resource, "Registered"):
            return self._snapshot(resource, job)
        model = dig(resource, "status", "model", "name")
        if not model:
            return self._snapshot(resource, job, registered=await self._registered(job))
        alias = await self._registry.behind(model, job.spec.registry.alias)
        return self._snapshot(resource, job, alias=alias)

    async def _registered(self, job: TrainingJob) -> Answer:
        return await self._registry.of_job(job.spec.registry.name, job.metadata.uid)

    async def _base(self, job: TrainingJob) -> tuple[Answer, Object | None]:
        if isinstance(job, FineTuneJob) and job.spec.base.pretrain_job is not None:
            awaited = job.spec.base.pretrain_job.name
            return None, await self._cluster.get("PretrainJob", job.metadata.namespace, awaited)
        return await self._named(registered_base(job)), None

    async def _named(self, model: PretrainedVersion | None) -> Answer:
        if model is None:
            return None
        if model.version is not None:
            return await self._registry.version(model.name, model.version)
        assert model.alias is not None, "the model has neither version nor alias"
        return await self._registry.behind(model.name, model.alias)

    async def _missing(self, namespace: str, job: TrainingJob) -> tuple[str, ...]:
        """A sentence for each claim, ConfigMap or key that isn't there. Other sources only the pods can reach."""
        found: dict[tuple[str, str], Object | None] = {}
        sentences: dict[str, None] = {}
        for kind, name, key, field in _mounted(job):
            if (kind, name) not in found:
                found[kind, name] = await self._cluster.get(kind, namespace, name)
            live = found[kind, name]
            if live is None:
                sentences[f"{kind} {name} doesn't exist in namespace {namespace}: create it ({field})"] = None
            elif kind == "ConfigMap" and key not in _keys(live):
                sentences[f"ConfigMap {name} has no key {key}: add it ({field})"] = None
        return tuple(sentences)


def _mounted(job: TrainingJob) -> Iterator[tuple[str, str, str, str]]:
    """Kind and name of each object that the pods mount, the key in it, and the place that names it."""
    for uri in source_uris(job):
        source = parse_source(uri)
        if source.kind in (SourceKind.PVC, SourceKind.CONFIG_MAP):
            kind = "PersistentVolumeClaim" if source.kind is SourceKind.PVC else "ConfigMap"
            yield kind, source.container, source.path, uri
    if cache := job.spec.storage.data_cache:
        yield "PersistentVolumeClaim", cache.claim_name, "", "spec.storage.dataCache.claimName"


def _keys(config_map: Object) -> set[str]:
    return {*(config_map.get("data") or {}), *(config_map.get("binaryData") or {})}
