"""WebRTC's handshake over the WebSocket: who may have a peer, and where its messages go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from worldline.schema import WorldlineError
from worldline.serve import protocol
from worldline.serve.connection import Connection
from worldline.serve.lobby import Lobby, Visit
from worldline.serve.protocol import Ack, Input, ProtocolError, Rtc, parse

if TYPE_CHECKING:
    from worldline.serve.rtc import Rtc as Peers

MAX_OFFERS = 8  # by one connection


def peers_on(host: str) -> Peers:
    """How peers of a server on `host` are made. Raises WorldlineError where aiortc is not installed."""
    try:
        from worldline.serve.rtc import Rtc as Peers
    except ImportError as error:
        raise WorldlineError(
            f"WebRTC needs aiortc ({error}): pip install 'worldline[webrtc]', or leave --webrtc out"
        ) from error
    return Peers.on(host)


async def offered(
    connection: Connection,
    lobby: Lobby,
    visit: Visit,
    offer: Rtc,
    webrtc: Peers | None,
    refuse: Callable[[ProtocolError], Awaitable[None]],
) -> None:
    """Answer an offer of WebRTC; the walk's pictures go on as they did until the client asks for codec `track`. refuse: answers
    a message of the data channel that is not of the protocol."""

    async def no(said: str, code: str = "request") -> None:
        await connection.send(json.dumps(protocol.error(code, said, re=offer.id)))

    connection.offers += 1
    if webrtc is None or not lobby.tracks:
        return await no("no video tracks here: a server has them with --webrtc, for worlds of even sides", "feature")
    if visit.state != "live":
        return await no("there is no walk yet: wait for state live")
    if connection.offers > MAX_OFFERS:
        return await no(f"more than {MAX_OFFERS} offers; connect again")
    from worldline.serve.rtc import Peer

    async def steer(text: str | bytes) -> None:
        """A message of the data channel: what is lost or late there must not matter."""
        lobby.counters["messages"] += 1
        try:
            message = parse(text) if isinstance(text, str) else None
            if not isinstance(message, (Input, Ack)):
                raise ProtocolError(
                    "on the data channel: expected input or ack as JSON text; all else goes over the WebSocket"
                )
            await lobby.receive(visit, message)
        except ProtocolError as error:
            await refuse(error)

    assert lobby.facts is not None
    old, hello = connection.peer, lobby.facts.hello
    if old is not None:
        connection.peer = None
        await old.close()
    peer = Peer(webrtc, hello["height"], hello["width"], connection.tell, steer)
    try:
        client = connection.ws.client
        answer = await peer.answer(offer.sdp, "127.0.0.1" if client is None else client.host)
    except WorldlineError as error:
        await peer.close()
        return await no(str(error))
    except asyncio.CancelledError:
        await peer.close()
        raise
    connection.peer = peer
    lobby.counters["webrtc_offers"] += 1
    await connection.send(json.dumps({"type": "done", "id": offer.id, "of": "rtc", "sdp": answer}))
