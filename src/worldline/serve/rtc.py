"""WebRTC beside the WebSocket: pictures on a video track, inputs on an unordered data channel (docs/protocol.md, 6).

The WebSocket stays: it signs the peer in, carries commands and answers, and the header of every picture, which names the RTP
timestamp that the picture was sent with. So leases, generations, the send window and the figures are the same on both ways.
Importing this needs aiortc: `pip install 'worldline[webrtc]'`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.rtcicetransport import RTCIceCandidate
from aiortc.sdp import SessionDescription

from worldline.schema import WorldlineError
from worldline.serve.protocol import HEADER, MESSAGES_PER_S
from worldline.serve.window import TokenBucket

CONNECT_S = 20.0  # from the answer until the peers have found each other
CLOSE_S = 5.0
REPEAT_S = 0.5  # after which the last picture is sent again: it may be lost, and who asks for a key frame waits for one
WAITING = 64  # inputs on the channel that may wait
BURST = 600.0  # of them at once
MAX_PORTS = 4  # candidates of an offer that are tried
CLOCK = 90_000  # of RTP video, a second
_TICK = Fraction(1, CLOCK)
SKIPPED_AT = 26  # in the header
STAMP = struct.Struct("<I")
LABEL = "controls"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rtc:
    """What a server's peers have in common. addresses: of this machine, on which they listen; None is all but loopback."""

    addresses: tuple[str, ...] | None = ("127.0.0.1",)

    @staticmethod
    def on(host: str) -> Rtc:
        """Peers on the address that the server listens on."""
        if host in ("0.0.0.0", "::"):
            return Rtc(None)
        return Rtc(("127.0.0.1",) if host == "localhost" else (host,))


class Peer:
    """One client's peer connection. `answer` once, then `show` pictures, then `close`; none of them raises for a client that
    is gone."""

    def __init__(
        self,
        rtc: Rtc,
        height: int,
        width: int,
        tell: Callable[[bytes], None],
        steer: Callable[[str | bytes], Awaitable[None]],
    ) -> None:
        """tell: takes the header of a picture that was sent; steer: takes a message of the data channel."""
        self._rtc, self._steer = rtc, steer
        self.dropped = 0  # messages on the channel beyond the rate
        # No servers: aiortc would ask a public one.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._track = _Track(height, width, tell)
        self._channel: RTCDataChannel | None = None
        self._inbox: deque[str | bytes] = deque()
        self._came = asyncio.Event()
        self._bucket = TokenBucket(MESSAGES_PER_S, BURST)
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False
        self._connection.on("datachannel", self._take_channel)
        self._connection.on("connectionstatechange", self._changed)

    @property
    def ready(self) -> bool:
        """Whether pictures can be shown."""
        return not self._over and self._connection.connectionState == "connected"

    async def answer(self, offer: str, client: str) -> str:
        """The answer to an offer (SDP). client: the address that the WebSocket comes from; nothing is sent to any other unless
        it proves that it knows the answer. Raises WorldlineError on what is no offer of a video track to receive and a
        data channel."""
        try:
            asked = SessionDescription.parse(offer)
            kinds = sorted(m.kind for m in asked.media)
            directions = {m.direction for m in asked.media if m.kind == "video"}
        except Exception as error:  # a parser of somebody else's on a stranger's text
            raise WorldlineError("the offer is not readable; expected the SDP of an RTCPeerConnection") from error
        if kinds != ["application", "video"] or directions != {"recvonly"}:
            raise WorldlineError(
                f"an offer of {' and '.join(kinds) or 'nothing'}; expected one video track to receive (recvonly) and one "
                "data channel"
            )
        for media in asked.media:
            ports = [c.port for c in media.ice_candidates if c.component == 1 and c.protocol.lower() == "udp"]
            media.ice_candidates = [_candidate(client, port) for port in list(dict.fromkeys(ports))[:MAX_PORTS]]
            media.ice_candidates_complete = False  # the client's own checks tell where else it is
        peer = self._connection
        try:
            await peer.setRemoteDescription(RTCSessionDescription(str(asked), "offer"))
            peer.addTrack(self._track)
            (transceiver,) = peer.getTransceivers()
            transceiver.setCodecPreferences(_codecs())
            self._track.sender = transceiver.sender
            assert peer.sctp is not None
            for transport in {transceiver.sender.transport.transport, peer.sctp.transport.transport}:
                _listen_only_on(transport.iceGatherer, self._rtc.addresses)
            await peer.setLocalDescription(await peer.createAnswer())
        except Exception as error:
            raise WorldlineError(f"the offer does not fit ({type(error).__name__}: {str(error)[:100]})") from error
        self._start(self._read())
        self._start(self._give_up())
        return peer.localDescription.sdp

    def show(self, message: bytes) -> None:
        """A picture: its header and uint8 [H, W, 3]. One that was not yet sent is dropped for it."""
        self._track.show(message)

    def forget(self) -> None:
        """Another generation: what is not yet sent, and what was sent last, is not sent any more."""
        self._track.forget()

    async def close(self) -> None:
        """End it and all that belongs to it."""
        self._over = True
        own = [t for t in self._tasks if t is not asyncio.current_task()]
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._connection.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _give_up(self) -> None:
        """A peer that is never found is not waited for."""
        await asyncio.sleep(CONNECT_S)
        if self._connection.connectionState != "connected":
            await self.close()

    def _changed(self) -> None:
        if self._connection.connectionState in ("failed", "closed") and not self._over:
            self._over = True
            self._start(self.close())

    def _take_channel(self, channel: RTCDataChannel) -> None:
        if self._channel is not None or channel.label != LABEL:
            channel.close()
            return
        self._channel = channel
        channel.on("message", self._came_in)

    def _came_in(self, message: str | bytes) -> None:
        if len(self._inbox) >= WAITING or not self._bucket.take(time.monotonic()):
            self.dropped += 1
            return
        self._inbox.append(message)
        self._came.set()

    async def _read(self) -> None:
        while True:
            while self._inbox:
                await self._steer(self._inbox.popleft())
            self._came.clear()
            await self._came.wait()


