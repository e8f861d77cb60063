"""Chunks one behind the other on two threads: one decodes what the other has denoised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from worldline.schema import Controls, WorldlineError
from worldline.stream.moment import Drawn, Moment, Shown

if TYPE_CHECKING:
    from worldline.stream.session import Session


def streamed(session: Session, controls: Iterable[Controls]) -> Iterator[np.ndarray]:
    """See Session.stream."""
    track, ahead, seen = iter(controls), None, -1
    rows = next(track, None)
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as decoder:
        while rows is not None:
            session._check_rows(rows)
            with session._alone():
                if ahead is None or session.changes != seen:  # nothing was drawn ahead, or it belongs to another walk
                    session._commit()
                    ahead = session._now.draw(rows, session._log.seed, 0)
                frames, following, ahead = _chunk(session, decoder, rows, ahead, track)
                seen = session.changes
            yield frames
            rows = following


def _chunk(
    session: Session, decoder: ThreadPoolExecutor, rows: Controls, drawn: Drawn, track: Iterator[Controls]
) -> tuple[np.ndarray, Controls | None, Drawn | None]:
    """Show a drawn chunk; meanwhile commit it and draw the next. Returns its frames, the next controls and their chunk."""
    before = session._now
    decoding = decoder.submit(_decoded, before, drawn)
    following: Controls | None = None
    ahead: Drawn | None = None
    failure: BaseException | None = None
    # As it will be once the chunk is shown, but for what decoding gives; the loop is the session's own.
    then = replace(before, chunks=before.chunks + 1, camera=drawn.camera, codec_state=None)
    try:
        session._stale = True  # until it is known that the chunk is good
        then.commit(drawn)
        following = next(track, None)
        if following is not None:
            with contextlib.suppress(WorldlineError):  # it is told when its turn comes
                session._check_rows(following)
                ahead = then.draw(following, session._log.seed, 0)
    except BaseException as error:
        failure = error
    shown = decoding.result()
    if failure is not None:
        raise failure
    if shown.fault:  # as step does: other draws, on keys and values without this one
        session._commit()
        return session._walk(rows, session._now), following, None
    session._accept(drawn, shown, before)
    session._now.camera = then.camera  # commit may have moved the anchor
    session._stale = False
    session._committed()
    return shown.frames, following, ahead


def _decoded(moment: Moment, drawn: Drawn) -> Shown:
    with moment.engine.compute():
        return moment.shown(drawn)
