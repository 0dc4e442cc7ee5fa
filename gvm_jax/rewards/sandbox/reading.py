"""What a text of tests asks of a program, read without running it."""

import ast
import builtins
import functools
import importlib
import itertools
import re
import symtable
import sys
from collections.abc import Callable, Collection, Container, Iterator
from typing import NamedTuple

# Where a name without an import is looked for.
_MODULES = ("collections", "copy", "datetime", "decimal", "fractions", "functools", "itertools", "math", "typing")


class Tests(NamedTuple):
    """Tests that can be run."""

    text: str  # with the imports that it lacked
    names: list[str]  # what the program must define
    classes: list[str]  # those that are used as classes and have a name like one
    in_place: bool  # whether lists, sets and dicts that are arguments show the tests what a call made of them
    nan: bool  # whether they know of NaN


@functools.lru_cache(1024)
def read(reference: str) -> Tests:
    """Tests as they are run.

    Names that neither they nor Python define are the program's, but for what the standard library has: what a program
    calls `math.isclose` or `isclose` could say that everything is close. Those are one of its modules that is used for
    its attributes alone, and a name of `_MODULES` beside others that only the program can have, unless an assert asks
    for it alone.

    Raises:
        SyntaxError, ValueError: the text is no Python.
    """
    tree, free = ast.parse(reference), _free_names(reference)
    bases = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    modules = (free - _names(tree, without=bases)) & sys.stdlib_module_names
    helpers = (free - modules) & set(_helpers())
    if helpers == free - modules:
        helpers = set()  # nothing else is asked for
    flows = [
        _Flow(targets, source, _names(source), loops)
        for node in ast.walk(tree)
        for targets, source, loops in _flows(node, {})
    ]
    for part in _asking(tree):
        used = _closed(_names(part), flows, lambda flow, found: flow.names if flow.targets & found else ()) & free
        if used <= helpers:
            helpers -= used  # asked for alone
    imports = [f"import {name}\n" for name in sorted(modules)]
    imports += [f"from {_helpers()[name]} import {name}\n" for name in sorted(helpers)]
    asked = free - modules - helpers
    return Tests(
        text="".join(imports) + reference,
        names=sorted(asked),
        classes=sorted(name for name in asked & _used_as_classes(tree) if name[0].isupper()),
        in_place=not _results_meet_arguments(tree, asked),
        nan=re.search(r"nan\b", reference, re.IGNORECASE) is not None or any(map(_differs_from_itself, ast.walk(tree))),
    )


@functools.cache
def _helpers() -> dict[str, str]:
    """Module by name."""
    modules = {name: importlib.import_module(name) for name in reversed(_MODULES)}
    return {
        name: module
        for module, content in modules.items()
        for name in getattr(content, "__all__", dir(content))
        if not name.startswith("_")
    }


def _free_names(text: str) -> set[str]:
    """Names that the text uses, and neither it nor Python defines."""
    used, bound = set(), set(dir(builtins))
    scopes = [symtable.symtable(text, "tests.py", "exec")]
    for scope in scopes:
        scopes += scope.get_children()
        for symbol in scope.get_symbols():
            if not (symbol.is_global() or scope.get_type() == "module"):
                continue  # of a function alone: another scope's name of the same letters is another one
            if symbol.is_referenced():
                used.add(symbol.get_name())
            if symbol.is_assigned() or symbol.is_imported():
                bound.add(symbol.get_name())
    return used - bound