class _Track(MediaStreamTrack):
    """The newest picture, whenever the sender is ready for one; the header of the one before is told when it has gone out."""

    kind = "video"
    sender: RTCRtpSender

    def __init__(self, height: int, width: int, tell: Callable[[bytes], None]) -> None:
        super().__init__()
        self._shape, self._tell = (height, width, 3), tell
        self._next: bytes | None = None
        self._last: bytes | None = None  # sent, perhaps not yet told
        self._lost = 0  # frames dropped since the last one sent
        self._untold: bytes | None = None
        self._begin, self._clock = time.monotonic(), 0
        self._there = asyncio.Event()

    def show(self, message: bytes) -> None:
        if self._next is not None:
            self._lost += 1 + _skipped(self._next)
        self._next = message
        self._there.set()

    def forget(self) -> None:
        self._next = self._last = self._untold = None
        self._lost = 0

    async def recv(self) -> av.VideoFrame:
        if self._untold is not None:
            # The sender adds an origin of its own to our clock and comes back when the picture's last packet is out.
            self._tell(self._untold + STAMP.pack(self.sender._RTCRtpSender__rtp_timestamp))  # type: ignore[attr-defined]
            self._untold = None
        while True:
            message = await self._take()
            if message is not None:
                break
        pixels = np.frombuffer(message, np.uint8, offset=HEADER.size).reshape(self._shape)
        self._untold = message[: HEADER.size]
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
        self._clock = max(self._clock + 1, int(CLOCK * (time.monotonic() - self._begin)))
        frame.pts, frame.time_base = self._clock, _TICK
        return frame

    async def _take(self) -> bytes | None:
        """The picture to send: a new one, or after a while the last one again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPEAT_S):
                await self._there.wait()
        self._there.clear()
        if self._next is None:
            return self._last
        message, self._next = self._next, None
        if self._lost:
            message = _with_skipped(message, _skipped(message) + self._lost)
            self._lost = 0
        self._last = message
        return message


def _skipped(message: bytes) -> int:
    return int(struct.unpack_from("<H", message, SKIPPED_AT)[0])


def _with_skipped(message: bytes, skipped: int) -> bytes:
    return message[:SKIPPED_AT] + struct.pack("<H", min(skipped, 65535)) + message[SKIPPED_AT + 2 :]


def _candidate(address: str, port: int) -> RTCIceCandidate:
    """Where a client may be: browsers hide their addresses, and no other machine is to be spoken to on a client's word."""
    return RTCIceCandidate(1, "client", address, port, 2130706431, "udp", "host")


def _codecs() -> list[Any]:
    """H.264 before VP8, which costs three times as much to encode; with retransmission."""
    known = RTCRtpSender.getCapabilities("video").codecs
    order = {"video/h264": 0, "video/vp8": 1, "video/rtx": 2}
    return sorted((c for c in known if c.mimeType.lower() in order), key=lambda c: order[c.mimeType.lower()])


def _listen_only_on(gatherer: Any, addresses: tuple[str, ...] | None) -> None:
    """aioice listens on every address but loopback; a server of this machine alone must do the opposite."""
    if addresses is None:
        return
    ice = gatherer._connection
    gather = ice.get_component_candidates

    async def ours(component: int, addresses: list[str], **more: Any) -> Any:
        return await gather(component=component, addresses=list(allowed), **more)

    allowed, ice.get_component_candidates = addresses, ours
