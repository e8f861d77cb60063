"""`worldline adapt`: go on from an existing world model, to other data, controls, chunks or steps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from worldline.cli.common import Subcommands, add_overrides, command

if TYPE_CHECKING:
    from rich.console import Console

    from worldline.recipes.adapting import Adaptation

EXAMPLES = """\
  worldline adapt nano --chunk 2 --print                    what would be done with the bundled world, and the recipe
  worldline adapt nano --chunk 2 --train-steps 20           do it: into runs/adapt-nano; again to go on where it stopped
  worldline adapt HY-WorldPlay/ar_model --data data/mine --set text.path=models/hunyuan15-text
                                                            distil HY-WorldPlay's causal model on clips of your own
  worldline adapt minwm/Wan21/Action2V/bidirectional/model.pt --steps 2
  worldline adapt self_forcing_dmd.pt --kind few-step --camera branch --stage camera
                                                            give a model without cameras a silent camera branch, and train it
  worldline adapt runs/mine --chunk 4                       a finished run's world in larger chunks, taught by its own stages
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    summary = "go on from an existing world model: other data, controls, chunks or steps"
    sub = command(subcommands, "adapt", main, summary, EXAMPLES)
    sub.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="file or folder of HY-WorldPlay, minWM, Self-Forcing, Causal-Forcing, ...; a model, world or run directory; "
        "`nano` (the bundled world)",
    )
    sub.add_argument("--recipe", help="whose stages and options are taken (default: the library's of this size)")
    sub.add_argument(
        "--stage", metavar="NAME", help="first stage to run (default: the first that is still to be learnt)"
    )
    sub.add_argument("--chunk", type=int, metavar="N", help="latent frames generated together")
    sub.add_argument("--steps", type=int, metavar="N", help="denoising steps of the few-step student")
    sub.add_argument("--data", metavar="DIR", help="a dataset (default: as the recipe says)")
    sub.add_argument(
        "--camera", help="how cameras are taken: none, branch, fused, plucker, cross (default: as they are)"
    )
    sub.add_argument("--motion", action=argparse.BooleanOptionalAction, help="modulate frames by the camera's motion")
    sub.add_argument("--actions", type=int, metavar="N", help="so many discrete actions; 0 leaves them out")
    sub.add_argument("--teacher", metavar="DIR", help="a multi-step causal model, for ode and consistency stages")
    sub.add_argument("--score", metavar="DIR", help="a bidirectional model, for dmd")
    sub.add_argument(
        "--kind", choices=("bidirectional", "causal", "few-step"), help="what the checkpoint is, where nothing tells it"
    )
    sub.add_argument("--which", choices=("ema", "raw"), default="ema", help="weights of a file of both (default: ema)")
    sub.add_argument("--heads", type=int, metavar="N", help="number of attention heads, where nothing tells it")
    sub.add_argument("--train-steps", type=int, metavar="N", help="at most so many updates a stage")
    add_overrides(sub, "override one option of the recipe")
    sub.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where stages write (default: runs/adapt-<checkpoint>)"
    )
    sub.add_argument("--until", metavar="STAGE", help="stop after this stage")
    sub.add_argument("--nproc", type=int, default=1, metavar="N", help="processes that train together (default: 1)")
    sub.add_argument(
        "--no-preflight", dest="preflight", action="store_false", help="start even if the plan says it will not fit"
    )
    sub.add_argument("--print", dest="show", action="store_true", help="say what would be done, and do nothing")


def main(args: argparse.Namespace) -> int:
    """Say what the checkpoint is and what becomes of it; convert it; run the recipe."""
    import yaml
    from rich.console import Console

    from worldline.recipes.adapting import Wishes, adapt
    from worldline.recipes.builder import to_data
    from worldline.recipes.load import load_recipe, save_recipe
    from worldline.recipes.source_model import default_recipe, prepare, recognise

    source = recognise(args.checkpoint, which=args.which, num_heads=args.heads)
    console = Console()
    console.print(f"licence: {source.report.licence}", style="bold", highlight=False)
    recipe = load_recipe(args.recipe or default_recipe(source.report), args.overrides)
    wishes = Wishes(
        stage=args.stage, maturity=args.kind, chunk=args.chunk, steps=args.steps, camera=args.camera, motion=args.motion,
        actions=args.actions, data=args.data, teacher=args.teacher, score=args.score, train_steps=args.train_steps,
    )  # fmt: skip
    run_dir = args.run_dir or Path("runs") / f"adapt-{Path(args.checkpoint).stem}"
    made = adapt(source, recipe, wishes, run_dir / "source")
    tell(console, made)
    if args.show:
        console.print(yaml.safe_dump(to_data(made.recipe), sort_keys=False, allow_unicode=True), highlight=False)
        return 0
    prepare(source, made.mapping, run_dir / "source", which=args.which, num_heads=args.heads)
    save_recipe(made.recipe, run_dir / "recipe.yaml")
    words = ["run", str(run_dir), "--nproc", str(args.nproc)]
    words += ["--until", args.until] if args.until else []
    return _run(words if args.preflight else [*words, "--no-preflight"])


def _run(words: list[str]) -> int:
    """`worldline run` of the recipe that was written."""
    from worldline.cli import parser

    args = parser().parse_args(words)
    return args.main(args) or 0


def tell(console: Console, made: Adaptation) -> None:
    """What was recognised, what becomes of it, and what was decided."""
    from rich.table import Table

    from worldline.recipes.adapting import described

    table = Table(show_header=False)
    for name, value in described(made).items():
        table.add_row(name, value)
    console.print(table)
    for note in made.notes:
        console.print(f"note: {note}", highlight=False)
