"""Runs inside a build: put our packages into a virtual environment's folder as pip would, without pip or a network.

    python3 install.py <source> <environment> <script>...

Every package beside this file is copied and compiled, each named console script gets its launcher, and the
distribution's metadata is written, so that `importlib.metadata` knows the version. The environment's libraries live
in another layer: this one stays so small that a changed line reaches a pod in seconds.
"""

from __future__ import annotations

import compileall
import py_compile
import shutil
import sys
import tomllib
from pathlib import Path

LAUNCHER = """\
#!/opt/cloze/bin/python
import sys

from {module} import {function}

sys.exit({function}())
"""


def install(source: Path, environment: Path, scripts: list[str]) -> None:
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = environment / "lib" / version / "site-packages"
    for package in sorted(entry for entry in source.iterdir() if entry.is_dir()):
        shutil.copytree(package, site / package.name)
    compiled = compileall.compile_dir(
        site,
        quiet=1,
        stripdir=str(site),
        prependdir=f"/opt/cloze/lib/{version}/site-packages",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        raise SystemExit("a module does not compile, see above")
    (environment / "bin").mkdir(parents=True)
    for name in scripts:
        module, _, function = project["scripts"][name].partition(":")
        launcher = environment / "bin" / name
        launcher.write_text(LAUNCHER.format(module=module, function=function))
        launcher.chmod(0o755)
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (metadata / "INSTALLER").write_text("cloze-images\n")


if __name__ == "__main__":
    install(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
