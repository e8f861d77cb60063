"""`worldline evaluate RUN --stages ...`: every stage of a conversion on the same episodes, in one table."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from worldline.cli.common import duration, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from worldline.evaluate.runner import Plan


def run(console: Console, args: argparse.Namespace, plan: Plan) -> int:
    """Play, measure, write stages.json, stages.html and stages.md under `plan.out`."""
    from rich.table import Table

    from worldline.evaluate.stage_page import stage_markdown, write_stage_page
    from worldline.evaluate.stage_table import stage_results
    from worldline.evaluate.stages import measure_stages
    from worldline.recipes.contestants import contestants, default_stages, parsed, setting, teacher_of
    from worldline.recipes.load import load_recipe
    from worldline.recipes.workspace import Workspace
    from worldline.schema import WorldlineError

    run_dir = Path(args.world)
    if not (run_dir / "recipe.yaml").is_file():
        raise WorldlineError(f"{run_dir} is no run directory (no recipe.yaml); --stages needs one, see `worldline run`")
    ws = Workspace(load_recipe(run_dir / "recipe.yaml"), run_dir)
    asked = default_stages(ws) if args.stages == "all" else parsed(args.stages)
    steps = tuple(int(n) for n in args.steps.split(",") if n.isdigit())
    teacher = teacher_of(ws, asked)
    begin = time.monotonic()

    def progress(done: int, total: int, name: str) -> None:
        console.print(f"[dim]{done:4d}/{total}  {duration(time.monotonic() - begin):>12}  {name}[/]", highlight=False)

    measured = measure_stages(contestants(ws, asked, steps, args.device), setting(ws), plan, progress)
    if measured is None:
        console.print(
            f"shard {args.shard} is done; the table is written when all are, under {plan.out}", highlight=False
        )
        return 0
    facts = {"run": run_dir.name, "recipe": ws.recipe.name, "seconds": f"{time.monotonic() - begin:.0f}"}
    results = stage_results(measured, plan, teacher, facts)
    write_json(plan.out / "stages.json", results)
    (plan.out / "stages.md").write_text(stage_markdown(results))
    page = write_stage_page(plan, results, measured)
    table = Table("stage", "sampling", "kept of the teacher: tolerant PSNR", "yaw gain")
    for row in results["stages"]:
        shares = [row.get("kept", {}).get(n) for n in ("tolerant_ood_map", "yaw_gain")]
        table.add_row(
            row["label"], row["sampling"], *("" if k is None else f"{100 * k['value']:.0f} %" for k in shares)
        )
    console.print(table)
    for line in results["verdict"]:
        console.print(line, highlight=False)
    console.print(f"[bold green]done[/] in {duration(time.monotonic() - begin)}; page: {page}", highlight=False)
    return 0
