"""Stages as content-hashed nodes: what is done is skipped, what changed runs again with all that reads it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from worldline import dist
from worldline.recipes.builder import RecipeError, did_you_mean
from worldline.recipes.store import StageRecord, StageStore, content_hash


class Interrupted(Exception):
    """The user stopped a run; everything finished is kept and `stage` resumes from its last checkpoint."""

    def __init__(self, stage: str, how_to_go_on: str = "") -> None:
        super().__init__(f"in stage '{stage}'; {how_to_go_on}" if how_to_go_on else f"in stage '{stage}'")
        self.stage = stage


class StageError(RuntimeError):
    """A stage failed for a reason that is not the recipe's: names it; the cause is chained."""

    def __init__(self, stage: str, cause: BaseException) -> None:
        super().__init__(f"stage '{stage}' failed: {type(cause).__name__}: {cause}")
        self.stage = stage


@dataclass(frozen=True)
class Node:
    """One stage: what decides its result, what it reads, and the work."""

    name: str
    config: Any  # plain data
    inputs: tuple[str, ...]  # names of earlier nodes
    work: Callable[[Path], dict[str, float]]  # (its directory) -> last losses; called again on resume
    external: dict[str, str] = field(default_factory=dict)  # hashes of inputs from outside the run
    of: str = ""  # the stage this node belongs to in `from` and `until` (default: itself)
    may_fail: bool = False  # a failure is recorded and the run goes on (evaluations must not lose a training)
    always: bool = False  # cheap, and reads more than its inputs say (the report)
    together: bool = False  # of several processes all take part, not rank 0 alone (training)
    family: str = ""  # work of the same family goes on in the same directory though its hash changed (more maps)

    @property
    def stage(self) -> str:
        """The name users select it by."""
        return self.of or self.name


class Progress(Protocol):
    """Who is told what happens to each node."""

    def skipped(self, node: Node, record: StageRecord) -> None: ...
    def started(self, node: Node, resumed: bool) -> None: ...
    def finished(self, node: Node, record: StageRecord) -> None: ...


class Quiet:
    """Tells nobody."""

    def skipped(self, node: Node, record: StageRecord) -> None:
        """A finished node with the same hash was found."""

    def started(self, node: Node, resumed: bool) -> None:
        """A node starts, or goes on from where it was stopped."""

    def finished(self, node: Node, record: StageRecord) -> None:
        """A node is done, or (where it may fail) failed."""


def hashes(nodes: Sequence[Node]) -> dict[str, str]:
    """Content hash of every node: its config and, through its inputs, everything upstream."""
    out: dict[str, str] = {}
    for node in nodes:
        out[node.name] = content_hash(node.config, {**node.external, **{i: out[i] for i in node.inputs}})
    return out


def select(nodes: Sequence[Node], from_: str | None, until: str | None) -> tuple[set[str], set[str]]:
    """(names asked to run afresh, names in reach): `from_` onwards is redone, nothing after `until` is touched."""
    stages = list(dict.fromkeys(node.stage for node in nodes))
    for option, name in (("--from", from_), ("--until", until)):
        if name is not None and name not in stages:
            raise RecipeError(f"{option} {name}: no such stage; {did_you_mean(name, stages)}")
    first = stages.index(from_) if from_ else 0
    last = stages.index(until) if until else len(stages) - 1
    if first > last:
        raise RecipeError(f"--from {from_} comes after --until {until}; the order is {', '.join(stages)}")
    reach = {n.name for n in nodes if stages.index(n.stage) <= last}
    afresh = {n.name for n in nodes if from_ and n.name in reach and stages.index(n.stage) >= first}
    return afresh, reach


def execute(
    nodes: Sequence[Node],
    store: StageStore,
    *,
    from_: str | None = None,
    until: str | None = None,
    fork: StageStore | None = None,
    progress: Progress | None = None,
) -> list[StageRecord]:
    """Run nodes in order; returns the records of all in reach.

    fork: another run whose finished stages of the same hash are taken over. Raises RecipeError where `from_` needs a
    stage that is not done, Interrupted on Ctrl-C, StageError where the work fails.
    """
    progress = progress if progress is not None and dist.is_main() else Quiet()
    wanted, (afresh, reach) = hashes(nodes), select(nodes, from_, until)

    def finished(node: Node) -> StageRecord | None:
        """The record of a node that need not run."""
        digest = wanted[node.name]
        if node.name in afresh:
            store.shelve(node.name)
        elif store.done(node.name, digest) or (fork is not None and store.adopt(node.name, digest, fork)):
            return None if node.always else store.read(node.name)
        elif afresh and not node.may_fail:
            raise RecipeError(
                f"--from {from_}: the earlier stage '{node.name}' is not finished with these options; "
                f"run without --from, or from '{node.stage}'"
            )
        return None

    records = []
    for node in (n for n in nodes if n.name in reach):
        record = dist.share(dist.on_main(partial(finished, node)))
        if record is not None:
            progress.skipped(node, record)
        else:
            inputs = {**node.external, **{i: wanted[i] for i in node.inputs}}
            work = partial(_run, node, wanted[node.name], inputs, store, progress)
            if not node.together:
                record = dist.on_main(work)
            elif dist.is_main():
                record = work()
            else:
                _join(node, store)
            record = dist.share(record)
            assert record is not None, "rank 0 has one"
        records.append(record)
    return records


def _join(node: Node, store: StageStore) -> None:
    """Take part in a node's work, of which rank 0 keeps the record."""
    dist.barrier()
    try:
        node.work(store.directory(node.name))
    except KeyboardInterrupt as error:
        raise Interrupted(node.name) from error


def _run(node: Node, digest: str, inputs: dict[str, str], store: StageStore, progress: Progress) -> StageRecord:
    old = store.read(node.name)
    resumed = old is not None and old.hash == digest and old.status != "done"
    kept = resumed or (old is not None and node.family != "" and old.family == node.family)
    if not kept:
        store.shelve(node.name)
    seconds = old.seconds if old is not None and kept else 0.0
    record = StageRecord(node.name, digest, inputs=inputs, seconds=seconds, family=node.family)
    store.write(record)
    progress.started(node, resumed)
    before, begin = record.seconds, time.monotonic()
    try:
        if node.together:
            dist.barrier()  # its directory is there
        record.losses = node.work(store.directory(node.name))
        record.status = "done"
    except KeyboardInterrupt as error:
        record.status = "interrupted"
        raise Interrupted(node.name) from error
    except Exception as error:
        record.status, record.error = "failed", f"{type(error).__name__}: {error}"
        (store.directory(node.name) / "error.txt").write_text(traceback.format_exc())
        if not node.may_fail:
            if isinstance(error, ValueError):
                raise
            raise StageError(node.name, error) from error
    finally:
        record.seconds = before + time.monotonic() - begin
        store.write(record)
    progress.finished(node, record)
    return record
