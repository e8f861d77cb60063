"""Who is let in: names, origins, tokens, rates. Every refusal is counted."""

from __future__ import annotations

import json
from collections import Counter
from http.client import HTTPConnection
from urllib.parse import quote

import pytest
from tests.serve.conftest import running
from tests.serve.test_app import http
from tests.serve.walker import walker
from websockets.exceptions import InvalidStatus

from worldline.schema import WorldlineError
from worldline.serve import gate
from worldline.serve.app import access_of, create_app, new_token

TOKEN = "correct horse battery staple"


@pytest.fixture
def guarded(engine):
    app = create_app(engine, access=access_of("127.0.0.1", TOKEN, ["https://friend.example"]))
    with running(app) as address:
        yield address, app.state.lobby.counters


def refused(address: str, **options) -> int:
    with pytest.raises(InvalidStatus) as refusal, walker(address, **options):
        pass
    return refusal.value.response.status_code


def test_without_the_token_nothing_but_probes_answers(guarded):
    address, counters = guarded
    for path in (
        "/metrics",
        "/api/world",
        "/api/starts",
        "/api/status",
        "/client/style.css",
        "/openapi.json",
        "/nowhere",
    ):
        status, body, headers = http(address, path)
        assert (status, json.loads(body)["error"]["code"], headers["www-authenticate"]) == (
            401,
            "unauthorised",
            "Bearer",
        )
    for wrong in ("Bearer wrong", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"bearer{TOKEN}"):
        assert http(address, "/api/world", authorization=wrong)[0] == 401
        assert refused(address, additional_headers={"Authorization": wrong}) == 401
    assert refused(address) == 401
    assert counters["unauthorised"] == 7 + 2 * 5 + 1
    for path in ("/healthz", "/readyz"):
        assert http(address, path)[0] in (200, 503)


def test_with_the_token_everything_does(guarded):
    address, _ = guarded
    assert http(address, "/metrics", authorization=f"Bearer {TOKEN}")[0] == 200
    with walker(address, additional_headers={"Authorization": f"bearer {TOKEN}"}) as w:
        assert w.frame().frame == 0


def test_the_address_with_the_token_opens_the_page_for_browsers(guarded):
    address, _ = guarded
    status, form, _ = http(address, "/")
    assert (status, b'name="token"' in form) == (401, True)
    assert http(address, "/?token=wrong")[0] == 401
    connection = HTTPConnection(address)  # urllib would follow the redirect without the cookie
    connection.request("GET", f"/?token={quote(TOKEN)}")
    answer = connection.getresponse()
    cookie = answer.headers["set-cookie"]
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert TOKEN not in cookie
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    pair = cookie.split(";")[0]
    assert http_(address, "/", pair) == 200
    assert http_(address, "/api/status", pair) == 200
    assert http_(address, "/api/status", pair[:-1] + "0") == 401
    assert http_(address, "/api/status", "\x01=;;" + pair) in (200, 401)
    with walker(address, additional_headers={"Cookie": pair}, origin=f"http://{address}") as w:
        assert w.frame().frame == 0


def http_(address: str, path: str, cookie: str) -> int:
    return http(address, path, cookie=cookie)[0]


def test_other_sites_are_refused_unless_named(guarded):
    address, counters = guarded
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for origin in (
        "http://evil.example",
        "null",
        "https://friend.example.evil.example",
        f"https://{address}.evil.example",
    ):
        assert refused(address, origin=origin, additional_headers=bearer) == 403
        assert http(address, "/api/session", "DELETE", origin=origin, authorization=bearer["Authorization"],
                    worldline_session="x")[0] == 403  # fmt: skip
    assert counters["foreign_origin"] == 8
    for origin in ("https://friend.example", f"http://{address}"):
        with walker(address, origin=origin, additional_headers=bearer) as w:
            assert w.live()


def test_other_names_are_refused(address, app):
    """DNS rebinding: a foreign name that points to this machine."""
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::1", ""):
        assert http(address, "/api/world", host=host)[0] in (400, 421)
        assert refused(address, additional_headers={"Host": host}) in (400, 421) if host else True
    assert app.state.lobby.counters["foreign_host"] >= 4
    assert http(address, "/healthz", host="localhost:1234")[0] == 200


def test_one_address_cannot_flood(engine, monkeypatch):
    monkeypatch.setattr(gate, "BURST", 20.0)
    monkeypatch.setattr(gate, "REQUESTS_PER_S", 0.001)
    app = create_app(engine)
    with running(app) as address:
        answers = Counter(http(address, "/healthz")[0] for _ in range(30))
        assert answers == {200: 20, 429: 10}
        assert refused(address) == 429
    assert app.state.lobby.counters["rate_limited"] == 11


def test_listening_to_the_network_needs_a_token():
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        with pytest.raises(WorldlineError, match="--token"):
            access_of(host, None)
        assert access_of(host, None, insecure=True).token is None
        assert access_of(host, new_token()).hosts is None
    assert access_of("127.0.0.1", None).hosts
    with pytest.raises(WorldlineError, match="guessed"):
        access_of("0.0.0.0", "1234")
    for origin in ("evil", "https://a.example/", "*"):
        with pytest.raises(WorldlineError, match="origin"):
            access_of("127.0.0.1", None, [origin])
