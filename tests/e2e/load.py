"""Requests from inside the cluster: a pod sends them until it is told to stop, and then says what came back."""

import contextlib
import json
import subprocess
from collections.abc import Iterator

import live

NAME = "load"

# Runs in the serving image, which has httpx. A line on standard input's end stops it.
SCRIPT = """
import collections, json, sys, threading, httpx
address, body = sys.argv[1], json.loads(sys.argv[2])
stop, outcomes = threading.Event(), collections.Counter()
def send():
    with httpx.Client(timeout=30) as client:
        while not stop.is_set():
            try:
                outcome = str(client.post(address, json=body).status_code)
            except httpx.HTTPError as error:
                outcome = repr(error)
            outcomes[outcome] += 1
threads = [threading.Thread(target=send) for _ in range(2)]
for thread in threads:
    thread.start()
print("sending", flush=True)
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
print(json.dumps(outcomes), flush=True)
"""


def _pod(image: str) -> live.Resource:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": NAME,
                    "image": image,
                    "command": ["sleep", "3600"],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


@contextlib.contextmanager
def on(namespace: str, address: str, body: live.Resource) -> Iterator[dict[str, int]]:
    """Post `body` to `address` over two connections while the block runs.

    Yields a dictionary that is filled at the block's end: how many requests ended with each status or error.
    """
    servers = live.items(namespace, "deployments", "cloze.dev/kind=ModelDeployment")
    live.apply(namespace, _pod(servers[0]["spec"]["template"]["spec"]["containers"][0]["image"]))
    live.kubectl("--namespace", namespace, "wait", "--for=condition=Ready", f"pod/{NAME}", "--timeout=120s")
    outcomes: dict[str, int] = {}
    command = ["kubectl", "--namespace", namespace, "exec", "--stdin", NAME, "--"]
    command += ["python3", "-c", SCRIPT, address, json.dumps(body)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "sending\n"
        yield outcomes
        out, _ = sender.communicate(timeout=60)
    outcomes.update(json.loads(out))
    live.kubectl("--namespace", namespace, "delete", "pod", NAME, "--wait=false")
