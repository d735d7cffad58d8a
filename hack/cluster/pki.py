"""Keys and certificates, made once per cluster with the openssl command: the standard library can't sign."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

from .process import run
from .settings import Settings

_DAYS = "3650"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")

# By its service's name the API server asks metrics-server.
_METRICS_NAMES = "DNS:metrics-server.kube-system.svc"

# Who connects to the API server, and the groups it is in.
CLIENTS = {
    "admin": ("cloze-admin", "system:masters"),
    "kubelet-client": ("kube-apiserver-kubelet-client", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", "system:node-proxier"),
    "coredns": ("cloze:coredns", ""),
    "storage": ("cloze:storage", ""),
    "metrics": ("cloze:metrics", ""),
    "prometheus": ("cloze:prometheus", ""),
}


def create(settings: Settings, folder: Path) -> None:
    """Make every key that is not there yet; the cluster's authority comes first."""
    folder.mkdir(parents=True, exist_ok=True)
    old = os.umask(0o077)
    try:
        for authority in ("ca", "front-proxy-ca"):
            if not (folder / f"{authority}.crt").exists():
                _self_signed(folder, authority)
        if not (folder / "service-account.key").exists():
            run("openssl", "genrsa", "-out", str(folder / "service-account.key"), "2048")
        _issue(folder, "kubelet", f"/O=system:nodes/CN=system:node:{settings.node_name}", _kubelet_names(settings))
        _issue(folder, "apiserver", "/CN=kube-apiserver", _api_names(settings))
        _issue(folder, "metrics-server", "/CN=metrics-server", _METRICS_NAMES)
        _issue(folder, "front-proxy", "/CN=front-proxy-client", "", authority="front-proxy-ca")
        for name, (user, group) in CLIENTS.items():
            _issue(folder, name, f"/O={group}/CN={user}" if group else f"/CN={user}", "")
    finally:
        os.umask(old)


def kubeconfig(settings: Settings, folder: Path, client: str) -> str:
    """A self-contained kubeconfig; JSON is YAML, and the standard library writes only the one."""
    name = settings.name
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": name,
                "cluster": {
                    "server": settings.api_url,
                    "certificate-authority-data": _encoded(folder / "ca.crt"),
                },
            }
        ],
        "users": [
            {
                "name": client,
                "user": {
                    "client-certificate-data": _encoded(folder / f"{client}.crt"),
                    "client-key-data": _encoded(folder / f"{client}.key"),
                },
            }
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": client, "namespace": "default"}}],
        "current-context": name,
    }
    return json.dumps(document, indent=2) + "\n"


def _self_signed(folder: Path, name: str) -> None:
    run(
        *("openssl", "req", "-x509", "-days", _DAYS, "-subj", f"/CN=cloze-{name}", *_NEW_KEY),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"),
        *("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")),
    )


def _issue(folder: Path, name: str, subject: str, alternatives: str, authority: str = "ca") -> None:
    if (folder / f"{name}.crt").exists():
        return
    usage = "serverAuth,clientAuth" if alternatives else "clientAuth"
    run(
        *("openssl", "req", "-x509", "-days", _DAYS, "-subj", subject, *_NEW_KEY),
        *("-CA", str(folder / f"{authority}.crt"), "-CAkey", str(folder / f"{authority}.key")),
        *("-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"extendedKeyUsage={usage}"),
        *(("-addext", f"subjectAltName={alternatives}") if alternatives else ()),
        *("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")),
    )


def _api_names(settings: Settings) -> str:
    service = "kubernetes"
    names = ["localhost", settings.node_name, service, f"{service}.default", f"{service}.default.svc"]
    names.append(f"{service}.default.svc.cluster.local")
    addresses = ["127.0.0.1", str(settings.api_service), str(settings.node_address)]
    return ",".join([f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses])


def _kubelet_names(settings: Settings) -> str:
    return f"DNS:{settings.node_name},IP:{settings.node_address}"


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
