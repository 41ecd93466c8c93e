"""The partial file and its journal: what is believed after a crash, and what is not."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_client.download.partial import Disk, PartialBlob, Piece, check_room, settle
from shared.bundle.digest import digest_of_bytes
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor
from shared.errors import DigestMismatch, DiskError

DATA = hashlib.shake_128(b"blob").digest(1000)
STEP = 128
PIECES = [Piece(b, min(b + STEP, 1000), digest_of_bytes(DATA[b : b + STEP])) for b in range(0, 1000, STEP)]
BLOB = Descriptor(media_type="application/octet-stream", digest=digest_of_bytes(DATA), size=1000)


def opened(folder: Path) -> PartialBlob:
    partial = PartialBlob(folder, BLOB, PIECES)
    partial.open(Disk())
    return partial


def put(partial: PartialBlob, index: int) -> bool:
    piece = PIECES[index]
    partial.write(piece, DATA[piece.begin : piece.end], piece.begin)
    return partial.complete(piece, hashlib.sha256(DATA[piece.begin : piece.end]))


@settings(deadline=None, max_examples=40)
@given(
    done=st.sets(st.integers(0, 7)),
    damaged=st.sets(st.integers(0, 7)),
    torn=st.integers(0, 80),
    garbage=st.binary(max_size=50),
)
def test_after_a_crash_exactly_the_intact_journaled_pieces_are_believed(
    done: set[int], damaged: set[int], torn: int, garbage: bytes
) -> None:
    with tempfile.TemporaryDirectory() as name:
        partial = opened(Path(name))
        for index in sorted(done):
            put(partial, index)
        partial.close()
        data = bytearray(partial.path.read_bytes())
        for index in damaged:
            data[PIECES[index].begin] ^= 0x55
        partial.path.write_bytes(bytes(data))
        journal = partial.journal_path.read_bytes()
        kept = journal[: max(0, len(journal) - torn)]
        partial.journal_path.write_bytes(kept + garbage)
        believed = {index for index in done - damaged if line_of(index) in kept.splitlines(keepends=True)}
        again = opened(Path(name))
        assert set(PIECES) - set(again.missing) == {PIECES[index] for index in believed}
        assert again.missing == sorted(again.missing, key=lambda piece: piece.begin)
        again.close()


def line_of(index: int) -> bytes:
    begin, end = index * 128, min(index * 128 + 128, 1000)
    return f"{begin} {end} sha256:{hashlib.sha256(DATA[begin:end]).hexdigest()}\n".encode()


def test_a_record_after_a_torn_line_counts(tmp_path: Path) -> None:
    partial = opened(tmp_path)
    put(partial, 0)
    partial.close()
    with partial.journal_path.open("ab") as journal:
        journal.write(line_of(1)[:20])
    again = opened(tmp_path)
    put(again, 2)
    again.close()
    assert set(PIECES) - set(opened(tmp_path).missing) == {PIECES[0], PIECES[2]}


def test_the_last_piece_says_so_and_finishing_moves_the_blob_into_the_store(tmp_path: Path) -> None:
    layout = ImageLayout.create(tmp_path / "store")
    partial = opened(tmp_path)
    assert [put(partial, index) for index in range(8)] == [False] * 7 + [True]
    settle([partial], layout)
    assert partial.journal_path.exists()
    partial.finish(layout)
    settle([partial], layout)
    assert layout.read_blob(BLOB.digest, max_bytes=1000) == DATA
    assert not partial.path.exists()
    assert not partial.journal_path.exists()


def test_a_piece_that_two_connections_bring_is_the_last_one_only_once(tmp_path: Path) -> None:
    layout = ImageLayout.create(tmp_path / "store")
    partial = opened(tmp_path)
    assert [put(partial, index) for index in (*range(8), 7)] == [False] * 7 + [True, False]
    partial.finish(layout)
    assert put(partial, 3) is False


def test_late_bytes_of_a_verified_piece_change_nothing(tmp_path: Path) -> None:
    """The slower connection still has the file open when the blob is in the store already."""
    layout = ImageLayout.create(tmp_path / "store")
    partial = opened(tmp_path)
    for index in range(8):
        put(partial, index)
    partial.write(PIECES[2], b"damaged", PIECES[2].begin)
    partial.finish(layout)
    partial.write(PIECES[2], b"damaged", PIECES[2].begin)
    assert layout.read_blob(BLOB.digest, max_bytes=1000) == DATA


def test_a_whole_that_contradicts_its_name_is_not_moved_and_not_deleted(tmp_path: Path) -> None:
    layout = ImageLayout.create(tmp_path / "store")
    partial = opened(tmp_path)
    for piece in PIECES:
        partial.write(piece, bytes(piece.size), piece.begin)
    with pytest.raises(DigestMismatch):
        partial.finish(layout)
    assert not layout.has_blob(BLOB.digest)
    assert partial.path.read_bytes() == bytes(1000)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_chunk_table_that_contradicts_the_name_of_the_blob_is_noticed_in_the_end(
    tmp_path: Path, *, is_resumed: bool
) -> None:
    """The hash of the blob goes on from that of the first piece, which arrived now or was found on the disk."""
    layout = ImageLayout.create(tmp_path / "store")
    other = DATA[:900] + bytes(100)
    pieces = [Piece(b, b + 500, digest_of_bytes(other[b : b + 500])) for b in (0, 500)]
    partial = PartialBlob(tmp_path, BLOB, pieces)
    partial.open(Disk())
    for piece in pieces:
        if is_resumed and piece.begin:
            partial.close()
            partial = PartialBlob(tmp_path, BLOB, pieces)
            partial.open(Disk())
        data = other[piece.begin : piece.end]
        partial.write(piece, data, piece.begin)
        partial.complete(piece, hashlib.sha256(data))
    with pytest.raises(DigestMismatch, match=digest_of_bytes(other)):
        partial.finish(layout)
    assert not layout.has_blob(BLOB.digest)


def test_where_two_connections_may_have_written_a_piece_the_disk_alone_is_believed(tmp_path: Path) -> None:
    layout = ImageLayout.create(tmp_path / "store")
    partial = opened(tmp_path)
    partial.distrust_memory()
    partial.write(PIECES[0], b"damaged", 0)
    for piece in PIECES:
        if piece.begin:
            partial.write(piece, DATA[piece.begin : piece.end], piece.begin)
        partial.complete(piece, hashlib.sha256(DATA[piece.begin : piece.end]))
    with pytest.raises(DigestMismatch):
        partial.finish(layout)
    assert not layout.has_blob(BLOB.digest)


def test_pieces_of_another_chunk_length_are_not_believed(tmp_path: Path) -> None:
    partial = opened(tmp_path)
    put(partial, 0)
    partial.close()
    halves = [Piece(b, b + 500, digest_of_bytes(DATA[b : b + 500])) for b in (0, 500)]
    other = PartialBlob(tmp_path, BLOB, halves)
    other.open(Disk())
    assert other.missing == halves


def test_an_empty_blob_has_nothing_missing(tmp_path: Path) -> None:
    layout = ImageLayout.create(tmp_path / "store")
    empty = Descriptor(media_type="text/plain", digest=digest_of_bytes(b""), size=0)
    partial = PartialBlob(tmp_path, empty, [])
    partial.open(Disk())
    assert partial.missing == []
    partial.finish(layout)
    assert layout.has_blob(empty.digest)


def test_the_whole_blob_is_reserved_when_it_is_opened(tmp_path: Path) -> None:
    partial = PartialBlob(tmp_path, BLOB, PIECES)
    assert partial.unreserved_bytes == 1000
    partial.open(Disk())
    assert partial.path.stat().st_size == 1000
    assert partial.unreserved_bytes == 0


def test_a_disk_without_room_is_refused_with_both_numbers(tmp_path: Path) -> None:
    partial = PartialBlob(tmp_path, BLOB, PIECES)
    with pytest.raises(DiskError, match="999 bytes") as caught:
        check_room(partial.unreserved_bytes, tmp_path, Disk(free_bytes=lambda _: 999))
    assert caught.value.needed.startswith("1000 bytes")
    check_room(partial.unreserved_bytes, tmp_path, Disk(free_bytes=lambda _: 1000))


def test_a_partial_that_is_too_long_is_cut_to_its_blob(tmp_path: Path) -> None:
    (tmp_path / f"{BLOB.digest[7:]}.part").write_bytes(bytes(5000))
    partial = opened(tmp_path)
    for index in range(8):
        put(partial, index)
    partial.finish(ImageLayout.create(tmp_path / "store"))
