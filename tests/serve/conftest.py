"""A tiny world served for real on a free port."""

from __future__ import annotations

import threading
import time

import pytest
from tests.tiny_world import write_tiny_world

from worldline.serve.app import LOCAL, create_app, listen
from worldline.stream.engine import Engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    return Engine.load(write_tiny_world(tmp_path_factory.mktemp("served")), threads=1)


@pytest.fixture
def app(engine):
    return create_app(engine, allowed_hosts=[*LOCAL])


@pytest.fixture
def address(app):
    """host:port of a running server."""
    import uvicorn

    from worldline.serve.protocol import MAX_MESSAGE

    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="error", ws_max_size=MAX_MESSAGE, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield "{}:{}".format(*listener.getsockname())
    server.should_exit = True
    thread.join(10)
    listener.close()
