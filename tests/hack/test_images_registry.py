"""What is asked of a registry, and what a prune takes away: a registry of a few dicts answers over real HTTP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hack"))

from images import registry  # noqa: E402 hack/ is no installed package
from images.console import ImageError, work  # noqa: E402
from images.registry import LocalRegistry  # noqa: E402


@dataclass
class Store:
    """Tags and manifests of one repository, `cloze-serve`."""

    tags: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, list[str]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)

    def add(self, tag: str, digest: str, layers: list[str]) -> None:
        self.tags[tag] = digest
        self.manifests[digest] = layers

    def manifest(self, digest: str) -> dict[str, object]:
        config, *layers = [{"digest": layer, "size": 10} for layer in self.manifests[digest]]
        return {"config": config, "layers": layers}


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def local(store: Store) -> Iterator[LocalRegistry]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            *_, kind, name = self.path.split("/")
            status, headers, body = 404, {}, b"{}"
            if self.path == "/v2/":
                status = 200
            elif self.command == "DELETE":
                status = 202
                store.deleted.append(f"{kind}/{name}")
                store.tags = {tag: digest for tag, digest in store.tags.items() if digest != name}
            elif kind == "tags" and "cloze-serve" in self.path:
                status, body = 200, json.dumps({"tags": list(store.tags) or None}).encode()
            elif (digest := store.tags.get(name, name)) in store.manifests and "oci.image" in self.headers["Accept"]:
                status, headers = 200, {"Docker-Content-Digest": digest}
                body = json.dumps(store.manifest(digest)).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_DELETE = answer  # noqa: N815 the base class looks for these names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base class named it
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield LocalRegistry(f"localhost:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_a_tag_is_found_or_not(store: Store, local: LocalRegistry) -> None:
    store.add("1", "sha256:one", ["config", "layer"])
    assert local.digest("cloze-serve", "1") == "sha256:one"
    assert local.digest("cloze-serve", "2") is None


def test_a_repository_without_tags_has_none(local: LocalRegistry) -> None:
    """A registry says null for a repository whose tags were all deleted, and 404 for one that it never had."""
    assert local.tags("cloze-serve") == []
    assert local.tags("cloze-train") == []


def test_a_proxy_of_the_environment_is_not_asked(local: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert local.answers()


def test_nobody_listening_is_no_answer() -> None:
    assert not LocalRegistry("localhost:9").answers()


def test_forgetting_spares_what_the_current_image_uses(store: Store, local: LocalRegistry) -> None:
    store.add("old", "sha256:old", ["old-config", "libraries", "old-code"])
    store.add("new", "sha256:new", ["new-config", "libraries", "new-code"])
    registry.forget(local, {"cloze-serve": "new", "cloze-train": "none"})
    assert sorted(store.deleted) == ["blobs/old-code", "blobs/old-config", "manifests/sha256:old"]


def test_a_second_tag_of_the_current_image_is_no_reason_to_delete_it(store: Store, local: LocalRegistry) -> None:
    store.add("old", "sha256:same", ["config", "code"])
    store.add("new", "sha256:same", ["config", "code"])
    registry.forget(local, {"cloze-serve": "new"})
    assert store.deleted == []


def test_a_failed_build_shows_the_end_of_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    failing = [sys.executable, "-c", "print('no space left'); raise SystemExit(1)"]
    with pytest.raises(ImageError, match=r"building serve failed; all of its output is in .*serve\.log"):
        work("building serve", failing, tmp_path / "logs" / "serve.log")
    assert "no space left" in capfd.readouterr().err


def test_list_prints_one_reference_for_each_image() -> None:
    """Other programs read this, so stdout holds nothing else; the system's Python is enough."""
    command = ["python3", ROOT / "hack/images", "list", "--json", "--registry", "registry.example/team"]
    references = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert list(references) == ["train", "serve", "operator", "mlflow"]
    assert references["serve"].startswith("registry.example/team/cloze-serve:0.1.0-")


def test_optional_images_are_built_only_when_asked_for() -> None:
    """Gigabytes that most installations don't need. The key is the chart's."""

    def listed(*more: str) -> list[str]:
        command = ["python3", ROOT / "hack/images", "list", "--json", *more]
        return list(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))

    assert listed("serve-gpu") == ["serveGpu"]
    assert listed("--all") == ["train", "serve", "serveGpu", "serveOpenvino", "operator", "mlflow"]


