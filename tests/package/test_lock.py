"""The locks hold what `pyproject.toml` asks for: an image is installed from its lock alone."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGES = ("operator", "train", "serve", "serve-gpu", "serve-openvino", "mlflow")


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", text, re.MULTILINE))


def asked(extra: str) -> list[Requirement]:
    """What an extra asks for, and the extras of ours within it."""
    found = [Requirement(line) for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra])]
    within = [each for requirement in found if requirement.name == PROJECT["name"] for each in requirement.extras]
    return [*found, *(requirement for each in within for requirement in asked(each))]


@pytest.mark.parametrize("extra", [*IMAGES, "dev"])
def test_every_requirement_is_locked_to_a_version_that_it_allows(extra: str) -> None:
    """Run `make lock` after a change of the dependencies."""
    locked = pins(extra)
    for requirement in asked(extra):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name == PROJECT["name"]:
            continue
        assert name in locked, f"requirements/{extra}.txt lacks {name}"
        assert requirement.specifier.contains(locked[name], prereleases=True), f"{name} {locked[name]}"


@pytest.mark.parametrize("extra", IMAGES)
def test_an_image_has_the_versions_that_were_tested(extra: str) -> None:
    """One version of a package everywhere: what the tests import is what the images run."""
    tested = pins("dev")
    others = {name: version for name, version in pins(extra).items() if tested.get(name) != version}
    # Nothing here runs on a GPU, and the module that the tests import is the other one's.
    assert others.keys() == ({"onnxruntime-gpu", "nvidia-curand"} if extra == "serve-gpu" else set())


@pytest.mark.parametrize("lock", [*IMAGES, "dev", "uv"])
def test_every_pin_has_a_digest(lock: str) -> None:
    """Nothing is installed that isn't the very file which was locked."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[a-z0-9])", text.strip())
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry and "==" in entry] == []
