"""A shared fine-tune is believed only where every byte is what its key has signed."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fine_tunes import BUNDLE, KEY, OTHER_KEY, VALUES, document, written

from device_client.sharing.archive import pack, unpacked
from device_client.sharing.artifact import FINE_TUNE_TYPE, read_fine_tune, write_fine_tune
from device_client.sharing.own_key import fingerprint
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import MANIFEST_MEDIA_TYPE, Descriptor, parse_artifact
from shared.errors import (
    IntegrityError,
    InvalidManifest,
    LimitExceeded,
    NotFound,
    SignatureInvalid,
    SignatureMissing,
    UpgradeNeeded,
)


def test_what_was_written_is_read_back_with_its_signer(tmp_path: Path) -> None:
    found = read_fine_tune(written(tmp_path / "out"))
    assert found.document == document()
    assert found.signer == fingerprint(KEY)
    assert found.layer.read_bytes() == VALUES


def test_the_same_run_and_key_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = written(tmp_path / "one"), written(tmp_path / "two")
    paths = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    assert len(paths) == 8
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in paths)


def test_the_manifest_names_the_bundle_as_its_subject(tmp_path: Path) -> None:
    layout = ImageLayout(written(tmp_path / "out"))
    manifest = parse_artifact(layout.read_blob(layout.resolve("mine:latest").digest, max_bytes=10_000))
    assert manifest.artifact_type == FINE_TUNE_TYPE
    assert manifest.subject is not None
    assert manifest.subject.digest == BUNDLE


@pytest.mark.attack
@pytest.mark.parametrize("number", range(8))
def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(tmp_path: Path, number: int) -> None:
    folder = written(tmp_path / "out")
    path = sorted(path for path in folder.rglob("*") if path.is_file())[number]
    data = path.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 20)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            found = read_fine_tune(folder)
        except (IntegrityError, NotFound):
            continue
        # Such as the version in oci-layout: nothing that was signed.
        assert (found.document, found.signer) == (document(), fingerprint(KEY))
        assert found.layer.read_bytes() == VALUES


@pytest.mark.attack
def test_a_missing_or_cut_file_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "out")
    paths = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.name != "oci-layout"]
    needed = [path for path in paths if (whole / path).read_bytes() != b"{}"]  # an empty document: nothing is read
    assert len(needed) == 6
    for number, path in enumerate(needed):
        folder = shutil.copytree(whole, tmp_path / str(number))
        (folder / path).write_bytes((folder / path).read_bytes()[:-1])
        with pytest.raises((IntegrityError, NotFound)):
            read_fine_tune(folder)
        (folder / path).unlink()
        with pytest.raises((IntegrityError, NotFound)):
            read_fine_tune(folder)


@pytest.mark.attack
def test_another_fine_tunes_signature_proves_nothing(tmp_path: Path) -> None:
    honest, forged = (
        written(tmp_path / "honest"),
        written(tmp_path / "forged", content=VALUES[:-1] + b"\x7a", key=OTHER_KEY),
    )
    theirs, ours = ImageLayout(honest).references(), ImageLayout(forged)
    shutil.copytree(honest / "blobs", forged / "blobs", dirs_exist_ok=True)
    digest = ours.resolve("mine:latest").digest.replace(":", "-")
    signature = next(found for name, found in theirs.items() if name.endswith(".sig"))
    ours.update({f"mine:{digest}.sig": signature})
    with pytest.raises(SignatureInvalid, match="a signature over"):
        read_fine_tune(forged)


@pytest.mark.attack
def test_a_forgery_signed_by_another_key_names_that_key(tmp_path: Path) -> None:
    assert read_fine_tune(written(tmp_path / "out", key=OTHER_KEY)).signer == fingerprint(OTHER_KEY) != fingerprint(KEY)


def test_without_a_signature_it_is_refused(tmp_path: Path) -> None:
    layout = ImageLayout(written(tmp_path / "out"))
    layout.update({name: None for name in layout.references() if name.endswith(".sig")})
    with pytest.raises(SignatureMissing):
        read_fine_tune(layout.root)


def test_a_document_about_another_bundle_than_the_subject_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match="belongs to bundle"):
        read_fine_tune(written(tmp_path / "out", subject="sha256:" + "9" * 64))


def test_more_bytes_than_the_values_can_have_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(LimitExceeded):
        read_fine_tune(written(tmp_path / "out", content=b"x" * 100_000))


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    newer = document().model_copy(update={"format": 2})
    subject = Descriptor(media_type=MANIFEST_MEDIA_TYPE, digest=BUNDLE, size=100)
    (tmp_path / "out").mkdir()
    write_fine_tune(tmp_path / "out", newer, VALUES, subject, KEY)
    with pytest.raises(UpgradeNeeded):
        read_fine_tune(tmp_path / "out")


def test_a_tar_file_is_the_folder(tmp_path: Path) -> None:
    pack(written(tmp_path / "out"), tmp_path / "out.tar")
    with unpacked(tmp_path / "out.tar") as folder:
        assert read_fine_tune(folder).document == document()
    assert not folder.exists()


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(archive: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        member.size = 1 if kind == tarfile.REGTYPE else 0
        archive.addfile(member, io.BytesIO(b"x"))

    return add


@pytest.mark.attack
@pytest.mark.parametrize(
    "add",
    [
        _member("../outside"),
        _member("/tmp/outside"),  # noqa: S108
        _member("blobs/sha256/../../../outside"),
        _member("index.json", tarfile.SYMTYPE, "/etc/passwd"),
        _member("index.json", tarfile.LNKTYPE, "/etc/passwd"),
        _member("index.json", tarfile.FIFOTYPE),
        _member("index.json", tarfile.CHRTYPE),
        _member("notes.txt"),
    ],
)
def test_a_tar_file_with_anything_else_in_it_is_refused(tmp_path: Path, add: Callable[[tarfile.TarFile], None]) -> None:
    with tarfile.open(tmp_path / "in.tar", "w:") as archive:
        add(archive)
    with pytest.raises(IntegrityError), unpacked(tmp_path / "in.tar"):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["in.tar"]


def test_a_file_that_is_not_tar_and_a_cut_one_are_refused(tmp_path: Path) -> None:
    pack(written(tmp_path / "out"), tmp_path / "out.tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "out.tar").read_bytes()[:1000])
    (tmp_path / "text.tar").write_text(json.dumps({}))
    for name in ("cut.tar", "text.tar"):
        with pytest.raises((IntegrityError, NotFound)), unpacked(tmp_path / name) as folder:
            read_fine_tune(folder)
