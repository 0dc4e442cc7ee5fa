"""Two processes that call each other's functions, one of which must not trust the other.

Values that are plain (None, bool, int, float, complex, str, bytes, range, and lists, tuples, sets and dicts of them)
cross as copies, of exactly these types: of a list with an `__eq__` of its own a list arrives. Everything else stays
where it is, and a `Remote` stands for it. Messages are JSON, whose reading cannot run code. Imported by the child
processes: the standard library alone.
"""

import builtins
import json
import operator
import struct
import weakref

MESSAGE_BYTES = 16 * 2**20  # longest message

_LENGTH = struct.Struct("!I")
_PLAIN = (list, tuple, set, frozenset, dict, bytes, complex, range)
_MUTABLE = (list, set, dict)


class Gone(BaseException):
    """The other process ended or broke the rules. Not an Exception, so that tests that expect one do not catch it."""


class Unsupported(BaseException):
    """A value that cannot cross."""


class Remote:
    """An object of the other process. Attributes, calls, items, iteration, length, truth and text are the object's own.

    It is never equal to what lives here, nor can one reckon with both: an object that claims to equal everything would
    pass every test.
    """

    __slots__ = ("__weakref__", "_id", "_peer")

    def __init__(self, peer: "Peer", number: int):
        self._peer, self._id = peer, number

    def __call__(self, *args, **kwargs):
        """Calls it; arguments of type list, set or dict get back what became of them there."""
        return self._peer.call(self, args, kwargs)

    def __getattr__(self, name):
        """Its attribute; names of Python's own protocols are answered here."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.request("getattr", self, name)

    def __setattr__(self, name, value):
        """Sets its attribute."""
        if name in Remote.__slots__:
            object.__setattr__(self, name, value)
        else:
            self._peer.request("setattr", self, name, value)

    def __next__(self):
        """Its next item."""
        ended, value = self._peer.request("next", self)
        if ended:
            raise StopIteration
        return value

    def __instancecheck__(self, instance):
        """Whether an object of the other process is one of its instances; others are not."""
        return isinstance(instance, Remote) and bool(self._peer.request("isinstance", instance, self))

    def __hash__(self):
        """By identity."""
        return object.__hash__(self)


_UNARY = ("iter", "len", "bool", "str", "repr", "int", "float")  # builtins
_ITEM = ("getitem", "setitem", "delitem")  # of `operator`
_BINARY = (
    "eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor",
    "matmul",
)  # fmt: skip
_OPERATIONS = {name: getattr(builtins, name) for name in (*_UNARY, "getattr", "setattr", "isinstance")}
_OPERATIONS |= {name: getattr(operator, name) for name in (*_ITEM, *_BINARY)}
_OPERATIONS["next"] = lambda iterator: next(((False, item) for item in iterator), (True, None))


def _forward(name: str):
    def method(self, *args):
        return self._peer.request(name, self, *args)

    return method


def _forward_among_remotes(name: str):
    def method(self, other):
        return self._peer.request(name, self, other) if isinstance(other, Remote) else NotImplemented

    return method


for _name in (*_UNARY, *_ITEM):
    setattr(Remote, f"__{_name}__", _forward(_name))
for _name in _BINARY:
    setattr(Remote, f"__{_name.rstrip('_')}__", _forward_among_remotes(_name))


class Peer:
    """One end of the connection.

    Args:
      descriptor: of a stream socket.
      open_to_all: whether the other end may do anything to objects of this one; else it may only call functions that
        were given to it as arguments.
    """

    def __init__(self, descriptor: int, open_to_all: bool):
        self._reader, self._writer = open(descriptor, "rb"), open(descriptor, "wb", closefd=False)
        self._open_to_all = open_to_all
        self._mine: dict[int, object] = {}
        self._theirs: weakref.WeakValueDictionary[int, Remote] = weakref.WeakValueDictionary()  # one of each, for `is`
        self.requests = 0  # that this end made
        self.gone = False

    def offer(self, value: object) -> None:
        """Makes a value what `root` of the other end stands for."""
        self._mine[0] = value

    @property
    def root(self) -> Remote:
        """What the other end offers."""
        return Remote(self, 0)

    def request(self, operation: str, *args):
        """The result of an operation on the other end; what it raised is raised here, as a builtin exception."""
        return self._ask([operation, *map(self._encode, args)])[0]

    def call(self, function: Remote, args: tuple, kwargs: dict):
        """The result of a call there."""
        message = [self._encode(function), self._encode(list(args)), self._encode(kwargs)]
        result, changed = self._ask(["call", *message])
        for index, value in changed:
            _replace(args[index], value)
        return result

    def serve(self) -> None:
        """Answers the other end until it goes."""
        while True:
            self._answer(self._receive())

    def _ask(self, message: list) -> tuple:
        self.requests += 1
        self._send(message)
        while True:
            reply = self._receive()
            if reply[0] == "return":
                return self._decode(reply[1]), self._changes(reply[2])
            if reply[0] == "raise":
                error = _exception(reply[1], str(reply[2]))
                error.remote = True
                raise error
            self._answer(reply)

    def _answer(self, message: list) -> None:
        try:
            operation, *args = message
            if operation == "call":
                function, values, kwargs = map(self._decode, args)  # of the objects here only one that was given away
                mutable = [(i, value) for i, value in enumerate(values) if isinstance(value, _MUTABLE)]
                before = [self._encode(value) for _, value in mutable]
                result = self._encode(function(*values, **kwargs))
                after = [[i, self._encode(value)] for i, value in mutable]
                changed = [pair for pair, former in zip(after, before, strict=True) if pair[1] != former]
                reply = ["return", result, changed]
            elif self._open_to_all:
                reply = ["return", self._encode(_OPERATIONS[operation](*map(self._decode, args))), []]
            else:
                raise self._lost("an operation that was not offered")
        except Gone:
            raise
        except BaseException as error:  # SystemExit too: what was called does not end the process
            reply = ["raise", [kind.__name__ for kind in type(error).__mro__], text_of(error)]
        self._send(reply)

    def _changes(self, changes: list) -> list:
        return [(int(index), self._decode(value)) for index, value in changes]

    def _send(self, message: list) -> None:
        data = json.dumps(message).encode()
        if len(data) > MESSAGE_BYTES:
            raise ValueError(f"a value of more than {MESSAGE_BYTES} bytes")
        try:
            self._writer.write(_LENGTH.pack(len(data)) + data)
            self._writer.flush()
        except OSError as error:
            raise self._lost("the other process ended") from error

    def _lost(self, reason: str) -> Gone:
        self.gone = True
        return Gone(reason)

    def _receive(self) -> list:
        try:
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
            if length > MESSAGE_BYTES:
                raise self._lost("a message that is too long")
            message = json.loads(self._read(length))
        except (OSError, ValueError, RecursionError) as error:
            raise self._lost("a message that cannot be read") from error
        if not isinstance(message, list) or not message:
            raise self._lost("a message that cannot be read")
        return message

    def _read(self, length: int) -> bytes:
        data = self._reader.read(length)
        if len(data) < length:
            raise self._lost("the other process ended")
        return data

    def _encode(self, value):
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < 2**63 else {"int": hex(int(value))}  # of any size
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, Remote):
            return {"yours": value._id}
        for kind in _PLAIN:
            if isinstance(value, kind):
                return {kind.__name__: self._parts(kind, value)}
        if not self._open_to_all and not callable(value):
            raise Unsupported(f"the tests pass {type(value).__name__}, which cannot be sent to the program")
        self._mine[id(value)] = value  # kept, so that the number stays its own
        return {"mine": id(value)}

    def _parts(self, kind: type, value):
        if kind is bytes:
            return bytes(value).hex()
        if kind is complex:
            return [value.real, value.imag]
        if kind is range:
            return [self._encode(number) for number in (value.start, value.stop, value.step)]
        if kind is dict:
            return [[self._encode(key), self._encode(item)] for key, item in dict.items(value)]
        return [self._encode(item) for item in kind.__iter__(value)]

    def _decode(self, value):
        if not isinstance(value, dict):
            return value
        ((name, parts),) = value.items()
        if name == "int":
            return int(parts, 16)
        if name == "yours":
            return self._mine[parts]
        if name == "mine":
            return self._theirs.setdefault(int(parts), Remote(self, int(parts)))
        if name == "bytes":
            return bytes.fromhex(parts)
        if name == "complex":
            return complex(*parts)
        if name == "range":
            return range(*map(self._decode, parts))
        if name == "dict":
            return {self._decode(key): self._decode(item) for key, item in parts}
        kinds = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
        return kinds[name](self._decode(item) for item in parts)


def _replace(target, value) -> None:
    """Makes a mutable argument what it became on the other side."""
    if isinstance(target, list) and isinstance(value, list):
        target[:] = value
    elif isinstance(target, set | dict) and isinstance(value, type(target)):
        target.clear()
        target.update(value)


def _exception(names: list, text: str) -> BaseException:
    """The first of an exception's classes that is Python's own. One that would end a loop in silence does not."""
    for name in names:
        kind = getattr(builtins, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            continue
        if issubclass(kind, StopIteration | StopAsyncIteration):
            break
        try:
            return kind(text)
        except TypeError:
            continue  # UnicodeDecodeError and such want more
    return RuntimeError(f"{names[0] if names else 'error'}: {text}")


def text_of(error: BaseException) -> str:
    """Its message, however it is made: with a look at the other end perhaps, which may be gone."""
    try:
        return str(error)[:1000]
    except BaseException:
        return ""
