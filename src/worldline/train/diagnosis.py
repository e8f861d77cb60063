"""From what was seen in training to what it usually means and how to mend it.

A chart keeps a few numbers of every phase; each rule reads a chart and says nothing, or one Finding. Rules wait for
several looks, so that the noise of one batch is no illness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

CRITICS = ("fake", "critic", "discriminator")  # roles whose training follows what another role makes
KEPT = 64  # looks of a signal that a chart remembers; of all before, the first few and the best

STILL = 0.02  # share of sampled weights below which a role, or an average, counts as standing
RUNAWAY = 2.5  # times its best loss at which a critic is lost
FADED = 0.05  # share of its largest value at which the distillation gradient has faded
DRIFT = math.log(1.6)  # log ratio of contrast between the last and the first third of a rollout
DRIFT_LEVEL = 0.6  # standard deviations that the level of a rollout may wander
FLICKER = 2.5  # times the truth's unsteadiness, and times the stage's own at its start


@dataclass(frozen=True)
class Finding:
    """One diagnosis. seen: the measured fact; means: the usual cause; mend: what to do."""

    step: int
    kind: str
    where: str  # the phase, or `samples`
    seen: str
    means: str
    mend: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.where}, step {self.step}): {self.seen} Usually: {self.means} Mend: {self.mend}"


@dataclass
class Series:
    """A signal over looks: its first few, its latest, and its extremes."""

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, value: float) -> None:
        """One more look."""
        self.count += 1
        if len(self.first) < 3:
            self.first.append(value)
        self.last = [*self.last[-KEPT + 1 :], value]

    def all_last(self, n: int, test: Callable[[float], bool]) -> bool:
        """Whether the last n looks exist and all pass."""
        return len(self.last) >= n and all(test(v) for v in self.last[-n:])


@dataclass
class Chart:
    """What is known of one phase. role: the network it trains."""

    phase: str
    role: str
    signals: dict[str, Series] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Note a finite value of a signal."""
        if math.isfinite(value):
            self.signals.setdefault(name, Series()).add(value)

    def __getitem__(self, name: str) -> Series:
        return self.signals.get(name) or Series()


Rule = Callable[[Chart, int], Finding | None]


def not_finite(
    step: int, phase: str, loss: float, names: Sequence[str], *, weights: Sequence[str] = (), ids: Sequence[str] = ()
) -> Finding:
    """A skipped update. names: parameters with a non-finite gradient; weights: those not finite themselves; ids: samples
    of the batch that hold non-finite latents."""
    if ids:
        return Finding(
            step,
            "not a number",
            phase,
            f"the batch holds non-finite latents (samples {_some(ids)}).",
            "an encoded clip is damaged, or the codec overflowed when it was encoded.",
            "delete the encoded clips and run `encode` again; if it comes back, leave those clips out.",
        )
    if weights:
        return Finding(
            step,
            "not a number",
            phase,
            f"{len(weights)} weights are not finite themselves ({_some(weights)}).",
            "they came so from a file, or an update went around the guard.",
            "go back to an earlier checkpoint (delete the newest), and check the weights the stage starts from.",
        )
    where = f"the gradient of {_some(names)}" if names else "the gradient"
    seen = "the loss" if not math.isfinite(loss) else f"{where}, though the loss is {loss:.4g},"
    return Finding(
        step,
        "not a number",
        phase,
        f"{seen} is not finite; this update was skipped.",
        "the learning rate is too high, or activations left the range of bf16 in that layer.",
        "lower train.lr or lengthen train.warmup; where it stays, train.precision: fp32 for a few steps shows the layer.",
    )


def frozen_average(chart: Chart, step: int) -> Finding | None:
    """Weights move and their average does not."""
    for signal, name in (("ema_moved", "the averaged weights (EMA)"), ("target_moved", "the moving target")):
        still = chart[signal].all_last(2, lambda share: share < STILL)
        if still and chart["moved"].all_last(2, lambda share: share > 10 * STILL):
            return Finding(
                step,
                "frozen EMA",
                chart.phase,
                f"{chart['moved'].last[-1]:.0%} of the weights of {chart.role} moved since the last look, and "
                f"{chart[signal].last[-1]:.1%} of {name}.",
                "the average is not updated, or it is kept in bf16, where a decay near one rounds every change away.",
                "keep averages in fp32 (models that follow one, too), and check that the update is called and its decay is "
                "below 1. Until then, use the live weights: the averaged ones are those of the start.",
            )
    return None


def standing_still(chart: Chart, step: int) -> Finding | None:
    """Updates that change nothing."""
    if not chart["update_share"].all_last(2, lambda share: share < STILL):
        return None
    share = chart["update_share"].last[-1]
    critic = chart.role in CRITICS
    return Finding(
        step,
        "critic collapse" if critic else "standing still",
        chart.phase,
        f"an update changed {share:.1%} of the weights of {chart.role} (gradient norm {chart['grad_norm'].last[-1]:.2g}).",
        "its gradient is zero, its learning rate is, its optimizer holds other tensors, or weights kept in bf16 round small "
        "updates away." + (" The scores then describe a student of long ago." if critic else ""),
        "check train.lr and train.role_lr of this role, that master weights are fp32, and that nothing detaches its loss.",
    )


