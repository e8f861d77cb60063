"""Nothing outside models/ and recipes/ decides by a model family's name: methods, rollout, streaming and evaluation know
`Backbone` alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import worldline

SOURCE = Path(worldline.__file__).parent
HOMES = ("models", "recipes")
FAMILY = re.compile(r"(?i:hunyuan|ltx)|\bwan(?=\d|_|\b)|\bWan(?=[A-Z0-9]|\b)")


def decisions(tree: ast.AST):
    """Every expression that decides: conditions, isinstance, comparisons, cases, lookups by a literal key."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
            yield node.test
        elif isinstance(node, ast.comprehension):
            yield from node.ifs
        elif isinstance(node, ast.match_case):
            yield node.pattern
            if node.guard is not None:
                yield node.guard
        elif isinstance(node, (ast.Compare, ast.BoolOp)) or _asks_a_type(node):
            yield node


def _asks_a_type(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass")


def family_branches(text: str) -> list[tuple[int, str]]:
    """(line, source) of decisions that name a family."""
    found = {}
    for decision in decisions(ast.parse(text)):
        said = ast.unparse(decision)
        if FAMILY.search(said):
            found[decision.lineno if hasattr(decision, "lineno") else 0] = said
    return sorted(found.items())


def test_no_family_is_branched_on():
    branches = []
    for path in sorted(SOURCE.rglob("*.py")):
        inside = path.relative_to(SOURCE)
        if inside.parts[0] not in HOMES:
            branches += [f"{inside}:{line}: {said}" for line, said in family_branches(path.read_text())]
    assert not branches, "\n".join(branches)


@pytest.mark.parametrize(
    "code",
    [
        "if isinstance(model, HunyuanModel): pass",
        "x = 1 if kind == 'wan' else 2",
        "y = [c for c in configs if type(c) is WanConfig]",
        "ok = name in ('wan2.1-t2v-1.3b', 'x')",
        "match kind:\n    case 'hunyuan15': pass",
        "while model.family != 'HunyuanVideo': pass",
        "ok = a and is_hunyuan",
    ],
)
def test_such_a_branch_would_be_found(code):
    assert family_branches(code)


def test_words_that_only_look_alike_are_left_alone():
    assert not family_branches("if wanted and 'wander' in want: pass")
