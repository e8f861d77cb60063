"""`worldline generate`: a start picture and a trajectory to a video file."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldline.cli.clips import Job, prepare
from worldline.cli.common import Subcommands, command

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

SHEET_ROW = 24  # pixel frames, of which every fourth is shown
MODES = ("few-step", "ar", "bidirectional")
EXAMPLES = """\
  worldline generate --trajectory "w*8,l*4,wd*3" --overlay --out walk.mp4
  worldline generate --trajectory "w*4,l*8" --turn 8 --start 03 --sheet walk.png
  worldline generate --model runs/nano-demo --start room.png --prompt "a room with green panels" --seconds 5
  worldline generate --trajectory keys.csv --length fit --frames 81 --seed 7
  worldline generate --mode ar --weights runs/nano-demo/ar/model --steps 50 --guidance 2
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
    sub.add_argument(
        "--start", metavar="NAME|FILE", help="a start of the world, or a picture (default: its first start)"
    )
    sub.add_argument("--prompt", metavar="TEXT", help="what is seen (default: the start's caption)")
    sub.add_argument(
        "--expand", metavar="DIR", help="a local chat model that writes --prompt out at length (default: none does)"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="another number, another clip (default: 0)")
    long = sub.add_mutually_exclusive_group()
    long.add_argument("--frames", type=int, metavar="N", help="pixel frames (default: the trajectory's)")
    long.add_argument("--seconds", type=float, metavar="S", help="length at the world's own rate, to the nearest chunk")
    sub.add_argument(
        "--length", default="error", choices=("error", "pad-last", "truncate", "fit"),
        help="a trajectory of another length: stay at its last pose, cut it, either, or refuse (default: error)",
    )  # fmt: skip
    sub.add_argument(
        "--turn",
        type=float,
        metavar="DEG",
        help="degrees of a turning step of a string (default: 3; nano's held key: 8)",
    )
    sub.add_argument(
        "--move", type=float, metavar="U", help="model units of a walking step of a string (default: 0.08)"
    )
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
    sub.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads; as many give equal clips (default: 1)"
    )


def main(args: argparse.Namespace) -> int:
    """Check everything, then generate and write."""
    from rich.console import Console

    from worldline.schema import WorldlineError

    console = Console()
    for path, suffix in ((args.out, ".mp4"), (args.sheet, ".png")):
        if path is not None and (path.suffix.lower() != suffix or path.is_dir()):
            raise WorldlineError(f"{path} is no {suffix} file name; expected one such as clip{suffix}")
    for name, most in (("fps", 1000), ("scale", 64), ("threads", 1024)):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= most:
            raise WorldlineError(f"--{name} {value}; expected 1 to {most}")
    if args.expand is not None and args.prompt is None:
        raise WorldlineError("--expand without a prompt; expected --prompt with the words to write out")
    job = prepare(args)
    if args.expand is not None:
        console.print(f"prompt: {job.prompt}", highlight=False, markup=False)
    if job.player.model.config.camera == "none":
        console.print("[yellow]these weights take no cameras: the trajectory has no effect[/]", highlight=False)
    if args.mode == "ar" and args.weights is None:
        console.print("[yellow]the world's own weights may be made for few steps: see --weights[/]", highlight=False)
    _write(job, args, console)
    frames = len(job.route)
    text = f" ({job.route.text})" if job.route.text else ""
    console.print(f"{args.out}: {frames} frames, {frames / job.fps:.1f} s, seed {args.seed}{text}", highlight=False)
    if args.sheet is not None:
        console.print(f"{args.sheet}: every fourth frame", highlight=False)
    return 0


def _write(job: Job, args: argparse.Namespace, console: Console) -> None:
    """Generate into files, each of which appears when it is whole."""
    import numpy as np

    from worldline.evaluate.films import contact_sheet
    from worldline.stream.overlay import draw_keys
    from worldline.stream.record import write_mp4

    frames, scale = frames_of(job, args.seed, console), args.scale
    if args.overlay:
        # Nothing was held before the start. What is drawn on is enlarged already.
        frames, scale = draw_keys(frames, ((), *job.route.keys), scale), 1
    kept: list[np.ndarray] = []
    with _whole(args.out) as video:
        write_mp4(frames if args.sheet is None else _kept(frames, kept), video, job.fps, scale)
    if args.sheet is not None:
        starts = range(0, len(kept), SHEET_ROW)
        rows = [(f"{i / job.fps:.2f} s", np.stack(kept[i : i + SHEET_ROW])) for i in starts]
        with _whole(args.sheet) as sheet:
            contact_sheet(rows, scale=scale).save(sheet, format="PNG")


def _kept(frames: Iterator[np.ndarray], kept: list[np.ndarray]) -> Iterator[np.ndarray]:
    for frame in frames:
        kept.append(frame)
        yield frame


def frames_of(job: Job, seed: int, console: Console) -> Iterator[np.ndarray]:
    """The frames uint8 [H, W, 3] of a job under a progress bar; the same job and seed give the same frames."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
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
def _whole(path: Path) -> Iterator[Path]:
    """A file that is there when it is finished, or not at all. The video's name keeps its suffix: it says the format."""
    from worldline.schema import WorldlineError

    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise WorldlineError(f"{path} cannot be written ({error}); choose another place") from error
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
