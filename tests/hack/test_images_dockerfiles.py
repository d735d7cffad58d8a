"""What the Dockerfiles and locks promise: nothing heavy, nothing privileged, nothing from an unnamed place."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cloze_server.providers import Provider

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hack"))

from images.catalog import IMAGES, Image  # noqa: E402 hack/ is no installed package
from images.docker import DOCKERFILE_BASE  # noqa: E402

DOCKERFILES = ("Dockerfile.train", "Dockerfile.serve")
EVERY_IMAGE = pytest.mark.parametrize("image", IMAGES.values(), ids=lambda image: image.name)


def stages(dockerfile: str) -> dict[str, list[str]]:
    """Instructions by stage, comments dropped and continued lines joined."""
    lines = [line for line in (ROOT / dockerfile).read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    found: dict[str, list[str]] = {"": []}
    for line in filter(None, joined.splitlines()):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = [line]
        else:
            found[list(found)[-1]].append(line)
    return found


def lineage(image: Image) -> list[str]:
    """The instructions of the image's stage, of those it stands on, and of those it copies from."""
    all_stages = stages(image.dockerfile)
    found, waiting = [], [image.target]
    while waiting:
        for line in all_stages.get(waiting.pop(), []):
            found.append(line)
            if match := re.search(r"^FROM (\S+)|--from=(\S+)", line):
                waiting.append(match[1] or match[2])
    return found


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", text, re.MULTILINE))


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_no_dockerfile_names_a_host(dockerfile: str) -> None:
    """A mirror, a proxy or a registry is the business of who builds."""
    text = (ROOT / dockerfile).read_text()
    without_labels = text.replace("org.opencontainers.image.", "")
    assert not re.findall(r"://|index-url|GOPROXY|PIP_|\b[\w-]+\.(?:io|com|org|dev|net)\b", without_labels)
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert set(bases) - set(stages(dockerfile)) == {"${BASE_IMAGE}"}
    assert re.findall(r"^ARG BASE_IMAGE=(\S+)$", text, re.MULTILINE) == ["python:3.11-slim"]


def test_both_dockerfiles_begin_alike_so_that_the_images_share_layers() -> None:
    assert stages("Dockerfile.train")["base"] == stages("Dockerfile.serve")["base"]


@EVERY_IMAGE
def test_an_image_runs_as_a_numbered_user_without_a_shell(image: Image) -> None:
    stage = stages(image.dockerfile)[image.target]
    assert "USER 65532:65532" in stage
    assert stage[-1] == f'ENTRYPOINT ["{image.scripts[0] if image.scripts else "mlflow"}"]'
    assert not [line for line in lineage(image) if line.startswith(("CMD", "SHELL"))]


@EVERY_IMAGE
def test_an_image_says_what_it_is(image: Image) -> None:
    labels = next(line for line in stages(image.dockerfile)[image.target] if line.startswith("LABEL"))
    named = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]+)"', labels))
    assert named["title"] == image.repository
    assert named["licenses"] == "Apache-2.0"
    assert named.keys() >= {"description", "version", "revision"}


