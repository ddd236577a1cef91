"""Who may call: tokens of a realm, other sites' pages, and what is said when nobody is asked.

MONAI Label checks tokens with a call that newer versions of PyJWT refuse (no list of algorithms), so with them every valid
token is rejected; and it allows every page of every site to use a user's browser. Both are replaced by way of FastAPI's
own means (dependency_overrides, middleware); no file of MONAI Label is changed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from typing import Any

import jwt
import requests
from fastapi import Depends, HTTPException
from monailabel.config import settings
from monailabel.endpoints.user import auth
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from .request_limits import RequestLimits

logger = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
"""Signatures by the realm's private key. None of a shared secret: the public key would be taken for one."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOCAL_PAGES = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
_KEY_SECONDS = 60.0
_last_key = 0.0


def install_access(max_upload: int) -> None:
    """Sets limits, origins and the check of tokens; does nothing where MONAI Label's server was not started.

    Args:
        max_upload: the most bytes of a request that sends a file.
    """
    server = sys.modules.get("monailabel.app")
    if server is None:
        return
    origins = tuple(str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS)
    for number, middleware in enumerate(server.app.user_middleware):
        if middleware.cls is CORSMiddleware:
            server.app.user_middleware[number] = _cors(origins)
    limits = Middleware(RequestLimits, max_upload=max_upload, origins=origins, prefix=settings.MONAI_LABEL_API_STR)
    server.app.user_middleware.insert(0, limits)
    server.app.middleware_stack = None  # built again with these at the next request
    if settings.MONAI_LABEL_AUTH_ENABLE:
        server.app.dependency_overrides[auth.get_current_user] = current_user
    for warning in exposure(listening_host(sys.argv[1:]), settings.MONAI_LABEL_AUTH_ENABLE, _has_tls(sys.argv[1:])):
        logger.warning(warning)


def _cors(origins: tuple[str, ...]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_origin_regex=None if origins else _LOCAL_PAGES,
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
    )


def current_user(token: str = Depends(auth.oauth2_scheme)) -> auth.User:
    """The user of a bearer token of the realm.

    Raises:
        HTTPException: 401 for a token that is not valid, 503 if the realm does not give its key.
    """
    try:
        return user_of(_payload(token))
    except (jwt.InvalidTokenError, ValueError) as error:
        logger.info("A token was refused: %s", error)
        raise HTTPException(401, "Could not validate credentials", {"WWW-Authenticate": "Bearer"}) from error
    except (requests.RequestException, KeyError) as error:
        logger.warning("The realm does not give its key: %s", error)
        raise HTTPException(503, "The login server does not answer; try again later.") from error


def _payload(token: str) -> dict[str, Any]:
    global _last_key
    realm = settings.MONAI_LABEL_AUTH_REALM_URI
    try:
        return decode(token, auth.get_public_key(realm))
    except jwt.InvalidSignatureError:
        if time.monotonic() - _last_key < _KEY_SECONDS:
            raise
        _last_key = time.monotonic()  # the realm may have a new key since
        auth.get_public_key.cache.clear()
        return decode(token, auth.get_public_key(realm))


def decode(token: str, key: str) -> dict[str, Any]:
    """The claims of a token that the key's owner signed and that has not expired.

    Raises:
        jwt.InvalidTokenError: another signature or algorithm, expired, or without an expiry.
    """
    options = {"verify_aud": False, "require": ["exp"]}
    return jwt.decode(token, key, algorithms=list(ALGORITHMS), options=options)


def user_of(claims: dict[str, Any]) -> auth.User:
    """MONAI Label's user, by the claims that its settings name.

    Raises:
        ValueError: there is no user name.
    """
    roles: Any = claims
    for key in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        roles = roles.get(key) if isinstance(roles, dict) else None
    username = claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME)
    if not isinstance(username, str) or not username:
        raise ValueError(f"the token has no {settings.MONAI_LABEL_AUTH_TOKEN_USERNAME}")
    return auth.User(
        username=username,
        email=_text(claims.get(settings.MONAI_LABEL_AUTH_TOKEN_EMAIL)),
        name=_text(claims.get(settings.MONAI_LABEL_AUTH_TOKEN_NAME)),
        roles=[role for role in roles if isinstance(role, str)] if isinstance(roles, list) else [],
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def listening_host(words: list[str]) -> str | None:
    """The address that `monailabel start_server` was told to listen on; None if these are not its words."""
    if "start_server" not in words:
        return None
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-i", "--host", default="0.0.0.0")  # MONAI Label's default
    return parser.parse_known_args(words)[0].host


def _has_tls(words: list[str]) -> bool:
    return any(word.startswith("--ssl_certfile") for word in words)


def exposure(host: str | None, authentication: bool, tls: bool) -> list[str]:
    """What an operator must hear about the address that the server listens on; empty for this machine alone."""
    if host is None or host in _LOOPBACK:
        return []
    if not authentication:
        return [
            f"ANYBODY WHO REACHES THIS MACHINE may read, change and delete its studies and labels: the server listens on "
            f"{host} and asks nobody who they are. Start it with --host 127.0.0.1 (see docs/security.md)."
        ]
    if not tls:
        return [
            f"Tokens and images travel unencrypted: the server listens on {host} without TLS. Put a reverse proxy in "
            "front, or give --ssl_certfile and --ssl_keyfile (see docs/security.md)."
        ]
    return []
