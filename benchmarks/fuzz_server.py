"""Abuse a server for some minutes and write down what came of it.

    OMP_NUM_THREADS=1 python -m benchmarks.fuzz_server --docs docs/serving.md     20,000 malformed messages and all the rest
    OMP_NUM_THREADS=1 python -m benchmarks.fuzz_server --messages 2000 --slow 10 --rounds 2 --repeats 2

Starts `worldline serve` with the bundled world, two worker processes and a token, and runs `benchmarks.server_abuse` against
it while a polite player plays on the second seat. The same abuse comes several times over, so that memory which grows with it
is told from memory that is only warm. Afterwards the server must be as it was: seats free, no tasks, sockets or processes left
over, and a new player served. Writes benchmarks/results/<date>-fuzz-server.json and prints the table of docs/serving.md, or puts
it there (--docs) between its two marks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import server_abuse as abuse
from worldline.recipes.cards import hardware
from worldline.serve.app import listen

OUT = Path(__file__).parent / "results"
TOKEN = "a token for this run only"
MARKS = ("<!-- by benchmarks.fuzz_server -->", "<!-- end of benchmarks.fuzz_server -->")


def controls(count: int) -> list[str]:
    """Inputs by hypothesis: every kind of number at every place, as JSON text that may not be JSON."""
    number = st.one_of(
        st.floats(), st.integers(), st.sampled_from([1e308, -1e308, 5e-324, 2**32, -(2**63)]), st.booleans(), st.none()
    )
    some = st.lists(number, max_size=5)
    keys = st.lists(st.sampled_from(abuse.KEYS) | st.text(max_size=40) | number, max_size=20)
    made: list[str] = []

    @settings(max_examples=count, database=None, derandomize=True, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.integers(0, 2**32) | number, keys | number, some | number, some | number)
    def make(seq: Any, keys: Any, mouse: Any, axes: Any) -> None:
        made.append(json.dumps({"type": "input", "seq": seq, "keys": keys, "mouse": mouse, "axes": axes}))

    while len(made) < count:
        make()
    return made[:count]


class Server:
    """`worldline serve` as a child."""

    def __init__(self, workers: int, *more: str) -> None:
        with listen("127.0.0.1", 0) as free:
            self.target = abuse.Target(f"127.0.0.1:{free.getsockname()[1]}", TOKEN)
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)  # noqa: SIM115 - read at the end
        port = self.target.address.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "worldline.cli", "serve", "--port", port, "--token", TOKEN, "--workers", str(workers),
                   "--threads", "1", *more]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            try:
                if all(s["stage"] == "ready" for s in json.loads(self.target.get("/readyz")[1])["seats"]):
                    return
            except OSError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.3)
        self.process.kill()
        raise SystemExit(f"the server did not start; see {self.log.name}")

    def state(self) -> dict[str, float]:
        """What it holds now: of the router and its workers."""
        family = [psutil.Process(self.process.pid)]
        family += family[0].children(recursive=True)
        m = self.target.metrics()
        return {
            "rss_mib": sum(p.memory_info().rss for p in family) / 2**20, "threads": sum(p.num_threads() for p in family),
            "fds": sum(p.num_fds() for p in family), "processes": len(family),
            "seats_taken": m["worldline_seats_taken"], "waiting": m["worldline_queue_length"],
            "connected": m["worldline_connections"], "tasks": m["worldline_tasks"],
            "failures": m.get("failures", 0.0), "worker_deaths": m.get("ended_worker", 0.0),
        }  # fmt: skip

    def settle(self, want: Callable[[dict[str, float]], bool], seconds: float = 120.0) -> dict[str, float]:
        """The state once it is as wanted, or after so long."""
        deadline = time.monotonic() + seconds
        while not want(now := self.state()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return now

    def stop(self) -> str:
        """End it; its log."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.seek(0)
        return self.log.read()


