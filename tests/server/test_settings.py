"""Flags, environment and model references."""

import subprocess
import sys
from pathlib import Path

import pytest

from cloze_api.names import ENV_MODEL_CACHE, MODEL_CACHE_MOUNT
from cloze_api.task import Task
from cloze_server.exits import ExitCode, FatalError, write_termination_message
from cloze_server.flags import FLAGS
from cloze_server.reference import Dummy, Folder, RegisteredVersion, parse_reference
from cloze_server.settings import read


def test_the_environment_sets_what_flags_do_not() -> None:
    """As the operator starts it."""
    settings = read(
        ["--threads", "3"],
        {
            "CLOZE_MODEL_URI": "models:/mails/7",
            "CLOZE_THREADS": "2",
            "CLOZE_TIMEOUT_SECONDS": "12",
            "CLOZE_MODEL_CACHE": "/somewhere",
            "CLOZE_MODEL_DIGEST": "",
        },
    )
    assert (settings.model, settings.threads, settings.timeout_seconds) == (("models:/mails/7",), 3, 12.0)
    assert settings.cache == Path("/somewhere")
    assert settings.digest == ()


def test_each_model_has_its_digest() -> None:
    """In the order of the models, from flags or a variable."""
    one, two = ("sha256:" + letter * 64 for letter in "ab")
    models = {"CLOZE_MODEL_URI": "models:/small/3 models:/large/2"}
    assert read([], {**models, "CLOZE_MODEL_DIGEST": f"{one} {two}"}).digest == (one, two)
    assert read(["--digest", one, "--digest", two], models).digest == (one, two)
    with pytest.raises(FatalError, match="one for each model"):
        read([], {**models, "CLOZE_MODEL_DIGEST": one})


def test_the_cache_is_the_users_where_nothing_else_is_said() -> None:
    """Outside a pod nobody may write to the root."""
    assert read(["--model", "x"], {}).cache == Path("~/.cache/cloze/models")
    assert read(["--model", "x"], {"XDG_CACHE_HOME": "/caches"}).cache == Path("/caches/cloze/models")
    assert read(["--model", "x"], {"XDG_CACHE_HOME": "/caches", "CLOZE_MODEL_CACHE": "/cache"}).cache == Path("/cache")


def test_the_image_has_a_cache_that_its_user_can_write() -> None:
    """Where the operator mounts one, and of use without that."""
    stage = (Path(__file__).resolve().parents[2] / "Dockerfile.serve").read_text().partition(" AS serve\n")[2]
    stage = stage.partition("\nFROM ")[0]
    assert f"ENV {ENV_MODEL_CACHE}={MODEL_CACHE_MOUNT}\n" in stage
    assert f"--owner 65532 --group 65532 {MODEL_CACHE_MOUNT}\n" in stage


def test_start_imports_nothing_that_only_some_models_need() -> None:
    """`--help`, a folder and the stand-in don't wait for an HTTP client or the runtime."""
    heavy = {"httpx", "onnxruntime", "mlflow", "torch", "requests", "opentelemetry.sdk"}
    code = f"import sys, cloze_server.main; print(*({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_every_flag_has_an_environment_twin_of_its_own() -> None:
    """One table for both."""
    assert len({flag.env for flag in FLAGS}) == len(FLAGS)
    foreign = ("MLFLOW_TRACKING_URI", "OTEL_EXPORTER_OTLP_ENDPOINT")
    assert all(flag.env.startswith("CLOZE_") or flag.env in foreign for flag in FLAGS)


