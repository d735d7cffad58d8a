"""The tag of an image follows what goes into it, and nothing else."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hack"))

from images import base, builder, content, registry  # noqa: E402 hack/ is no installed package
from images.catalog import IMAGES  # noqa: E402
from images.console import ImageError  # noqa: E402

PARTS = (
    *("Dockerfile.train", "Dockerfile.serve", ".dockerignore", "pyproject.toml", "requirements", "README.md"),
    *("hack/images", "crds/cloze_api", "operator/cloze_operator", "trainer/cloze_trainer", "server/cloze_server"),
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what images are made of."""
    root = tmp_path / "checkout"
    for part in PARTS:
        source, copy = ROOT / part, root / part
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    return root


def tags(root: Path, on: str = "base") -> dict[str, str]:
    return {name: content.tag(image, root, on) for name, image in IMAGES.items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_equal_content_has_equal_tags_wherever_it_lies(checkout: Path) -> None:
    """Neither the folder nor the time of a checkout reaches the tag."""
    assert tags(checkout) == tags(ROOT)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("crds/cloze_api/__init__.py", {"train", "serve", "serve-gpu", "serve-openvino", "operator"}),
        ("trainer/cloze_trainer/__init__.py", {"train"}),
        ("server/cloze_server/__init__.py", {"serve", "serve-gpu", "serve-openvino"}),
        ("operator/cloze_operator/__init__.py", {"operator"}),
        ("requirements/train.txt", {"train"}),
        ("requirements/serve.txt", {"serve"}),
        ("requirements/serve-gpu.txt", {"serve-gpu"}),
        ("requirements/serve-openvino.txt", {"serve-openvino"}),
        ("requirements/operator.txt", {"operator"}),
        ("requirements/mlflow.txt", {"mlflow"}),
        ("requirements/dev.txt", set()),
        ("Dockerfile.train", {"train"}),
        ("Dockerfile.serve", {"serve", "serve-gpu", "serve-openvino", "operator", "mlflow"}),
        ("hack/images/install.py", {"train", "serve", "serve-gpu", "serve-openvino", "operator"}),
        ("hack/images/command.py", set()),
        ("README.md", set()),
    ],
)
def test_a_changed_file_changes_the_images_made_of_it(checkout: Path, path: str, expected: set[str]) -> None:
    before = tags(checkout)
    with (checkout / path).open("a") as file:
        file.write("# one line more\n")
    assert changed(before, tags(checkout)) == expected


def test_a_new_file_and_a_renamed_one_change_the_tag(checkout: Path) -> None:
    """Names count, not only bytes."""
    first = tags(checkout)
    new = checkout / "server/cloze_server/added.py"
    new.write_text("")
    second = tags(checkout)
    new.rename(new.with_name("renamed.py"))
    third = tags(checkout)
    assert len({first["serve"], second["serve"], third["serve"]}) == 3


def test_bytes_that_move_to_the_neighbouring_file_change_the_tag(checkout: Path) -> None:
    folder = checkout / "server/cloze_server"
    (folder / "zz1.py").write_text("a = 1\nb = 2\n")
    (folder / "zz2.py").write_text("")
    before = tags(checkout)
    (folder / "zz1.py").write_text("a = 1\n")
    (folder / "zz2.py").write_text("b = 2\n")
    assert changed(before, tags(checkout)) == {"serve", "serve-gpu", "serve-openvino"}


def test_bytecode_does_not_change_the_tag(checkout: Path) -> None:
    before = tags(checkout)
    cached = checkout / "server/cloze_server/__pycache__"
    cached.mkdir()
    (cached / "main.cpython-311.pyc").write_bytes(b"bytecode")
    assert tags(checkout) == before


def test_of_the_project_file_only_version_and_scripts_count(checkout: Path) -> None:
    before = tags(checkout)
    project = checkout / "pyproject.toml"
    text = project.read_text()
    project.write_text(text.replace("line-length = 120", "line-length = 100"))
    assert tags(checkout) == before
    project.write_text(
        text.replace('cloze-server = "cloze_server.main:main"', 'cloze-server = "cloze_server.cli:main"')
    )
    assert changed(before, tags(checkout)) == {"serve", "serve-gpu", "serve-openvino"}
    project.write_text(text.replace('version = "0.1.0"', 'version = "9.9.9"'))
    assert changed(before, tags(checkout)) == set(IMAGES)
    assert all(tag.startswith("9.9.9-") for tag in tags(checkout).values())


def test_another_base_changes_every_tag() -> None:
    assert changed(tags(ROOT, "one"), tags(ROOT, "two")) == set(IMAGES)


def test_the_key_of_the_base_is_stable() -> None:
    assert base.key() == base.key()
    assert base.key().startswith(f"{base.SUITE}-")


def test_a_missing_package_is_named(checkout: Path) -> None:
    shutil.rmtree(checkout / "server/cloze_server")
    with pytest.raises(FileNotFoundError, match=r"serve is made of server/cloze_server"):
        tags(checkout)


def test_the_registry_comes_from_the_flag_then_the_variable_then_the_port() -> None:
    env = {"CLOZE_REGISTRY": "registry.example/team/", "CLOZE_REGISTRY_PORT": "5099"}
    assert registry.address(env, "ghcr.example/me") == "ghcr.example/me"
    assert registry.address(env) == "registry.example/team"
    assert registry.address({"CLOZE_REGISTRY_PORT": "5099"}) == "localhost:5099"
    assert registry.address({}) == "localhost:5055"


def test_only_a_loopback_registry_is_spoken_to_without_tls() -> None:
    assert registry.is_local("localhost:5055")
    assert not registry.is_local("localhost.example:5055")
    assert not registry.is_local("registry.example/localhost:5055")


def test_the_builder_can_be_chosen() -> None:
    assert builder.name({"CLOZE_BUILDER": "docker"}) == "docker"
    assert builder.name({"CLOZE_BUILDER": "buildah"}) == "buildah"
    with pytest.raises(ImageError, match="docker or buildah, not 'kaniko'"):
        builder.name({"CLOZE_BUILDER": "kaniko"})
