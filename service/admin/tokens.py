"""Credentials: who has one, new ones, new secrets for old ones, and their end.

Owns the routes. Does not own what a token is (credentials/) nor where it is kept (registry/). A secret is in the one
answer that made it, and nowhere else.
"""

from __future__ import annotations

from typing import Any

from fastapi import Response, status

from service.admin.authentication import Actor, ProtectedRouter
from service.admin.dependencies import Reader, Tokens
from service.admin.models import Problem
from service.admin.token_models import IssuedToken, NewToken, TokenDescription, TokenList, TokenRotation
from service.credentials.issuing import check_grace, create_token, rotate_token
from service.errors import InvalidRequestError

router = ProtectedRouter(prefix="/v1/tokens", tags=["tokens"])
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem}
    for code in (status.HTTP_400_BAD_REQUEST, status.HTTP_404_NOT_FOUND, status.HTTP_409_CONFLICT)
}


@router.get("")
async def list_tokens(reader: Reader) -> TokenList:
    """All that were ever created, the oldest first."""
    found = await reader.ask(lambda registry: registry.tokens())
    return TokenList(tokens=[TokenDescription.of(token) for token in found])


@router.post("", status_code=status.HTTP_201_CREATED, responses=_PROBLEMS)
async def new_token(request: NewToken, tokens: Tokens, actor: Actor, response: Response) -> IssuedToken:
    """The answer holds the token, this once. From the first one on, every call needs one."""
    try:
        spec = request.spec()
    except ValueError as error:
        raise InvalidRequestError("", str(error)) from None
    record, issued = await tokens.make(lambda registry: create_token(registry, spec, actor=actor))
    return _issued(response, TokenDescription.of(record), issued.token)


@router.post("/{token_id}:rotate", responses=_PROBLEMS)
async def new_secret(
    token_id: str, request: TokenRotation, tokens: Tokens, actor: Actor, response: Response
) -> IssuedToken:
    """A new secret, in this answer alone; the old one stays good for as long as `grace_s` says."""
    try:
        check_grace(request.grace_s)
    except ValueError as error:
        raise InvalidRequestError("", str(error)) from None
    grace_s = request.grace_s
    record, issued = await tokens.make(lambda registry: rotate_token(registry, token_id, grace_s=grace_s, actor=actor))
    return _issued(response, TokenDescription.of(record), issued.token)


@router.post("/{token_id}:revoke", responses=_PROBLEMS)
async def revoke_token(token_id: str, tokens: Tokens, actor: Actor) -> TokenDescription:
    """For good, and on every gateway within a second. Doing so again changes nothing."""
    return TokenDescription.of(await tokens.make(lambda registry: registry.revoke_token(token_id, actor=actor)))


def _issued(response: Response, description: TokenDescription, token: str) -> IssuedToken:
    response.headers["Cache-Control"] = "no-store"
    return IssuedToken(token=token, description=description)
