"""Static analysis of tests: the names, imports and classes that they require of a program."""

import ast
import builtins
import functools
import importlib
import re
import symtable
import sys
from collections.abc import Iterator
from typing import NamedTuple

from gvm_jax.sandbox.dataflow import closed, flows_of, names_of, results_meet_arguments

# Where a name without an import is looked for.
_MODULES = ("collections", "copy", "datetime", "decimal", "fractions", "functools", "itertools", "math", "typing")


class Tests(NamedTuple):
    """Tests that can be run."""

    text: str  # with the imports that it lacked
    names: list[str]  # names that the program must define
    classes: list[str]  # names among them that are used as classes and begin with a capital
    in_place: bool  # whether lists, sets and dicts that are arguments show the tests what a call made of them
    nan: bool  # whether they know of NaN


@functools.lru_cache(1024)
def read(reference: str) -> Tests:
    """Tests as they are run.

    Names that neither they nor Python define are the program's, but for what the standard library has: what a program
    calls `math.isclose` or `isclose` could say that everything is close. Those are one of its modules that is used for
    its attributes alone, and a name of `_MODULES` beside others that only the program can have, unless it is asked for
    alone.

    Raises:
        SyntaxError, ValueError: the text is no Python.
    """
    tree, free = ast.parse(reference), _freenames_of(reference)
    bases = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    modules = (free - names_of(tree, without=bases)) & sys.stdlib_module_names
    helpers = (free - modules) & set(_helpers())
    if helpers == free - modules:
        helpers = set()  # nothing else is asked for
    flows = flows_of(tree)
    for part in _asking(tree):
        used = closed(names_of(part), flows, lambda flow, found: flow.names if flow.targets & found else ()) & free
        if used <= helpers:
            helpers -= used  # asked for alone
    imports = [f"import {name}\n" for name in sorted(modules)]
    imports += [f"from {_helpers()[name]} import {name}\n" for name in sorted(helpers)]
    asked = free - modules - helpers
    return Tests(
        text="".join(imports) + reference,
        names=sorted(asked),
        classes=sorted(name for name in asked & _used_as_classes(tree) if name[0].isupper()),
        in_place=not results_meet_arguments(tree, asked),
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


def _freenames_of(text: str) -> set[str]:
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
    """Expressions that make demands on the program: asserts, statements, `with`, decorators."""
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
            used |= names_of(node.type)
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
