"""What an answer 401 says about how to present a key (``WWW-Authenticate``), and where OCI clients turn theirs in.

    /v2/token       Basic                            to get a token: any user name, the key as password
    /v2/…           Bearer realm="…/v2/token"        how OCI clients are led to the token endpoint
    anything else   Bearer and Basic                 the key itself, for people and programs that read HTTP

Under ``/v2`` there is one challenge alone: clients that read several take the realm of one for the realm of another.
The challenge names no scope, because a token is worth what its key is worth, under every name.

The realm is absolute, as clients need it: scheme and host of this request, as the client or its proxy sent them. A
proxy is believed about the scheme where ``forwarded_allow_ips`` names it, and has to pass ``Host`` on. Whoever sends
another ``Host`` misleads only itself: the client has spoken to that host already, and no cache keeps a 401 (RFC 9111,
section 3). A ``Host`` that is not a host and port is replaced by the address of the socket.
References: Distribution, "Token authentication specification"; RFC 9110, section 11.6.1.
"""

from __future__ import annotations

from starlette.requests import Request

from cloud_service.routes.oci_errors import is_oci_path

TOKEN_PATH = "/v2/token"  # noqa: S105 - a path
_BASIC = 'Basic realm="zo-cloud"'


def challenge_to(request: Request) -> str:
    """Return the value of ``WWW-Authenticate`` for a request without a valid key."""
    if request.url.path == TOKEN_PATH:
        return _BASIC
    if is_oci_path(request.url.path):
        url = request.url
        return f'Bearer realm="{url.scheme}://{url.netloc}{TOKEN_PATH}",service="{url.netloc}"'
    return f'Bearer realm="zo-cloud", {_BASIC}'
