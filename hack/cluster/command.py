"""The command line."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from . import (
    lifecycle,
    monitoring,
    network,
    packages,
    preflight,
    process,
    proxy,
    prune,
    registry,
    report,
    settings,
    tools,
)
from .console import ClusterError, say
from .settings import Settings

_COMMANDS = {
    "up": "start the cluster, or find it started; prints `started` or `running`",
    "down": "stop it and keep its state",
    "status": "print how its parts are; exits with 1 unless all are well",
    "reset": "stop it and delete its state; pulled images stay unless --images",
    "env": "print the variables that point kubectl, helm and the tests at it",
    "rules": "let Prometheus evaluate these rule files, or forget them: --remove",
    "alerting": "let Alertmanager work by this configuration",
    "prune": "delete builds and images that no running cluster uses; state stays unless --state",
    "preflight": "say what is missing on this machine, start nothing",
    "registry": "start or stop the image registry by itself: registry up, registry down",
}
_ADDRESSES = ("CLOZE_GATEWAY", "CLOZE_PROMETHEUS", "CLOZE_ALERTMANAGER")
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DETAILS = {
    "up": (
        "Prints one word on stdout: `started` when this call started the cluster, `running` when it found it; all "
        "else goes to stderr. With CLOZE_CLUSTER_OWNER=<pid> a cluster that is started belongs to that process: "
        "meanwhile no other may use it, and the first `up` after the process is gone starts it over."
    ),
    "env": "Fails, and prints nothing, when the cluster is not up.",
    "rules": "A file replaces the one of its name. Files that promtool refuses change nothing. `reset` forgets them.",
    "alerting": "A file that amtool refuses changes nothing. `reset` forgets it.",
    "prune": (
        "Deletes builds that nothing uses, the pulled images of clusters that are down and, when none is up, the "
        "registry's images. With --state also all else of clusters that are down: objects, volumes with the models "
        "in them, keys, logs."
    ),
}


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    for number in _ENDINGS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
            signal.signal(number, _end)
    try:
        return _run(arguments, os.environ)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `status | head` has seen enough; Python must not complain at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _end(number: int, _: object) -> None:
    """Leave by an exception, so that what was begun is undone; once is enough, and undoing must come to its end."""
    for other in _ENDINGS:
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _run(arguments: argparse.Namespace, env: Mapping[str, str]) -> int:
    cache = settings.cache_folder()
    external = settings.external_kubeconfig(env)
    if external and arguments.command != "prune":
        return _external(arguments.command, external, env)
    lock = cache / "clusters" / ".lock"
    if arguments.command == "prune":
        with process.exclusive(lock):
            prune.prune(cache, state=arguments.state)
        return 0
    name = settings.cluster_name(env, arguments.name)
    if arguments.command in {"up", "down", "reset", "registry", "rules", "alerting"}:
        with process.exclusive(lock):
            # What a cluster was made with, and whether its record can be read, must not keep it from being forgotten.
            forget = arguments.command == "reset"
            chosen = settings.leftover(cache, name) if forget else _settings(env, name, cache)
            return _change(arguments, chosen, env)
    return _show(arguments, _settings(env, name, cache), env)


def _change(arguments: argparse.Namespace, chosen: Settings, env: Mapping[str, str]) -> int:
    match arguments.command:
        case "up":
            started = lifecycle.up(chosen, _owner(env))
            print(report.table(chosen.name, report.parts(chosen)), file=sys.stderr)
            print("started" if started else "running")
        case "down":
            lifecycle.down(chosen)
        case "reset":
            lifecycle.reset(chosen, with_images=arguments.images)
        case "rules":
            _refuse_down(chosen)
            change = monitoring.remove_rules if arguments.remove else monitoring.install_rules
            change(chosen, arguments.files)
        case "alerting":
            _refuse_down(chosen)
            monitoring.install_alerting(chosen, arguments.file)
        case "registry" if arguments.action == "up":
            if "docker-registry" in packages.missing():
                packages.install(["docker-registry"])
            registry.start(chosen.cache, chosen.registry_port)
            print(chosen.registry)
        case "registry":
            if users := lifecycle.any_running(chosen.cache):
                raise ClusterError(f"the registry serves the running cluster {', '.join(users)}: its `down` stops it")
            registry.stop(chosen.cache)
    return 0


def _show(arguments: argparse.Namespace, chosen: Settings, env: Mapping[str, str]) -> int:
    match arguments.command:
        case "status":
            rows = report.parts(chosen)
            print(report.table(chosen.name, rows), flush=True)
            return 0 if report.healthy(rows) else 1
        case "env":
            _refuse_down(chosen)
            print(f"export KUBECONFIG={shlex.quote(str(chosen.kubeconfig))}")
            print(f"export PATH={shlex.quote(str(chosen.home / 'bin'))}:$PATH")
            print(f"export CLOZE_REGISTRY={chosen.registry}")
            for variable, url in zip(_ADDRESSES, _addresses(chosen), strict=True):
                print(f"export {variable}={url}")
            for variable, value in proxy.exceptions(chosen, env).items():
                print(f"export {variable}={shlex.quote(value)}")
        case "preflight":
            if lifecycle.running(chosen):
                say(f"cluster {chosen.name!r} is up")
                return 0
            facts = preflight.gather(chosen)
            for problem in preflight.problems(facts, chosen):
                print(problem)
            for notice in preflight.notices(facts):
                say(notice)
            if facts.missing_packages:
                say(f"`up` will install: {' '.join(facts.missing_packages)}")
            if not facts.built:
                say("`up` will build the control plane first")
            return 1 if preflight.problems(facts, chosen) else 0
    return 0


def _refuse_down(chosen: Settings) -> None:
    if not lifecycle.running(chosen):
        raise ClusterError(f"cluster {chosen.name!r} is not up: start it with `python3 hack/cluster up`")


def _addresses(chosen: Settings) -> list[str]:
    """What `_ADDRESSES` are of our own cluster, as seen from this machine."""
    return [chosen.gateway_url, chosen.prometheus_url, chosen.alertmanager_url]


def _external(command: str, kubeconfig: Path, env: Mapping[str, str]) -> int:
    """Somebody else's cluster is looked at, never started, stopped or deleted."""
    built = tools.built(settings.cache_folder(), tools.KUBERNETES)
    match command:
        case "env":
            _external_env(kubeconfig, built, env)
            return 0
        case "down" | "reset":
            say(f"the cluster of CLOZE_KUBECONFIG ({kubeconfig}) is not ours, so it is left as it is")
            return 0
        case "rules" | "alerting":
            raise ClusterError(
                "Prometheus and Alertmanager of CLOZE_KUBECONFIG's cluster are not ours: give this to whoever runs them"
            )
        case "registry":
            say("the cluster of CLOZE_KUBECONFIG pulls from a registry of its own, so ours is not needed")
            return 0
    kubectl = shutil.which("kubectl") or (str(built / "kubectl") if built else None)
    rows = report.external_parts(kubeconfig, kubectl)
    well = report.healthy(rows)
    print(report.table("from CLOZE_KUBECONFIG", rows), file=sys.stderr if command == "up" else sys.stdout)
    if command == "up" and well:
        print("running")
    return 0 if well else 1


