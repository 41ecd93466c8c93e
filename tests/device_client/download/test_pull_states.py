"""Any sequence of pulls, cuts, damage, tags that move, offline pulls, prunes and removals: a state machine.

The law: the bytes on disk verify, or the command failed with its documented exit code. And whatever was done to the
store, an honest pull puts it right.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from memory_folder import memory_folder
from simulated_server import Answer, SimulatedServer, break_after, flip_byte, instead, serving, sign_reference
from tiny_bundle import make_tiny_bundle

from device_client.commands import prune, pull, rm
from device_client.console import Console
from device_client.settings import Settings
from shared.bundle.digest import digest_of_file
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor, parse_artifact
from shared.bundle.read import read_bundle
from shared.errors import ZoError

FAULTS = {
    "none": None,
    "503": instead(Answer(503)),
    "404": instead(Answer(404)),
    "cut": break_after(1500),
    "flip": flip_byte(100),
}
CODES_OF_A_PULL_IN_A_FAULT = {0, 4, 5, 6}


@pytest.fixture(scope="module", autouse=True)
def published() -> Iterator[None]:
    """Two bundles, made once."""
    with memory_folder() as folder:
        for number in range(2):
            make_tiny_bundle(folder, reference=f"tiny:{number}", seed=number)
        Device.published = folder
        yield


class Device(RuleBasedStateMachine):
    """One device and one server whose tag names one of two bundles."""

    published: Path

    def __init__(self) -> None:
        super().__init__()
        self._open = contextlib.ExitStack()
        folder = self._open.enter_context(memory_folder())
        shutil.copytree(self.published, folder / "published")
        layout = ImageLayout(folder / "published")
        self.digests = [layout.resolve(f"tiny:{number}").digest for number in range(2)]
        self.server = SimulatedServer(layout)
        self.url = self._open.enter_context(serving(self.server))
        self.settings = Settings(home=folder / "home")
        self.store = self.settings.store
        self.version = 0
        self.move_tag(0)

    def teardown(self) -> None:
        self._open.close()

    def run(self, command: object, words: Sequence[str], *, is_offline: bool = False) -> int:
        """Run a command and return its exit code."""
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)  # type: ignore[attr-defined]
        arguments = parser.parse_args(words, argparse.Namespace(typed="zo-device"))
        options = Settings(home=self.settings.home, is_offline=is_offline)
        try:
            command.run(arguments, Console(stream=io.StringIO()), options)  # type: ignore[attr-defined]
        except ZoError as error:
            return error.exit_code
        return 0

    def pull(self) -> int:
        return self.run(pull, [f"{self.url}/tiny", "--retries", "0", "--connections", "1"])

    def named(self) -> str | None:
        """The digest of the bundle that the device would open."""
        found = self.store.references().get("tiny:latest") if self.store.exists else None
        return found.digest if found else None

    @rule(number=st.integers(0, 1))
    def move_tag(self, number: int) -> None:
        self.version += 1
        self.server.layout.tag("tiny:latest", self.server.layout.resolve(f"tiny:{number}"))
        sign_reference(self.server.layout, "tiny:latest", version=self.version)

    @rule(fault=st.sampled_from(sorted(FAULTS)), after=st.integers(0, 12), times=st.integers(1, 3))
    def pull_in_a_fault(self, fault: str, after: int, times: int) -> None:
        seen = len(self.server.answers)
        change = FAULTS[fault]
        if change is not None:
            self.server.misbehave(lambda _: len(self.server.answers) >= seen + after, change, times=times)
        before, code = self.named(), self.pull()
        self.server.faults.clear()
        assert code in CODES_OF_A_PULL_IN_A_FAULT
        if code == 0:
            self.bundle_is_whole()
        else:
            assert self.named() == before

    @rule()
    def honest_pull(self) -> None:
        assert self.pull() == 0
        self.bundle_is_whole()

    def bundle_is_whole(self) -> None:
        assert self.named() == self.server.layout.resolve("tiny:latest").digest
        read_bundle(self.store, self.named())  # hashes every byte

    @rule()
    def offline_pull(self) -> None:
        code = self.run(pull, ["tiny"], is_offline=True)
        if self.named() is None:
            assert code == 6
        elif self.all_blobs_are_intact():
            assert code == 0
        else:
            assert code in (0, 4, 5)
        if code == 0:
            read_bundle(self.store, self.named())

    @rule()
    def prune(self) -> None:
        code = self.run(prune, [])
        assert code == 0 or not self.all_blobs_are_intact()
        if code == 0 and self.store.exists:
            assert [path.name for path in (self.store.root / "partial").iterdir()] == [".lock"]

    @rule()
    def remove(self) -> None:
        was_there = self.named() is not None
        assert self.run(rm, ["tiny"]) == (0 if was_there else 4)
        assert self.named() is None

    @rule(index=st.integers(0, 100), position=st.integers(0, 100_000), how=st.sampled_from(["flip", "cut", "delete"]))
    def damage(self, index: int, position: int, how: str) -> None:
        """Damage one file of the store: a blob, a partial blob or its journal; never the list of references."""
        files = sorted(
            path for place in ("blobs/sha256", "partial") for path in (self.store.root / place).glob("[!.]*")
        )
        if not files:
            return
        file = files[index % len(files)]
        data = bytearray(file.read_bytes())
        if how == "delete" or not data:
            file.unlink()
            return
        place = position % len(data)
        if how == "flip":
            data[place] ^= 0x10
        file.write_bytes(data if how == "flip" else data[:place])

    def all_blobs_are_intact(self) -> bool:
        return _names_fit(self.store) and all(
            self.store.has_blob(blob.digest)
            for named in self.store.references().values()
            for blob in [named, *_blobs_of(self.store, named.digest)]
        )

    @invariant()
    def only_published_bundles_are_visible(self) -> None:
        assert self.named() in (None, *self.digests)


def _names_fit(store: ImageLayout) -> bool:
    return all(digest_of_file(path) == f"sha256:{path.name}" for path in store.blobs.glob("[!.]*"))


def _blobs_of(store: ImageLayout, digest: str) -> list[Descriptor]:
    path = store.blob_path(digest)
    return parse_artifact(path.read_bytes()).blobs if path.is_file() else []


Device.TestCase.settings = settings(max_examples=15, stateful_step_count=15, deadline=None, derandomize=True)
TestTheBytesOnDiskVerifyOrTheCommandFailedWithItsCode = Device.TestCase
