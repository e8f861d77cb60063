"""The three studies of minWM's report as runs of one recipe: how exact cameras are, how long a model is fine-tuned, how large
batches are. All share the run with exact cameras and the largest batch.

minWM's findings (its report, arXiv 2605.30263): fine-tuning on a corpus with estimated cameras gave no control, on exact ones it
did; control appeared after some 5,000 steps and was strong at 8,000; batches under 4 failed, 8 was unstable, 16 worked.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from worldline.data.pose_noise import PoseNoise
from worldline.recipes.builder import did_you_mean
from worldline.recipes.load import load_recipe
from worldline.recipes.schema import Recipe
from worldline.schema import WorldlineError

STUDIES = ("poses", "steps", "batch")
EXACT, JUDGED = "exact", "estimated"  # the two levels of errors that the finding is about

# Sizes, a step being a latent frame (4 frames of video):
# small      what structure from motion attains on still scenes (0.02 to 0.2 degrees a step), units aligned;
# estimated  what estimators of two views attain on ordinary video (0.1 to 0.9 degrees a pair, adding up to 1 to 9 degrees a clip;
#            directions of motion off by 3 to 25 degrees), each clip with a unit of its own;
# failing    what is left where most of the picture moves by itself: errors as large as the motion.
LEVELS: dict[str, PoseNoise] = {
    EXACT: PoseNoise(),
    "small": PoseNoise(rotation=0.2, translation=0.05, scale=0.1),
    "estimated": PoseNoise(rotation=1.0, translation=0.4, scale=0.5),
    "failing": PoseNoise(rotation=5.0, translation=1.0, scale=1.0),
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How large the studies are."""

    recipe: str = "nano-demo"
    latents: int = 5  # of a clip
    steps: int = 240
    every: int = 30  # steps between measurements of the shared runs
    rarely: int = 120  # and of the others
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    levels: tuple[str, ...] = ("exact", "small", "estimated", "failing")
    seeds: int = 2
    episodes: int = 8
    denoising: int = 8
    # Every clip has its first frame given, as it is played; no guidance, which is of the prompt.
    options: tuple[str, ...] = ("image_prob=1.0", "shift=5.0")  # of the stage's options
    guidance: float = 1.0


PRESETS = {
    "smoke": Preset(steps=4, every=2, rarely=4, batches=(1, 2), levels=("exact", "estimated"), episodes=2, denoising=2),
    "quick": Preset(),
    "full": Preset(
        recipe="nano", latents=9, steps=1500, every=150, rarely=300, seeds=3, episodes=16, denoising=12,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One training run. level: of its cameras' errors; studies: those that read it."""

    name: str
    level: str
    batch: int
    seed: int
    every: int
    studies: tuple[str, ...] = field(default=())


def trials(preset: Preset, studies: tuple[str, ...] = STUDIES) -> list[Trial]:
    """Every run that some studies need: the shared ones, estimated cameras, batches from the smallest, the other cameras; so
    that a table that is not finished says most. Raises WorldlineError on an unknown study."""
    for study in studies:
        if study not in STUDIES:
            raise WorldlineError(f"study {study!r}; {did_you_mean(study, STUDIES)}, or all")
    largest = max(preset.batches)
    found: list[Trial] = []

    def add(name: str, level: str, batch: int, every: int, read_by: tuple[str, ...]) -> None:
        found.extend(Trial(f"{name}-seed{s}", level, batch, s, every, read_by) for s in range(preset.seeds))

    noisy = sorted((level for level in preset.levels if level != EXACT), key=lambda level: level != JUDGED)
    noisy = noisy if "poses" in studies else []
    add(EXACT, EXACT, largest, preset.every, STUDIES)
    for level in noisy[:1]:
        add(level, level, largest, preset.rarely, ("poses",))
    for batch in sorted(set(preset.batches) - {largest}) if "batch" in studies else []:
        add(f"batch{batch}", EXACT, batch, preset.rarely, ("batch",))
    for level in noisy[1:]:
        add(level, level, largest, preset.rarely, ("poses",))
    return found


def study_recipe(preset: Preset, trial: Trial, overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe of a trial: data, codec and base of the preset's recipe, and its first stage alone, at a constant rate."""
    parent = load_recipe(preset.recipe)
    stage, *others = parent.stages
    batch, noise = trial.batch, LEVELS[trial.level]
    sets = [
        f"name=ablate-{preset.recipe}", f"seed={trial.seed}", f"data.latents={preset.latents}",
        *(f"stages.{other}=null" for other in others),
        f"stages.{stage}.latents=null", f"stages.{stage}.train.steps={preset.steps}",
        f"stages.{stage}.train.schedule=constant", f"stages.{stage}.train.batch_size={batch}",
        f"stages.{stage}.train.save_every={preset.steps}", f"stages.{stage}.train.keep=1",
        "evaluate.stages=false", "evaluate.spin_frames=16", "evaluate.walk_frames=16", "health.samples=false",
        "codec.path=bundled", "base.path=bundled", f"rollout.guidance={preset.guidance}",
        *(f"stages.{stage}.options.{option}" for option in preset.options),
        f"validate.every={trial.every}", f"validate.episodes={preset.episodes}", f"validate.steps={preset.denoising}",
    ]  # fmt: skip
    if not noise.none:
        said = asdict(noise) | {"seed": trial.seed}
        sets += [f"data.pose_noise.{key}={value}" for key, value in said.items()]
    return load_recipe(preset.recipe, [*sets, *overrides])
