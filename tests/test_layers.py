"""The layers of the design, enforced: imports go downward only, and importing the package is cheap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_go_downward():
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_and_the_package_start_without_heavy_libraries():
    heavy = ("torch", "vizdoom", "cv2", "fastapi", "av", "pyarrow", "diffusers", "transformers")
    code = f"import sys, worldline, worldline.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
