"""Remote procedure calls between two processes, of which one does not trust the other.

Values of built-in types are sent as copies (`serialization.py`), iterators as generators that fetch one item after
another, everything else as a `Proxy`. Imported by the child processes: the standard library alone.
"""

import builtins
import json
import struct
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from proxy import GIVEN_AWAY, OPERATIONS, Failed, Operand, Proxy, Unsupported
from serialization import MUTABLE, pack, replace, unpack

MESSAGE_BYTES = 16 * 2**20  # longest message
_LENGTH = struct.Struct("!I")


class Rules(NamedTuple):
    """What an end accepts from one that it does not trust."""

    in_place: bool  # changes of lists, sets and dicts that were arguments
    nan: bool  # NaN, for which `abs(x - 1) > 1e-6` is false
    operators: bool  # operators of objects whose class the tests ask for


class Peer:
    """One end of the connection.

    Args:
      descriptor: of a stream socket.
      rules: of an end that does not trust the other one: that one may only call functions and advance iterators that
        were sent to it. None = it may do anything to objects of this end.
    """

    def __init__(self, descriptor: int, rules: Rules | None = None):
        self._reader, self._writer = open(descriptor, "rb"), open(descriptor, "wb", closefd=False)
        self._rules = rules
        self._mine: dict[int, object] = {}
        self._theirs: weakref.WeakValueDictionary[int, Proxy] = weakref.WeakValueDictionary()  # one of each, for `is`
        self._errors: dict[str, type[Exception]] = {}  # stand for exception classes of the other end
        self.classes: tuple[type, ...] = ()  # of this end, whose instances stay here
        self.requests = 0  # that this end made
        self.failure = ""  # why nothing that comes from the other end counts any more

    def offer(self, value: object) -> None:
        """Makes a value the `root` of the other end."""
        self._mine[0] = value

    @property
    def root(self) -> Proxy:
        return Proxy(self, 0, "root")

    def fail(self, reason: str) -> Failed:
        """Remembers the reason, whatever becomes of the exception, which the caller raises."""
        self.failure = self.failure or reason
        return Failed(self.failure)

    def ask(self, operation: str, *args):
        """The result of an operation on the other end; what it raised is raised here, as a builtin exception."""
        self.requests += 1
        self._send([operation, *map(self._pack, args)])
        while True:
            kind, *parts = self._receive()
            if kind == "return":
                result, changes = self._values(parts, 2)
                if changes and (self._rules is None or self._rules.in_place):
                    self._change(args, changes)
                return result
            if kind == "raise":
                raise self._error(*self._values(parts, 4))
            if kind == "fail":
                raise self.fail("; ".join(map(str, parts)))
            self._answer(kind, parts)

    def serve(self) -> None:
        """Answers requests until the connection ends."""
        while True:
            kind, *parts = self._receive()
            self._answer(kind, parts)

    def _answer(self, operation: str, parts: list) -> None:
        offered, args, held = GIVEN_AWAY if self._rules else OPERATIONS, self._values(parts), {}
        try:
            if operation not in offered:
                raise AttributeError(f"{operation} of what the tests pass")
            if operation == "call":
                held = dict([*enumerate(args[1]), *args[2].items()])
                held = {key: (value, self._pack(value)) for key, value in held.items() if isinstance(value, MUTABLE)}
            result = offered[operation](*args)
        except (Failed, Unsupported):
            raise
        except BaseException as error:  # SystemExit too: what was called does not end the process
            if self._rules and isinstance(error, AssertionError):
                self.fail(f"an assertion in a function of the tests: {text_of(error)}")  # the program may catch it
            reply = ["raise", *self._description(error)]
        else:
            try:
                changes = {key: value for key, (value, packed) in held.items() if self._pack(value) != packed}
                reply = ["return", self._pack(result), self._pack(changes)]
            except Exception as error:
                reply = ["fail", f"what the program returns cannot be copied: {type(error).__name__}"]
        self._send(reply)

    def _change(self, args: tuple, changes: dict) -> None:
        try:
            _, positional, named = args
            for key, value in changes.items():
                replace((positional if isinstance(key, int) else named)[key], value)
        except Exception as error:
            raise self.fail("a message that cannot be read") from error

    def _send(self, message: list) -> None:
        data = json.dumps(message).encode()
        if len(data) > MESSAGE_BYTES:
            if self._rules:
                raise Unsupported(f"the tests pass a value of more than {MESSAGE_BYTES} bytes")
            data = json.dumps(["fail", f"a value of more than {MESSAGE_BYTES} bytes"]).encode()
        try:
            self._writer.write(_LENGTH.pack(len(data)) + data)
            self._writer.flush()
        except OSError as error:
            raise self.fail("the other process ended") from error

    def _receive(self) -> list:
        try:
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
            if length > MESSAGE_BYTES:
                raise ValueError
            message = json.loads(self._read(length), parse_constant=self._constant)
            if not isinstance(message, list) or not isinstance(message[0], str):
                raise ValueError
        except Exception as error:  # too deep, too much to hold
            raise self.fail("a message that cannot be read") from error
        return message

    def _read(self, length: int) -> bytes:
        data = self._reader.read(length)
        if len(data) < length:
            raise self.fail("the program ended")
        return data

    def _constant(self, name: str) -> float:
        if name == "NaN" and self._rules and not self._rules.nan:
            raise self.fail("a number is NaN, of which the tests say nothing")
        return float(name)

    def _values(self, parts: list, number: int | None = None) -> list:
        try:
            values = [unpack(part, self._take) for part in parts]
            if number not in (None, len(values)):
                raise ValueError
            return values
        except Exception as error:
            raise self.fail("a message that cannot be read") from error

    def _pack(self, value: object) -> object:
        return pack(value, self._give, self.classes)

    def _give(self, value: object) -> list:
        """The reference by which the other end knows an object of this one."""
        if isinstance(value, Proxy):
            return ["yours", value._id]
        if isinstance(value, type) and value in self._errors.values():
            return ["yours", value.number]
        iterates = isinstance(value, Iterator) and not callable(value)
        iterates = iterates and (self._rules is not None or type(value).__module__ != "solution")
        if self._rules and not callable(value) and not iterates:
            raise Unsupported(f"the tests pass {type(value).__name__}, which cannot be sent to the program")
        self._mine[id(value)] = value  # kept, so that the number stays its own
        name = str(getattr(value if callable(value) else type(value), "__name__", type(value).__name__))
        if any(value is kind for kind in self.classes) and issubclass(value, BaseException):
            return ["error", id(value), name, *_names(value)]
        asked = isinstance(value, self.classes) or any(value is kind for kind in self.classes)
        return ["iterator" if iterates else "operand" if asked else "object", id(value), name]

    def _take(self, kind: str, number: int, name: str = "", *names: str) -> object:
        """The object that was given away, or what stands here for the other end's."""
        if kind == "yours":
            return self._mine[number]
        if kind == "error":
            body = {"number": number, "__str__": lambda self: self.text, "text": ""}
            return self._errors.setdefault(name, type(name, (_builtin_error(names),), body))
        trusted = kind == "operand" and (self._rules is None or self._rules.operators)
        remote = self._theirs.setdefault(int(number), (Operand if trusted else Proxy)(self, int(number), name))
        return self._items(remote) if kind == "iterator" else remote

    def _items(self, iterator: Proxy):
        sent = None
        while True:
            ended, item = self.ask("next", iterator, sent)
            if ended:
                return
            sent = yield item

    def _description(self, error: BaseException) -> list:
        names, text = ["builtins.list", *_names(type(error))], text_of(error)
        try:
            _, args, *state = error.__reduce__()
            return [names, text, self._pack(args), self._pack(state[0] if state else {})]
        except Exception:
            return [names, text, self._pack((text,)), self._pack({})]

    def _error(self, names: list, text: str, args: tuple, state: dict) -> BaseException:
        """The first of an exception's classes that is known here. One that would end a loop in silence does not."""
        kinds = [self._errors.get(str(name)) or _builtin_error([name]) for name in names]
        for kind in filter(None, kinds):
            if issubclass(kind, StopIteration | StopAsyncIteration):
                break
            for arguments in (args, (text,)):
                try:
                    error = kind(*arguments)
                except TypeError:
                    continue  # UnicodeDecodeError and such want more
                vars(error).update(state, text=text, remote=True)
                if arguments is not args or text_of(error) == text:
                    return error
        error = RuntimeError(f"{names[0] if names else 'error'}: {text}")
        error.remote = True
        return error


def _builtin_error(names: Sequence[str]) -> type[Exception] | None:
    """The first of the names that is one of Python's own exceptions, which do not end a process."""
    kinds = (getattr(builtins, str(name), None) for name in names)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)), None)


def _names(kind: type) -> list[str]:
    return [base.__name__ for base in kind.__mro__]


def text_of(error: BaseException) -> str:
    """The message of an error, "" where `__str__` raises: it may ask the other process, which may be gone."""
    try:
        return str(error)[:1000]
    except BaseException:
        return ""
