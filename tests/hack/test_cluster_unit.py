"""The local cluster's pure parts: settings, preflight's sentences, what prune takes, images, restarts."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "hack"))

from cluster import (
    components,
    images,
    network,
    node,
    packages,
    pki,
    preflight,
    process,
    prune,
    report,
    settings,
    storage,
    sysctl,
    tools,
)
from cluster.console import ClusterError, duration, size

CACHE = Path("/nowhere")
BENCHMARKING = IPv4Network("198.18.0.0/15")


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
            ({"CLOZE_CLUSTER_PORT_BASE": "80"}, "between 1024"),
            ({"CLOZE_REGISTRY_PORT": "http"}, "CLOZE_REGISTRY_PORT must be a port"),
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
        with pytest.raises(ClusterError, match="`reset`"):
            settings.restore({"CLOZE_POD_CIDR": "10.1.0.0/16"}, "cloze", record, CACHE)

    def test_the_slot_of_every_recorded_cluster_is_known(self, tmp_path: Path) -> None:
        for name, slot in (("a", 4), ("b", 0)):
            home = tmp_path / "clusters" / name
            home.mkdir(parents=True)
            (home / "cluster.json").write_text(json.dumps(derived(slot).record()))
        (tmp_path / "clusters" / "empty").mkdir()
        assert settings.slots_held(tmp_path) == {"a": 4, "b": 0}


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
        networks=[(IPv4Network("192.0.2.0/24"), "eth0")],
    )

    def test_a_machine_with_everything_has_no_problem(self) -> None:
        assert preflight.problems(self.WELL, derived()) == []

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"linux": False}, ["Linux", "CLOZE_KUBECONFIG"]),
            ({"root": False}, ["Root is missing", "CLOZE_KUBECONFIG"]),
            ({"free_bytes": 3 * preflight.GIB}, ["4.0 GiB are needed", "3.0 GiB are free", "prune"]),
            ({"free_bytes": 10 * preflight.GIB, "built": False}, ["13.0 GiB are needed to build"]),
            ({"memory_bytes": preflight.GIB}, ["2.0 GiB are needed", "1.0 GiB are available"]),
            ({"missing_packages": ["runc", "nftables"], "apt": False}, ["runc, nftables", "apt-get"]),
            ({"go": None, "pip": False}, ["Go is missing", "python3-pip"]),
            ({"registry_port_free": False}, ["Port 5055", "CLOZE_REGISTRY_PORT"]),
            ({"networks": [(IPv4Network("198.18.4.0/24"), "tun0")]}, ["198.18.0.0/20", "tun0", "CLOZE_POD_CIDR"]),
        ],
    )
    def test_each_lack_is_one_sentence_that_says_what_to_do(self, change: dict[str, object], words: list[str]) -> None:
        found = preflight.problems(replace(self.WELL, **change), derived())  # type: ignore[arg-type]
        assert len(found) == 1
        assert "\n" not in found[0]
        assert all(word in found[0] for word in words), found[0]

    def test_what_up_installs_or_fetches_by_itself_is_no_problem(self) -> None:
        facts = replace(self.WELL, missing_packages=["runc"], go=None)
        assert preflight.problems(facts, derived()) == []


class TestPrune:
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        for folder in (
            "tools/new",
            "tools/old",
            "tools/older.partial",
            "clusters/up",
            "clusters/down",
            "registry",
            "uv",
        ):
            (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "clusters/up/binaries").write_text("old\n")
        (tmp_path / "clusters/down/binaries").write_text("older\n")
        return tmp_path

    @staticmethod
    def taken(cache: Path, *running: str) -> list[str]:
        found = prune.stale(cache, running=running, wanted_build="new")
        return [str(path.relative_to(cache)) for path in found]

    def test_a_running_cluster_keeps_its_state_its_binaries_and_the_registry(self, cache: Path) -> None:
        assert self.taken(cache, "up") == ["tools/older.partial", "clusters/down"]

    def test_with_nothing_running_only_the_present_build_and_what_is_not_ours_stay(self, cache: Path) -> None:
        assert self.taken(cache) == ["tools/old", "tools/older.partial", "clusters/down", "clusters/up", "registry"]

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

    def test_overlays_of_others_are_released_but_never_the_root(self) -> None:
        mounts = "overlay / overlay rw 0 0\noverlay /x/merged overlay rw 0 0\n/dev/vda /y ext4 rw 0 0\n"
        assert node.inherited_overlays(mounts) == ["/x/merged"]


class TestConfiguration:
    def test_every_daemon_has_a_name_and_a_full_path(self) -> None:
        units = components.units(derived())
        assert len({unit["name"] for unit in units}) == len(units) == 9
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

    def test_the_one_class_is_the_default(self) -> None:
        classes = [item for item in storage.manifests() if item["kind"] == "StorageClass"]
        assert [item["metadata"]["name"] for item in classes] == [storage.CLASS]
        assert classes[0]["metadata"]["annotations"] == {"storageclass.kubernetes.io/is-default-class": "true"}

    def test_the_version_is_the_one_of_the_module_file(self) -> None:
        assert tools.kubernetes_version().startswith("v1.")

    def test_no_name_server_on_loopback_reaches_a_pod(self) -> None:
        assert not any(server.startswith("127.") for server in network.nameservers())

    def test_the_route_table_is_read_without_any_program(self) -> None:
        assert all(route.prefixlen for route, _ in network.networks_in_use())


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


def test_present_packages_are_not_missing() -> None:
    assert set(packages.missing()) <= set(packages.PROBES)
