"""What the installation says, as opposed to the resource: default images, registry address, how pods are reached."""

from dataclasses import dataclass
from typing import Any

from cloze_api.names import ENV_VERIFY_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Installation-wide values that end up in manifests and decisions. Times are in seconds."""

    train_image: str
    serve_image: str
    serve_gpu_image: str = ""
    """Of serving pods with a GPU; empty where the installation has none."""
    tracking_uri: str
    """MLflow's address."""
    pull_policy: str = ""
    """When a pod's image is pulled; empty leaves it to Kubernetes."""
    pull_secrets: tuple[str, ...] = ()
    """Secrets, in the namespaces of the pods, that give access to the images."""
    verify_keys: tuple[str, ...] = ()
    """Public keys as pods take them, of which one must have signed each artifact; none asks for no signature."""
    poll_seconds: float = 3.0
    """Between two looks at a run in progress."""
    wait_seconds: float = 10.0
    """Between two looks at something that no watch tells about: a registry alias, a user's claim."""

    def trust_environment(self) -> dict[str, str]:
        """The variable of a pod that names the keys; none without any.

        They are public, and the same in all namespaces: a ConfigMap would have to be copied into each.
        """
        return {ENV_VERIFY_KEY: " ".join(self.verify_keys)} if self.verify_keys else {}

    def pull_secret_references(self) -> dict[str, Any]:
        """The part of a pod's spec that names the secrets; empty without any."""
        return {"imagePullSecrets": [{"name": name} for name in self.pull_secrets]} if self.pull_secrets else {}

    def container_image(self, image: str) -> dict[str, Any]:
        """The part of a container that names its image."""
        return {"image": image, **({"imagePullPolicy": self.pull_policy} if self.pull_policy else {})}
