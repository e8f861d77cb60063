"""The figures of a table: what each is, on which suites, how it is had from the scores of episodes.

A figure is a mean over episodes, or is had from several together (a lag, a ratio). What cannot be had is `skipped` with
its reason, never zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from worldline.evaluate.metrics.drift import largest_drop, segment_means, theil_sen
from worldline.evaluate.metrics.guards import FLASHES
from worldline.evaluate.metrics.horizon import kaplan_meier_median, useful_frames
from worldline.evaluate.metrics.keys import KEY_AXES, balanced_accuracy, chance, confusion, macro_f1
from worldline.evaluate.metrics.motion import AXES
from worldline.evaluate.metrics.quality import STATISTICS
from worldline.evaluate.metrics.recovery import seconds_to_recover
from worldline.evaluate.metrics.tolerant import FRAMES as REACH
from worldline.evaluate.response import LAGS, Response, by_latent, control_response, cross_talk
from worldline.evaluate.score import Score
from worldline.evaluate.statistics import mean_interval, pooled_interval
from worldline.evaluate.suites import FPS

Rows = Mapping[str, Mapping[str, Score]]  # row -> case -> score
Better = Literal["higher", "lower", "one", "zero"]
RELATED = 0.3  # |correlation| below which a lag is chance, and is not told
MARKS = (1, 2, 4, 8, 16, 32, 60)  # seconds at which fidelity is read
GROUP = 4  # frames of a group whose mean rate a codec's jumps do not touch
QUALITY = {name: i for i, name in enumerate(STATISTICS)}


@dataclass(frozen=True)
class Figure:
    """name: stable; about: the formula in words; picks: the episodes it is had from; each or pooled: of one episode (a
    mean follows) or of several together; needs: rows that must be there."""

    name: str
    unit: str
    better: Better
    about: str
    digits: int
    picks: Callable[[Score], bool]
    each: Callable[[Score, Rows], float] | None = None
    pooled: Callable[[Sequence[Score], Rows], float] | None = None
    needs: tuple[str, ...] = ()

    def of(self, scores: Sequence[Score], rows: Rows) -> dict[str, object]:
        """{value, low, high, n, status, reason} of one row's scores."""
        picked = [s for s in scores if self.picks(s)]
        if not picked:
            return _skipped("no episode of this kind in the preset")
        if missing := [r for r in self.needs if any(s.case not in rows.get(r, {}) for s in picked)]:
            return _skipped(f"needs the row {missing[0]}")
        if self.each is not None:
            values = np.array([self.each(s, rows) for s in picked])
            values = values[np.isfinite(values)]
            if not len(values):
                return _skipped("not to be had from these episodes (too short, or nothing to measure)")
            found, n = mean_interval(values), len(values)
        else:
            assert self.pooled is not None
            pooled = self.pooled
            found, n = pooled_interval(len(picked), lambda i: pooled([picked[k] for k in i], rows)), len(picked)
            if np.isnan(found.value):
                return _skipped("not to be had from these episodes (too short, or no relation to the command)")
        return {"value": found.value, "low": found.low, "high": found.high, "n": n, "status": "ok", "reason": ""}

    def value(self, scores: Sequence[Score], rows: Rows) -> float:
        """The figure alone, without its interval; nan where it cannot be had."""
        picked = [s for s in scores if self.picks(s)]
        if not picked or any(s.case not in rows.get(r, {}) for r in self.needs for s in picked):
            return float("nan")
        if self.pooled is not None:
            return self.pooled(picked, rows)
        values = np.array([self.each(s, rows) for s in picked]) if self.each is not None else np.zeros(0)
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else float("nan")

    def by_case(self, scores: Sequence[Score], rows: Rows) -> dict[str, float]:
        """Per episode, for paired comparison and for the worst; what is had from several together is taken one by one."""
        out = {}
        for s in scores:
            if self.picks(s) and all(s.case in rows.get(r, {}) for r in self.needs):
                value = self.each(s, rows) if self.each is not None else self.pooled([s], rows)  # type: ignore[misc]
                if np.isfinite(value):
                    out[s.case] = value
        return out


def _skipped(reason: str) -> dict[str, object]:
    return {"value": None, "low": None, "high": None, "n": 0, "status": "skipped", "reason": reason}


# -- which episodes ----------------------------------------------------------------------------------------------------


def _suite(*names: str, variants: tuple[str, ...] = (), splits: tuple[str, ...] = ()) -> Callable[[Score], bool]:
    def picks(s: Score) -> bool:
        return s.suite in names and (not variants or s.variant in variants) and (not splits or s.split in splits)

    return picks


