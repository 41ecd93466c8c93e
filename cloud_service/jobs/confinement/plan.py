"""What a job's process is confined to, as a value that travels to the process itself.

Pure: which paths these are is decided in ``paths``, how they are enforced in ``enter``. Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Mode = Literal["user", "namespace", "landlock", "none"]
Network = Literal["none", "loopback", "all"]

MODES: tuple[Mode, ...] = ("user", "namespace", "landlock", "none")
"""From the strongest to none at all."""

JOB_TEMPORARY = "/tmp/job"  # noqa: S108 - in the job's own file tree
"""Where the job's temporary folder appears in a tree of its own."""


@dataclass(frozen=True, slots=True)
class ConfinementPlan:
    """What one job's process may see and use. All paths are absolute and free of links.

    Attributes:
        mode: How it is enforced. ``user``: a file tree of its own and a user of its own. ``namespace``: the tree, with
            the service's user but none of its rights. ``landlock``: an allow-list of paths. ``none``: limits alone.
        service_pid: The service; where it is gone, the job does not start.
        uid: The user and the group of mode ``user``.
        network: ``loopback``: only itself; Landlock cannot tell it from ``all``.
        system: Read-only folders and files of the operating system and of Python.
        listable: Folders whose names Python looks through to find its packages; only Landlock has to be told.
        readable: Read-only folders and files that the job is about.
        writable: Folders that the job may change.
        hidden: The service's own folders: empty in the tree, even where a readable folder contains them.
        links: Links on the way to the other paths, with their targets: ``/bin`` → ``usr/bin``.
        workspace: The working directory; writable.
        temporary: The job's folder for temporary files; writable.
        shared_memory_bytes: Size of ``/dev/shm`` in the tree.
        environment: Variables that the job gets besides the launcher's: where what its home would lead to lies.
        limits: Name of a resource limit (``RLIMIT_…`` without its prefix) → soft and hard limit; None is unlimited.
    """

    mode: Mode
    service_pid: int
    uid: int
    network: Network
    system: tuple[str, ...]
    listable: tuple[str, ...]
    readable: tuple[str, ...]
    writable: tuple[str, ...]
    hidden: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    workspace: str
    temporary: str
    shared_memory_bytes: int
    environment: dict[str, str]
    limits: dict[str, tuple[int | None, int | None]]

    @property
    def has_tree(self) -> bool:
        """Whether the job gets a file tree of its own."""
        return self.mode in ("user", "namespace")

    def to_json(self) -> str:
        """Return a form that ``from_json`` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ConfinementPlan:
        """Return the plan that ``to_json`` described."""
        fields = json.loads(text)
        paths = {name: tuple(fields[name]) for name in ("system", "listable", "readable", "writable", "hidden")}
        links = tuple((str(link), str(target)) for link, target in fields["links"])
        limits = {name: (soft, hard) for name, (soft, hard) in fields["limits"].items()}
        return cls(**{**fields, **paths, "links": links, "limits": limits})
