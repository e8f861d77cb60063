"""The `worldline` command. Each subcommand is one module, imported in full only when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from worldline.cli import (
    ablate,
    adapt,
    bench,
    convert,
    data,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    launch,
    plan,
    play,
    run,
    serve,
    shelf,
)

EPILOG = """\
examples:
  worldline demo                             build data, convert the bundled base through all stages, serve the page
  worldline play                             walk through the bundled world in the browser
  worldline run nano-demo --until camera     the first stages only; run again without --until to go on
  worldline run runs/nano-demo --set stages.dmd.train.steps=200
                                             change one option: only what depends on it runs again
"""


def parser() -> argparse.ArgumentParser:
    """All subcommands. Building it imports nothing heavy."""
    top = argparse.ArgumentParser(
        prog="worldline",
        description="Turn a pretrained video diffusion model into a real-time interactive world model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    top.add_argument("--version", action="store_true", help="print the version and leave")
    subcommands = top.add_subparsers(metavar="COMMAND")
    for module in (
        demo,
        run,
        adapt,
        launch,
        plan,
        play,
        serve,
        generate,
        evaluate,
        export,
        ablate,
        bench,
        doctor,
        data,
        convert,
        shelf,
    ):
        module.add(subcommands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 a stage failed, 2 a wrong input, 130 interrupted."""
    top = parser()
    args = top.parse_args(argv)
    if args.version:
        from importlib.metadata import version

        sys.stdout.write(version("worldline") + "\n")
        return 0
    if not hasattr(args, "main"):
        top.print_help()
        return 0
    try:
        return args.main(args) or 0
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except ValueError as error:
        from worldline.schema import WorldlineError

        if args.debug or not isinstance(error, WorldlineError):
            raise
        return _say(str(error), 2)
    except Exception as error:
        from worldline.recipes.graph import Interrupted, StageError

        if args.debug or not isinstance(error, (Interrupted, StageError)):
            raise
        return _say(str(error), 130 if isinstance(error, Interrupted) else 1)


def _say(message: str, code: int) -> int:
    """One clean message on stderr."""
    from rich.console import Console
    from rich.text import Text

    if code == 130 and int(os.environ.get("RANK", "0")) > 0:
        return code  # the first process says it for all
    label = Text("stopped " if code == 130 else "error ", style="bold yellow" if code == 130 else "bold red")
    Console(stderr=True, highlight=False, soft_wrap=True).print(label + Text(message))
    return code
