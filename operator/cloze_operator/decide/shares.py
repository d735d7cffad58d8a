"""Shares of the requests, and the pods to serve them: what the steps of a spec come to at the present size."""

import math
from dataclasses import dataclass

from cloze_api.deployment import ModelDeploymentSpec
from cloze_api.rollout import Provider


@dataclass(frozen=True, slots=True)
class Share:
    """One step of a rollout. weight: per cent of the requests. pods: the canary's. hold: seconds at least.

    judged: it goes on only when the checks have passed.
    """

    weight: int
    pods: int
    hold: float
    judged: bool


def plan(spec: ModelDeploymentSpec, full: int) -> tuple[Share, ...]:
    """The shares of a rollout, the last of which is the promotion. full: pods that serve all requests."""
    rollout = spec.rollout
    shares = []
    if rollout.strategy == "BlueGreen":
        shares = [Share(0, full, rollout.preview_seconds, judged=False)]
    elif full:
        shares = [
            Share(*_divide(spec, full, step.weight, step.replicas), step.hold_seconds, judged=True)
            for step in rollout.steps
        ]
    return (*shares, Share(100, full, 0, judged=False))


def _divide(spec: ModelDeploymentSpec, full: int, weight: int | None, replicas: int | None) -> tuple[int, int]:
    """Weight and pods of a step."""
    if spec.traffic.provider == Provider.GATEWAY_API:
        assert weight is not None, "a step of a gateway's rollout has no weight"
        return weight, max(1, math.ceil(weight * full / 100))
    assert replicas is not None, "a step of a ratio of replicas has no replicas"
    pods = min(replicas, full)
    return round(100 * pods / (pods + full)), pods
