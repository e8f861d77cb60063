"""What the words of `worldline generate` mean: a model, a start, a route, all checked before anything is made."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from worldline.control.routes import Route, Walk
    from worldline.evaluate.player import Player
    from worldline.schema import CameraPath
    from worldline.stream.engine import Engine


@dataclass(frozen=True)
class Job:
    """What a clip is made of. image: uint8 [H, W, 3]; route: as long as the clip; cameras: in game units."""

    player: Player
    image: np.ndarray
    prompt: str
    route: Route
    cameras: CameraPath
    fps: float


def expanded(prompt: str, chat_model: str | None) -> str:
    """A prompt written out by a local chat model, in few enough words for any world; as it is where none is named."""
    from worldline.models.prompts import PromptExpander

    return prompt if chat_model is None else PromptExpander(chat_model, max_words=60).expand([prompt])[0]


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
    move = trajectories.MOVE if args.move is None else args.move
    turn = trajectories.TURN if args.turn is None else args.turn
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
    prompt = caption if args.prompt is None else expanded(args.prompt, args.expand)
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
        return engine.starts[start].image.copy(), engine.starts[start].caption
    if not Path(start).is_file():
        raise WorldlineError(f"start {start!r} is no file and none of {' '.join(engine.starts) or 'no starts'}; "
                             "give one of them or a picture")  # fmt: skip
    from PIL import Image

    try:
        picture = np.asarray(Image.open(start).convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise WorldlineError(f"start {start} is no readable picture ({error}); expected .png or .jpg") from error
    return fit(picture, engine.config.height, engine.config.width).copy(), ""


def find_player(args: argparse.Namespace, engine: Engine, latents: int) -> Player:
    """The model and how it is sampled: the three modes."""
    from worldline.evaluate.player import Player
    from worldline.functional.masks import Visibility
    from worldline.rollout.plan import RolloutPlan
    from worldline.schema import WorldlineError

    visibility, whole = engine.config.visibility, args.mode == "bidirectional"
    if whole and args.weights is None:
        raise WorldlineError("--mode bidirectional needs a bidirectional model: give --weights DIR, or --weights base for "
                             "the bundled one, which takes no cameras")  # fmt: skip
    if args.mode == "few-step":
        if args.guidance is not None:
            raise WorldlineError(
                f"--guidance {args.guidance} in few steps; a few-step student has it built in, use --mode ar"
            )
        plan = engine.config.plan if args.steps is None else RolloutPlan.few_step(visibility, args.steps)
    else:
        steps = 50 if args.steps is None else args.steps
        guidance = 3.0 if args.guidance is None else args.guidance
        if not (1 <= steps <= 1000 and 0 <= guidance < float("inf")):
            raise WorldlineError(f"--steps {steps}, --guidance {guidance}; expected 1 to 1000 and at least 0")
        seen = Visibility(bidirectional=True, prefix=visibility.prefix) if whole else visibility
        plan = RolloutPlan.multi_step(seen, steps, guidance)
    model = engine.model if args.weights is None else _model(args.weights, engine)
    move_scale, bf16 = engine.config.move_scale, engine.dtype == "bfloat16"
    whole_clip = latents if whole else None
    return Player(model, engine.codec, engine.encoder, plan, move_scale, whole_clip, bf16, engine.images)


def _model(weights: str, engine: Engine) -> Any:
    """The model of --weights, where the world's is."""
    from worldline.models.backbone import Backbone
    from worldline.models.registry import load_model
    from worldline.recipes.assets import bundled, located
    from worldline.schema import WorldlineError

    model = load_model(bundled("base") if weights == "base" else located(weights, "--weights"))
    if not isinstance(model, Backbone) or model.config.in_channels != engine.codec.latent_channels:
        raise WorldlineError(f"--weights {weights} is a {type(model).__name__}; expected a video model of the codec's "
                             f"{engine.codec.latent_channels} latent channels")  # fmt: skip
    return model.to(engine.device).eval()


def _device(name: str) -> str:
    import torch

    from worldline.schema import WorldlineError

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise WorldlineError(
            f"--device {name} is not here ({str(error).splitlines()[0]}); expected cpu or cuda"
        ) from error
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