def test_a_service_link_of_kubernetes_does_not_set_the_port() -> None:
    """A Service named cloze makes CLOZE_PORT=tcp://… appear in every pod."""
    assert read(["--model", "x"], {"CLOZE_PORT": "tcp://10.0.0.1:80"}).port == 8080


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        ([], {}, "--model"),
        (["--model", "x", "--threads", "two"], {}, "--threads"),
        (["--model", "x"], {"CLOZE_THREADS": "0"}, "CLOZE_THREADS"),
        (["--model", "x", "--timeout-seconds", "nan"], {}, "--timeout-seconds"),
        (["--model", "x", "--max-queue-tokens", "20", "--max-batch-tokens", "21"], {}, "--max-queue-tokens"),
        (
            ["--model", "x", "--limit", "x:max-queue-tokens=20", "--max-batch-tokens", "21"],
            {},
            "--max-queue-tokens of x",
        ),
        (["--model", "x", "--limit", "x:max-inputs=0"], {}, "--limit is 'x:max-inputs=0': give 1 or more"),
        (["--model", "x"], {"CLOZE_LIMIT": "x:max-input=3"}, "LIMIT is one of"),
        (["--model", "x", "--limit", "x:max-inputs=3", "--limit", "x:max-inputs=4"], {}, "x has max-inputs already"),
        (["--model", "x", "--drain-seconds", "29"], {}, "--drain-seconds"),
        (["--model", "x"], {"CLOZE_TIMEOUT_SECONDS": "31"}, "--drain-seconds"),
        (["--model", "x", "--max-body-bytes", "99999999"], {}, "--max-bodies-bytes"),
        (["--model", "x", "--max-inputs", "1025"], {}, "--max-inputs"),
        (["--model", "x", "--timeout-seconds", "inf"], {}, "--timeout-seconds"),
        (["--model", "x", "--log-level", "loud"], {}, "--log-level"),
        (["--model", "x", "--digest", "sha256:../x"], {}, "--digest"),
        (["--modle", "x"], {}, "--modle"),
        (["--model", "x", "--cors-origins", "app.example"], {}, "--cors-origins"),
        (["--model", "x"], {"CLOZE_CORS_ORIGINS": "https://app.example/"}, "--cors-origins"),
        (["--model", "x", "--model", "y", "--digest", "sha256:" + "0" * 64], {}, "--digest"),
    ],
)
def test_a_wrong_setting_is_named(arguments: list[str], environment: dict[str, str], named: str) -> None:
    """The message says which one."""
    with pytest.raises(FatalError, match=named) as error:
        read(arguments, environment)
    assert error.value.code is ExitCode.CONFIGURATION


def test_model_references() -> None:
    """A version, a folder, or a stand-in; the latter two may be named."""
    assert parse_reference("models:/my-model/12") == RegisteredVersion("my-model", "12")
    assert parse_reference("/models/x") == Folder(Path("/models/x"))
    assert parse_reference("dummy:") == Dummy(Task.SEQUENCE_CLASSIFICATION, 0.0)
    assert parse_reference("dummy:fill-mask?seconds=0.25") == Dummy(Task.FILL_MASK, 0.25)
    assert parse_reference("spam=/models/x=y") == Folder(Path("/models/x=y"), "spam")
    assert parse_reference("./spam=1") == Folder(Path("./spam=1"))
    assert parse_reference("tags=dummy:token-classification") == Dummy(Task.TOKEN_CLASSIFICATION, 0.0, "tags")
    for wrong in (
        "spam=models:/m/1",
        "models:/m",
        "models:/m@champion",
        "models:/m/0",
        "models:/a/b/1",
        "dummy:poetry",
        "my spam=/models/x",
        "-spam=/models/x",
    ):
        with pytest.raises(FatalError):
            parse_reference(wrong)


def test_the_termination_message_is_one_line_within_the_kubelets_limit(tmp_path: Path) -> None:
    """And it is written only where the kubelet has made the file."""
    error = FatalError(ExitCode.ARTIFACT_INVALID, "DigestMismatch", "long\n" * 2000)
    write_termination_message(tmp_path / "absent", error)
    assert not (tmp_path / "absent").exists()
    path = tmp_path / "termination-log"
    path.touch()
    write_termination_message(path, error)
    text = path.read_text()
    assert text.count("\n") == 1
    assert len(text) < 4096
    assert '"reason": "DigestMismatch"' in text
