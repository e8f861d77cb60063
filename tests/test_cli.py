"""The command: help, typed errors as one clean message, lazy imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worldline.cli import main

COMMANDS = [
    "demo",
    "run",
    "launch",
    "plan",
    "play",
    "generate",
    "bench",
    "doctor",
    "data",
    "inspect-checkpoint",
    "convert",
    "models",
    "recipes",
]


@pytest.mark.parametrize(
    "argv", [[c, "--help"] for c in COMMANDS] + [["data", "build", "--help"], ["data", "inspect", "--help"]]
)
def test_every_command_has_help(argv, capsys):
    with pytest.raises(SystemExit) as leave:
        main(argv)
    assert leave.value.code == 0
    text = capsys.readouterr().out
    if argv[0] not in ("data", "models", "recipes") or len(argv) == 3:
        assert "examples:" in text


def test_help_lists_the_commands(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_help_imports_nothing_heavy():
    heavy = "torch numpy yaml rich vizdoom cv2 fastapi av pyarrow"
    code = (
        "import sys, worldline.cli as c; c.parser().format_help(); print([m for m in sys.argv[1:] if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, *heavy.split()], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "nano-dem"], "did you mean 'nano-demo'"),
        (
            ["run", "nano-demo", "--set", "stages.camera.train.lrr=1"],
            "stages.camera.train.lrr: unknown key; did you mean 'lr'",
        ),
        (["play", "nowhere"], "nowhere is no world"),
        (["data", "inspect", "nowhere"], "nowhere is no finished dataset"),
        (["data", "build", "--out", "x", "--set", "mapz=1"], "mapz: unknown key; did you mean 'maps'"),
    ],
)
def test_typed_errors_are_one_message_and_exit_code_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir()), "a wrong input leaves nothing behind"


def test_recipes_lists_the_library(capsys):
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    assert "nano-demo" in text
    assert "nano-smoke" in text