def schemathesis(target: abuse.Target, examples: int, *more: str) -> dict[str, Any]:
    """All checks of schemathesis on the HTTP interface; below the rate that one address may ask at."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"http://{target.address}/openapi.json", "--max-examples",
        str(examples), "--rate-limit", "40/s", "--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure",
        "-H", f"Authorization: Bearer {target.token}", "--seed", "1", "--generation-database", "none", *more,
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    cases = re.search(r"([\d,]+) generated", run.stdout)
    failed = re.search(r"found (\d+) unique fail", run.stdout)
    return {
        "cases": int(cases[1].replace(",", "")) if cases else 0,
        "failures": int(failed[1]) if failed else int(run.returncode != 0),
        "tail": run.stdout[-3000:] if run.returncode else "",
    }


async def http(target: abuse.Target, examples: int) -> dict[str, Any]:
    """As a visitor with a session (all but leaving), then as one without a session."""
    async with abuse.playing(target, 40_000_000) as visitor:
        live = await visitor.until("state", state="live")
        more = ("-H", f"worldline-session: {live['resume']}", "--exclude-method", "DELETE")
        inside = await asyncio.to_thread(schemathesis, target, examples, *more)
    outside = await asyncio.to_thread(schemathesis, target, examples)
    return {k: inside[k] + outside[k] for k in inside}


async def main_async(server: Server, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All kinds of abuse, a polite player beside each."""
    target, found = server.target, dict[str, Any]()
    await polite(target, 2.0)
    idle = server.settle(lambda s: s["seats_taken"] == 0)
    found["before"] = idle

    async def beside(name: str, work: Any) -> Any:
        """The work, while a player plays; what the player saw goes to `found`."""
        console.print(f"{name} ...", highlight=False)
        async with abuse.playing(target, mark=10_000_000) as player:
            await player.until("scene")
            walking = asyncio.create_task(player.walk(1e9))
            begin = time.monotonic()
            result = await work
            await asyncio.sleep(1.0)
            if walking.done():
                raise SystemExit(f"the polite player was stopped during {name}: {walking.exception()!r}")
            walking.cancel()
            await asyncio.gather(walking, return_exceptions=True)
        seconds = time.monotonic() - begin
        found[f"player during {name}"] = dict(player.seen) | {"seconds": round(seconds, 1)}
        return result

    malformed, odd, made = Counter[str](), Counter[str](), controls(args.controls)
    found["after each repeat"] = []
    for i in range(args.repeats):
        share = -(-args.messages // args.repeats)
        malformed += await beside(f"malformed {i + 1}", abuse.fuzz(target, share, args.seed + i))
        odd += await beside(f"controls {i + 1}", absurd_controls(target, made[i :: args.repeats]))
        found["after each repeat"].append(
            server.settle(lambda s: s["seats_taken"] == 0 and s["tasks"] <= idle["tasks"])
        )
    found |= {"malformed": dict(malformed), "controls": dict(odd)}
    found["strangers"] = dict(await beside("strangers", abuse.strangers(target, args.strangers)))
    found["http"] = await beside("http", http(target, args.examples))
    found["after abuse"] = server.settle(lambda s: s["seats_taken"] == 0 and s["tasks"] <= idle["tasks"])

    console.print("vanish ...")
    memory, count = [], 0
    for _ in range(args.rounds):
        for after in range(len(abuse.SCRIPT) + 1):
            for how in ("close", "reset"):
                await abuse.vanish(target, after, how)
                count += 1
        memory.append(server.settle(lambda s: s["seats_taken"] == 0 and s["tasks"] <= idle["tasks"]))
    found["vanish"] = {"disconnects": count, "after each round": memory}
    await polite(target, 2.0)

    console.print("slow ...")
    watching = asyncio.create_task(abuse.slow(target, args.slow, 1.0, 20_000_000))
    held = []
    while not watching.done():
        await asyncio.sleep(min(5.0, args.slow / 4))
        held.append(server.state()["rss_mib"])
    found["slow"] = await watching | {"rss_mib": held}
    found["after"] = server.settle(lambda s: s["seats_taken"] == 0 and s["tasks"] <= idle["tasks"])
    return found


async def absurd_controls(target: abuse.Target, inputs: list[str]) -> Counter[str]:
    """In walks of 40 inputs, since a connection is closed at its fiftieth malformed message."""
    seen: Counter[str] = Counter()
    for begin in range(0, len(inputs), 40):
        seen += await abuse.absurd_controls(target, inputs[begin : begin + 40], 0)
    return seen + Counter({"inputs": len(inputs)})


async def polite(target: abuse.Target, seconds: float) -> None:
    """A player who is served as always; raises where it is not."""
    async with abuse.playing(target, 30_000_000) as player:
        await player.until("scene")
        await player.walk(seconds)
        if not player.seen["frames"] or player.seen["of another client"] or player.seen["of another generation"]:
            raise SystemExit(f"a polite player was not served: {player.seen}")


def table(found: dict[str, Any]) -> str:
    """The Markdown of docs/serving.md."""
    beside = [v for k, v in found.items() if k.startswith("player during")]
    wrong = {
        k: sum(p.get(k, 0) for p in beside) for k in ("of another client", "of another generation", "out of order")
    }
    m, c, h, s, v = found["malformed"], found["controls"], found["http"], found["slow"], found["vanish"]
    let_in = sum(n for k, n in found["strangers"].items() if "let in" in k or "HTTP 200" in k)
    rounds, repeats = v["after each round"], found["after each repeat"]
    answered, ended = m.get("answer message", 0), sum(n for k, n in m.items() if k.startswith("closed 44"))
    frames = sum(p["frames"] for p in beside)
    before, last, memory = found["before"], rounds[-1], lambda states: ", ".join(f"{x['rss_mib']:.0f}" for x in states)
    rows = [
        (
            "malformed WebSocket messages",
            f"{m['messages']} on {m['connections']} connections",
            f"{answered} answered by an error, {ended} connections closed, no crash",
        ),
        (
            "absurd controls (hypothesis)",
            f"{c['inputs']} inputs",
            f"{c['frames']} frames went on, {c.get('beyond limits', 0)} beyond the world's limits",
        ),
        ("HTTP (schemathesis, all checks)", f"{h['cases']} cases", f"{h['failures']} failures"),
        ("strangers: token, cookie, origin, host", f"{sum(found['strangers'].values())} attempts", f"{let_in} let in"),
        (
            "frames of somebody else",
            f"{frames} frames to a polite player meanwhile",
            ", ".join(f"{n} {name}" for name, n in wrong.items()),
        ),
        (
            "disconnects at every message boundary",
            f"{v['disconnects']}, half of them torn",
            f"seats taken {last['seats_taken']:.0f}, tasks {before['tasks']:.0f} before and {last['tasks']:.0f} after, "
            f"open files {before['fds']:.0f} and {last['fds']:.0f}, failures {last['failures']:.0f}",
        ),
        (
            f"memory of the {before['processes']:.0f} processes, MiB",
            f"{before['rss_mib']:.0f} before",
            f"after each of {len(repeats)} repeats of messages and controls {memory(repeats)}; after each of {len(rounds)} "
            f"rounds of disconnects {memory(rounds)}; at the end {found['after']['rss_mib']:.0f}",
        ),
        (
            "a client at one frame a second",
            f"{s['frames']} frames taken, {s['skipped']} skipped",
            f"{s['over']:.0f} older than a chunk and its own round trip (the worst {s['margin_ms_min']:.0f} ms below), oldest "
            f"{s['age_ms_max']:.0f} ms, of which at most {s['queued_ms_max']:.0f} on the server",
        ),
        (
            "faults of the server, dead workers, tracebacks",
            "whole run",
            f"{found['after']['failures']:.0f}, {found['after']['worker_deaths']:.0f}, {found['tracebacks in the log']}",
        ),
    ]
    return "\n".join(["| what | how much | outcome |", "|---|---|---|", *(f"| {' | '.join(r)} |" for r in rows)])


def put(path: Path, text: str) -> None:
    """Let `text` stand between the two marks of a Markdown file."""
    whole = path.read_text()
    begin, end = whole.index(MARKS[0]) + len(MARKS[0]), whole.index(MARKS[1])
    path.write_text(f"{whole[:begin]}\n{text}\n{whole[end:]}")


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000, help="malformed WebSocket messages")
    parser.add_argument("--controls", type=int, default=2000, help="absurd inputs")
    parser.add_argument("--strangers", type=int, default=400, help="attempts to come in")
    parser.add_argument("--examples", type=int, default=100, help="schemathesis' examples an operation")
    parser.add_argument("--repeats", type=int, default=5, help="times that malformed messages and controls come")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of disconnects")
    parser.add_argument("--slow", type=float, default=60.0, help="seconds of the slow client")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, metavar="F", help="a Markdown file that holds the table between two marks")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    console = Console()
    server = Server(2, "--resume", "0.5", "--queue", "16", "--idle", "0", "--webrtc")
    try:
        found = asyncio.run(main_async(server, args, console))
    finally:
        log = server.stop()
    found["tracebacks in the log"] = log.count("Traceback")
    found |= {
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "arguments": {k: str(v) for k, v in vars(args).items()},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{found['date']}-fuzz-server.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    text = table(found) + f"\n\nFigures: `benchmarks/results/{path.name}` ({found['hardware']})."
    console.print(text, highlight=False, soft_wrap=True, markup=False)
    if args.docs is not None:
        put(args.docs, text)


if __name__ == "__main__":
    main()
