"""`worldline serve`: a world for more than one: sessions, a queue, several devices, a token."""

from __future__ import annotations

import argparse
import os

from worldline.cli.common import Subcommands, command
from worldline.cli.play import find_world

EXAMPLES = """\
  worldline serve                                       the bundled world, on this machine only
  worldline serve --host 0.0.0.0 --token auto           for others: prints an address that holds a new token
  worldline serve WORLD --device cuda:0 --device cuda:1 a process for each device, one walk at a time on each
  worldline serve --workers 2 --lease 5 --idle 2        two processes; who waits gets a seat after five minutes
  worldline serve --webrtc                              a video track for pages opened with ?transport=webrtc
  docs/serving.md tells of limits, metrics and proxies; docs/protocol.md of clients
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    sub = command(subcommands, "serve", main, "serve a world to many: queue, leases, token, metrics", EXAMPLES)
    sub.add_argument("world", metavar="WORLD", nargs="?", help="a world or run directory (default: the bundled world)")
    where = sub.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    where.add_argument("--port", type=int, default=8000, metavar="N", help="port (default: 8000)")
    where.add_argument(
        "--webrtc", action="store_true", help="offer pictures over WebRTC, too (pip install 'worldline[webrtc]')"
    )
    who = sub.add_argument_group("who may come in")
    who.add_argument(
        "--token", metavar="T", default=os.environ.get("WORLDLINE_TOKEN"),
        help="ask for this token; `auto` makes one (default: $WORLDLINE_TOKEN, else none)",
    )  # fmt: skip
    who.add_argument("--insecure", action="store_true", help="listen beyond this machine without a token")
    who.add_argument(
        "--origin", action="append", default=[], metavar="URL", help="a site whose pages may connect too; repeatable"
    )
    how = sub.add_argument_group("how long")
    for name, minutes, what in (
        ("--lease", 5.0, "a seat is safe for so long when others wait (default: 5)"),
        ("--idle", 3.0, "without input a seat is freed after (default: 3; 0: never)"),
        ("--total", 0.0, "longest visit (default: 0, no limit)"),
    ):
        how.add_argument(name, default=minutes, type=float, metavar="MIN", help=what)
    how.add_argument(
        "--resume", type=float, default=30.0, metavar="S", help="seconds a walk is kept without a client (default: 30)"
    )
    how.add_argument("--queue", type=int, default=32, metavar="N", help="visitors that may wait (default: 32)")
    on = sub.add_argument_group("on what")
    on.add_argument("--workers", type=int, metavar="N", help="processes, an engine each (default: one a --device)")
    on.add_argument("--device", action="append", metavar="D", help="such as cuda:0; repeatable (default: cpu)")
    on.add_argument("--quantise", choices=("int8", "fp8"), help="with 8-bit linear layers")
    on.add_argument("--threads", type=int, metavar="N", help="CPU threads of each process (default: measured)")


def main(args: argparse.Namespace) -> int:
    """Check who could come in, then serve until interrupted."""
    from functools import partial

    from rich.console import Console

    from worldline.schema import WorldlineError
    from worldline.serve.app import access_of, new_token, serve
    from worldline.serve.lobby import Rules
    from worldline.serve.seats import LocalSeat, Seat
    from worldline.serve.workers import WorkerSeat
    from worldline.stream.engine import Engine

    devices = args.device or ["cpu"]
    workers = args.workers if args.workers is not None else len(devices)
    if not 1 <= workers <= 256:
        raise WorldlineError(f"{workers} workers; expected 1 to 256")
    if min(args.lease, args.idle, args.total, args.resume, args.queue) < 0:
        raise WorldlineError("a time or a queue below 0; expected 0 (no limit) or more")
    token = new_token() if args.token == "auto" else args.token
    access = access_of(args.host, token, args.origin, args.insecure)
    rules = Rules(
        lease_s=60 * args.lease or None, idle_s=60 * args.idle or None, total_s=60 * args.total or None,
        resume_s=args.resume, queue=args.queue,
    )  # fmt: skip
    world = find_world(args.world)
    load = partial(Engine.load, world, threads=args.threads, quantise=args.quantise)
    loads = [partial(load, devices[i % len(devices)]) for i in range(workers)]
    seats: list[Seat] = [LocalSeat(loads[0])] if workers == 1 else [WorkerSeat(f, str(i)) for i, f in enumerate(loads)]

    def ready(url: str) -> None:
        Console().print(f"{world} is at [bold]{url}[/] (Ctrl-C stops it)", highlight=False, soft_wrap=True)

    serve(seats, host=args.host, port=args.port, access=access, rules=rules, webrtc=args.webrtc, on_ready=ready)
    return 0
