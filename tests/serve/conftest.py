"""A tiny world served for real on a free port."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest
from tests.tiny_world import write_tiny_world

from worldline.serve.app import Server, access_of, create_app, listen
from worldline.stream.engine import Engine


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """At twice the usual rate: most of what these tests take is waiting for frames."""
    return write_tiny_world(tmp_path_factory.mktemp("served"), fps=32.0)


@pytest.fixture(scope="session")
def engine(world):
    return Engine.load(world, threads=1)


@pytest.fixture
def app(engine):
    return create_app(engine, access=access_of("127.0.0.1", None))


@contextmanager
def running(app, give: str = "address", **options):
    """host:port of a server of this application, until the block ends; or the server itself, with that as `where`."""
    import uvicorn

    from worldline.serve.protocol import MAX_MESSAGE

    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        app,
        log_level="error",
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
        **options,
    )
    server = Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        server.where = "{}:{}".format(*listener.getsockname())
        yield server if give == "server" else server.where
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture
def address(app):
    """host:port of a running server."""
    with running(app) as where:
        yield where