def _asking(tree: ast.AST) -> Iterator[ast.expr]:
    """What a program is asked to do: asserts, calls for what they do, `with`, decorators."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield node.test
        elif isinstance(node, ast.Expr):
            yield node.value
        elif isinstance(node, ast.withitem):
            yield node.context_expr
        yield from getattr(node, "decorator_list", ())


def _used_as_classes(tree: ast.AST) -> set[str]:
    """Names that are called or caught, have attributes or items, or are arguments, as those of `isinstance` are."""
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            used |= _names(node.type)
        if isinstance(node, ast.Call):
            used |= {part.id for part in (node.func, *node.args) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.value, ast.Name):
            used.add(node.value.id)
    return used


def _differs_from_itself(node: ast.AST) -> bool:
    """Whether this is `x != x`."""
    return (
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.NotEq)
        and ast.dump(node.left) == ast.dump(node.comparators[0])
    )


def _names(tree: ast.AST, without: Container[int] = ()) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in without}


def _results_meet_arguments(tree: ast.Module, asked: set[str]) -> bool:
    """Whether an expression puts what the program returned beside what it was given: `f(x) == sorted(x)`.

    There a program that empties x and returns nothing would seem to be right. Names are followed through assignments
    and loops wherever these stand. Where that finds too much, tests see less of a function that changes its arguments.
    """
    nodes = list(ast.walk(tree))
    functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    python = {"self", *dir(builtins)}
    python |= {node.asname or node.name.partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
    called = {node.func.id for node in calls if isinstance(node.func, ast.Name)} - python - set(functions)
    called |= asked  # and a parameter that is called may be the program's function
    flows = [
        _Flow(targets - python, source, _names(source) - python, loops)
        for node in nodes
        for targets, source, loops in _flows(node, functions)
    ]
    results = _closed(called, flows, lambda flow, found: flow.targets if flow.names & found else ())
    theirs = [node for node in calls if _root(node.func) in results or any(_root(arg) in called for arg in node.args)]
    given = {name for call in theirs for part in (*call.args, *call.keywords) for name in _names(part)}
    given -= python - {"self"} | called
    given = _closed(given, flows, lambda flow, found: flow.names if flow.is_alias and flow.targets & found else ())
    holders = {name for flow in flows if flow.loops and flow.targets & given for name in flow.names}
    outside = {id(flow.source): _beside(flow.source, results)[1] for flow in flows}
    given = _closed(given, flows, lambda flow, found: flow.targets if outside[id(flow.source)] & found else ())
    for statement in nodes:
        for part in ast.iter_child_nodes(statement) if isinstance(statement, ast.stmt) else ():
            for expression in _alternatives(part) if isinstance(part, ast.expr) else ():
                returned, names = _beside(expression, results)
                if any(returned - {name} for name in names & (given | holders)):
                    return True
    return False


class _Flow(NamedTuple):
    targets: set[str]
    source: ast.AST
    names: set[str]  # of the source
    loops: bool  # the targets are items of the source, or the other way round

    @property
    def is_alias(self) -> bool:
        """Whether the target is, or holds, the source's own objects."""
        return not (isinstance(self.source, ast.Name | ast.Call) if self.loops else isinstance(self.source, ast.Call))


def _closed(names: set[str], flows: list[_Flow], more: Callable[[_Flow, set[str]], Collection[str]]) -> set[str]:
    """The names, and all that flows lead to from them."""
    names, before = set(names), -1
    while len(names) > before:
        before = len(names)
        for flow in (*flows, *reversed(flows)):
            names.update(more(flow, names))
    return names


def _flows(node: ast.AST, functions: dict[str, ast.FunctionDef]) -> Iterator[tuple[set[str], ast.AST, bool]]:
    """Of a node that gives names to values: the names, where the values are from, and whether one after another."""
    if isinstance(node, ast.Assign):
        yield set().union(*map(_names, node.targets)), node.value, False
        yield from ((_names(a), b, False) for a, b in itertools.permutations(node.targets, 2))  # a = b = []
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
        yield _names(node.target), node.value, False
    elif isinstance(node, ast.For | ast.comprehension):
        yield _names(node.target), node.iter, True
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield _names(node.optional_vars), node.context_expr, False
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
    """What `and`, `or` and `not` join."""
    if isinstance(expression, ast.BoolOp):
        for part in expression.values:
            yield from _alternatives(part)
    else:
        yield expression


def _beside(expression: ast.AST, results: set[str], in_slice: bool = False) -> tuple[set[str], set[str]]:
    """What of the program's an expression has (names, "()" for a call), and its names outside of such calls."""
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
