"""Our server beside its peers: python hack/bench/serve COMMAND --help

Everybody gets the same graph, tokenizer, texts and threads, one after the other on the same machine, again and again in
turn, and must give the same answers. Figures are medians over the rounds, with the lowest and the highest.
"""

import argparse
from pathlib import Path

from artifacts import SIZES, SPAM, artifact
from compare import compare
from footprint import footprint
from latency import latency
from limit import limit
from overhead import overhead
from precision import precision
from runtimes import runtimes
from servers import PEER_SERVERS
from workload import mails

from cloze_api.precision import Precision

_CONNECTIONS = (1, 4, 16, 64)
_ALL = 1_000_000


def _artifact(name: str) -> Path:
    return artifact(name) if name in (*SIZES, SPAM) else Path(name).resolve()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python hack/bench/serve", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    for function in (compare, limit, runtimes, latency, footprint, overhead, precision):
        command = commands.add_parser(function.__name__, help=str(function.__doc__).splitlines()[0].replace("%", "%%"))
        command.set_defaults(run=function)
        command.add_argument("--rounds", type=int, default=3)
        command.add_argument("--seconds", type=float, default=8, help="measured at a time (default 8)")
        if function is overhead:
            continue
        what = f"{', '.join(SIZES)} or {SPAM}, or the folder of a text classifier's artifact"
        if function is precision:
            what = f"{SPAM} (the default), or the folder of a text classifier's artifact with int8"
            command.add_argument("artifact", type=_artifact, nargs="?", default=SPAM, help=what)
        else:
            command.add_argument("artifact", type=_artifact, help=what)
        command.add_argument("--threads", type=int, default=2, help="compute threads of everybody (default 2)")
        if function is compare:
            command.add_argument("--peers", nargs="+", choices=list(PEER_SERVERS), default=list(PEER_SERVERS))
            command.add_argument("--sweep", action="store_true", help="the settings tried for the best of each peer")
            command.add_argument("--connections", type=int, nargs="+", default=_CONNECTIONS)
            command.add_argument(
                "--precision",
                type=Precision,
                choices=[Precision.FP32, Precision.INT8],
                default=Precision.FP32,
                help="of the graph that everybody runs (int8: of an artifact that has one, such as spam)",
            )
    return parser


def main() -> None:
    """Entry point."""
    given = vars(_parser().parse_args())
    given.pop("command")
    run = given.pop("run")
    if "artifact" in given:
        # Figures of accuracy are of all mails.
        given["work"] = mails(given["artifact"], *([_ALL] if run is precision else []))
    run(**given)


if __name__ == "__main__":
    main()
