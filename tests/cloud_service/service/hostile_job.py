"""A job's process that attacks: which attack, the model's name in the order says. Standard library only.

    probe       tries everything that is over at once, and reports each as ``done`` or the name of its error
    others      use too much, say too much, refuse to stop, or leave something behind; bounded in time and number

Where to aim comes in the environment: SERVICE_PID, HOST_PORT. The data folder is two above the job's.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MEBIBYTE = 1 << 20
PATIENCE_SECONDS = 60
FOLDER = Path(sys.argv[1])
DATA = FOLDER.parents[1]


def say(kind: str, **fields: object) -> None:
    print(json.dumps({"kind": kind, **fields}), flush=True)


def probes(model_root: Path) -> dict[str, Callable[[], object]]:
    service = Path("/proc") / os.environ.get("SERVICE_PID", "1")
    return {
        "read the signing key": (DATA / "signing-key.pem").read_bytes,
        "read the database": (DATA / "jobs.sqlite3").read_bytes,
        "read another job": (DATA / "jobs" / "other" / "workspace" / "secret").read_bytes,
        "find another job": lambda: list((DATA / "jobs" / "other").iterdir()),
        "read the passwords": Path("/etc/shadow").read_bytes,
        "read the service's environment": (service / "environ").read_bytes,
        "open the service's memory": lambda: (service / "mem").open("rb").close(),
        "signal the service": lambda: os.kill(int(service.name), 0),
        "connect to the host": lambda: socket.create_connection(("127.0.0.1", int(os.environ["HOST_PORT"])), 2).close(),
        "write into the store": lambda: (DATA / "store" / "planted").write_bytes(b"x"),
        "write into the models": lambda: (model_root / "planted").write_bytes(b"x"),
        "plant a report": lambda: (FOLDER / "report.html").symlink_to(DATA / "signing-key.pem"),
        "remove the log": (FOLDER / "log.txt").unlink,
        "mount": mount_something,
        "become root": lambda: os.setuid(0) if os.getuid() else os.chroot("/"),
    }


def mount_something() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", b".", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")


def probe(order: dict[str, object]) -> None:
    roots = order["model_roots"]
    assert isinstance(roots, list)
    for name, attempt in probes(Path(roots[0])).items():
        try:
            attempt()
            result = "done"
        except OSError as error:
            result = type(error).__name__
        say("note", message=f"{name}: {result}")
    (Path(roots[0]) / "weights").read_bytes()
    Path("allowed").write_bytes(b"in the workspace")
    say("note", message="read the model and write in the workspace: done")


def take_memory(_order: object) -> None:
    """Lift the soft limit, as a job may, and touch up to 3 GiB."""
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    taken = []
    for _ in range(48):
        taken.append(bytearray(b"x") * (64 * MEBIBYTE))
    time.sleep(PATIENCE_SECONDS)


def take_memory_at_once(_order: object) -> None:
    """Run into the soft limit, as an honest job with a hostile tokenizer would, and let a library abort."""
    try:
        bytearray(8 << 30)
    except MemoryError:
        print("memory allocation of 8589934592 bytes failed", file=sys.stderr, flush=True)
        os.abort()


def fork_often(_order: object) -> None:
    """Start up to 1,000 processes that wait."""
    for _ in range(1000):
        try:
            if os.fork() == 0:
                time.sleep(PATIENCE_SECONDS)
                os._exit(0)
        except BlockingIOError:
            break
    time.sleep(PATIENCE_SECONDS)


def write_a_long_file(_order: object) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    with Path("long").open("wb") as file:
        file.truncate(1 << 40)


def take_time(_order: object) -> None:
    say("stage", stage="calibrating", total=1, unit="sequences")
    time.sleep(PATIENCE_SECONDS)


def send_many_messages(_order: object) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        say("advance", done=1)


def send_a_long_message(_order: object) -> None:
    say("note", message="x" * (2 * MEBIBYTE))
    time.sleep(PATIENCE_SECONDS)


def refuse_to_stop(_order: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("stage", stage="calibrating", total=1, unit="sequences")
    time.sleep(PATIENCE_SECONDS)


def leave_a_grandchild(_order: object) -> None:
    """Start a process in a session of its own that outlives this one, and end."""
    subprocess.Popen(
        [sys.executable, "-c", f"import time; time.sleep({PATIENCE_SECONDS})", f"left-by-{FOLDER.name}"],
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    say("failed", error={"type": "data-error", "message": "the end", "param": None})


def publish_links(_order: object) -> None:
    """Claim a bundle whose manifest and report are links to the signing key."""
    digest = "0" * 64
    blobs = Path("store", "blobs", "sha256")
    blobs.mkdir(parents=True)
    (blobs / digest).symlink_to(DATA / "signing-key.pem")
    Path("report.html").symlink_to(DATA / "signing-key.pem")
    manifest = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": f"sha256:{digest}", "size": 119}
    outcome = {"name": "links", "tag": "latest", "manifest": manifest, "size_bytes": 1, "fingerprint": "f"}
    say("finished", outcome=outcome)
    time.sleep(PATIENCE_SECONDS)


ATTACKS = {
    "probe": probe,
    "memory": take_memory,
    "allocation": take_memory_at_once,
    "forks": fork_often,
    "long-file": write_a_long_file,
    "time": take_time,
    "many-messages": send_many_messages,
    "long-message": send_a_long_message,
    "deaf": refuse_to_stop,
    "grandchild": leave_a_grandchild,
    "links": publish_links,
}

if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    ATTACKS[given["request"]["model"]](given)
