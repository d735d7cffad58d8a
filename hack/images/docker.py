"""Builds with a Docker engine."""

from __future__ import annotations

from pathlib import Path

from .builder import Order
from .console import output, succeeds, work

# What the Dockerfiles name; a test compares them.
DOCKERFILE_BASE = "python:3.11-slim"


class Docker:
    def __init__(self, logs: Path) -> None:
        self._logs = logs

    def has(self, reference: str) -> bool:
        return succeeds("docker", "image", "inspect", reference)

    def build(self, order: Order) -> None:
        # Without a base of the caller's own the Dockerfile's default serves: Docker can fetch it.
        base = ["--build-arg", f"BASE_IMAGE={order.base_image}"] if order.base_image else []
        work(
            f"building {order.image.name}",
            [
                *("docker", "buildx", "build", "--load", "--progress", "plain", "--target", order.image.target),
                *("--file", str(order.context / order.image.dockerfile), "--tag", order.reference),
                *(*base, *order.build_arguments(), str(order.context)),
            ],
            self._logs / f"{order.image.name}.log",
        )

    def push(self, reference: str, destination: str, *, plain_http: bool) -> None:  # noqa: ARG002 Docker decides by the host
        if destination != reference:
            output("docker", "tag", reference, destination)
        work(f"pushing {destination}", ["docker", "push", destination], self._logs / "push.log")

    def forget(self) -> None:
        self.prune(set())

    def prune(self, keep: set[str]) -> None:
        listed = output("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
        for reference in set(listed) - keep:
            # Only what a build of ours left; a tag for somebody's registry is theirs.
            if reference.startswith("localhost/cloze-") and not reference.endswith(":<none>"):
                succeeds("docker", "image", "rm", reference)
