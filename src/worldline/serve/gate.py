"""What stands before every request: the address it used, where it came from, who sent it, how often.

A plain ASGI layer, so that HTTP and WebSockets pass the same checks before anything reads a byte of them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from worldline.serve.window import TokenBucket

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/healthz", "/readyz")  # for probes, which hold no secrets
MAX_ADDRESSES = 4096  # whose rates are remembered
REQUESTS_PER_S, BURST = 50.0, 400.0  # of one address
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self' ws: wss:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
SIGN_IN = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<title>worldline</title><main style="font:1rem system-ui;max-width:24rem;margin:20vh auto;padding:1rem">
<h1>worldline</h1><p>This server asks for its token. It was printed where the server was started.</p>
<form><label>Token <input name="token" type="password" autocomplete="current-password" required autofocus></label>
<button>Enter</button></form></main></html>"""


@dataclass(frozen=True)
class Access:
    """token: None asks nobody; hosts: names the server may be addressed by (against DNS rebinding), None takes any;
    origins: other sites whose pages may steer, as `https://name:port`."""

    token: str | None = None
    hosts: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()

    @property
    def cookie(self) -> tuple[str, str]:
        """Name and value of the cookie that stands for the token; two servers on one machine do not share it."""
        assert self.token is not None
        digest = hashlib.sha256(b"worldline cookie " + self.token.encode()).hexdigest()
        return f"worldline_{digest[:8]}", digest[8:]


class Gate:
    """The layer around an application."""

    def __init__(self, app: App, access: Access, counters: Counter[str], clock: Callable[[], float] = time.monotonic):
        self.app, self.access, self.counters, self.clock = app, access, counters, clock
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        address = scope["client"][0] if scope.get("client") else "?"
        if not self._within_rate(address):
            await self._refuse(scope, send, 429, "rate", "too many requests", ("retry-after", "1"))
        elif not self._host_is_ours(headers.get("host", "")):
            await self._refuse(scope, send, 421, "foreign_host", "this server does not go by that name")
        elif not self._origin_is_ours(scope, headers):
            await self._refuse(scope, send, 403, "foreign_origin", "open the page this server serves")
        elif scope["path"] in OPEN_PATHS or self._knows_token(headers):
            await self.app(scope, receive, _with_headers(send) if scope["type"] == "http" else send)
        elif scope["type"] == "http" and scope["path"] == "/":
            await self._sign_in(scope, send)
        else:
            await self._refuse(scope, send, 401, "unauthorised", "this server asks for its token",
                               ("www-authenticate", "Bearer"))  # fmt: skip

    def _within_rate(self, address: str) -> bool:
        bucket = self._buckets.pop(address, None) or TokenBucket(REQUESTS_PER_S, BURST)
        self._buckets[address] = bucket
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return bucket.take(self.clock())

    def _host_is_ours(self, host: str) -> bool:
        if self.access.hosts is None:
            return True
        try:
            return (urlsplit(f"//{host}").hostname or "") in self.access.hosts
        except ValueError:
            return False

    def _origin_is_ours(self, scope: Scope, headers: dict[str, str]) -> bool:
        """Browsers name the page that asks: only our own may steer or change anything. Other clients name none."""
        origin = headers.get("origin")
        if origin is None or (scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS")):
            return True
        try:
            return urlsplit(origin).netloc == headers.get("host") or origin in self.access.origins
        except ValueError:
            return False

    def _knows_token(self, headers: dict[str, str]) -> bool:
        token = self.access.token
        if token is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
            return True
        name, value = self.access.cookie
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(name)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), value.encode())

    async def _sign_in(self, scope: Scope, send: Send) -> None:
        """The page's address with the right token sets the cookie; any other gets the form."""
        assert self.access.token is not None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if hmac.compare_digest(given.encode(), self.access.token.encode()):
            name, value = self.access.cookie
            secure = "; Secure" if scope["scheme"] == "https" else ""
            cookie = f"{name}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age=604800{secure}"
            await _answer(send, 303, b"", ("location", "/"), ("set-cookie", cookie))
            return
        if given:
            self.counters["unauthorised"] += 1
        await _answer(send, 401, SIGN_IN.encode(), ("content-type", "text/html; charset=utf-8"))

    async def _refuse(
        self, scope: Scope, send: Send, status: int, code: str, message: str, *headers: tuple[str, str]
    ) -> None:
        self.counters["rate_limited" if code == "rate" else code] += 1
        retry = "later" if status == 429 else "never"
        body = {
            "error": {"code": code, "message": message, "retry": retry, "retry_after_s": 1.0 if status == 429 else None}
        }
        if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": message})  # becomes a plain 403
            return
        prefix = "websocket." if scope["type"] == "websocket" else ""
        await _answer(
            send, status, json.dumps(body).encode(), ("content-type", "application/json"), *headers, kind=prefix
        )


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[str, str], kind: str = "") -> None:
    every = [*HEADERS.items(), *headers, ("content-length", str(len(body))), ("cache-control", "no-store")]
    encoded = [(k.encode(), v.encode()) for k, v in every]
    await send({"type": f"{kind}http.response.start", "status": status, "headers": encoded})
    await send({"type": f"{kind}http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            given = {k.lower() for k, _ in headers}
            message["headers"] = headers + [
                (k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given
            ]
        await send(message)

    return sending
