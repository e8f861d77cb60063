"""`worldline generate`: a start picture and a trajectory to a video file."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldline.cli.common import Subcommands, command

if TYPE_CHECKING:
    import numpy as np

    from worldline.control.routes import Route, Walk
    from worldline.evaluate.player import Player
    from worldline.schema import CameraPath
    from worldline.stream.engine import Engine

MODES = ("few-step", "ar", "bidirectional")
EXAMPLES = """\
  worldline generate --trajectory "w*8,l*4,wd*3" --overlay --out walk.mp4
  worldline generate --trajectory "w*4,l*8" --turn 8 --start 03 --sheet walk.png
  worldline generate --model runs/nano-demo --start room.png --prompt "a room with green panels" --seconds 5
  worldline generate --trajectory keys.csv --length fit --frames 81 --seed 7
  worldline generate --mode ar --weights runs/nano-demo/stages/ar/model --steps 50 --guidance 2
  worldline generate --mode bidirectional --weights base --steps 20
trajectories:
  w*8,l*4      eight latent frames (4 pixel frames each) forward, four turning right. w s forward, back; a d left, right;
               u dn up, down; j l turn left, right; i k look up, down; wd both at once; _ stand still
  poses.json   a c2w 4x4 matrix for every latent frame, as a list or {"0": matrix, ...}
  keys.csv     a row of held keys for every pixel frame ("w left"), by the world's own speeds; .json: [["w"], ["w", "left"]]
  walk.safetensors   a saved session of the same world
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    sub = command(subcommands, "generate", main, "make a video of a walk along a trajectory", EXAMPLES)
    sub.add_argument("--model", default="nano", metavar="WORLD", help="bundled, world or run directory (default: nano)")
    sub.add_argument("--trajectory", metavar="STRING|FILE", help="where to go (default: forward, three seconds)")
    sub.add_argument("--start", metavar="NAME|FILE", help="a start of the world, or a picture (default: its first start)")
    sub.add_argument("--prompt", metavar="TEXT", help="what is seen (default: the start's caption)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="another number, another clip (default: 0)")
    long = sub.add_mutually_exclusive_group()
    long.add_argument("--frames", type=int, metavar="N", help="pixel frames (default: the trajectory's)")
    long.add_argument("--seconds", type=float, metavar="S", help="length at the world's own rate, to the nearest chunk")
    sub.add_argument(
        "--length", default="error", choices=("error", "pad-last", "truncate", "fit"),
        help="a trajectory of another length: stay at its last pose, cut it, either, or refuse (default: error)",
    )  # fmt: skip
    sub.add_argument("--turn", type=float, metavar="DEG", help="degrees of a turning step of a string (default: 3)")
    sub.add_argument("--move", type=float, metavar="U", help="model units of a walking step of a string (default: 0.08)")
    sub.add_argument(
        "--mode", default="few-step", choices=MODES,
        help="chunks in few steps, chunks in many (ar), or the clip at once in many (default: few-step)",
    )  # fmt: skip
    sub.add_argument("--weights", metavar="DIR", help="another model for the world: a model directory, or base")
    sub.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: the world's; 50 in other modes)")
    sub.add_argument("--guidance", type=float, metavar="X", help="classifier-free guidance of many steps (default: 3)")
    sub.add_argument("--fps", type=float, metavar="N", help="frames a second of the file (default: the world's own)")
    sub.add_argument("--scale", type=int, default=4, metavar="N", help="enlarge the picture (default: 4)")
    sub.add_argument("--overlay", action="store_true", help="draw the keys")
    sub.add_argument("--out", type=Path, default=Path("clip.mp4"), metavar="F", help="video (default: clip.mp4)")
    sub.add_argument("--sheet", type=Path, metavar="F", help="also every fourth frame as one picture, .png")
    sub.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1 .. (default: cpu)")
    sub.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads; as many give equal clips (default: 1)")


@dataclass(frozen=True)
class Job:
    """What a clip is made of. image: uint8 [H, W, 3]; route: as long as the clip; cameras: in game units."""

    player: Player
    image: np.ndarray
    prompt: str
    route: Route
    cameras: CameraPath
    fps: float


def main(args: argparse.Namespace) -> int:
    """Check everything, then generate and write."""
    from rich.console import Console

    from worldline.schema import WorldlineError

    console = Console()
    for path, suffix in ((args.out, ".mp4"), (args.sheet, ".png")):
        if path is not None and (path.suffix.lower() != suffix or path.is_dir()):
            raise WorldlineError(f"{path} is no {suffix} file name; expected one such as clip{suffix}")
    for name, value, least in (("fps", args.fps, 0), ("scale", args.scale, 0), ("threads", args.threads, 0)):
        if value is not None and not value > least:
            raise WorldlineError(f"--{name} {value}; expected above {least}")
    job = prepare(args)
    if job.player.model.config.camera == "none":
        console.print("[yellow]these weights take no cameras: the trajectory has no effect[/]", highlight=False)
    frames = _write(job, args, console)
    text = f" ({job.route.text})" if job.route.text else ""
    console.print(f"{args.out}: {frames} frames, {frames / job.fps:.1f} s, seed {args.seed}{text}", highlight=False)
    if args.sheet is not None:
        console.print(f"{args.sheet}: every fourth frame", highlight=False)
    return 0


def prepare(args: argparse.Namespace) -> Job:
    """Everything that can be wrong is found here, before anything is generated or written."""
    from worldline.cli.play import find_world
    from worldline.control import trajectories
    from worldline.control.camera import CameraIntegrator
    from worldline.control.routes import Walk
    from worldline.schema import WorldlineError
    from worldline.stream.engine import Engine

    if not 0 <= args.seed < 2**63:
        raise WorldlineError(f"--seed {args.seed}; expected 0 to 2^63 - 1")
    engine = Engine.load(find_world(args.model), device=_device(args.device), threads=args.threads, warm=False)
    c = engine.config
    move, turn = (default if given is None else given for given, default in (
        (args.move, trajectories.MOVE), (args.turn, trajectories.TURN)))  # fmt: skip
    if not (0 <= turn < 90 and 0 <= move < float("inf")):
        raise WorldlineError(f"--turn {turn}, --move {move}; expected 0 to 90 degrees and a length of at least 0")
    walker = CameraIntegrator(c.intrinsics, c.move_scale, c.walk_units_per_frame)
    walk = Walk(engine.grid.stride, walker, c.turn_deg_per_frame, move, turn)
    frames = wanted_frames(args, engine)
    route = find_route(args.trajectory, walk, engine, frames)
    route = route.fitted(len(route) if frames is None else frames, args.length)
    chunk = 1 if args.mode == "bidirectional" else c.visibility.chunk
    _check_length(len(route), engine.grid.stride, chunk)
    image, caption = find_start(args.start, engine)
    prompt = caption if args.prompt is None else args.prompt
    engine.text(prompt)  # its checks
    player = find_player(args, engine, engine.grid.latent_frames(len(route)))
    cameras = route.cameras(c.intrinsics, c.move_scale)
    return Job(player, image, prompt, route, cameras, c.fps if args.fps is None else args.fps)


def wanted_frames(args: argparse.Namespace, engine: Engine) -> int | None:
    """Pixel frames asked for by number or by seconds; None: as many as the trajectory has."""
    from worldline.schema import WorldlineError

    if args.seconds is None:
        return args.frames
    if not 0 < args.seconds < 86_400:
        raise WorldlineError(f"--seconds {args.seconds}; expected above 0 and less than a day")
    chunks = max(1, round(args.seconds * engine.config.fps / engine.frames_per_chunk))
    return 1 + chunks * engine.frames_per_chunk


def find_route(source: str | None, walk: Walk, engine: Engine, frames: int | None) -> Route:
    """The route of --trajectory; without one, forward for as long as is asked."""
    from worldline.control.routes import Route, read_route
    from worldline.schema import Controls
    from worldline.stream.log import SessionLog

    if source is None:
        latents = 3 * engine.config.fps / walk.stride if frames is None else (frames - 1) / walk.stride
        chunk = engine.config.visibility.chunk
        return read_route(f"w*{max(1, round(latents / chunk)) * chunk}", walk)
    if source.endswith(".safetensors"):
        log = SessionLog.read(source, engine.weights)
        return Route.of_controls(Controls.concat(log.controls) if log.controls else Controls.still(0), walk)
    return read_route(source, walk)


def find_start(start: str | None, engine: Engine) -> tuple[np.ndarray, str]:
    """The picture to start from, uint8 [H, W, 3], cropped and resized if it is a file, and its caption."""
    import numpy as np

    from worldline.schema import WorldlineError
    from worldline.stream.world import fit

    if start is None:
        if not engine.starts:
            raise WorldlineError("this world has no start images; give one with --start FILE.png")
        start = next(iter(engine.starts))
    if start in engine.starts:
        return engine.starts[start].image, engine.starts[start].caption
    if not Path(start).is_file():
        raise WorldlineError(f"start {start!r} is no file and none of {' '.join(engine.starts) or 'no starts'}; "
                             "give one of them or a picture")  # fmt: skip
    from PIL import Image

    try:
        picture = np.asarray(Image.open(start).convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise WorldlineError(f"start {start} is no readable picture ({error}); expected .png or .jpg") from error
    return fit(picture, engine.config.height, engine.config.width), ""


def find_player(args: argparse.Namespace, engine: Engine, latents: int) -> Player:
    """The model and how it is sampled: the three modes."""
    from worldline.evaluate.player import Player
    from worldline.functional.masks import Visibility
    from worldline.models.text import HashTextEncoder
    from worldline.rollout.plan import RolloutPlan
    from worldline.schema import WorldlineError

    visibility, whole = engine.config.visibility, args.mode == "bidirectional"
    if whole and args.weights is None:
        raise WorldlineError("--mode bidirectional needs a bidirectional model: give --weights DIR, or --weights base for "
                             "the bundled one, which takes no cameras")  # fmt: skip
    if args.mode == "few-step":
        if args.guidance is not None:
            raise WorldlineError(f"--guidance {args.guidance} in few steps; a few-step student has it built in, use --mode ar")
        plan = engine.config.plan if args.steps is None else RolloutPlan.few_step(visibility, args.steps)
    else:
        steps = 50 if args.steps is None else args.steps
        guidance = 3.0 if args.guidance is None else args.guidance
        if not (1 <= steps <= 1000 and 0 <= guidance < float("inf")):
            raise WorldlineError(f"--steps {steps}, --guidance {guidance}; expected 1 to 1000 and at least 0")
        seen = Visibility(bidirectional=True, prefix=visibility.prefix) if whole else visibility
        plan = RolloutPlan.multi_step(seen, steps, guidance)
    model = engine.model if args.weights is None else _model(args.weights, engine)
    text = HashTextEncoder(model.config.text_dim, model.config.text_len)
    move_scale, bf16 = engine.config.move_scale, engine.dtype == "bfloat16"
    return Player(model, engine.codec, text, plan, move_scale, latents if whole else None, bf16)


def _model(weights: str, engine: Engine) -> Any:
    """The model of --weights, where the world's is."""
    from worldline.models.registry import load_model
    from worldline.models.wan import WanModel
    from worldline.recipes.assets import bundled, located
    from worldline.schema import WorldlineError

    model = load_model(bundled("base") if weights == "base" else located(weights, "--weights"))
    if not isinstance(model, WanModel) or model.config.in_channels != engine.codec.latent_channels:
        raise WorldlineError(f"--weights {weights} is a {type(model).__name__}; expected a WanModel of the codec's "
                             f"{engine.codec.latent_channels} latent channels")  # fmt: skip
    return model.to(engine.device).eval()


def _device(name: str) -> str:
    import torch

    from worldline.schema import WorldlineError

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise WorldlineError(f"--device {name} is not here ({str(error).splitlines()[0]}); expected cpu or cuda") from error
    return name


def _check_length(frames: int, stride: int, chunk: int) -> None:
    """Whole chunks after the start frame."""
    from worldline.schema import WorldlineError

    size = stride * chunk
    if frames <= 1 or (frames - 1) % size:
        low, high = (frames - 1) // size * size + 1, -(-(frames - 1) // size) * size + 1
        near = f"{low} or {high}" if low > 1 else f"{max(high, size + 1)}"
        raise WorldlineError(f"{frames} pixel frames; expected 1 + {size}n, the start and whole chunks: use --frames {near} "
                             "with --length fit")  # fmt: skip


# -- making and writing ------------------------------------------------------------------------------------------------


def _write(job: Job, args: argparse.Namespace, console: Any) -> int:
    """Generate into files that appear when they are whole. Returns how many frames there are."""
    import numpy as np

    from worldline.evaluate.films import contact_sheet
    from worldline.stream.overlay import draw_keys
    from worldline.stream.record import write_mp4

    kept: list[np.ndarray] = []

    def plain() -> Iterator[np.ndarray]:
        for frame in frames_of(job, args.seed, console):
            kept.append(frame)
            yield frame

    held = ((), *job.route.keys)  # nothing was held before the start
    with _whole(args.out) as video, _whole(args.sheet) as sheet:
        if args.overlay:
            write_mp4(draw_keys(plain(), held, args.scale), video, job.fps)
        else:
            write_mp4(plain(), video, job.fps, args.scale)
        if sheet is not None:
            rows = list(draw_keys(kept, held, args.scale)) if args.overlay else kept
            picture = contact_sheet([(job.route.text or job.prompt, np.stack(rows))], scale=1 if args.overlay else args.scale)
            picture.save(sheet, format="PNG")
    return len(kept)


def frames_of(job: Job, seed: int, console: Any) -> Iterator[np.ndarray]:
    """The frames uint8 [H, W, 3] of a job under a progress bar; the same job and seed give the same frames."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        whole = job.player.whole_clip is not None
        task = bar.add_task(
            "steps" if whole else "frames", total=len(job.player.plan.sigmas) if whole else len(job.cameras)
        )
        with _each_call(job.player.model, (lambda: bar.advance(task)) if whole else (lambda: None)):
            for piece in job.player.stream(job.image[None], [job.cameras], [job.prompt], seed):
                yield from piece[0]
                bar.advance(task, 0 if whole else piece.shape[1])


@contextlib.contextmanager
def _each_call(model: Any, then: Callable[[], None]) -> Iterator[None]:
    """Do something after every call of the model."""
    hook = model.register_forward_hook(lambda *_: then())
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def _whole(path: Path | None) -> Iterator[Path | None]:
    """A file that is there when it is finished, or not at all. The video's name keeps its suffix: it says the format."""
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
