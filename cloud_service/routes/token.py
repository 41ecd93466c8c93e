"""The token endpoint of the OCI distribution API: a key goes in as a password and comes back as a Bearer token.

The token is the key itself. The client holds it already, so the answer tells nobody anything new; there is no second
kind of secret to make, store, expire or revoke, and a revoked key ends its tokens with it. A token of its own would
protect a key from the routes it is sent to, and here they are all this service's.

``service``, ``scope`` and ``account`` of the query are not looked at: a token allows what its key allows, and each
route says itself what a key lacks. Wrong keys are refused and counted before this route is reached, as everywhere.
POST (OAuth2) is not offered; clients that try it first take the answer as the sign to use GET.
Reference: Distribution, "Token authentication specification".
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from cloud_service.routes.access import Access, presented_key
from cloud_service.routes.challenges import TOKEN_PATH
from cloud_service.routes.openapi import content
from shared.api import Message

_SECONDS_TO_KEEP = 3600
"""After which a client asks again. The key is looked up at each request, so this decides nothing but traffic."""


class Token(Message):
    """What OCI clients expect of a token endpoint; both names hold the same, for clients that know one of them."""

    token: str
    access_token: str
    expires_in: Annotated[int, Field(ge=60)]


def token_routes(access: Access) -> APIRouter:
    """Return the route; it needs any valid key."""
    router = APIRouter(tags=["bundles"], dependencies=[Depends(access.needs(None))])

    @router.get(TOKEN_PATH, responses={200: content("application/json", headers=["Cache-Control"])})
    def token(request: Request, response: Response) -> Token:
        """Give an OCI client the token to send in place of its user name and password."""
        response.headers["Cache-Control"] = "no-store"
        key = presented_key(request)
        return Token(token=key, access_token=key, expires_in=_SECONDS_TO_KEEP)

    return router
