"""What stands for an object of another process, and what can be done to one from there.

Imported by the child processes: the standard library alone.
"""

import builtins
import operator
from collections.abc import Iterator

from copies import pack, unpack


class Failed(BaseException):
    """The other end ended, broke the rules or has what cannot be compared. No Exception: tests must not catch it."""


class Unsupported(BaseException):
    """A value of this end that cannot cross."""


class Remote:
    """An object of the other process. Attributes, calls, items, iteration, `with` and conversions are the object's own.

    It is true, and can be compared with itself and None alone: an object that claims to equal everything would pass
    every test.
    """

    __slots__ = ("__weakref__", "_id", "_name", "_peer")

    def __init__(self, peer, number: int, name: str):
        self._peer, self._id, self._name = peer, number, name

    def __call__(self, *args, **kwargs):
        """Calls it."""
        return self._peer.ask("call", self, list(args), kwargs)

    def __getattr__(self, name):
        """Its attribute; names of Python's own protocols are answered here."""
        if name == "__name__":
            return self._name
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.ask("getattr", self, name)

    def __setattr__(self, name, value):
        """Sets its attribute."""
        if name in Remote.__slots__:
            object.__setattr__(self, name, value)
        else:
            self._peer.ask("setattr", self, name, value)

    def __next__(self):
        """Its next item."""
        ended, item = self._peer.ask("next", self, None)
        if ended:
            raise StopIteration
        return item

    def __exit__(self, kind, *_):
        """Leaves it. What was raised inside goes on: a program could hide that an assertion failed."""
        self._peer.ask("exit", self, kind)

    def __instancecheck__(self, instance):
        """Whether an object of the other process is one of its instances; others are not."""
        return isinstance(instance, Remote) and bool(self._peer.ask("isinstance", instance, self))

    def __mro_entries__(self, _):
        """No base of a class."""
        raise Unsupported(f"the tests derive a class from the program's {self._name}")

    def __hash__(self):
        """By identity."""
        return object.__hash__(self)

    def __eq__(self, other):
        """By identity."""
        return other is self if other is None or other is self else self._refuse(other)

    def __repr__(self):
        """Made here: it is for messages."""
        return f"<{self._name} of the program>"

    def _refuse(self, *others):
        if others and isinstance(others[0], Operand):
            return NotImplemented  # it knows
        raise self._peer.fail(
            f"the tests compare or reckon with an object of the class {self._name}, of which there is no plain copy"
        )


class Operand(Remote):
    """An object of a class that the tests ask for. Among such objects the operators are the object's own.

    With the tests' own values stands for it a copy of the built-in type that it derives from. Where it derives from
    none, it cannot be compared with them, and what reckoning gives is a `Remote`: a number could be any.
    """

    __slots__ = ()

    def _operate(self, name: str, other: object, swap: bool = False):
        def pair(mine: object) -> tuple[object, object]:
            return (other, mine) if swap else (mine, other)

        if isinstance(other, Remote):
            return self._peer.ask(name, *pair(self))
        if other is None and name in ("eq", "ne"):
            return name == "ne"
        copied, value = self._peer.ask("base", self)
        if copied:
            return getattr(operator, name)(*pair(value))
        result = self._refuse() if name in _COMPARISONS else self._peer.ask(name, *pair(self))
        return Remote(self._peer, result._id, result._name) if isinstance(result, Remote) else self._refuse()


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
        setattr(Remote, f"__{name}__", asking(name))
    Remote.__len__ = Remote._refuse
    Remote.__bool__ = lambda self: True
    for name in _OF_OPERANDS:
        setattr(Operand, f"__{name}__", asking(name))
    for name in (*_COMPARISONS, *_ARITHMETIC):
        for mark in ("", "r") if name in _ARITHMETIC else ("",):
            method = f"__{mark}{name.rstrip('_')}__"
            setattr(Operand, method, reckoning(name, swap=mark == "r"))
            if name not in ("eq", "ne"):
                setattr(Remote, method, Remote._refuse)


_add_operators()
