"""The JSON of the HTTP interface, as OpenAPI shows it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Fault(BaseModel):
    """Why a request was refused, and what helps."""

    code: str
    message: str
    retry: Literal["fix", "reset", "reconnect", "later", "never"]
    retry_after_s: float | None = None


class Refusal(BaseModel):
    """The body of every refusal."""

    error: Fault


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class SeatStatus(BaseModel):
    """How far one device is."""

    stage: str
    message: str
    taken: bool


class Readiness(BaseModel):
    """Whether walks can begin."""

    ready: bool
    seats: list[SeatStatus]


class Status(BaseModel):
    """Who plays and who waits."""

    seats: int
    free: int
    waiting: int
    eta_s: float | None


class World(BaseModel):
    """The facts of the world on its device (`Engine.spec`)."""

    name: str
    fps: float
    height: int
    width: int
    stride: int
    latents_per_chunk: int
    frames_per_chunk: int
    window: int
    steps: int
    parameters: int
    weights: str
    device: str
    dtype: str


class Start(BaseModel):
    """A place to begin from."""

    name: str
    caption: str
    thumbnail: str


class Uploaded(BaseModel):
    """A file that the session may now use."""

    id: str
    kind: Literal["image", "session"]
    bytes: int


class SessionState(BaseModel):
    """The own session."""

    session: str
    state: Literal["queued", "live"]
    connected: bool
    position: int | None