@EVERY_IMAGE
def test_the_catalog_names_what_the_dockerfile_copies(image: Image) -> None:
    """A file that is copied but not counted in the tag would never reach a pod."""
    copied = [
        source
        for line in lineage(image)
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    installer = ["pyproject.toml", "hack/images/install.py"] if image.packages else []
    assert sorted(copied) == sorted(["requirements/uv.txt", image.lock, *installer, *image.packages])
    run = next((line for line in lineage(image) if "install.py" in line and line.startswith("RUN")), "")
    assert tuple(run.split()[5:]) == image.scripts


@EVERY_IMAGE
def test_the_build_context_has_what_is_copied(image: Image) -> None:
    admitted = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{package}" for package in image.packages} <= set(admitted)
    assert {"*", "!pyproject.toml", "!requirements/*.txt", "!hack/images/install.py"} <= set(admitted)


@EVERY_IMAGE
def test_libraries_are_installed_by_hash_and_never_compiled(image: Image) -> None:
    installs = [line for line in lineage(image) if "pip install" in line]
    assert len(installs) == 1
    assert installs[0].count("--require-hashes") == 2
    assert {"--no-deps", "--no-build", f"/opt/{image.lock}"} <= set(installs[0].split())


def test_the_serving_image_has_no_training_library() -> None:
    assert not [
        name for name in locked("serve") if re.match(r"torch|transformers|mlflow|nvidia|triton|onnxscript", name)
    ]


def said(target: str) -> list[str]:
    """What a stage of the serving images does, besides what names it."""
    return [line for line in stages("Dockerfile.serve")[target] if not line.startswith(("FROM", "LABEL", "ENV"))]


def test_the_serving_image_for_gpus_differs_by_the_runtime_alone() -> None:
    """And by what that runs on. Both runtimes are one module, of which the later installed would win."""
    plain, gpu = locked("serve"), locked("serve-gpu")
    assert plain.keys() - gpu.keys() == {"onnxruntime"}
    added = gpu.keys() - plain.keys()
    assert "onnxruntime-gpu" in added
    assert {name.split("-")[0] for name in added - {"onnxruntime-gpu"}} == {"nvidia"}
    assert {name: version for name, version in plain.items() if gpu.get(name, version) != version} == {}
    assert said("serve-gpu") == said("serve")
    assert [line.replace("serve-gpu", "serve") for line in said("serve-gpu-libraries")] == said("serve-libraries")
    environment = " ".join(line for line in stages("Dockerfile.serve")["serve-gpu"] if line.startswith("ENV"))
    assert "NVIDIA_DRIVER_CAPABILITIES=compute" in environment, "else the driver's library of CUDA is not handed in"


def test_the_serving_image_with_openvino_has_that_besides() -> None:
    """And is told to use it: who chooses the image chooses nothing else."""
    plain, more = locked("serve"), locked("serve-openvino")
    assert more.keys() - plain.keys() == {"openvino", "openvino-telemetry"}
    assert {name: version for name, version in plain.items() if more.get(name) != version} == {}
    environment = " ".join(line for line in stages("Dockerfile.serve")["serve-openvino"] if line.startswith("ENV"))
    assert f"CLOZE_PROVIDER={Provider.OPENVINO_BF16}" in environment
    assert said("serve-openvino") == said("serve")
    assert [line.replace("serve-openvino", "serve") for line in said("serve-openvino-libraries")] == said(
        "serve-libraries"
    )


@pytest.mark.parametrize("extra", ["operator", "mlflow"])
def test_the_images_that_do_not_train_have_no_torch(extra: str) -> None:
    assert not [name for name in locked(extra) if re.match(r"torch|nvidia|triton", name)]


@pytest.mark.parametrize("extra", ["train", "serve", "operator", "mlflow"])
def test_an_image_has_the_versions_that_the_tests_ran_with(extra: str) -> None:
    tested = locked("dev")
    assert {name: version for name, version in locked(extra).items() if tested.get(name) != version} == {}


def test_our_code_is_installed_as_pip_would(tmp_path: Path) -> None:
    """A launcher, bytecode that is never checked against its source, and the version for importlib.metadata."""
    source, environment = tmp_path / "source", tmp_path / "environment"
    (source / "cloze_server").mkdir(parents=True)
    (source / "cloze_server" / "__init__.py").write_text("")
    (source / "cloze_server" / "main.py").write_text("def main():\n    return 7\n")
    (source / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    installer = ROOT / "hack/images/install.py"
    subprocess.run([sys.executable, installer, source, environment, "cloze-server"], check=True)

    launcher = environment / "bin/cloze-server"
    assert launcher.stat().st_mode & 0o777 == 0o755
    site = next(environment.glob("lib/python3.*/site-packages"))
    ran = subprocess.run([sys.executable, launcher], env={"PYTHONPATH": str(site)}, check=False)
    assert ran.returncode == 7
    bytecode = next((site / "cloze_server/__pycache__").glob("main.*.pyc")).read_bytes()
    assert int.from_bytes(bytecode[4:8], "little") == 0b01, "hash-based, not checked (PEP 552)"
    assert b"/opt/cloze/lib/python3." in bytecode, "tracebacks name the file where it will be"
    [distribution] = importlib.metadata.distributions(name="cloze-mlops", path=[str(site)])
    assert distribution.version == "0.1.0"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_a_tag_counts_the_base_that_docker_takes(dockerfile: str) -> None:
    """The Dockerfile's default base is part of a tag made with Docker."""
    assert f"ARG BASE_IMAGE={DOCKERFILE_BASE}" in (ROOT / dockerfile).read_text().splitlines()
