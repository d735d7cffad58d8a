"""The command line.

hack/monitoring generate           write the rules and dashboards of the chart
hack/monitoring generate --check   fail when they aren't what this code writes
hack/monitoring check URL          ask a Prometheus for what every panel shows, and name those without data
"""

import argparse
import sys

from monitoring import answers, files


def main(argv: list[str]) -> int:
    """Exit code: 0 when all is well."""
    parser = argparse.ArgumentParser(prog="hack/monitoring", description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="write the chart's rules and dashboards")
    generate.add_argument("--check", action="store_true", help="write nothing; fail when something isn't current")
    check = commands.add_parser("check", help="ask a Prometheus for what every panel shows")
    check.add_argument("url", help="Prometheus' address, http://host:port")
    check.add_argument("--minutes", type=float, default=60, help="how far back a panel may find data (default 60)")
    check.add_argument("--rate-interval", default="1m", help="what $__rate_interval stands for (default 1m)")
    arguments = parser.parse_args(argv)
    if arguments.command == "generate":
        return _generate(check=arguments.check)
    return _check(arguments.url, arguments.minutes, arguments.rate_interval)


def _generate(*, check: bool) -> int:
    if not check:
        files.write()
        return 0
    stale = files.stale()
    for path in stale:
        print(f"{path} isn't current: run `make generate`", file=sys.stderr)
    return 1 if stale else 0


def _check(url: str, minutes: float, rate_interval: str) -> int:
    asked = answers.questions(files.dashboards())
    problems = answers.unanswered(url, asked, minutes=minutes, rate_interval=rate_interval)
    for problem in problems:
        print(problem)
    print(f"{len(asked) - len(problems)} of {len(asked)} queries return data", file=sys.stderr)
    return 1 if problems else 0