def test_an_unknown_image_is_refused_with_the_known_ones() -> None:
    done = subprocess.run(
        ["python3", ROOT / "hack/images", "list", "sreve"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        done.stderr
        == "error: no image is called sreve: choose from train, serve, serve-gpu, serve-openvino, operator, mlflow\n"
    )


def test_docker_builds_tags_and_pushes(tmp_path: Path) -> None:
    """With an engine, buildx makes the target on the Dockerfile's own base; the chart's values are printed."""
    docker, calls = tmp_path / "bin/docker", tmp_path / "calls"
    docker.parent.mkdir()
    # Knows no image, so everything is built.
    docker.write_text(f'#!/bin/sh\necho "$@" >>{calls}\ntest "$1" != image\n')
    docker.chmod(0o755)
    env = {"PATH": f"{docker.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = ["python3", ROOT / "hack/images", "push", "operator", "--registry", "registry.example/team"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)

    first, reference = done.stdout.split("\n")[:2]
    assert first == "images:"
    pushed = reference.removeprefix("  operator: ")
    stored = pushed.replace("registry.example/team", "localhost")
    info, inspect, build, tag, push = calls.read_text().splitlines()
    assert (info, inspect) == ("info", f"image inspect {stored}")
    assert build.startswith("buildx build --load --progress plain --target operator --file ")
    assert f"--tag {stored}" in build
    assert "BASE_IMAGE" not in build
    assert (tag, push) == (f"tag {stored} {pushed}", f"push {pushed}")


@pytest.mark.skipif(os.geteuid() != 0, reason="building without Docker needs root")
def test_layers_that_something_else_changed_are_built_anew(tmp_path: Path) -> None:
    """A push that finds them damaged isn't the end: the store is emptied, and the image is built and pushed."""
    folder, calls, sound = tmp_path / "bin", tmp_path / "calls", tmp_path / "sound"
    folder.mkdir()
    script = f"""#!/bin/sh
    shift 6
    echo "$1 $2" >>{calls}
    case "$1" in
      push) test -e {sound} || {{ echo 'Error: file integrity checksum failed for "a"'; exit 125; }} ;;
      inspect) ! test -e {tmp_path}/emptied || test -e {sound} ;;
      rmi) touch {tmp_path}/emptied ;;
      build) touch {sound} ;;
    esac
    """
    for name in ("buildah", "debootstrap", "update-ca-certificates"):
        program = folder / name
        program.write_text(script.lstrip())
        program.chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path), "CLOZE_BUILDER": "buildah"}
    env |= {"CLOZE_BASE_IMAGE": "registry.example/base"}
    command = ["python3", ROOT / "hack/images", "push", "operator", "--registry", "registry.example/team"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "building anew" in done.stderr
    asked = [line.split()[0] for line in calls.read_text().splitlines()]
    assert asked == ["rm", "inspect", "push", "rmi", "inspect", "build", "images", "push"]


@pytest.mark.e2e
@pytest.mark.skipif(not shutil.which("buildah"), reason="measures the builder that this machine has without Docker")
def test_a_changed_line_is_built_and_pushed(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The way from an editor to the registry; the rest of the way to a pod is a pull of the same small layer."""
    for part in ("hack/images", "crds/cloze_api", "operator/cloze_operator", "trainer/cloze_trainer"):
        shutil.copytree(ROOT / part, tmp_path / part)
    for part in ("server/cloze_server", "hack/cluster", "requirements"):
        shutil.copytree(ROOT / part, tmp_path / part)
    for part in ("Dockerfile.train", "Dockerfile.serve", "pyproject.toml"):
        shutil.copy(ROOT / part, tmp_path / part)
    push = ["python3", tmp_path / "hack/images", "push", "operator"]
    subprocess.run(push, check=True)
    with (tmp_path / "operator/cloze_operator/__init__.py").open("a") as file:
        file.write(f"# {time.time()}\n")
    began = time.monotonic()
    reference = subprocess.run(push, capture_output=True, text=True, check=True).stdout.split()[1]
    took = time.monotonic() - began

    host, _, rest = reference.partition("/")
    repository, _, tag = rest.partition(":")
    registry_asked = LocalRegistry(host)
    digest = registry_asked.digest(repository, tag)
    assert digest
    registry_asked.delete(repository, "manifests", digest)
    record_property("seconds", round(took, 1))


def test_a_cluster_of_somebody_else_needs_a_registry_that_it_reaches(tmp_path: Path) -> None:
    """Nothing is built or started before that is said."""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CLOZE_KUBECONFIG": "/theirs"}
    command = ["python3", ROOT / "hack/images", "push"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "set CLOZE_REGISTRY" in done.stderr
    assert list(tmp_path.iterdir()) == []
