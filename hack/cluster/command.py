"""The command line."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from . import lifecycle, network, packages, preflight, process, prune, registry, report, settings, tools
from .console import ClusterError, say
from .settings import Settings

_COMMANDS = {
    "up": "start the cluster, or find it started",
    "down": "stop it and keep its state",
    "status": "print how its parts are; exits with 1 unless all are well",
    "reset": "stop it and delete its state; pulled images stay unless --images",
    "env": "print the variables that point kubectl, helm and the tests at it",
    "prune": "delete builds, images and state that no running cluster uses",
    "preflight": "say what is missing on this machine, start nothing",
    "registry": "start or stop the image registry by itself: registry up, registry down",
}


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments, os.environ)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `status | head` has seen enough; Python must not complain at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace, env: Mapping[str, str]) -> int:
    cache = settings.cache_folder()
    external = settings.external_kubeconfig(env)
    if external and arguments.command in {"up", "down", "status", "reset", "env", "preflight"}:
        return _external(arguments.command, external)
    lock = cache / "clusters" / ".lock"
    if arguments.command == "prune":
        with process.exclusive(lock):
            prune.prune(cache)
        return 0
    name = settings.cluster_name(env, arguments.name)
    if arguments.command in {"up", "down", "reset", "registry"}:
        with process.exclusive(lock):
            return _change(arguments, _settings(env, name, cache))
    return _show(arguments, _settings(env, name, cache))


def _change(arguments: argparse.Namespace, chosen: Settings) -> int:
    match arguments.command:
        case "up":
            lifecycle.up(chosen)
            print(report.table(chosen.name, report.parts(chosen)), file=sys.stderr)
        case "down":
            lifecycle.down(chosen)
        case "reset":
            lifecycle.reset(chosen, with_images=arguments.images)
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


def _show(arguments: argparse.Namespace, chosen: Settings) -> int:
    match arguments.command:
        case "status":
            rows = report.parts(chosen)
            print(report.table(chosen.name, rows), flush=True)
            return 0 if report.healthy(rows) else 1
        case "env":
            print(f"export KUBECONFIG={shlex.quote(str(chosen.kubeconfig))}")
            print(f"export PATH={shlex.quote(str(chosen.home / 'bin'))}:$PATH")
            print(f"export CLOZE_REGISTRY={chosen.registry}")
        case "preflight":
            if lifecycle.running(chosen):
                say(f"cluster {chosen.name!r} is up")
                return 0
            facts = preflight.gather(chosen)
            for problem in preflight.problems(facts, chosen):
                print(problem)
            if facts.missing_packages:
                say(f"`up` will install: {' '.join(facts.missing_packages)}")
            if not facts.built:
                say("`up` will build the control plane first")
            return 1 if preflight.problems(facts, chosen) else 0
    return 0


def _external(command: str, kubeconfig: Path) -> int:
    """Somebody else's cluster is looked at, never started, stopped or deleted."""
    built = tools.built(settings.cache_folder())
    kubectl = shutil.which("kubectl") or (str(built / "kubectl") if built else None)
    if command == "env":
        print(f"export KUBECONFIG={shlex.quote(str(kubeconfig))}")
        if built and not shutil.which("kubectl"):
            print(f"export PATH=$PATH:{shlex.quote(str(built))}")
        return 0
    if command in {"down", "reset"}:
        say(f"the cluster of CLOZE_KUBECONFIG ({kubeconfig}) is not ours, so it is left as it is")
        return 0
    rows = report.external_parts(kubeconfig, kubectl)
    print(report.table("from CLOZE_KUBECONFIG", rows))
    return 0 if report.healthy(rows) else 1


def _settings(env: Mapping[str, str], name: str, cache: Path) -> Settings:
    """The settings of the cluster that has this name, or of the one that would be created."""
    record = settings.recorded(cache, name)
    if record is not None:
        return settings.restore(env, name, record, cache)
    in_use = [used for used, _ in network.networks_in_use()]
    slot = settings.free_slot(settings.slots_held(cache).values(), in_use)
    return settings.derive(env, name, slot, cache)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 hack/cluster", description="A Kubernetes cluster on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, explanation in _COMMANDS.items():
        command = commands.add_parser(name, help=explanation, description=explanation)
        command.add_argument("--name", help="the cluster's name (default: $CLOZE_CLUSTER, else cloze)")
        if name == "reset":
            command.add_argument("--images", action="store_true", help="delete the pulled images too")
        if name == "registry":
            command.add_argument("action", choices=["up", "down"])
    return parser
