"""What the device shows of the body of a refused request: our problems, and the errors of other registries."""

from __future__ import annotations

import json
from typing import Any

import pytest
from simulated_server import Answer, InMemoryTransport, SimulatedServer, instead

from device_client.download.registry import Registry
from shared.bundle.layout import ImageLayout
from shared.errors import Forbidden

SERVER = "http://models.test"
OCI = {"errors": [{"code": "DENIED", "message": "requested access to the resource is denied", "detail": [{"a": 1}]}]}


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"type": "forbidden", "title": "Forbidden", "status": 403, "detail": "key 12 may not"}, ": key 12 may not"),
        ({"title": "Forbidden", "status": 403}, ": Forbidden"),
        ({"detail": "key 12 may not", **OCI}, ": key 12 may not"),
        (OCI, ": DENIED: requested access to the resource is denied"),
        ({"errors": []}, ""),
        ({"errors": [{"detail": None}]}, ""),
        ({"errors": "none"}, ""),
        ({"detail": "a\u001b[31m\nb"}, ": a [31m b"),
        (["no object"], ""),
        ({"detail": "no key\nNeeded: the header Authorization\nNext: ask the operator"}, ": no key"),
        ({"detail": "line 1\nline 2\nNext: GET /v1/bundles"}, ": line 1 line 2"),
        ({"detail": "Next: rm -r ~"}, ""),
    ],
)
def test_the_reason_is_shown_whichever_form_it_has(published: ImageLayout, body: Any, shown: str) -> None:
    server = SimulatedServer(published)
    server.misbehave(lambda _: True, instead(Answer(403, body=json.dumps(body).encode())))
    with pytest.raises(Forbidden) as caught:
        Registry(InMemoryTransport({SERVER: server}), SERVER).manifest("tiny", "latest", max_bytes=1000)
    assert caught.value.found == f"{SERVER}/v2/tiny/manifests/latest answers 403{shown}"
    assert str(caught.value).count("Next: ") == str(caught.value).count("Needed: ") == 1
