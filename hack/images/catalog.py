"""The images: what each is made of."""

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
    # Only built and pushed when somebody asks for it.
    optional: bool = False
    # Whether the chart's `images` name it; else a ModelDeployment does.
    charted: bool = True
    # What a person should expect when nothing is cached, and when the registry has nothing of it.
    cold: str
    upload: str = "a few seconds"

    @property
    def repository(self) -> str:
        return f"cloze-{self.name}"

    @property
    def value(self) -> str:
        """The key among the chart's `images`."""
        first, *others = self.name.split("-")
        return first + "".join(map(str.title, others))


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
            name="serve-gpu",
            dockerfile="Dockerfile.serve",
            target="serve-gpu",
            lock="requirements/serve-gpu.txt",
            packages=("crds/cloze_api", "server/cloze_server"),
            scripts=("cloze-server",),
            optional=True,
            cold="2 to 4 minutes, and 1.5 GB to fetch when the wheels are not cached",
            upload="a minute or two",
        ),
        Image(
            name="serve-openvino",
            dockerfile="Dockerfile.serve",
            target="serve-openvino",
            lock="requirements/serve-openvino.txt",
            packages=("crds/cloze_api", "server/cloze_server"),
            scripts=("cloze-server",),
            optional=True,
            charted=False,
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
