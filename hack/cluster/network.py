"""This machine's side of a cluster's network: one wire to the node, three routes and one firewall table.

The node lives in a network namespace of its own, so the rules of kube-proxy, the pods' links and every port of the
control plane are private to it. All that this machine sees is removed by deleting one link and one table.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from . import sysctl
from .process import run
from .settings import Settings

_WIRE_IN_NODE = "eth0"
_NODE_SYSCTLS = {
    "ip_forward": 1,
    # A refusal must reach every caller at once, not one a second, and no redirect before it.
    "icmp_ratelimit": 0,
    "conf/all/send_redirects": 0,
    f"conf/{_WIRE_IN_NODE}/send_redirects": 0,
}


def connect(settings: Settings, pid: int) -> None:
    """Lay the wire into the namespace of `pid` and set up both ends."""
    disconnect(settings)
    device, mtu = egress()
    link, prefix = settings.link, settings.link_cidr.prefixlen
    run(
        *("ip", "link", "add", link, "mtu", str(mtu), "type", "veth"),
        *("peer", "name", _WIRE_IN_NODE, "mtu", str(mtu), "netns", str(pid)),
    )
    run("ip", "link", "set", link, "alias", _mark(settings))
    run("ip", "address", "add", f"{settings.gateway}/{prefix}", "dev", link)
    run("ip", "link", "set", link, "up")
    inside = ("nsenter", "--target", str(pid), "--net")
    run(*inside, "ip", "link", "set", "lo", "up")
    run(*inside, "ip", "address", "add", f"{settings.node_address}/{prefix}", "dev", _WIRE_IN_NODE)
    run(*inside, "ip", "link", "set", _WIRE_IN_NODE, "up")
    run(*inside, "ip", "route", "add", "default", "via", str(settings.gateway))
    for name, value in _NODE_SYSCTLS.items():
        run(*inside, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{name}")
    run(*inside, "nft", "-f", "-", stdin=_node_rules(settings))
    for network in (settings.pod_cidr, settings.service_cidr):
        run("ip", "route", "add", str(network), "via", str(settings.node_address), "dev", link)
    # The registry listens on this machine's loopback only; packets from the wire may reach it there.
    Path(f"/proc/sys/net/ipv4/conf/{link}/route_localnet").write_text("1")
    sysctl.forward(link)
    if device:
        sysctl.forward(device)
    run("nft", "-f", "-", stdin=_machine_rules(settings))


def disconnect(settings: Settings) -> None:
    """Remove everything that `connect` left on this machine; a link with another's mark is another's."""
    table = ["nft", "delete", "table", "ip", settings.firewall_table]
    subprocess.run(table, capture_output=True, check=False)  # it may be gone already, and so may the link
    if not taken_by_another(settings):
        subprocess.run(["ip", "link", "delete", settings.link], capture_output=True, check=False)


def links() -> set[str]:
    """The names of this machine's network interfaces."""
    return {path.name for path in Path("/sys/class/net").iterdir()}


def slots() -> list[int]:
    """The slots whose link is there, whoever laid it."""
    return [int(name.removeprefix("cloze")) for name in links() if re.fullmatch(r"cloze\d+", name)]


def taken_by_another(settings: Settings) -> bool:
    """Whether the cluster's link is there and belongs to a cluster that is kept elsewhere, in another HOME perhaps."""
    try:
        return Path(f"/sys/class/net/{settings.link}/ifalias").read_text().strip() != _mark(settings)
    except FileNotFoundError:
        return False


def has_table(settings: Settings) -> bool:
    if not shutil.which("nft"):
        return False
    argv = ["nft", "list", "table", "ip", settings.firewall_table]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def egress() -> tuple[str | None, int]:
    """The interface of the default route and its MTU; pods must not send larger packets than it takes."""
    for route, device in _routes():
        if route.prefixlen == 0:
            return device, int(Path(f"/sys/class/net/{device}/mtu").read_text())
    return None, 1500


def networks_in_use(except_link: str | None = None) -> list[tuple[IPv4Network, str]]:
    """Every network that this machine has a route to, with the interface, save the default."""
    return [(route, device) for route, device in _routes() if route.prefixlen and device != except_link]


def routes(table: str) -> list[tuple[IPv4Network, str]]:
    """The networks and interfaces of a route table as the kernel writes it."""
    rows = [line.split() for line in table.splitlines()[1:]]
    return [(IPv4Network((_address(row[1]), str(_address(row[7])))), row[0]) for row in rows]


def _routes() -> list[tuple[IPv4Network, str]]:
    # Read from /proc, so that it works before the package with `ip` is installed.
    return routes(Path("/proc/net/route").read_text())


def _mark(settings: Settings) -> str:
    # The kernel keeps 255 characters; the end of a path is what tells two apart.
    return str(settings.home)[-255:]


def _address(little_endian: str) -> IPv4Address:
    return IPv4Address(bytes.fromhex(little_endian)[::-1])


def nameservers() -> list[str]:
    """This machine's name servers as a pod can reach them: a stub on loopback is replaced by what is behind it."""
    for source in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        if source.exists() and (usable := usable_nameservers(source.read_text())):
            return usable
    return []


def usable_nameservers(resolv_conf: str) -> list[str]:
    """The servers of a resolv.conf that a pod can reach: by IPv4, and not on loopback."""
    rows = (line.split() for line in resolv_conf.splitlines())
    found = [row[1] for row in rows if len(row) > 1 and row[0] == "nameserver"]
    return [server for server in found if not server.startswith("127.") and ":" not in server]


def _node_rules(settings: Settings) -> str:
    networks = f"{settings.pod_cidr}, {settings.service_cidr}"
    # A pod has a route of its own and a service is rewritten; what is neither would leave again and circle.
    return f"""
table ip cloze {{
  chain forward {{
    type filter hook forward priority filter;
    oifname "{_WIRE_IN_NODE}" ip daddr {{ {networks} }} reject with icmp type host-unreachable
  }}
}}
"""


def _machine_rules(settings: Settings) -> str:
    link, port = settings.link, settings.registry_port
    return f"""
table ip {settings.firewall_table} {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    iifname "{link}" ip daddr {settings.gateway} tcp dport {port} dnat to 127.0.0.1:{port}
  }}
  chain input {{
    type filter hook input priority filter;
    iifname "{link}" ip daddr 127.0.0.0/8 ct status dnat accept
    iifname "{link}" ip daddr 127.0.0.0/8 drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname != "{link}" ip saddr {{ {settings.pod_cidr}, {settings.link_cidr} }} masquerade
  }}
}}
"""