def dead_camera(chart: Chart, step: int) -> Finding | None:
    """The camera is given, and nothing of it reaches the loss."""
    sources = {
        "camera_poses": "the camera's poses",
        "camera_motion": "the camera's motion",
        "camera_layers": "the layers that steer",
    }
    dead = [text for signal, text in sources.items() if chart[signal].all_last(3, lambda g: g == 0.0)]
    if not dead:
        return None
    return Finding(
        step,
        "dead camera branch",
        chart.phase,
        f"the gradient at {' and '.join(dead)} was exactly zero in three looks; other gradients were not "
        f"({chart['grad_norm'].last[-1]:.2g}).",
        "the method does not hand cameras to the model, the branch is cut off (detached, or not called), or a branch that "
        "starts silent is frozen: two zero layers in a row never wake, and LoRA must name silent layers in its targets.",
        "check that options.use_cameras is on, that the stage trains the branch, and that only its last layer starts at zero.",
    )


def lost_critic(chart: Chart, step: int) -> Finding | None:
    """A critic whose loss ran away from its best."""
    loss = chart["mean_loss"]
    # A discriminator's loss is no measure of its health: it rises where the student gets better.
    if chart.role not in CRITICS or chart.role == "discriminator" or loss.count < 6:
        return None
    best, now = min(loss.first + loss.last), median(loss.last[-3:])
    if best <= 0 or now < RUNAWAY * best:
        return None
    return Finding(
        step,
        "critic collapse",
        chart.phase,
        f"the critic's loss is {now:.3g}, {now / best:.1f} times its best ({best:.3g}).",
        "the student changes faster than its critic can follow, or the critic's own learning rate broke it; its score is noise "
        "now, and the student is led by it.",
        "more options.critic_updates, a lower train.lr of the student, a lower train.role_lr of the critic; go back to a "
        "checkpoint before the loss rose.",
    )


def faded_gradient(chart: Chart, step: int) -> Finding | None:
    """A distillation gradient that went to nothing."""
    seen = chart["gradient"]
    if seen.count < 20:
        return None
    top = max(seen.first + seen.last)
    now = sum(seen.last[-10:]) / 10
    if top <= 0 or now >= FADED * top:
        return None
    return Finding(
        step,
        "critic collapse",
        chart.phase,
        f"the distillation gradient fell to {now:.2g}, {now / top:.1%} of its largest.",
        "both scores say the same: the critic copies the teacher (it learns from real clips, or shares its weights), or the "
        "student has collapsed to one answer that both agree on.",
        "check that the critic trains on what the student makes and that `real` and `fake` are two networks; look at the "
        "samples, and go back to a checkpoint before the fall.",
    )


def exposure_drift(chart: Chart, step: int) -> Finding | None:
    """Rollouts whose contrast or level wanders with every chunk, and training does not mend it."""
    for signal, limit in (("drift", DRIFT), ("drift_level", DRIFT_LEVEL)):
        seen = [abs(v) for v in chart[signal].last[-6:]]
        if len(seen) < 6 or median(seen[3:]) < limit or median(seen[3:]) < 0.75 * median(seen[:3]):
            continue
        value = chart[signal].last[-1]
        what = (
            f"contrast at the end of rollouts is {math.exp(value):.2f} times that at their start"
            if signal == "drift"
            else f"the level of rollouts wanders by {value:.2f} standard deviations from start to end"
        )
        return drift_finding(step, chart.phase, f"{what}, and no longer mends.")
    return None


def drift_finding(step: int, where: str, seen: str) -> Finding:
    """The words about drift."""
    return Finding(
        step,
        "exposure drift",
        where,
        seen,
        "the model was trained on true pasts and meets its own here (exposure bias); guidance too high pushes contrast up in "
        "every chunk, a mean-seeking loss pulls it down.",
        "lower options.guidance, add options.context_noise in teacher forcing, train rollouts as long as those you play "
        "(options.latents), and keep first frames in sight (rollout.sink).",
    )


def flickers(chart: Chart, step: int) -> Finding | None:
    """Predictions that jump from frame to frame, more and more."""
    seen = chart["flicker"]
    if seen.count < 6 or median(seen.last[-3:]) < FLICKER * max(1.0, median(seen.first)):
        return None
    return flicker_finding(
        step,
        chart.phase,
        f"frames jump to and fro {median(seen.last[-3:]):.1f} times as much as the truth does; it was "
        f"{median(seen.first):.1f} at the start of the stage.",
    )


def flicker_finding(step: int, where: str, seen: str) -> Finding:
    """The words about flicker."""
    return Finding(
        step,
        "flicker",
        where,
        seen,
        "of a consistency student: the target follows too fast, the levels of the grid are rounded, or guidance is too high, "
        "and each frame settles on an answer of its own.",
        "options.target_decay nearer to one, options.grid_dtype: fp32, options.include_terminal_pair: true, lower "
        "options.guidance; a short DMD stage after it removes what is left.",
    )


RULES: tuple[Rule, ...] = (
    frozen_average,
    standing_still,
    dead_camera,
    lost_critic,
    faded_gradient,
    exposure_drift,
    flickers,
)


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
