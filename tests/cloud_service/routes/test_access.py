"""Who may call, asked more than once."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Request

from cloud_service.routes.access import Access
from cloud_service.storage.keys import Scope
from shared.errors import Forbidden, Unauthorized


def test_a_long_answer_can_look_again_whether_its_key_was_revoked(api: Any) -> None:
    key, token = api.service.keys.create("", [Scope.BUNDLES])
    access = Access(api.service.keys)
    headers = [(b"authorization", f"Bearer {token}".encode())]
    request = Request({"type": "http", "method": "GET", "headers": headers})
    assert access.recheck(request, Scope.BUNDLES) == key.id
    with pytest.raises(Forbidden):
        access.recheck(request, Scope.JOBS)
    api.service.keys.revoke(key.id)
    with pytest.raises(Unauthorized, match="not valid"):
        access.recheck(request, Scope.BUNDLES)
