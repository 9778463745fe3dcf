"""docs/reasons.md explains every reason why a layer is skipped or not split."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# where reasons are written as literals, and what hands them on: a call, a keyword, or a return
REASONS = {
    "passes/augment.py": "_reason",
    "passes/split.py": "Refusal",
    "passes/split_packed.py": "packed_refusal",
    "passes/units/blocks.py": "Problem",
    "passes/functional_weights.py": "whole",
    "synapses/registry.py": "whole",
    "compat/layer.py": "whole",
}


def reasons(file: str, name: str) -> Iterator[ast.expr]:
    """The expressions of the reasons in a file."""
    for node in ast.walk(ast.parse((ROOT / "biofx" / file).read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id=called), args=[first, *_]) if called == name:
                yield first
            case ast.keyword(arg=given) if given == name:
                yield node.value
            case ast.Assign(targets=[ast.Name(id=given)]) if given == name:
                yield node.value
            case ast.FunctionDef(name=function) if function == name:
                returned = [inner for inner in ast.walk(node) if isinstance(inner, ast.Return)]
                yield from (inner.value for inner in returned if inner.value is not None)


def pieces(expression: ast.expr) -> list[str]:
    """The fixed pieces of a text; none if it is made elsewhere."""
    parts = expression.values if isinstance(expression, ast.JoinedStr) else [expression]
    found = [part.value for part in parts if isinstance(part, ast.Constant)]
    return [piece for piece in found if isinstance(piece, str) and piece.strip()]


ALL = sorted(
    {" … ".join(pieces(found)) for file, name in REASONS.items() for found in reasons(file, name)}
    - {""}
)


def test_there_are_reasons() -> None:
    assert len(ALL) > 25
    assert "is a lookup, not a sum" in ALL


@pytest.mark.parametrize("reason", ALL)
def test_the_page_explains_it(reason: str) -> None:
    page = (ROOT / "docs" / "reasons.md").read_text(encoding="utf-8")
    pattern = ".*".join(re.escape(piece.strip()) for piece in reason.split(" … "))
    assert re.search(rf"^\|.*{pattern}.*\|.*\|$", page, re.MULTILINE)
