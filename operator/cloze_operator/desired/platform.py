"""What the installation says, as opposed to the resource: default images, registry address, how pods are reached."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Installation-wide values that end up in manifests and decisions. Times are in seconds."""

    train_image: str
    serve_image: str
    tracking_uri: str
    """MLflow's address as the pods reach it."""
    poll_seconds: float = 3.0
    """Between two looks at a run in progress."""
    wait_seconds: float = 10.0
    """Between two looks at something that no watch tells about: a registry alias, a user's claim."""
