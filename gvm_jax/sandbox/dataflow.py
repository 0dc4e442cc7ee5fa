"""Data flow in tests: which names hold results of the program, and which hold its arguments."""

import ast
import builtins
import itertools
from collections.abc import Callable, Collection, Container, Iterator
from typing import NamedTuple


class Flow(NamedTuple):
    """Assigns the value of an expression to names."""

    targets: set[str]
    source: ast.AST
    names: set[str]  # of the source
    loops: bool  # the targets are items of the source, or the other way round

    @property
    def is_alias(self) -> bool:
        """Whether the target is, or holds, the source's own objects."""
        return not (isinstance(self.source, ast.Name | ast.Call) if self.loops else isinstance(self.source, ast.Call))


def names_of(tree: ast.AST, without: Container[int] = ()) -> set[str]:
    """Names in a tree, but for the nodes with these `id`s."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in without}


def closed(names: set[str], flows: list[Flow], more: Callable[[Flow, set[str]], Collection[str]]) -> set[str]:
    """The closure of `names` under flows: `more(flow, found)` are names that a flow adds to those found."""
    names, before = set(names), -1
    while len(names) > before:
        before = len(names)
        for flow in (*flows, *reversed(flows)):
            names.update(more(flow, names))
    return names


def results_meet_arguments(tree: ast.Module, asked: set[str]) -> bool:
    """Whether an expression puts what the program returned beside what it was given: `f(x) == sorted(x)`.

    There a program that empties x and returns nothing would seem to be right. Names are followed through assignments
    and loops wherever these stand. Where that finds too much, tests see less of a function that changes its arguments.
    """
    nodes = list(ast.walk(tree))
    functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    python = {"self", *dir(builtins)}
    python |= {node.asname or node.name.partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
    flows = [
        flow._replace(targets=flow.targets - python, names=flow.names - python) for flow in flows_of(tree, functions)
    ]
    # A parameter that is called may be the program's function.
    called = {node.func.id for node in calls if isinstance(node.func, ast.Name)} - python - set(functions) | asked
    results = closed(called, flows, lambda flow, found: flow.targets if flow.names & found else ())
    theirs = [node for node in calls if _root(node.func) in results or any(_root(arg) in called for arg in node.args)]
    given = {name for call in theirs for part in (*call.args, *call.keywords) for name in names_of(part)}
    given -= python - {"self"} | called
    # By which other names the same objects can be had, which names hold them, and what is made of them.
    given = closed(given, flows, lambda flow, found: flow.names if flow.is_alias and flow.targets & found else ())
    holders = {name for flow in flows if flow.loops and flow.targets & given for name in flow.names}
    outside = {id(flow.source): _beside(flow.source, results)[1] for flow in flows}
    given = closed(given, flows, lambda flow, found: flow.targets if outside[id(flow.source)] & found else ())
    for statement in nodes:
        for part in ast.iter_child_nodes(statement) if isinstance(statement, ast.stmt) else ():
            for expression in _alternatives(part) if isinstance(part, ast.expr) else ():
                returned, names = _beside(expression, results)
                if any(returned - {name} for name in names & (given | holders)):
                    return True
    return False


def flows_of(tree: ast.AST, functions: dict[str, ast.FunctionDef] | None = None) -> list[Flow]:
    """All flows of a text; `functions` of it have their parameters from their calls."""
    return [
        Flow(targets, source, names_of(source), loops)
        for node in ast.walk(tree)
        for targets, source, loops in _flows(node, functions or {})
    ]


def _flows(node: ast.AST, functions: dict[str, ast.FunctionDef]) -> Iterator[tuple[set[str], ast.AST, bool]]:
    """(names, source of their values, whether they are items of the source) for each assignment of a node."""
    if isinstance(node, ast.Assign):
        yield set().union(*map(names_of, node.targets)), node.value, False
        yield from ((names_of(a), b, False) for a, b in itertools.permutations(node.targets, 2))  # a = b = []
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
        yield names_of(node.target), node.value, False
    elif isinstance(node, ast.For | ast.comprehension):
        yield names_of(node.target), node.iter, True
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield names_of(node.optional_vars), node.context_expr, False
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield {node.name}, ast.Module(node.body, []), True
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
        parameters = functions[node.func.id].args.args
        yield from (({parameter.arg}, part, False) for parameter, part in zip(parameters, node.args, strict=False))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # found.append(f(x))
        yield from (({name} if (name := _root(node.func)) else set(), part, True) for part in node.args)


def _root(node: ast.AST) -> str | None:
    """The name that an expression of attributes, items and calls begins with."""
    while not isinstance(node, ast.Name):
        node = getattr(node, "value", None) or getattr(node, "func", None)
        if not isinstance(node, ast.AST):
            return None
    return node.id


def _alternatives(expression: ast.expr) -> Iterator[ast.expr]:
    """The operands of `and` and `or`."""
    if isinstance(expression, ast.BoolOp):
        for part in expression.values:
            yield from _alternatives(part)
    else:
        yield expression


def _beside(expression: ast.AST, results: set[str], in_slice: bool = False) -> tuple[set[str], set[str]]:
    """The results of the program in an expression (names, "()" for a call), and its names outside of such calls."""
    if isinstance(expression, ast.Call) and _root(expression.func) in results:
        return {"()"}, set()
    if isinstance(expression, ast.Name):
        returned = {expression.id} & results
        return (set(), {expression.id} - returned) if in_slice else (returned, {expression.id})  # x[:f(x)] is x's
    returned, names = set(), set()
    for part in ast.iter_child_nodes(expression):
        sliced = in_slice or (isinstance(expression, ast.Subscript) and part is expression.slice)
        for found, more in zip((returned, names), _beside(part, results, sliced), strict=True):
            found |= more
    return returned, names
