"""The version of this code, which a bundle's ``minimum_client_version`` is compared with.

It is part of the code and not of what was installed: a checkout that changed under an old installation reads what it
can read.
"""

from __future__ import annotations

VERSION = "0.2.0"
