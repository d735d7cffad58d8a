"""The wheel holds every package: a path that is missing in the build's settings ships nothing, silently."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Every package in a room, found rather than listed: a new one must not be forgotten here as well.
ROOMS = {
    path.parent.name: path.parent.parent.name
    for room in ("crds", "operator", "trainer", "server")
    for path in (ROOT / room).glob("*/__init__.py")
}


def test_rooms_hold_the_packages_that_we_know() -> None:
    """The search above finds something."""
    assert {"cloze_api", "cloze_operator", "cloze_trainer", "cloze_server"} <= ROOMS.keys()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    target = tmp_path_factory.mktemp("wheel")
    # The locked hatchling of this environment builds it, so nothing is fetched.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(target.glob("*.whl")))


@pytest.mark.parametrize("package", ROOMS)
def test_wheel_has_every_module(wheel: zipfile.ZipFile, package: str) -> None:
    """Each file of the package in the checkout is in the wheel, `py.typed` too."""
    folder = ROOT / ROOMS[package]
    expected = {
        path.relative_to(folder).as_posix()
        for path in (folder / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert expected
    assert expected <= set(wheel.namelist())


def test_wheel_has_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Only the rooms' packages and their metadata: no tests, no tooling."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {*ROOMS, next(top for top in tops if top.endswith(".dist-info"))}


def test_console_scripts_point_at_functions_that_exist(wheel: zipfile.ZipFile) -> None:
    """Every entry point's module is in the wheel."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    for target in scripts.values():
        module = target.partition(":")[0].replace(".", "/")
        assert f"{module}.py" in wheel.namelist()


@pytest.mark.parametrize("folder", sorted(set(ROOMS.values())))
def test_room_is_no_package_itself(folder: str) -> None:
    """`operator/__init__.py` would shadow the standard library's `operator`."""
    assert not (ROOT / folder / "__init__.py").exists()
