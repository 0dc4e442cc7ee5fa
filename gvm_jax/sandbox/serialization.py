"""Deep copies of values as JSON, which cannot run code when it is read.

None, bool, int, float, str and values of the types in `KINDS` are copied, to exactly these types: what is a list with
an `__eq__` of its own here is a list there. Imported by the child processes: the standard library alone.
"""

import builtins
import collections
import functools
from collections.abc import Callable


def _lazy(module: str, name: str) -> Callable:
    """A function of a module that is imported when it is called: most programs need none of them."""
    return lambda *args: functools.reduce(getattr, name.split("."), __import__(module))(*args)


def _decimal(number: str | float) -> object:
    value = _lazy("decimal", "Decimal")(number)
    if isinstance(number, str) and not value.is_finite():
        raise ValueError(f"{number} should have come as a float")  # in which the reader of messages sees NaN
    return value


# Type name -> (its parts, how it is made of them).
KINDS: dict[str, tuple[Callable, Callable]] = {
    "builtins.list": (list.__iter__, lambda *items: list(items)),
    "builtins.tuple": (tuple.__iter__, lambda *items: items),
    "builtins.set": (set.__iter__, lambda *items: set(items)),
    "builtins.frozenset": (frozenset.__iter__, lambda *items: frozenset(items)),
    "builtins.dict": (dict.items, lambda *pairs: dict(pairs)),
    "builtins.bytes": (lambda value: [value.decode("latin-1")], lambda text: text.encode("latin-1")),
    "builtins.bytearray": (lambda value: [value.decode("latin-1")], lambda text: bytearray(text, "latin-1")),
    "builtins.complex": (lambda value: [value.real, value.imag], complex),
    "builtins.range": (lambda value: [value.start, value.stop, value.step], range),
    "builtins.dict_keys": (iter, lambda *items: dict.fromkeys(items).keys()),
    "builtins.dict_values": (iter, lambda *items: dict(enumerate(items)).values()),
    "builtins.dict_items": (iter, lambda *items: dict(items).items()),
    "collections.deque": (lambda value: [list(value), value.maxlen], collections.deque),
    "collections.Counter": (lambda value: [dict(value)], collections.Counter),
    "collections.OrderedDict": (lambda value: [list(value.items())], collections.OrderedDict),
    "decimal.Decimal": (lambda value: [str(value) if value.is_finite() else float(value)], _decimal),
    "fractions.Fraction": (lambda value: [value.numerator, value.denominator], _lazy("fractions", "Fraction")),
    "datetime.datetime": (lambda value: [value.isoformat()], _lazy("datetime", "datetime.fromisoformat")),
    "datetime.date": (lambda value: [value.isoformat()], _lazy("datetime", "date.fromisoformat")),
    "datetime.time": (lambda value: [value.isoformat()], _lazy("datetime", "time.fromisoformat")),
    "datetime.timedelta": (
        lambda value: [value.days, value.seconds, value.microseconds],
        _lazy("datetime", "timedelta"),
    ),
}
MUTABLE = (list, set, dict, bytearray, collections.deque)


def pack(value: object, give: Callable[[object], list], stay: tuple[type, ...] = ()) -> object:
    """A value as JSON; `give` returns a reference to a value that is not copied or is an instance of `stay`."""
    if value is None or type(value) in (bool, float, str):
        return value  # as below, at once
    for kind in () if isinstance(value, stay) else type(value).__mro__:
        if kind in _SCALARS:
            return _SCALARS[kind](value)
        if kind is tuple and hasattr(type(value), "_fields"):
            fields = [type(value).__name__, *type(value)._fields]
            return ["namedtuple", fields, *(pack(item, give, stay) for item in tuple.__iter__(value))]
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in KINDS:
            return [name, *(pack(part, give, stay) for part in KINDS[name][0](value))]
    if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
        return ["type", value.__name__]
    return give(value)


def unpack(packed: object, take: Callable[..., object]) -> object:
    """The inverse of `pack`: `take` resolves the references of `give`. Raises if `pack` made no such text."""
    if not isinstance(packed, list):
        return packed
    name, *parts = packed
    if name in KINDS:
        return KINDS[name][1](*(unpack(part, take) for part in parts))
    if name == "namedtuple":
        (kind, *fields), *items = parts
        return _namedtuple(kind, tuple(fields))(*(unpack(item, take) for item in items))
    if name == "int":
        return int(parts[0], 16)
    if name == "type":
        kind = getattr(builtins, parts[0])
        if not isinstance(kind, type):
            raise TypeError(f"{parts[0]} is no type")
        return kind
    return take(name, *parts)


def replace(target: list | set | dict | bytearray | collections.deque, value: object) -> None:
    """Gives a mutable object the content of its changed copy. Raises TypeError if their types do not fit."""
    if not isinstance(target, MUTABLE) or not isinstance(value, MUTABLE) or not isinstance(target, type(value)):
        raise TypeError(f"{type(target).__name__} cannot become {type(value).__name__}")
    target.clear()
    (target.update if isinstance(target, set | dict) else target.extend)(value)


def _pack_int(value: int) -> object:
    return int(value) if abs(value) < 2**63 else ["int", hex(value)]  # JSON's may have any size, but not any length


_SCALARS = {type(None): lambda value: None, bool: bool, int: _pack_int, float: float, str: str.__str__}


@functools.lru_cache(64)
def _namedtuple(name: str, fields: tuple[str, ...]) -> type:
    return collections.namedtuple(name, fields)  # refuses names that are none