YAW = _suite("S2", variants=("yaw",))
WALK = _suite("S2", "S1", variants=("yaw+forward", "forward", "back"))
STRAFE = _suite("S1", variants=("left", "right"))
ROAM = _suite("S7")
LONG = _suite("S7", "S11")
MOVING = _suite("S2", "S7")
KEYED = _suite("S1", "S2", "S7")
LOOPS = _suite("S3", "S5")
COMES_BACK = _suite("S3", "S5", "S6")
SPIN = _suite("S4")
IDLE = _suite("S8")
DISTURBED = lambda s: s.suite == "S9" and s.variant != "twin"  # noqa: E731
ALL = lambda s: True  # noqa: E731


# -- control -----------------------------------------------------------------------------------------------------------


def response(scores: Sequence[Score], rows: Rows, axis: str, group: int = 1) -> Response:
    """Shown against the simulator's own motion: lag and correlation are 0 and 1 for a replay, gain is that of the replay.

    Yaw: against the simulator's cameras, in degrees. Forward and strafe: against the same measurement on the replay,
    since walkers have inertia and a rate over depth has no unit of its own. group: rates are averaged over so many frames
    first, and the lag is in groups.
    """
    key = (axis, group, *(id(s) for s in scores), *(id(rows["replay"][s.case]) for s in scores))
    if key not in _known:
        if len(_known) >= 4096:
            _known.clear()
        # The scores are kept with the answer, so that their ids stay theirs.
        _known[key] = (_response(scores, rows, axis, group), tuple(scores), rows)
    return _known[key][0]


_known: dict[tuple[object, ...], tuple[Response, tuple[Score, ...], Rows]] = {}


def _response(scores: Sequence[Score], rows: Rows, axis: str, group: int) -> Response:
    replay = [rows["replay"][s.case] for s in scores]
    lags = LAGS if group == 1 else range(0, 3)

    def tracks(which: Sequence[Score], name: str) -> list[np.ndarray]:
        if name == "rates":
            return [by_latent(s.series["rates"][:, AXES.index(axis)], group) for s in which]
        return [by_latent(s.series[name], group) for s in which]

    if axis != "yaw":
        return control_response(tracks(replay, "rates"), tracks(scores, "rates"), lags)
    u = tracks(scores, "true_yaw")
    scale = control_response(u, tracks(replay, "yaw"), range(0, 1)).gain or 1.0
    found = control_response(u, tracks(scores, "yaw"), lags)
    gains = (found.gain, found.gain_positive, found.gain_negative)
    gain, positive, negative = (g / scale for g in gains)
    return Response(found.lag, gain, found.corr, found.frozen, positive, negative, found.idle)


def _lag(axis: str, group: int = 1) -> Callable[[Sequence[Score], Rows], float]:
    def lag(scores: Sequence[Score], rows: Rows) -> float:
        found = response(scores, rows, axis, group)
        return float(found.lag * group) if abs(found.corr) >= RELATED and not found.frozen else float("nan")

    return lag


def _of_response(axis: str, what: str, group: int = 1) -> Callable[[Sequence[Score], Rows], float]:
    return lambda scores, rows: float(getattr(response(scores, rows, axis, group), what))


def _asymmetry(scores: Sequence[Score], rows: Rows) -> float:
    found = response(scores, rows, "yaw")
    return found.gain_positive - found.gain_negative if not found.frozen else 0.0


def _pushes(scores: Sequence[Score], rows: Rows) -> float:
    """Growth of the view for a degree turned, beyond the replay's own."""
    i = AXES.index("forward")
    u = [s.series["true_yaw"] for s in scores]

    def slope(which: Sequence[Score]) -> float:
        return cross_talk(u, [s.series["rates"][:, i] for s in which], 0)

    return 100 * (slope(scores) - slope([rows["replay"][s.case] for s in scores]))