def _external_env(kubeconfig: Path, built: Path | None, env: Mapping[str, str]) -> None:
    print(f"export KUBECONFIG={shlex.quote(str(kubeconfig))}")
    missing = [command for command in ("kubectl", "helm") if not shutil.which(command)]
    if missing and built:
        # Ours come last, so that they serve only where the person has none.
        print(f"export PATH=$PATH:{shlex.quote(str(built))}")
    elif missing:
        say(f"{' and '.join(missing)} can't be found on PATH, and ours are not built: install what is missing")
    for variable in ("CLOZE_REGISTRY", *_ADDRESSES):
        if value := env.get(variable):
            print(f"export {variable}={shlex.quote(value)}")


def _owner(env: Mapping[str, str]) -> process.Identity | None:
    """The process that `CLOZE_CLUSTER_OWNER` names, for which alone the cluster is to be."""
    value = env.get("CLOZE_CLUSTER_OWNER", "")
    if not value:
        return None
    owner = process.identify(int(value)) if value.isdigit() else None
    if owner is None:
        raise ClusterError(f"CLOZE_CLUSTER_OWNER must be the id of a process that runs, not {value!r}")
    return owner


def _settings(env: Mapping[str, str], name: str, cache: Path) -> Settings:
    """The settings of the cluster that has this name, or of the one that would be created."""
    record = settings.recorded(cache, name)
    if record is not None:
        return settings.restore(env, name, record, cache)
    # What another HOME's clusters hold shows in the links and routes of this machine.
    in_use = [used for used, _ in network.networks_in_use()]
    slot = settings.free_slot([*settings.slots_held(cache).values(), *network.slots()], in_use)
    return settings.derive(env, name, slot, cache)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 hack/cluster", description="A Kubernetes cluster on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, explanation in _COMMANDS.items():
        command = commands.add_parser(name, help=explanation, description=_DETAILS.get(name, explanation))
        command.add_argument("--name", help="the cluster's name (default: $CLOZE_CLUSTER, else cloze)")
        if name == "reset":
            command.add_argument("--images", action="store_true", help="delete the pulled images too")
        if name == "prune":
            command.add_argument("--state", action="store_true", help="delete the state of clusters that are down too")
        if name == "rules":
            command.add_argument("files", nargs="+", type=Path, metavar="FILE")
            command.add_argument("--remove", action="store_true", help="forget the files of these names instead")
        if name == "alerting":
            command.add_argument("file", type=Path, metavar="FILE")
        if name == "registry":
            command.add_argument("action", choices=["up", "down"])
    return parser
