"""What scales a ModelDeployment's pods and what protects them: autoscaler and disruption budget."""

from collections.abc import Mapping
from typing import Any

from cloze_api.rollout import Autoscaling, DisruptionBudget
from cloze_operator.desired.metadata import Manifest, child_metadata, sealed, selector
from cloze_operator.desired.revision import child_name


def autoscaler(owner: Mapping[str, Any], scaling: Autoscaling, revision: str, least: int) -> Manifest:
    """The HorizontalPodAutoscaler of the stable revision. least: it keeps so many pods, whatever `minReplicas` says."""
    name = owner["metadata"]["name"]
    target = {"type": "Utilization", "averageUtilization": scaling.target_cpu_percent}
    return sealed(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": child_metadata(owner, name),
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": child_name(name, revision)},
                "minReplicas": max(scaling.min_replicas, min(least, scaling.max_replicas)),
                "maxReplicas": scaling.max_replicas,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
            },
        }
    )


def disruption_budget(owner: Mapping[str, Any], budget: DisruptionBudget) -> Manifest:
    """The PodDisruptionBudget of all pods. One that doesn't run may always be taken away: it helps nobody."""
    name = owner["metadata"]["name"]
    return sealed(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": child_metadata(owner, name),
            "spec": {
                "maxUnavailable": budget.max_unavailable,
                "selector": {"matchLabels": selector(owner["kind"], name)},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        }
    )