def _late_gain(scores: Sequence[Score], rows: Rows) -> float:
    """Gain of the second half over that of the first."""

    def gain(half: Callable[[Score], slice]) -> float:
        u, y = (np.concatenate([s.series[name][half(s)] for s in scores]) for name in ("true_yaw", "yaw"))
        return float(u @ y / (u @ u)) if u @ u else float("nan")

    first = gain(lambda s: slice(0, len(s.series["yaw"]) // 2))
    return gain(lambda s: slice(len(s.series["yaw"]) // 2, None)) / first if abs(first) > 0.1 else float("nan")


# -- fidelity ----------------------------------------------------------------------------------------------------------


def at(series: np.ndarray, seconds: float) -> float:
    """Mean of the last quarter second before a time; nan where the clip is shorter."""
    end = round(seconds * FPS) + 1
    return float(series[end - 4 : end].mean()) if len(series) >= end else float("nan")


def _at(name: str, seconds: float) -> Callable[[Score, Rows], float]:
    return lambda s, rows: at(s.series[name], seconds)


def _skill(seconds: float) -> Callable[[Sequence[Score], Rows], float]:
    def skill(scores: Sequence[Score], rows: Rows) -> float:
        def mean(row: Mapping[str, Score] | None) -> float:
            return float(np.mean([at((row[s.case] if row else s).series["psnr"], seconds) for s in scores]))

        floor = max(mean(rows["frozen"]), mean(rows["other-actions"]))
        room = mean(rows["codec"]) - floor
        return (mean(None) - floor) / room if room > 0.5 else float("nan")

    return skill


def floor_of(s: Score, rows: Rows) -> np.ndarray:
    """Tolerant PSNR of the better guess, frame by frame."""
    return np.maximum(rows["frozen"][s.case].series["tolerant"], rows["other-actions"][s.case].series["tolerant"])


def _horizon(scores: Sequence[Score], rows: Rows) -> float:
    """Median seconds of use; where most are of use to the end, the length of the longest clip (a bound from below)."""
    found, codec = [], rows.get("codec", {})
    for s in scores:
        # A guess is as good as the truth while tolerance reaches back to the start; its level is read after that.
        level = np.median(floor_of(s, rows)[2 * REACH :]) if len(s.series["tolerant"]) > 3 * REACH else np.nan
        if np.isfinite(level):
            own = codec[s.case].series["tolerant"][1:] if s.case in codec else None
            found.append(useful_frames(s.series["tolerant"][1:], float(level), own))
    if not found:
        return float("nan")
    times, ended = np.array([t for t, _ in found]) / FPS, np.array([e for _, e in found])
    median = kaplan_meier_median(times, ended)
    return median if np.isfinite(median) else float(times.max())


# -- keys read back ----------------------------------------------------------------------------------------------------


def key_counts(scores: Sequence[Score]) -> np.ndarray:
    """Keys asked for against keys that the inverse-dynamics model reads, [axis, asked, read]."""
    return np.sum([confusion(s.series["keys"], s.series["read"]) for s in scores], axis=0)


def _keys(
    measure: Callable[[np.ndarray], float], axes: Sequence[str] = KEY_AXES
) -> Callable[[Sequence[Score], Rows], float]:
    def of(scores: Sequence[Score], rows: Rows) -> float:
        counts = key_counts(scores)
        found = np.array([measure(counts[KEY_AXES.index(a)]) for a in axes])
        found = found[np.isfinite(found)]
        return float(found.mean()) if len(found) else float("nan")

    return of


def _keys_share(scores: Sequence[Score], rows: Rows) -> float:
    """Of the way from a constant answer to what is read on the replay."""
    replay = [rows["replay"][s.case] for s in scores]
    accuracy = _keys(balanced_accuracy)
    floor = _keys(chance)(scores, rows)
    room = accuracy(replay, rows) - floor
    return (accuracy(scores, rows) - floor) / room if room > 0.1 else float("nan")


# -- steadiness, drift -------------------------------------------------------------------------------------------------


def _warp_ratio(scores: Sequence[Score], rows: Rows) -> float:
    shown = np.nanmean(np.concatenate([s.series["warp"] for s in scores]))
    true = np.nanmean(np.concatenate([rows["replay"][s.case].series["warp"] for s in scores]))
    return float(shown / true) if true > 0 else float("nan")


def _beyond_replay(name: str) -> Callable[[Score, Rows], float]:
    return lambda s, rows: 100 * (s.values[name] - rows["replay"][s.case].values[name])


def _sharpness(s: Score, rows: Rows) -> np.ndarray:
    """Share of the replay's, by second."""
    i = QUALITY["sharpness"]
    return segment_means(s.series["quality"][1:, i], FPS) / np.maximum(
        segment_means(rows["replay"][s.case].series["quality"][1:, i], FPS), 1e-6
    )


def _segments(s: Score, rows: Rows, names: tuple[str, ...]) -> np.ndarray:
    """Distance from the replay in grey levels, by second."""
    gaps = [
        segment_means(
            s.series["quality"][1:, QUALITY[n]] - rows["replay"][s.case].series["quality"][1:, QUALITY[n]], FPS
        )
        for n in names
    ]
    return np.sqrt(np.sum(np.square(gaps), axis=0))


def _recovery(s: Score, rows: Rows) -> float:
    """Seconds, against the undisturbed twin; a rollout that never recovers counts as long as it was watched."""
    twin = rows["model"].get(f"S9-twin-{s.case.rsplit('-', 1)[1]}") if "model" in rows else None
    if twin is None:
        return float("nan")
    own, other = _after(s, rows), _after(twin, rows)
    n = min(len(own[0]), len(other[0]))
    seconds = seconds_to_recover(own[0][:n], other[0][:n], own[1][:n], other[1][:n])
    return seconds if np.isfinite(seconds) else float(n)


def _after(s: Score, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Per second after the disturbance: sharpness share, yaw gain."""
    start = int(s.values["after"])
    i = QUALITY["sharpness"]
    shown, true = (x.series["quality"][start:, i] for x in (s, rows["replay"][s.case]))
    sharp = segment_means(shown, FPS) / np.maximum(segment_means(true, FPS), 1e-6)
    u, y = s.series["true_yaw"][start:], s.series["yaw"][start:]
    n = len(u) // FPS
    # Two seconds a window: one alone may hold no turn.
    gains = [
        float(a @ b / (a @ a)) if (a := u[k * FPS : (k + 2) * FPS]) @ a > 1 else 1.0
        for k in range(n)
        for b in (y[k * FPS : (k + 2) * FPS],)
    ]
    m = min(n, len(sharp))
    return sharp[:m], np.array(gains[:m])


# -- speed -------------------------------------------------------------------------------------------------------------


def _step_ms(percentile: float, least: int) -> Callable[[Sequence[Score], Rows], float]:
    def of(scores: Sequence[Score], rows: Rows) -> float:
        times = np.concatenate([s.series.get("step_ms", np.zeros(0))[1:] for s in scores])
        return float(np.percentile(times, percentile)) if len(times) >= least else float("nan")

    return of


def _fps(scores: Sequence[Score], rows: Rows) -> float:
    timed = [s for s in scores if len(s.series.get("step_ms", ())) > 1]
    if not timed:
        return float("nan")
    frames = sum(s.values["frames_per_step"] * (len(s.series["step_ms"]) - 1) for s in timed)
    return float(frames / (1e-3 * sum(s.series["step_ms"][1:].sum() for s in timed)))


def _first_ms(s: Score, rows: Rows) -> float:
    return s.values.get("first_ms", float("nan"))


def _mean_tolerant(s: Score, rows: Rows) -> float:
    return float(s.series["tolerant"][1:65].mean())


R = ("replay",)
FIGURES: list[Figure] = [
    Figure("yaw_lag", "frames", "zero", "delay of best correlation between the turn shown and the simulator's, S2 yaw; "
           "negative: the view moves before the command", 0, YAW, pooled=_lag("yaw"), needs=R),
    Figure("yaw_gain", "", "one", "degrees shown for a degree turned, at that lag, over the same on the replay", 2, YAW,
           pooled=_of_response("yaw", "gain"), needs=R),
    Figure("yaw_corr", "", "higher", "correlation of the turn shown and the simulator's, at that lag", 2, YAW,
           pooled=_of_response("yaw", "corr"), needs=R),
    Figure("yaw_corr_grouped", "", "higher", "the same with rates averaged over groups of four frames, which a codec "
           "that moves in jumps does not touch", 2, YAW, pooled=_of_response("yaw", "corr", GROUP), needs=R),
    Figure("yaw_gain_grouped", "", "one", "gain of the same grouped rates", 2, YAW,
           pooled=_of_response("yaw", "gain", GROUP), needs=R),
    Figure("yaw_asymmetry", "", "zero", "gain to the right less gain to the left", 2, YAW, pooled=_asymmetry, needs=R),
    Figure("yaw_idle", "", "zero", "mean |turn| shown where none was asked, over mean |turn| asked", 3, YAW,
           pooled=_of_response("yaw", "idle"), needs=R),
    Figure("yaw_cross_talk", "%/deg", "zero", "growth of the view for a degree of turning on the spot, beyond the replay's",
           2, YAW, pooled=_pushes, needs=R),
    Figure("yaw_gain_late", "", "one", "gain of the second half of S2 over that of the first", 2, YAW, pooled=_late_gain),
    Figure("forward_lag", "frames", "zero", "as yaw_lag, of walking, in whole groups of four frames", 0, WALK,
           pooled=_lag("forward", GROUP), needs=R),
    Figure("forward_gain", "", "one", "growth of the view by walking over the replay's, rates in groups of four frames", 2, WALK,
           pooled=_of_response("forward", "gain", GROUP), needs=R),
    Figure("forward_corr", "", "higher", "correlation of walking shown and the replay's", 2, WALK,
           pooled=_of_response("forward", "corr", GROUP), needs=R),
    Figure("strafe_gain", "", "one", "sideways motion over the replay's, S1", 2, STRAFE,
           pooled=_of_response("strafe", "gain", GROUP), needs=R),
    Figure("strafe_corr", "", "higher", "correlation of sideways motion and the replay's, S1", 2, STRAFE,
           pooled=_of_response("strafe", "corr", GROUP), needs=R),
    Figure("idm_accuracy", "", "higher", "keys that an inverse-dynamics model reads from the frames: balanced accuracy, mean "
           "of turn, forward and strafe, S1, S2, S7; 1/3 for any constant answer", 3, KEYED, pooled=_keys(balanced_accuracy)),
    Figure("idm_share", "", "higher", "share of the way from a constant answer to what it reads on the replay", 2, KEYED,
           pooled=_keys_share, needs=R),
    Figure("idm_f1", "", "higher", "the same keys: F1, mean over classes and axes", 3, KEYED, pooled=_keys(macro_f1)),
    *(Figure(f"idm_{axis}", "", "higher", f"balanced accuracy of {axis} keys alone", 3, KEYED,
             pooled=_keys(balanced_accuracy, (axis,))) for axis in KEY_AXES),
    *(Figure(f"psnr_{s}s", "dB", "higher", f"against the replay, quarter second before {s} s, S7", 1, LONG,
             each=_at("psnr", s)) for s in MARKS),
    *(Figure(f"tolerant_{s}s", "dB", "higher", f"best PSNR within 8 frames and an eighth of the width, at {s} s, S7", 1,
             LONG, each=_at("tolerant", s)) for s in MARKS),
    *(Figure(f"ssim_{s}s", "", "higher", f"structural similarity with the replay at {s} s, S7", 3, LONG,
             each=_at("ssim", s)) for s in (1, 4, 16)),
    *(Figure(f"exposure_psnr_{s}s", "dB", "higher", f"PSNR at {s} s after the best gain and offset a channel, S7", 1, LONG,
             each=_at("exposure_psnr", s)) for s in (1, 4, 16)),
    *(Figure(f"skill_{s}s", "", "higher", f"share of the way from the better floor to the codec's ceiling at {s} s (strict "
             "PSNR), S7", 2, ROAM, pooled=_skill(s), needs=("frozen", "other-actions", "codec")) for s in (1, 4)),
    Figure("horizon", "s", "higher", "median time until the tolerant squared error beyond the codec's own exceeds half of "
           "the better guess's, S7 (Kaplan-Meier; at most the clip's length)", 1, ROAM, pooled=_horizon,
           needs=("frozen", "other-actions")),
    Figure("loop_gain", "dB", "higher", "PSNR of frame 0 and the return less that of frame 0 and the farthest view, S3 and "
           "S5; 0 for a frozen picture", 1, LOOPS, each=lambda s, r: s.values.get("loop_gain", float("nan"))),
    Figure("net_turn", "deg", "lower", "|sum of turns shown less the simulator's| at the return, S3 and S5", 1, LOOPS,
           each=lambda s, r: s.values.get("net_turn", float("nan"))),
    Figure("revisit_gain", "dB", "higher", "the same over all pairs of frames at one place with the view 30 degrees away "
           "in between, S3, S5, S6", 1, COMES_BACK, each=lambda s, r: s.values.get("revisit_gain", float("nan"))),
    Figure("closure", "deg", "lower", "error of a whole turn, S4", 1, SPIN, each=lambda s, r: s.values["closure"]),
    Figure("seam", "dB", "higher", "PSNR of frame 0 and the frame a whole turn later, S4", 1, SPIN,
           each=lambda s, r: s.values["seam"]),
    Figure("warp_ratio", "", "one", "change that motion does not explain, over the replay's, S2 and S7; below 1: blurred",
           2, MOVING, pooled=_warp_ratio, needs=R),
    Figure("flicker", "%", "zero", "jumps of the picture's level that motion does not explain, of its mean, S2, S7, S8",
           2, _suite("S2", "S7", "S8"), each=_beyond_replay("flicker"), needs=R),
    Figure("cuts", "/min", "zero", "frames that do not go on from the one before", 1, MOVING,
           each=lambda s, r: 60 * FPS * s.values["cuts"] / len(s.series["yaw"])),
    Figure("sharpness", "", "one", "variance of the Laplacian over the replay's, S7", 2, LONG,
           each=lambda s, r: float(np.mean(_sharpness(s, r))), needs=R),
    Figure("sharpness_drift", "%/s", "zero", "Theil-Sen slope of that share over seconds", 2, LONG,
           each=lambda s, r: 100 * theil_sen(_sharpness(s, r)), needs=R),
    Figure("sharpness_drop", "%", "lower", "deepest fall of that share below its first second", 0, LONG,
           each=lambda s, r: 100 * largest_drop(_sharpness(s, r)), needs=R),
    Figure("level_drift", "grey/s", "zero", "slope of |mean luminance less the replay's|, S7", 2, LONG,
           each=lambda s, r: theil_sen(_segments(s, r, ("level",))), needs=R),
    Figure("colour_drift", "grey/s", "zero", "slope of the distance of mean Cb, Cr from the replay's, S7", 2, LONG,
           each=lambda s, r: theil_sen(_segments(s, r, ("cb", "cr"))), needs=R),
    Figure("idle_turn", "deg/s", "zero", "turning shown where no key is held, S8", 2, IDLE,
           each=lambda s, r: float(FPS * np.abs(s.series["yaw"]).mean())),
    Figure("idle_change", "grey", "zero", "change of the picture where no key is held, S8", 2, IDLE,
           each=lambda s, r: float(np.nanmean(s.series["warp"]))),
    Figure("recovery", "s", "lower", "seconds after a disturbance until sharpness and gain are back at the undisturbed "
           "twin's, S9; at most the time watched", 1, DISTURBED, each=_recovery, needs=R),
    Figure("tolerant_id", "dB", "higher", "mean tolerant PSNR of the first 4 s on maps of training, S10", 1,
           _suite("S10", variants=("roam",), splits=("id",)), each=_mean_tolerant),
    Figure("tolerant_ood_map", "dB", "higher", "the same on maps no training may use, S7", 1, ROAM, each=_mean_tolerant),
    Figure("tolerant_ood_look", "dB", "higher", "the same in colours no texture of the source has, S10", 1,
           _suite("S10", variants=("roam",), splits=("ood-look",)), each=_mean_tolerant),
    Figure("non_finite", "frames", "zero", "frames with values that are no numbers, an episode", 1, ALL,
           each=lambda s, r: s.values.get("non_finite", 0.0)),
    Figure("blank", "frames", "zero", "frames that show nothing, an episode", 1, ALL, each=lambda s, r: s.values["blank"]),
    Figure("strobes", "", "zero", "share of episodes with more than three flashes in a second", 2, ALL,
           each=lambda s, r: float(s.values["flashes"] > FLASHES)),
    Figure("step_ms_p50", "ms", "lower", "a step of the model, pixels on the host, first of each episode left out", 1, ALL,
           pooled=_step_ms(50, 10)),
    Figure("step_ms_p95", "ms", "lower", "the same, 95th percentile (100 steps or more)", 1, ALL, pooled=_step_ms(95, 100)),
    Figure("step_ms_p99", "ms", "lower", "the same, 99th percentile (500 steps or more)", 1, ALL, pooled=_step_ms(99, 500)),
    Figure("first_ms", "ms", "lower", "reset and first step: from the start image to generated pixels on the host", 1, ALL,
           each=_first_ms),
    Figure("fps", "1/s", "higher", "generated frames a second while evaluating, later steps", 1, ALL, pooled=_fps),
]  # fmt: skip
BY_NAME = {f.name: f for f in FIGURES}
HEADLINE = (
    "psnr_1s", "psnr_4s", "tolerant_1s", "tolerant_4s", "tolerant_8s", "skill_1s", "ssim_1s", "horizon", "yaw_lag",
    "yaw_gain", "yaw_corr", "yaw_gain_grouped", "yaw_corr_grouped",
    "forward_gain", "forward_corr", "idm_accuracy", "idm_turn", "loop_gain", "closure", "sharpness",
    "sharpness_drift", "colour_drift", "warp_ratio", "flicker", "recovery", "idle_turn", "fps", "step_ms_p95",
)  # fmt: skip # columns of the table, where measured
