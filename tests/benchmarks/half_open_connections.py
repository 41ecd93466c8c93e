"""How many half-open connections the service survives: its health answers throughout, and its log stays short.

Starts ``zo-cloud serve``, opens 1,200 connections that send the beginning of a request and then nothing, opens them
again whenever the service closes them, and asks ``/healthz`` on a new connection all the while. Writes
``results/half_open_connections.json`` and ``service.half_open_connections_survived``. Takes about ten seconds.
"""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from recording import record_headlines, write_result

CONNECTIONS = 1200
OPENINGS = 10_000
LONGEST_SECONDS = 120.0
LONGEST_ANSWER_SECONDS = 5.0
Address = tuple[str, int]


def main() -> None:
    """Attack a service of its own and record what it did."""
    with tempfile.TemporaryDirectory(prefix="zo-half-open-") as folder:
        command = [sys.executable, "-m", "cloud_service.cli", "serve", "--data", folder, "--port", "0", "--no-auth"]
        log = Path(folder) / "log.jsonl"
        with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL) as process:
            try:
                result = attack(_address(log), CONNECTIONS, OPENINGS)
            finally:
                process.terminate()
        result["log_bytes"] = log.stat().st_size
    path = write_result("half_open_connections", result)
    survived = result["connections"] if result["health_failures"] == 0 else 0
    record_headlines(path, {"service.half_open_connections_survived": (survived, "connections")})
    print(path.read_text())


def attack(address: Address, count: int, openings: int) -> dict[str, Any]:
    """Keep ``count`` half-open connections and tell how ``/healthz`` answered meanwhile.

    Args:
        address: Of the service.
        count: Connections, each opened again as soon as the service closed it.
        openings: How often one is opened in all; fewer where that takes more than two minutes.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    answers: list[float] = []
    opened = failures = 0
    end = time.monotonic() + LONGEST_SECONDS
    with contextlib.ExitStack() as held:
        poll, clients = select.poll(), dict[int, socket.socket]()
        held.callback(lambda: [client.close() for client in clients.values()])
        while opened < openings and time.monotonic() < end:
            for _ in range(min(100, count - len(clients))):
                client = socket.create_connection(address, LONGEST_ANSWER_SECONDS)
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Unfinished: ")
                clients[client.fileno()] = client
                poll.register(client, select.POLLRDHUP)
                opened += 1
            started = time.perf_counter()
            if is_healthy(address):
                answers.append(time.perf_counter() - started)
            else:
                failures += 1
            for descriptor, _ in poll.poll(0):
                poll.unregister(descriptor)
                clients.pop(descriptor).close()
    return {
        "connections": count,
        "opened": opened,
        "health_answers": len(answers),
        "health_failures": failures,
        "median_answer_seconds": round(statistics.median(answers or [0.0]), 4),
        "longest_answer_seconds": round(max(answers, default=0.0), 4),
    }


def is_healthy(address: Address) -> bool:
    """Return whether ``/healthz`` answers 200 on a new connection within a few seconds."""
    try:
        with socket.create_connection(address, LONGEST_ANSWER_SECONDS) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return client.recv(15) == b"HTTP/1.1 200 OK"
    except OSError:
        return False


def _address(log: Path) -> Address:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for line in log.read_text().splitlines():
            if '"listening"' in line and line.endswith("}"):
                parts = urlsplit(json.loads(line)["url"])
                return str(parts.hostname), int(parts.port or 0)
        time.sleep(0.05)
    raise TimeoutError("the service does not listen")


if __name__ == "__main__":
    main()
