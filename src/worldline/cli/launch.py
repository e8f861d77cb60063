"""`worldline launch`: a recipe on many processes, started here by torchrun or handed to Slurm."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from worldline.cli.common import Subcommands, add_overrides, command

EXAMPLES = """\
  worldline launch wan-1.3b --slurm --nodes 2 --nproc 8 --time 24:00:00          print the batch script
  worldline launch wan-1.3b --slurm --nproc 8 --submit --sbatch partition=gpu    and submit it
  worldline launch wan-1.3b --nproc 8                                            on this machine: as `run --nproc 8`
"""
STOPPED = 130  # what `worldline run` ends with after it was asked to stop and has saved

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={nproc}
#SBATCH --gpus-per-node={nproc}
#SBATCH --time={time}
#SBATCH --output={log}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@{warning}
{more}
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-4}}
# Every task is one process; {warning} s before the limit each is warned, saves with the others and ends with {stopped}.
srun --kill-on-bad-exit=1 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec {run}'
code=$?
if [ $code -eq {stopped} ] || [ $code -eq 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


def elastic(processes: int, arguments: list[str], *, restarts: int) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of torchrun on this machine. `arguments`: a script, or -m and a module, and what it takes.
    Where a process dies, all are started again, `restarts` times at most, and go on from the last checkpoint."""
    environment = dict(os.environ)
    # Without it restarted workers read their predecessors' addresses (pytorch/pytorch#135712, #167288).
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    start = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    module = arguments[:1] if arguments[0] == "-m" else []
    # Options after `--` are not torchrun's, whatever they are short for there.
    command = [sys.executable, "-m", "torch.distributed.run", *start, *module, "--", *arguments[len(module) :]]
    return command, environment


def again(processes: int, argv: list[str], *, restarts: int) -> int:
    """This very command, `argv`, on several processes; returns what torchrun ends with. Ctrl-C reaches them all."""
    command, environment = elastic(processes, ["-m", "worldline.cli", *argv], restarts=restarts)
    running = subprocess.Popen(command, env=environment)
    while True:
        try:
            return running.wait()
        except KeyboardInterrupt:
            continue  # the processes got it too: they save and end


def slurm_script(
    name: str,
    run: list[str],
    log: Path,
    *,
    nodes: int,
    nproc: int,
    time: str,
    warning: int = 300,
    options: tuple[str, ...] = (),
) -> str:
    """A batch script that runs `run` on nodes * nproc processes, is warned before its limit, saves and queues again.
    options: further ones of sbatch, such as partition=gpu."""
    more = "".join(f"#SBATCH --{option}\n" for option in options)
    return SCRIPT.format(
        name=name,
        nodes=nodes,
        nproc=nproc,
        time=time,
        log=log,
        warning=warning,
        more=more,
        stopped=STOPPED,
        run=shlex.join(run).replace("'", "'\\''"),
    )


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    sub = command(subcommands, "launch", main, "run a recipe on many processes, here or through Slurm", EXAMPLES)
    sub.add_argument("recipe", metavar="RECIPE", help="library name, path to a .yaml, or a run directory to go on with")
    add_overrides(sub)
    sub.add_argument("--run-dir", type=Path, metavar="DIR", help="where stages write (default: runs/<recipe name>)")
    sub.add_argument("--nproc", type=int, default=8, metavar="N", help="processes (accelerators) a node (default: 8)")
    sub.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes, with --slurm (default: 1)")
    sub.add_argument("--restarts", type=int, default=3, metavar="N", help="restarts after a lost process (default: 3)")
    sub.add_argument("--slurm", action="store_true", help="print a batch script instead of running here")
    sub.add_argument("--submit", action="store_true", help="with --slurm: hand it to sbatch as well")
    sub.add_argument("--time", default="24:00:00", metavar="LIMIT", help="with --slurm (default: 24:00:00)")
    sub.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION=VALUE", help="further options of sbatch, repeatable"
    )


def main(args: argparse.Namespace) -> int:
    """Launch. The recipe is read first, so that a wrong one fails here and not in a queue."""
    from worldline.recipes.load import load_recipe
    from worldline.schema import WorldlineError

    recipe, run_dir = Path(args.recipe), args.run_dir
    if (recipe / "recipe.yaml").is_file():
        recipe, run_dir = recipe / "recipe.yaml", run_dir or recipe
    resolved = load_recipe(recipe if recipe.is_file() else args.recipe, args.overrides)
    run_dir = run_dir or Path("runs") / resolved.name
    if min(args.nproc, args.nodes) < 1 or args.restarts < 0:
        raise WorldlineError(f"--nproc {args.nproc} --nodes {args.nodes}: expected at least 1 of each")
    given = [word for override in args.overrides for word in ("--set", override)]
    argv = ["run", str(recipe if recipe.is_file() else args.recipe), "--run-dir", str(run_dir), *given]
    if not args.slurm:
        if args.nodes > 1:
            raise WorldlineError(
                f"--nodes {args.nodes} needs --slurm: without it processes start on this machine alone"
            )
        return again(args.nproc, [*argv, "--nproc", str(args.nproc)], restarts=args.restarts)
    script = slurm_script(
        resolved.name,
        ["worldline", *argv],
        run_dir / "slurm-%j.log",
        nodes=args.nodes,
        nproc=args.nproc,
        time=args.time,
        options=tuple(args.sbatch),
    )
    sys.stdout.write(script)
    if not args.submit:
        return 0
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "slurm.sh").write_text(script)
    try:
        return subprocess.run(["sbatch", str(run_dir / "slurm.sh")], check=False).returncode
    except FileNotFoundError as error:
        raise WorldlineError("no sbatch here; submit the printed script where Slurm is") from error
