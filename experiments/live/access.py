"""Who may talk to the server.

Loopback is no protection: any page in the same browser can open a connection to 127.0.0.1, and a
name that its owner lets point there passes as well (DNS rebinding). So every request must come from
this page if from any, and be for a loopback address; a server that is bound elsewhere, whose names
nobody knows, asks for a token in place of that.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web

COOKIE = "live_token"
POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(24)


def guard(host: str, token: str | None) -> Callable[[web.Request, Handler], Awaitable]:
    """The middleware that refuses whoever must not talk to the server, with 403.

    Args:
        host: the address that is bound.
        token: that must be known; None: none is needed, on loopback.
    """
    assert token or is_loopback(host), "other addresses need a token"
    names = {"127.0.0.1", "localhost", "[::1]"} if is_loopback(host) else None

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if why := _foreign(request, names):
            response: web.StreamResponse = web.Response(status=403, text=why)
        elif token is None or _knows(request.cookies.get(COOKIE), token):
            response = await handler(request)
        elif _knows(request.query.get("token"), token):
            response = web.HTTPFound(request.path)  # the token leaves the address bar
            response.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
        else:
            response = web.Response(status=403, text="open the address that the server printed")
        if not response.prepared:
            response.headers.update(POLICY)
        return response

    return check


def _foreign(request: web.Request, names: set[str] | None) -> str:
    """Why a request is none of the page's; "" if it is."""
    host = request.headers.get("Host", "")
    port = request.transport.get_extra_info("sockname")[1] if request.transport else None
    if names is not None and _parts(host) not in {(name, port) for name in names}:
        return "another host"
    origin = request.headers.get("Origin")
    schemes = ["http"] if names is not None else ["http", "https"]  # a proxy may speak TLS
    if origin is not None and origin not in [f"{scheme}://{host}" for scheme in schemes]:
        return "another origin"
    return ""


def _parts(host: str) -> tuple[str, int | None]:
    name, _, port = host.rpartition(":")
    if not port.isdecimal() or not name:
        return host, 80
    return name, int(port)


def _knows(given: str | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), token.encode())
