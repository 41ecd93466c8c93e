"""``zo-device serve`` as a process of its own, on a free port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Server(NamedTuple):
    """Where it answers, its process, and the home that it serves."""

    url: str
    process: subprocess.Popen[str]
    home: Path


@contextmanager
def serving(home: Path, *options: str, under: Sequence[str] = ()) -> Iterator[Server]:
    """Run ``zo-device serve`` inside the ``with`` block, by another program where one is given."""
    words = ["serve", "tiny", "--port", "0", "--device", "cpu", "--backend", "reference", *options]
    process = subprocess.Popen(
        [
            *under,
            sys.executable,
            "-c",
            "import sys; from device_client.cli import main; sys.exit(main(sys.argv[1:]))",
            *words,
        ],
        env={**os.environ, "ZO_DEVICE_HOME": str(home), "NO_COLOR": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = ""
        while (found := re.search(r"at (http://\S+)/v1;", said)) is None:
            line = process.stderr.readline()
            assert line, said
            said += line
        yield Server(found.group(1), process, home)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
