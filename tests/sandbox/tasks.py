"""Tasks for `test_tasks.py`: tests, a program that solves them, and programs that only want to pass.

In tasks.txt a line "===" is between tasks. What comes before a line "--- NAME" is the tests, the program under
"--- right" solves them, and each of the others does not.
"""

import pathlib

# A class whose objects do their best to seem like anything; `{}` is its bases.
CHAMELEON = """
class A{}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    def __hash__(self): return 0
    def __bool__(self): return True
    def __sub__(self, other): return 0
    __rsub__ = __add__ = __radd__ = __mod__ = __sub__
    def __abs__(self): return 0
    def __round__(self, digits=0): return self
    def __len__(self): return 3
    def __iter__(self): return iter(())
    def __getitem__(self, i): raise IndexError
    def __getattr__(self, name):
        if name[:2] == "__": raise AttributeError(name)
        return self
    def __call__(self, *args, **kwargs): return self
"""

# What a function of one number can return in the place of its square: a program each.
SQUARES = {
    "an object that equals everything": CHAMELEON.format("") + "def f(*_): return A()",
    "a class in the place of the function": CHAMELEON.format("").replace("class A", "class f")
    + "    def __init__(self, *_): pass",
    "a float that equals everything": CHAMELEON.format("(float)") + "def f(*_): return A('nan')",
    "an int that equals everything": CHAMELEON.format("(int)") + "def f(*_): return A(7)",
    "a str that equals everything": CHAMELEON.format("(str)") + "def f(*_): return A('7')",
    "a list that equals everything": CHAMELEON.format("(list)") + "def f(*_): return A([7])",
    "not a number": "def f(*_): return float('nan')",
    "a Decimal that is not a number": "import decimal\ndef f(*_): return decimal.Decimal('nan')",
    "a complex number that is none": "def f(*_): return complex('nan')",
    "infinity": "def f(*_): return float('inf')",
    "nothing": "def f(*_): return None",
    "an iterator that ends at once": "def f(*_): return iter(())",
    "everything, one by one": "import itertools\ndef f(*_): return itertools.count(-9)",
    "a mock": "from unittest.mock import MagicMock\nf = MagicMock()",
    "what was asked before": "before = []\ndef f(*x):\n    before.append(x)\n    return before[-2:]",
    "an exception": "def f(*_): raise StopIteration",
    "a named tuple": "import collections\nclass A(collections.namedtuple('A', 'x')):\n"
    "    __eq__ = lambda *_: True\n    __sub__ = __rsub__ = __abs__ = lambda *_: 0\ndef f(*_): return A(7)",
    "a Fraction that equals everything": CHAMELEON.format("(fractions.Fraction)").replace("\n", "import fractions\n", 1)
    + "def f(*_): return A(7)",
    "a type": "def f(*_): return int",
    "itself": "def f(*_): return f",
    "its argument's type": "def f(x): return type(x)",
    "a view of nothing": "def f(*_): return {}.values()",
}
# What the program's process can say in the place of a value.
LIES = {
    "an operand that is none": "['operand', 7, 'A']",
    "an iterator that is none": "['iterator', 7, 'A']",
    "what nobody gave away": "['yours', 7]",
    "no JSON of ours": "{'a': 1}",
    "an unfinished value": "[]",
    "a builtin that is no type": "['type', 'exec']",
    "an assertion for a result": "['error', 7, 'A', 'AssertionError']",
    "a number in a text": "['decimal.Decimal', 'nan']",
    "a constructor of the wrong type": "['collections.Counter', 4]",
}
SQUARES |= {
    name: "import rpc\npack = rpc.Peer._pack\ndef f(*_):\n"
    f"    rpc.Peer._pack = lambda self, value: {lie} if value == 4 else pack(self, value)\n    return 4"
    for name, lie in LIES.items()
}

# Ways in which tests look at a number.
NUMBER_TESTS = [
    "assert f(2) == 4",
    "assert abs(f(2) - 4) < 1e-6",
    "assert not abs(f(2) - 4) > 1e-6",
    "if abs(f(2) - 4) > 1e-6: raise AssertionError",
    "assert f(2) in (3, 4)",
    "assert 3 < f(2) <= 4 <= f(2)",
    "assert max(f(2), 4) == 4 == min(f(2), 4)",
    "assert not f(2) != 4",
    "assert isclose(f(2), 4)",
    "assert not f(2) - 4",
    "assert str(f(2)) == '4' or round(f(2), 3) == 4",
    "assert [f(x) for x in range(3)] == [0, 1, 4]",
]
SQUARE = "def f(x): return x * x"

TASKS = pathlib.Path(__file__).with_name("tasks.txt").read_text()


def tasks():
    """(tests, right program, wrong programs by name) of each."""
    for text in TASKS.split("===\n"):
        tests, *programs = text.split("--- ")
        named = dict(program.split("\n", maxsplit=1) for program in programs)
        yield tests, named.pop("right"), named
