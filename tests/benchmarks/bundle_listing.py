"""How long one page of a list of 10,000 published bundles takes, over HTTP from a running service.

Each bundle has a name, a tag, a digest and forty blobs of its own rows; the pages of 200 are read at the list's begin,
in its middle and at its end, and for one name.

    service.bundles_listed_10000_seconds = the slowest page, of five readings each

Takes about half a minute and 100 MB of disk. Run: python tests/benchmarks/bundle_listing.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from recording import record_headlines, write_result  # noqa: E402
from shelf import copy_blobs, make_shelf  # noqa: E402
from tiny_bundle import make_tiny_bundle  # noqa: E402

from cloud_service.storage.bundle_index import ValidBundle, add_bundle, set_tag  # noqa: E402
from cloud_service.storage.database import writing  # noqa: E402

BUNDLES = 10_000
BLOBS_EACH = 40
READINGS = 5
PAGES = {
    "begin": {"limit": 200},
    "middle": {"limit": 200, "after": "team/model-05000:v1"},
    "end": {"limit": 200, "after": "team/model-09799:v1"},
    "one name": {"limit": 50, "name": "team/model-07777"},
}


def main() -> None:
    """Publish, measure, write the result, record the headline."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        publish_all(data)
        process = start(data)
        try:
            result = measure(*address_and_key(process))
        finally:
            process.terminate()
            process.wait(60)
    path = write_result("bundle_listing", {"bundles": BUNDLES, "blobs_of_each": BLOBS_EACH, **result})
    slowest = max(result["seconds_by_page"].values())
    record_headlines(path, {"service.bundles_listed_10000_seconds": (slowest, "s for the slowest page of 10,000")})
    sys.stdout.write(path.read_text())


def publish_all(data: Path) -> None:
    """Write the rows of all bundles; they share the files of one."""
    tiny = make_tiny_bundle(data.parent / "tiny")
    copy_blobs(tiny.layout, data)
    shelf = make_shelf(data)
    manifest = tiny.layout.resolve(tiny.reference).model_copy(update={"annotations": None})
    bundle = shelf.store.validate(manifest)
    with writing(shelf.engine) as connection:
        for number in range(BUNDLES):
            made = numbered(bundle, number)
            add_bundle(connection, f"team/model-{number:05d}", made, has_report=False)
            set_tag(connection, f"team/model-{number:05d}", "v1", made.manifest.digest)
    shelf.engine.dispose()


def numbered(bundle: ValidBundle, number: int) -> ValidBundle:
    """Return the bundle under another digest, with blobs of its own."""
    digests = [f"sha256:{hashlib.sha256(f'{number} {index}'.encode()).hexdigest()}" for index in range(BLOBS_EACH + 1)]
    blobs = tuple(bundle.manifest.model_copy(update={"digest": digest}) for digest in digests[1:])
    manifest = bundle.manifest.model_copy(update={"digest": digests[0]})
    return dataclasses.replace(bundle, manifest=manifest, blobs=blobs)


def start(data: Path) -> subprocess.Popen[str]:
    """Start the service."""
    return subprocess.Popen(
        [sys.executable, "-m", "cloud_service.cli", "serve", "--data", str(data), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )


def address_and_key(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for the lines that tell both."""
    assert process.stdout is not None
    assert process.stderr is not None
    key = process.stderr.readline().split()[-1]
    for line in process.stdout:
        if (fields := json.loads(line)).get("event") == "listening":
            return str(fields["url"]), key
    raise SystemExit("the service ended")


def measure(url: str, key: str) -> dict[str, Any]:
    """Time each page, and the whole list followed page by page."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        seconds = {name: slowest_seconds(client, query) for name, query in PAGES.items()}
        begin, after, count = time.perf_counter(), None, 0
        while True:
            query: dict[str, Any] = {"limit": 200} | ({"after": after} if after else {})
            page = client.get("/v1/bundles", params=query).json()
            count, after = count + len(page["bundles"]), page["next"]
            if after is None:
                break
        if count != BUNDLES:
            raise SystemExit(f"{count} bundles were listed")
        return {"seconds_by_page": seconds, "seconds_of_all_pages": time.perf_counter() - begin}


def slowest_seconds(client: httpx.Client, query: dict[str, Any]) -> float:
    """Return the slowest of several readings of a page."""
    readings = []
    for _ in range(READINGS):
        begin = time.perf_counter()
        client.get("/v1/bundles", params=query).raise_for_status()
        readings.append(time.perf_counter() - begin)
    return max(readings)


if __name__ == "__main__":
    main()
