"""The three import packages are ours and only ours; importing them does nothing."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("shared", "cloud_service", "device_client")
MODULES = sorted(
    ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in (CHECKOUT / package).rglob("*.py")
)


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_comes_from_this_checkout(package):
    module = importlib.import_module(package)
    assert Path(str(module.__file__)).resolve() == CHECKOUT / package / "__init__.py"


def test_no_other_distribution_claims_our_names():
    owners = importlib.metadata.packages_distributions()
    assert {package: set(owners.get(package, ["zo-device"])) for package in PACKAGES} == {
        package: {"zo-device"} for package in PACKAGES
    }


def test_tests_cannot_shadow_a_package():
    assert list((CHECKOUT / "tests").rglob("__init__.py")) == []


def test_no_module_is_named_after_nothing():
    names = {module.rpartition(".")[2] for module in MODULES}
    assert names.isdisjoint({"utils", "util", "common", "helpers", "core", "misc", "manager"})


def test_every_file_that_is_not_python_is_installed_too():
    patterns = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        files = {path for path in (CHECKOUT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        data = {path for path in files if path.suffix not in (".py", ".so")}
        installed = {path for pattern in patterns.get(package, []) for path in (CHECKOUT / package).glob(pattern)}
        assert data <= installed, package


def test_importing_every_light_module_needs_no_torch_and_opens_nothing():
    light = [
        module
        for module in MODULES
        if module.startswith(("shared.", "cloud_service.app", "cloud_service.routes", "cloud_service.jobs.record"))
        and not module.startswith(("shared.quantization", "shared.model."))
    ]
    code = (
        "import sys, socket\n"
        "def refuse(*_, **__): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        f"for name in {light!r}: __import__(name)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
