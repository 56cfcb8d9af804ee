"""Every code that a run counts is explained, and none that it does not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import batchgen
from batchgen.reasons import NOTES, REASONS, explained, meaning
from batchgen.tasks import evolution

PACKAGE = Path(batchgen.__file__).parent
TREES = [ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py")) if path.name != "reasons.py"]
NODES = [node for tree in TREES for node in ast.walk(tree)]


def codes_of(node: ast.AST | None) -> Iterator[str]:
    """The codes that an expression may be: constants, either side of a condition, an f-string up to its first value."""
    match node:
        case ast.Constant(str(code)):
            yield code.partition(":")[0]
        case ast.JoinedStr([first, *_]):
            yield from codes_of(first)
        case ast.IfExp(body=body, orelse=orelse):
            yield from codes_of(body)
            yield from codes_of(orelse)
        case ast.BinOp(left=left):
            yield from codes_of(left)
        case ast.List(elts=items):
            for item in items:
                yield from codes_of(item)
        case ast.ListComp(elt=item):
            yield from codes_of(item)


def rejections() -> Iterator[str]:
    for node in NODES:
        match node:
            case ast.Call(func=ast.Name("RowRejected"), args=[code]):
                yield from codes_of(code)
            case ast.keyword(arg="reason", value=code):
                yield from codes_of(code)


def noted() -> Iterator[str]:
    for node in NODES:
        match node:
            case ast.Call(func=ast.Attribute(ast.Attribute(attr="notes") | ast.Name("notes"), "append"), args=[code]):
                yield from codes_of(code)
            case ast.AugAssign(target=ast.Attribute(attr="notes") | ast.Name("notes"), value=code):
                yield from codes_of(code)


def test_every_reason_of_the_code_is_explained():
    found = set(rejections())
    assert len(found) > 20, "the search finds what there is"
    assert found - REASONS.keys() == set()


def test_every_note_of_the_code_is_explained():
    found = set(noted()) - {"eliminated_"}  # goes on with what is tested below
    assert len(found) > 6, "the search finds what there is"
    assert found - NOTES.keys() == set()


def test_every_elimination_is_explained():
    rules = {evolution.elimination, evolution.response_elimination, evolution.answer_elimination}
    functions = {node.name: node for node in NODES if isinstance(node, ast.FunctionDef)}
    for rule in rules:
        returned = [node.value for node in ast.walk(functions[rule.__name__]) if isinstance(node, ast.Return)]
        codes = {code for value in returned for code in codes_of(value)}
        assert codes
        of_answer = "answer_" * (rule is evolution.answer_elimination)
        assert {f"eliminated_{of_answer}{code}" for code in codes} <= NOTES.keys()


def test_nothing_is_explained_that_the_code_does_not_say():
    said = {
        node.value.partition(":")[0] for node in NODES if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert REASONS.keys() <= said
    assert {code.removeprefix("eliminated_").removeprefix("answer_") for code in NOTES} <= said


def test_a_code_may_go_on_behind_a_colon_and_an_unknown_one_stands_alone():
    assert meaning("missing_input:topic", REASONS) == REASONS["missing_input"]
    assert meaning("of_a_later_version", REASONS) == ""
    counts = {"of_a_later_version": 2, "refused_by_server:500": 1000, "duplicate": 2}
    assert explained(counts, REASONS) == [
        f"refused_by_server:500 1,000: {REASONS['refused_by_server']}",
        f"duplicate 2: {REASONS['duplicate']}",
        "of_a_later_version 2",
    ]
