"""Settings come from the environment, and a wrong one is named."""

import pytest

from cloze_operator.settings import VARIABLES, SettingsError, read

GOOD = {"CLOZE_TRAIN_IMAGE": "train", "CLOZE_SERVE_IMAGE": "serve", "MLFLOW_TRACKING_URI": "http://mlflow:5000/"}


def test_defaults() -> None:
    """Three variables are enough, and an empty one is not set."""
    settings = read({**GOOD, "CLOZE_NAMESPACES": "", "CLOZE_LOG_LEVEL": ""})
    assert settings.platform.tracking_uri == "http://mlflow:5000"
    assert (settings.platform.pull_policy, settings.platform.pull_secrets) == ("", ())
    assert (settings.namespaces, settings.workers, settings.port) == ((), 8, 8081)


def test_everything_can_be_set() -> None:
    """Each variable has its effect."""
    settings = read(
        {
            **GOOD,
            "CLOZE_NAMESPACES": "a, b,",
            "CLOZE_IMAGE_PULL_POLICY": "always",
            "CLOZE_IMAGE_PULL_SECRETS": "one,two",
            "CLOZE_RESYNC_SECONDS": "5",
            "CLOZE_OPERATOR_WORKERS": "2",
            "CLOZE_OPERATOR_PORT": "9",
            "CLOZE_LOG_LEVEL": "DEBUG",
        }
    )
    assert (settings.namespaces, settings.resync_seconds) == (("a", "b"), 5)
    assert (settings.platform.pull_policy, settings.platform.pull_secrets) == ("Always", ("one", "two"))
    assert (settings.workers, settings.port, settings.log_level) == (2, 9, "debug")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLOZE_TRAIN_IMAGE", ""),
        ("MLFLOW_TRACKING_URI", "mlflow:5000"),
        ("CLOZE_RESYNC_SECONDS", "soon"),
        ("CLOZE_RESYNC_SECONDS", "nan"),
        ("CLOZE_OPERATOR_WORKERS", "0"),
        ("CLOZE_IMAGE_PULL_POLICY", "sometimes"),
        ("CLOZE_LOG_LEVEL", "loud"),
    ],
)
def test_mistake_is_named(name: str, value: str) -> None:
    """The message has the variable's name."""
    with pytest.raises(SettingsError, match=name):
        read({**GOOD, name: value})


def test_every_variable_is_documented_once() -> None:
    """The help lists them all."""
    names = [variable.name for variable in VARIABLES]
    assert len(names) == len(set(names))
    assert set(GOOD) <= set(names)
