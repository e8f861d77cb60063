"""What a server counts, for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worldline.serve.lobby import Lobby


class LobbyCollector(Collector):
    """Reads the lobby when asked: nothing is counted twice, nothing is kept in globals."""

    def __init__(self, lobby: Lobby) -> None:
        self.lobby = lobby

    def collect(self) -> Iterator[Metric]:
        """All figures now."""
        lobby = self.lobby
        for name, help, value in (
            ("seats", "Seats of this server", len(lobby.places)),
            ("seats_ready", "Seats whose world is loaded", sum(p.seat.state.ready for p in lobby.places)),
            ("seats_taken", "Seats that a visit holds", len(lobby.live)),
            ("queue_length", "Visits that wait", len(lobby.queue)),
            ("tasks", "Tasks of the event loop", len(asyncio.all_tasks())),
            ("connections", "Visits with a client now", sum(v.connection is not None for v in lobby.visits.values())),
        ):
            yield GaugeMetricFamily(f"worldline_{name}", help, value)
        events = CounterMetricFamily("worldline_events", "What happened, by kind", labels=["kind"])
        for kind, count in sorted(lobby.counters.items()):
            events.add_metric([kind], count)
        yield events


def registry_of(lobby: Lobby) -> CollectorRegistry:
    """A registry of one server's own."""
    from prometheus_client import GCCollector, PlatformCollector, ProcessCollector

    registry = CollectorRegistry()
    registry.register(LobbyCollector(lobby))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """The text format."""
    return generate_latest(registry)
