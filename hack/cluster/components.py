"""The node's daemons: how each is started, and the configuration files of those that read one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import monitoring, pki, resource_metrics, runtime, storage
from .settings import Settings

BIN = "/run/cloze/bin"
KEYS = "/run/cloze/pki"
ETC = runtime.ETC
DNS_READY_PORT = 8181
_CLIENTS = ("controller-manager", "scheduler", "proxy", "coredns", "storage", "kubelet", "metrics", "prometheus")
FOLDERS = ["/var/lib/kubelet", "/var/lib/containerd", storage.VOLUMES, *monitoring.DATA, "/var/log/pods"]


def units(settings: Settings) -> list[dict[str, Any]]:
    """Every daemon in the order of starting; `after` is what must answer before its first start."""
    api_up = f"{settings.api_url}/readyz"
    return [
        _unit("containerd", ["/usr/bin/env", "containerd", "--config", f"{ETC}/containerd.toml"]),
        _unit("etcd", [f"{BIN}/etcd", *_etcd(settings)]),
        _unit("kube-apiserver", [f"{BIN}/kube-apiserver", *_apiserver(settings)]),
        _unit("kubelet", [f"{BIN}/kubelet", *_kubelet(settings)], after=api_up),
        _unit("kube-controller-manager", [f"{BIN}/kube-controller-manager", *_controllers(settings)], after=api_up),
        _unit("kube-scheduler", [f"{BIN}/kube-scheduler", *_scheduler()], after=api_up),
        _unit("kube-proxy", [f"{BIN}/kube-proxy", f"--config={ETC}/kube-proxy.json"], after=api_up),
        _unit("coredns", [f"{BIN}/coredns", "-conf", f"{ETC}/Corefile"], after=api_up),
        _unit("local-path-provisioner", [f"{BIN}/local-path-provisioner", *storage.arguments(ETC)], after=api_up),
        _unit("metrics-server", [f"{BIN}/metrics-server", *resource_metrics.arguments(ETC, KEYS)], after=api_up),
        _unit("prometheus", [f"{BIN}/prometheus", *monitoring.prometheus(settings, ETC)], after=api_up),
        # From Debian, as containerd is.
        _unit("alertmanager", ["/usr/bin/env", "prometheus-alertmanager", *monitoring.alertmanager(settings, ETC)]),
    ]


def write(settings: Settings, folder: Path, keys: Path, nameservers: list[str]) -> None:
    """Write every configuration file that the daemons read from `folder`."""
    for client in _CLIENTS:
        path = folder / f"{client}.kubeconfig"
        path.write_text(pki.kubeconfig(settings, keys, client))
        path.chmod(0o600)
    _write_json(folder / "kubelet.json", _kubelet_configuration(settings))
    _write_json(folder / "kube-proxy.json", _proxy_configuration(settings))
    (folder / "Corefile").write_text(_corefile(settings, nameservers))
    (folder / "resolv.conf").write_text("".join(f"nameserver {server}\n" for server in nameservers))
    storage.write(folder)
    monitoring.write(settings, folder, ETC, KEYS)


def _unit(name: str, argv: list[str], after: str = "") -> dict[str, Any]:
    return {"name": name, "argv": argv, "after": after}


def _etcd(settings: Settings) -> list[str]:
    client = f"http://127.0.0.1:{settings.etcd_port}"
    peer = f"http://127.0.0.1:{settings.etcd_peer_port}"
    return [
        "--name=node",
        "--data-dir=/var/lib/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=node={peer}",
        # A lost second after a power cut is worth less than every write waiting for the disk.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _apiserver(settings: Settings) -> list[str]:
    return [
        "--bind-address=0.0.0.0",
        f"--advertise-address={settings.node_address}",
        f"--secure-port={settings.api_port}",
        f"--etcd-servers=http://127.0.0.1:{settings.etcd_port}",
        f"--service-cluster-ip-range={settings.service_cidr}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--client-ca-file={KEYS}/ca.crt",
        f"--tls-cert-file={KEYS}/apiserver.crt",
        f"--tls-private-key-file={KEYS}/apiserver.key",
        f"--kubelet-client-certificate={KEYS}/kubelet-client.crt",
        f"--kubelet-client-key={KEYS}/kubelet-client.key",
        f"--kubelet-certificate-authority={KEYS}/ca.crt",
        # By its name the node can't be found, so logs and exec would fail.
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={KEYS}/service-account.key",
        f"--service-account-signing-key-file={KEYS}/service-account.key",
        f"--requestheader-client-ca-file={KEYS}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={KEYS}/front-proxy.crt",
        f"--proxy-client-key-file={KEYS}/front-proxy.key",
        "--profiling=false",
    ]


def _controllers(settings: Settings) -> list[str]:
    kubeconfig = f"{ETC}/controller-manager.kubeconfig"
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        # There is one, so nothing is elected; waiting for a lease would only delay the start.
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--root-ca-file={KEYS}/ca.crt",
        f"--client-ca-file={KEYS}/ca.crt",
        f"--requestheader-client-ca-file={KEYS}/front-proxy-ca.crt",
        f"--cluster-signing-cert-file={KEYS}/ca.crt",
        f"--cluster-signing-key-file={KEYS}/ca.key",
        f"--service-account-private-key-file={KEYS}/service-account.key",
        f"--service-cluster-ip-range={settings.service_cidr}",
        "--profiling=false",
    ]


def _scheduler() -> list[str]:
    kubeconfig = f"{ETC}/scheduler.kubeconfig"
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--profiling=false",
    ]


def _kubelet(settings: Settings) -> list[str]:
    return [
        f"--config={ETC}/kubelet.json",
        f"--kubeconfig={ETC}/kubelet.kubeconfig",
        f"--hostname-override={settings.node_name}",
        f"--node-ip={settings.node_address}",
        "--root-dir=/var/lib/kubelet",
    ]


def _kubelet_configuration(settings: Settings) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{runtime.SOCKET}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{KEYS}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{KEYS}/kubelet.crt",
        "tlsPrivateKeyFile": f"{KEYS}/kubelet.key",
        "clusterDomain": "cluster.local",
        "clusterDNS": [str(settings.dns_service)],
        "resolvConf": f"{ETC}/resolv.conf",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{settings.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        # The default lies in /usr/libexec of this machine.
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "maxPods": 200,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        # Shares of a large disk would evict a 6 GB image from a machine that has plenty left.
        "evictionHard": {
            "memory.available": "200Mi",
            "nodefs.available": "2Gi",
            "imagefs.available": "2Gi",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }


def _proxy_configuration(settings: Settings) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{ETC}/proxy.kubeconfig"},
        "mode": "iptables",
        "clusterCIDR": str(settings.pod_cidr),
        "hostnameOverride": settings.node_name,
        "oomScoreAdj": 0,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # The size of the connection table belongs to the whole machine; zero leaves it alone.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"localhostNodePorts": False},
    }


def _corefile(settings: Settings, nameservers: list[str]) -> str:
    forward = f"    forward . {' '.join(nameservers)}\n" if nameservers else ""
    # Short lives, so that a headless service's new pod is found at once.
    return f""".:53 {{
    bind {settings.node_address}
    errors
    ready {settings.node_address}:{DNS_READY_PORT}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {ETC}/coredns.kubeconfig
        pods insecure
        ttl 2
    }}
    prometheus {settings.node_address}:9153
{forward}    cache 30 {{
        disable success cluster.local
        disable denial cluster.local
    }}
}}
"""


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")
