"""How jobs are isolated: a setting that travels from the command line to ``jobs.confinement``, which explains it."""

from __future__ import annotations

from typing import Literal

Isolation = Literal["auto", "user", "namespace", "landlock", "none"]

DEFAULT_JOB_UID = 65532
