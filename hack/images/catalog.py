"""The four images: what each is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image. `packages` and `scripts` repeat what its Dockerfile copies, a test compares them."""

    name: str
    dockerfile: str
    target: str
    lock: str
    packages: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    # What a person should expect when nothing is cached, and when the registry has nothing of it.
    cold: str
    upload: str = "a few seconds"

    @property
    def repository(self) -> str:
        return f"cloze-{self.name}"


IMAGES = {
    image.name: image
    for image in (
        Image(
            name="train",
            dockerfile="Dockerfile.train",
            target="train",
            lock="requirements/train.txt",
            packages=("crds/cloze_api", "trainer/cloze_trainer"),
            scripts=("cloze-train",),
            cold="3 to 6 minutes, and 3 GB to fetch when the wheels are not cached",
            upload="a minute or two",
        ),
        Image(
            name="serve",
            dockerfile="Dockerfile.serve",
            target="serve",
            lock="requirements/serve.txt",
            packages=("crds/cloze_api", "server/cloze_server"),
            scripts=("cloze-server",),
            cold="half a minute",
        ),
        Image(
            name="operator",
            dockerfile="Dockerfile.serve",
            target="operator",
            lock="requirements/operator.txt",
            packages=("crds/cloze_api", "operator/cloze_operator"),
            scripts=("cloze-operator",),
            cold="half a minute",
        ),
        Image(
            name="mlflow",
            dockerfile="Dockerfile.serve",
            target="mlflow",
            lock="requirements/mlflow.txt",
            cold="a minute",
        ),
    )
}
