"""A token service as registries have one beside them: Basic in, signed tokens out, on 127.0.0.1."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from self_signed import make_certificate

SERVICE, ISSUER = "tests-registry", "tests-tokens"


@dataclass
class TokenService:
    """``asked`` holds the query and the Authorization of each request; ``logins`` who gets a token."""

    folder: Path
    lets_strangers_in: bool
    logins: frozenset[str]
    url: str = ""
    asked: list[tuple[dict[str, list[str]], str | None]] = field(default_factory=list)

    def configuration(self) -> dict[str, Any]:
        """What docker-registry has to know of it."""
        return {
            "token": {
                "realm": f"{self.url}/token",
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self.folder / "cert.pem"),
            }
        }

    def allows(self, authorization: str | None) -> bool:
        if authorization is None:
            return self.lets_strangers_in
        return base64.b64decode(authorization.removeprefix("Basic ")).decode() in self.logins

    def token(self, scopes: list[str]) -> str:
        """Return a token that allows pulling what the scopes name."""
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        claims = {
            "iss": ISSUER, "sub": "", "aud": SERVICE, "jti": "1", "access": access,
            "iat": now - 60, "nbf": now - 60, "exp": now + 300,
        }  # fmt: skip
        certificate = x509.load_pem_x509_certificate((self.folder / "cert.pem").read_bytes())
        chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
        head = {"typ": "JWT", "alg": "ES256", "x5c": chain}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (head, claims))
        key = serialization.load_pem_private_key((self.folder / "key.pem").read_bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(signed.encode(), ECDSA(hashes.SHA256())))
        return f"{signed}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@contextlib.contextmanager
def token_service(
    folder: Path, *, lets_strangers_in: bool = False, logins: frozenset[str] = frozenset()
) -> Iterator[TokenService]:
    """Run one with its certificate in ``folder``; ``logins`` are ``user:password``."""
    make_certificate(folder)
    service = TokenService(folder, lets_strangers_in, logins)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query, authorization = parse_qs(urlsplit(self.path).query), self.headers["Authorization"]
            service.asked.append((query, authorization))
            is_allowed = service.allows(authorization)
            body = json.dumps({"token": service.token(query.get("scope", []))} if is_allowed else {}).encode()
            self.send_response(200 if is_allowed else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{listener.server_address[1]}"
    try:
        yield service
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
