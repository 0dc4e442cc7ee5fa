"""Proxies of objects that live in another process, and the operations that they forward.

Imported by the child processes: the standard library alone.
"""

import builtins
import operator
from collections.abc import Iterator

from serialization import pack, unpack


class Failed(BaseException):
    """The other process ended or broke the rules. A BaseException, which tests are less likely to catch."""


class Unsupported(BaseException):
    """A value of this process cannot be sent."""


class Proxy:
    """Forwards attributes, calls, items, iteration, `with` and conversions to an object of the other process.

    It is true, and can be compared with itself and None alone: an object that claims to equal everything would pass
    every test.
    """

    __slots__ = ("__weakref__", "_id", "_name", "_peer")

    def __init__(self, peer, number: int, name: str):
        self._peer, self._id, self._name = peer, number, name

    def __call__(self, *args, **kwargs):
        return self._peer.ask("call", self, list(args), kwargs)

    def __getattr__(self, name):
        if name == "__name__":
            return self._name
        if name.startswith("__"):  # protocols of Python are answered here
            raise AttributeError(name)
        return self._peer.ask("getattr", self, name)

    def __setattr__(self, name, value):
        if name in Proxy.__slots__:
            object.__setattr__(self, name, value)
        else:
            self._peer.ask("setattr", self, name, value)

    def __next__(self):
        ended, item = self._peer.ask("next", self, None)
        if ended:
            raise StopIteration
        return item

    def __exit__(self, kind, *_):
        self._peer.ask("exit", self, kind)  # what was raised goes on: a program could hide that an assertion failed

    def __instancecheck__(self, instance):
        return isinstance(instance, Proxy) and bool(self._peer.ask("isinstance", instance, self))

    def __mro_entries__(self, _):
        raise Unsupported(f"the tests derive a class from the program's {self._name}")

    def __hash__(self):
        return object.__hash__(self)

    def __eq__(self, other):
        return other is self if other is None or other is self else self._refuse(other)

    def __repr__(self):
        return f"<{self._name} of the program>"

    def _refuse(self, *others):
        if others and isinstance(others[0], Operand):
            return NotImplemented  # it knows
        raise self._peer.fail(
            f"the tests compare or reckon with an object of the class {self._name}, of which there is no plain copy"
        )


class Operand(Proxy):
    """Proxy of an object whose class the tests ask for. Among such objects, operators are forwarded too.

    Against a value of the tests, a copy of the built-in type that the object derives from takes its place. If it
    derives from none, it cannot be compared with that value, and arithmetic gives a `Proxy`: a number could be any.
    """

    __slots__ = ()

    def _operate(self, name: str, other: object, swap: bool = False):
        def pair(mine: object) -> tuple[object, object]:
            return (other, mine) if swap else (mine, other)

        if isinstance(other, Proxy):
            return self._peer.ask(name, *pair(self))
        if other is None and name in ("eq", "ne"):
            return name == "ne"
        copied, value = self._peer.ask("base", self)
        if copied:
            return getattr(operator, name)(*pair(value))
        result = self._refuse() if name in _COMPARISONS else self._peer.ask(name, *pair(self))
        return Proxy(self._peer, result._id, result._name) if isinstance(result, Proxy) else self._refuse()


def _enter(manager: object) -> object:
    return type(manager).__enter__(manager)


def _exit(manager: object, kind: type[Exception] | None) -> None:
    type(manager).__exit__(manager, kind, kind and kind(), None)


def _next(iterator: Iterator, sent: object) -> tuple[bool, object]:
    try:
        return False, next(iterator) if sent is None else iterator.send(sent)
    except StopIteration:
        return True, None


def _base(value: object) -> tuple[bool, object]:
    """Whether it derives from a built-in type, and its copy as that."""
    try:
        return True, unpack(pack(value, _no_copy), _no_copy)
    except TypeError:
        return False, None


def _no_copy(*_):
    raise TypeError


_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "matmul")
_OF_ALL = ("iter", "str", "int", "float", "getitem", "setitem", "delitem", "enter")
_OF_OPERANDS = ("bool", "len", "repr", "hash", "abs", "neg", "contains")

GIVEN_AWAY = {"call": lambda function, args, kwargs: function(*args, **kwargs), "next": _next}
OPERATIONS = {
    name: getattr(builtins, name, None) or getattr(operator, name)
    for name in (*_COMPARISONS, *_ARITHMETIC, *_OF_ALL[:-1], *_OF_OPERANDS, "getattr", "setattr", "isinstance")
}
OPERATIONS |= GIVEN_AWAY | {"enter": _enter, "exit": _exit, "base": _base}


def _add_operators() -> None:
    def asking(name: str):
        return lambda self, *args: self._peer.ask(name, self, *args)

    def reckoning(name: str, swap: bool):
        return lambda self, other: self._operate(name, other, swap)

    for name in _OF_ALL:
        setattr(Proxy, f"__{name}__", asking(name))
    Proxy.__len__ = Proxy._refuse
    Proxy.__bool__ = lambda self: True
    for name in _OF_OPERANDS:
        setattr(Operand, f"__{name}__", asking(name))
    for name in (*_COMPARISONS, *_ARITHMETIC):
        for mark in ("", "r") if name in _ARITHMETIC else ("",):
            method = f"__{mark}{name.rstrip('_')}__"
            setattr(Operand, method, reckoning(name, swap=mark == "r"))
            if name not in ("eq", "ne"):
                setattr(Proxy, method, Proxy._refuse)


_add_operators()
