"""Prometheus' and Alertmanager's programs, which the local cluster's packages bring."""

import os
import shutil

import pytest


def program(name: str) -> str:
    """Path of a program. Fails the test without it, or skips it where the cluster, and so its packages, aren't ours."""
    found = shutil.which(name)
    if found is None:
        text = f"{name} isn't installed: apt-get install --no-install-recommends prometheus prometheus-alertmanager"
        if os.environ.get("CLOZE_KUBECONFIG"):
            pytest.skip(text)
        pytest.fail(text)
    return found
