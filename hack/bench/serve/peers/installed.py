"""Bytes of the distributions that the command line names, as `name` or `name[extra]`, with all that they need, as they
are installed in this interpreter's environment.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement


def main() -> None:
    """Entry point."""
    waiting, seen, total = [Requirement(name) for name in sys.argv[1:]], set(), 0
    while waiting:
        requirement = waiting.pop()
        key = (requirement.name.lower().replace("_", "-"), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        if not any(name == key[0] for name, extras in seen if extras != key[1]):
            paths = (found.locate_file(file) for file in found.files or ())
            total += sum(path.stat().st_size for path in paths if path.is_file())
        for text in found.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": each}) for each in ("", *key[1])):
                waiting.append(needed)
    print(total)


if __name__ == "__main__":
    main()
