"""Dynamic volumes: the local-path provisioner as a daemon of the node, one folder per claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import manifests
from .runtime import BUSYBOX_IMAGE

CLASS = "local-path"
VOLUMES = "/var/lib/volumes"
NAMESPACE = "local-path-storage"
_ACCOUNT = "local-path-provisioner"
_PROVISIONER = "cloze.dev/local-path"
_SCRIPTS = "local-path-scripts"
_USER = "cloze:storage"
_READ = ["get", "list", "watch"]
_RULES = [
    manifests.rule("", ["nodes", "persistentvolumeclaims", "configmaps"], _READ),
    manifests.rule("", ["persistentvolumes", "pods", "endpoints"], [*_READ, "create", "update", "patch", "delete"]),
    manifests.rule("", ["pods/log"], ["get"]),
    manifests.rule("", ["events"], ["create", "patch", "update"]),
    manifests.rule("events.k8s.io", ["events"], ["create", "patch", "update"]),
    manifests.rule("coordination.k8s.io", ["leases"], [*_READ, "create", "update", "patch"]),
    manifests.rule("storage.k8s.io", ["storageclasses"], _READ),
]


def arguments(folder: str) -> list[str]:
    return [
        "start",
        f"--config={folder}/storage.json",
        f"--kubeconfig={folder}/storage.kubeconfig",
        f"--provisioner-name={_PROVISIONER}",
        f"--namespace={NAMESPACE}",
        f"--configmap-name={_SCRIPTS}",
        f"--service-account-name={_ACCOUNT}",
        f"--helper-image={BUSYBOX_IMAGE}",
        f"--helper-pod-file={folder}/storage-pod.json",
    ]


def write(folder: Path) -> None:
    # A shared path, which one node always has, is what makes the provisioner accept ReadWriteMany as well.
    (folder / "storage.json").write_text(json.dumps({"sharedFileSystemPath": VOLUMES}) + "\n")
    (folder / "storage-pod.json").write_text(json.dumps(_helper_pod()) + "\n")


def objects() -> list[dict[str, Any]]:
    meta = {"name": _ACCOUNT, "namespace": NAMESPACE}
    return [
        manifests.namespace(NAMESPACE),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta, "automountServiceAccountToken": False},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": _SCRIPTS, "namespace": NAMESPACE},
            "data": {
                # Any user of any pod may write, as on most clusters' volumes with an fsGroup.
                "setup": '#!/bin/sh\nset -eu\nmkdir -m 0777 -p "$VOL_DIR"\n',
                "teardown": '#!/bin/sh\nset -eu\nrm -rf "$VOL_DIR"\n',
            },
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": _PROVISIONER,
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete",
        },
        *manifests.rights(_USER, _RULES),
    ]


def _helper_pod() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "helper-pod"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "helper-pod", "image": BUSYBOX_IMAGE, "imagePullPolicy": "IfNotPresent"}],
        },
    }
