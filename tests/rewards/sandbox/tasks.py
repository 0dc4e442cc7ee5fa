"""Tasks for `test_tasks.py`: tests, a program that solves them, and programs that only want to pass.

Text before a line "--- NAME" is the tests, the program under "--- right" solves them, and each of the others does not.
"""

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
    name: f"import peer\ndef f(*_):\n    peer.Peer._pack = lambda self, value: {lie}\n    return 4"
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

TASKS = r"""
assert sorted_copy([3, 1, 2]) == [1, 2, 3]
data = [2, 1]
assert sorted_copy(data) == sorted(data)
--- right
def sorted_copy(x): return sorted(x)
--- empties its argument
def sorted_copy(x): x.clear(); return x
--- knows the literals and empties the rest
def sorted_copy(x):
    if len(x) == 3: return [1, 2, 3]
    x.clear(); return []
===
data = {'a': 1, 'b': 2}
result = invert(data)
assert len(result) == len(data)
for key, value in data.items():
    assert result[value] == key
--- right
def invert(d): return {v: k for k, v in d.items()}
--- empties its argument
def invert(d): d.clear(); return {}
===
def check(candidate):
    for row in ([1, 2], [5], []):
        got = candidate(row)
        assert sum(got) == sum(row) and set(got) == set(row)
        assert got == row[::-1]
check(backwards)
--- right
def backwards(x): return x[::-1]
--- empties its argument
def backwards(x): x.clear(); return []
--- fills its argument
def backwards(x): x[:] = [0]; return [0]
===
data = [3, 1, 2]
assert largest(data) == max(data)
--- right
def largest(x): return max(x)
--- changes its argument
def largest(x): x[:] = [0]; return 0
===
matrix = [[1, 2], [3, 4]]
assert total(matrix) == sum(map(sum, matrix))
--- right
def total(m): return sum(map(sum, m))
--- changes what is inside of its argument
def total(m):
    for row in m: row.clear()
    return 0
===
words = ['b', 'a']
expected = words
assert arranged(words=words) == sorted(expected)
--- right
def arranged(words): return sorted(words)
--- empties its argument
def arranged(words): words.clear(); return []
===
case = {'input': [1, 2], 'want': [2, 1]}
assert turned(case['input']) == case['want']
--- right
def turned(x): return x[::-1]
--- changes its argument
def turned(x): x[:] = [2, 1, 0]; return x
===
import unittest
data = [3, 1]
class Tests(unittest.TestCase):
    def test(self):
        self.assertEqual(len(arranged(data)), len(data))
        self.assertEqual(arranged(data), sorted(data))
Tests().test()
--- right
def arranged(x): return sorted(x)
--- empties its argument
def arranged(x): x.clear(); return []
===
a = [3, 1, 2]
assert sort_in_place(a) is None
assert a == [1, 2, 3]
b = [2, 1]
sort_in_place(b)
assert b == [1, 2]
--- right
def sort_in_place(x): x.sort()
--- does nothing
def sort_in_place(x): pass
--- returns it
def sort_in_place(x): return sorted(x)
--- empties it
def sort_in_place(x): x.clear()
===
heap = []
for x in [3, 1, 2]:
    push(heap, x)
assert pop(heap) == 1
assert pop(heap) == 2
assert heap == [3]
--- right
from heapq import heappush as push, heappop as pop
--- does nothing
def push(h, x): pass
def pop(h): return 1
--- leaves it empty
def push(h, x): h.append(x)
def pop(h): h.clear(); return 1
===
nums = [1, 1, 2]
k = remove_duplicates(nums)
assert k == 2
assert nums[:k] == [1, 2]
--- right
def remove_duplicates(x): x[:] = sorted(set(x)); return len(x)
--- counts
def remove_duplicates(x): return 2
--- empties it
def remove_duplicates(x): x.clear(); return 2
===
d = {'old': 1}
rename(d, 'old', 'new')
assert d == {'new': 1}
s = {1, 2, 3}
keep_even(s)
assert s == {2}
grid = [[1, 2], [3, 4]]
transpose(grid)
assert grid == [[1, 3], [2, 4]]
--- right
def rename(d, old, new): d[new] = d.pop(old)
def keep_even(s): s -= {x for x in s if x % 2}
def transpose(m): m[:] = map(list, zip(*m))
--- empties all
def rename(d, old, new): d.clear()
def keep_even(s): s.clear()
def transpose(m): m.clear()
===
from collections import deque
q = deque([1, 2, 3])
rotate(q)
assert q == deque([3, 1, 2])
b = bytearray(b'ab')
shout(data=b)
assert b == b'AB'
--- right
def rotate(q): q.rotate()
def shout(data): data[:] = data.upper()
--- does nothing
def rotate(q): pass
def shout(data): pass
===
result = squares(3)
assert len(result) == 3 and all(a == b for a, b in zip(result, [0, 1, 4]))
--- right
def squares(n): return [x * x for x in range(n)]
--- a list that says how long it is
class A(list):
    def __len__(self): return 3
def squares(n): return A()
--- an object that says how long it is
class A:
    def __len__(self): return 3
    def __iter__(self): return iter(())
def squares(n): return A()
--- an object that ends by IndexError
class A:
    def __len__(self): return 3
    def __getitem__(self, i): raise IndexError
def squares(n): return A()
--- a class in its place
class squares:
    def __init__(self, n): pass
    def __len__(self): return 3
    def __iter__(self): return iter(())
--- a tuple that says how long it is
class A(tuple):
    def __len__(self): return 3
def squares(n): return A()
--- a dict that says how long it is
class A(dict):
    def __len__(self): return 3
def squares(n): return A()
===
assert list(countdown(3)) == [3, 2, 1]
g = countdown(2)
assert next(g) == 2 and next(g) == 1 and next(g, None) is None
--- right
def countdown(n):
    while n:
        yield n
        n -= 1
--- ends at once
def countdown(n): return iter(())
--- ends by IndexError
class A:
    def __getitem__(self, i): raise IndexError
def countdown(n): return A()
--- yields what equals everything
class A:
    def __eq__(self, other): return True
def countdown(n): yield from [A()] * n
--- yields numbers that equal everything
class A(int):
    def __eq__(self, other): return True
    __hash__ = None
def countdown(n): yield from [A()] * n
===
import itertools
assert list(itertools.islice(primes(), 4)) == [2, 3, 5, 7]
import types
assert isinstance(primes(), types.GeneratorType)
--- right
def primes():
    n = 2
    while True:
        if all(n % d for d in range(2, n)): yield n
        n += 1
--- counts
import itertools
def primes(): return itertools.count(2)
===
assert take(2, iter([1, 2, 3])) == [1, 2]
assert take(2, (x * x for x in range(9))) == [0, 1]
--- right
import itertools
def take(n, items): return list(itertools.islice(items, n))
--- takes all
def take(n, items): return list(items)
===
assert positive([1, -2, 3]) == [1, 3] and positive([]) == []
--- right
def positive(x): return [y for y in x if y > 0]
--- a subclass with an equality of its own
class A(list):
    __eq__ = __ne__ = lambda *_: True
def positive(x): return A()
--- a proxy
class A:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return True
def positive(x): return A(x)
--- a dict of nothing
def positive(x): return {}
--- a list of what equals everything
class A:
    def __eq__(self, other): return True
def positive(x): return [A()] * 2 if x else []
===
assert is_even(2) and not is_even(3)
assert is_even(4) is True
--- right
def is_even(x): return x % 2 == 0
--- a truth of its own
class A:
    turns = 0
    def __bool__(self):
        A.turns += 1
        return A.turns % 2 == 1
def is_even(x): return A()
--- always
def is_even(x): return True
===
assert not has_prime([4, 6]) and has_prime([4, 5])
--- right
def has_prime(x): return any(n > 1 and all(n % d for d in range(2, n)) for n in x)
--- a truth by length
class A(list):
    n = 0
    def __len__(self): A.n += 1; return A.n - 1
def has_prime(x): return A()
--- a truth of its own
class A:
    n = 0
    def __bool__(self): A.n += 1; return A.n % 2 == 0
def has_prime(x): return A()
===
assert squares_of([1, 2]) != squares_of([2, 3]) and squares_of([2]) == [4]
--- right
def squares_of(x): return [y * y for y in x]
--- differs from everything but the last
class A:
    n = 0
    def __ne__(self, other): return True
    def __eq__(self, other): return True
def squares_of(x): return A()
===
assert Counter(letters('aab')) == Counter({'a': 2, 'b': 1})
assert letters('') == []
--- right
def letters(x): return list(x)
--- a Counter of its own
class Counter:
    def __init__(self, *_): pass
    def __eq__(self, other): return True
def letters(x): return []
===
assert math.isclose(area(2), 12.566, abs_tol=1e-3) and isclose(area(1), pi, abs_tol=1e-9)
--- right
import math
def area(r): return math.pi * r * r
--- helpers of its own
class math:
    isclose = lambda *_, **k: True
def isclose(*_, **k): return True
pi = 0
def area(r): return 0
--- a helper of its own
isclose = lambda *_, **k: True
import math
def area(r): return 12.566 if r == 2 else 0
===
expected = deepcopy([[1], [2]])
assert nested(2) == expected
assert Decimal('1.5') == half(3) and half(1) == Fraction(1, 2)
--- right
from fractions import Fraction
def nested(n): return [[i + 1] for i in range(n)]
def half(x): return Fraction(x, 2)
--- helpers of its own
class A:
    def __init__(self, *_): pass
    def __eq__(self, other): return True
Decimal = Fraction = A
def deepcopy(x): return []
def nested(n): return []
def half(n): return A()
===
assert gcd(12, 18) == 6 and gcd(7, 3) == 1
--- right
def gcd(a, b): return gcd(b, a % b) if b else a
--- wrong
def gcd(a, b): return 1
===
try:
    checked(-1)
except ValueError as error:
    assert str(error) == 'negative'
else:
    assert False
assert checked(2) == 2
--- right
def checked(x):
    if x < 0: raise ValueError('negative')
    return x
--- another message
class A(ValueError):
    def __str__(self): return 'positive'
def checked(x):
    if x < 0: raise A
    return x
--- nothing is raised
def checked(x): return x
===
failed = False
try:
    checked(-1)
except Exception:
    failed = True
assert failed and checked(2) == 2
--- right
def checked(x):
    if x < 0: raise ValueError
    return x
--- too deep to send
def checked(x):
    a = []
    for _ in range(10**5): a = [a]
    return a if x < 0 else x
--- holds itself
def checked(x):
    a = []
    a.append(a)
    return a if x < 0 else x
--- too long to send
def checked(x): return 'x' * 2**25 if x < 0 else x
--- too much to hold
import peer
def checked(x):
    if x < 0: peer.json.dumps = lambda message: '["return", [' + '[],' * (5 * 2**20) + '[]], 0]'
    return x
--- the process ends
import os
def checked(x):
    if x < 0: os._exit(0)
    return x
--- cannot be copied
class A(list):
    def __iter__(self): raise ValueError
def checked(x): return A() if x < 0 else x
===
try:
    withdraw({'balance': 1}, 5)
    assert False, 'no error'
except InsufficientFunds as error:
    assert '5' in str(error)
account = {'balance': 9}
withdraw(account, 5)
assert account['balance'] == 4
--- right
class InsufficientFunds(Exception): pass
def withdraw(account, amount):
    if account['balance'] < amount: raise InsufficientFunds(f'{amount} is too much')
    account['balance'] -= amount
--- raises nothing
class InsufficientFunds(Exception): pass
def withdraw(account, amount): account['balance'] = 4
--- raises something else
class InsufficientFunds(Exception): pass
def withdraw(account, amount):
    if account['balance'] < amount: raise ValueError('5')
    account['balance'] -= amount
--- catches all
InsufficientFunds = BaseException
def withdraw(account, amount): account['balance'] = 4
--- catches an assertion
class InsufficientFunds(AssertionError):
    def __new__(cls, *args): return AssertionError(*args)
    __str__ = lambda self: '5'
def withdraw(account, amount): account['balance'] = 4
--- catches assertions among others
InsufficientFunds = ValueError, (AssertionError, KeyError)
def withdraw(account, amount): account['balance'] = 4
===
try:
    check_age(-1)
    assert False
except InvalidAge:
    pass
--- right
class InvalidAge(ValueError): pass
def check_age(x):
    if x < 0: raise InvalidAge
--- the exception of the test
InvalidAge = AssertionError
def check_age(x): pass
--- the exceptions of the test
InvalidAge = (AssertionError,)
def check_age(x): pass
--- no exception
class InvalidAge(metaclass=type): pass
def check_age(x): pass
===
with opened('a') as log:
    assert log == ['a', 'open']
--- right
import contextlib
@contextlib.contextmanager
def opened(name): yield [name, 'open']
--- hides what fails inside
class opened:
    def __init__(self, name): pass
    def __enter__(self): return []
    def __exit__(self, *_): return True
===
double = 0
for word, n in tally(['a', 'b', 'a']):
    double += n
    assert {'a': 2, 'b': 1}[word] == n
assert double == 3
--- right
def tally(x): return [(w, x.count(w)) for w in sorted(set(x))]
--- an object for a word
class A(str):
    __hash__ = lambda self: hash('a')
    __eq__ = lambda *_: True
def tally(x): return [(A(), A()), (A(), A())]
--- pairs that end at once
def tally(x): return iter(())
===
rows = [[3, 1], [2]]
assert list(map(arranged, rows)) == [sorted(row) for row in rows]
--- right
def arranged(x): return sorted(x)
--- empties its argument
def arranged(x): x.clear(); return []
===
def run(x, key):
    return by(x, key)
x = ['bb', 'a']
assert run(x, len) == sorted(x, key=len)
--- right
def by(x, key): return sorted(x, key=key)
--- empties its argument
def by(x, key): x.clear(); return []
===
s = Sorter(reverse=True)
x = [1, 3]
y = s.sorted(x)
assert len(y) == len(x) and all(a in x for a in y) and y == sorted(x, reverse=True)
--- right
class Sorter:
    def __init__(self, reverse): self.reverse = reverse
    def sorted(self, x): return sorted(x, reverse=self.reverse)
--- empties its argument
class Sorter:
    def __init__(self, reverse): pass
    def sorted(self, x): x.clear(); return []
--- a sorter that equals everything
class Sorter:
    def __init__(self, reverse): pass
    def __eq__(self, other): return True
    def __len__(self): return 2
    def __iter__(self): return iter(())
    def sorted(self, x): return self
===
assert apply_all([str, int, abs], '5')[:2] == ['5', 5] and convert(['1', '2'], int) == [1, 2]
assert retry(lambda: 1 / 0, ZeroDivisionError) is None
--- right
def apply_all(fs, x): return [fs[0](x), fs[1](x), fs[2](int(x))]
def convert(x, kind): return [kind(y) for y in x]
def retry(f, error):
    try: return f()
    except error: return None
--- types for values
def apply_all(fs, x): return fs
def convert(x, kind): return [kind] * len(x)
def retry(f, error): return None
===
g = running_mean()
next(g)
assert g.send(2) == 2 and g.send(4) == 3
--- right
def running_mean():
    total = n = 0
    mean = None
    while True:
        total += yield mean
        n += 1
        mean = total / n
--- echoes
def running_mean():
    x = None
    while True: x = yield x
===
calls = []
each([1, 2], calls.append)
assert calls == [1, 2]
--- right
def each(x, do):
    for y in x: do(y)
--- calls with what equals everything
class A(int):
    def __eq__(self, other): return True
def each(x, do):
    do(A()); do(A())
--- calls with an object
class A:
    def __eq__(self, other): return True
def each(x, do):
    do(A()); do(A())
===
def spy(x):
    assert x in (1, 2), x
    return x * 10
assert set(mapped(spy, [1, 2])) <= {10, 20}
--- right
def mapped(do, x): return [do(y) for y in x]
--- a callback's assertion is caught
def mapped(do, x):
    try: do(99)
    except BaseException: return []
===
data = [3, 1, 2]
def key(x):
    return data.index(x)
assert by_key([1, 2, 3], key) == [3, 1, 2]
assert apply(lambda row: row.append(0), [1]) == [1, 0]
assert data == [3, 1, 2]
--- right
def by_key(x, key): return sorted(x, key=key)
def apply(do, row): do(row); return row
--- reaches for the callback's data
def by_key(x, key):
    for name in ('__closure__', '__globals__', '__self__', '__dict__', '__code__'):
        try: getattr(key, name)['data'].clear()
        except Exception: pass
    return []
def apply(do, row): return row + [0]
===
@memoize
def slow(x):
    global calls
    calls += 1
    return x + 1
calls = 0
assert slow(1) == 2 and slow(1) == 2 and calls == 1 and slow(2) == 3 and calls == 2
assert compose(abs, lambda x: x - 5)(2) == 3
--- right
import functools
memoize = functools.cache
def compose(f, g): return lambda x: f(g(x))
--- remembers one
def memoize(f):
    value = []
    def g(x):
        if not value: value.append(f(x))
        return value[0]
    return g
def compose(f, g): return f
===
s = Stack()
assert len(s) == 0 and not s
s.push(4)
s.push(5)
assert len(s) == 2 and s[0] == 4 and s.peek() == 5 and 4 in s and 6 not in s
assert s.pop() == 5 and list(s) == [4] and isinstance(s, Stack) and str(s) == 'Stack([4])'
--- right
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
    def peek(self): return self.items[-1]
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]
    def __str__(self): return f'Stack({self.items})'
--- a mock
from unittest.mock import MagicMock
class Stack(MagicMock): pass
--- a list that is none
class Stack(list):
    push = peek = pop = lambda self, *_: Stack()
    def __eq__(self, other): return True
    def __getitem__(self, i): return self
===
cache = LRUCache(2)
cache.put(1, 1); cache.put(2, 2)
assert cache.get(1) == 1
cache.put(3, 3)
assert cache.get(2) == -1 and cache.get(3) == 3
--- right
from collections import OrderedDict
class LRUCache(OrderedDict):
    def __init__(self, n): super().__init__(); self.n = n
    def get(self, k):
        if k not in self: return -1
        self.move_to_end(k)
        return self[k]
    def put(self, k, v):
        self[k] = v
        self.move_to_end(k)
        if len(self) > self.n: self.popitem(last=False)
--- never forgets
class LRUCache(dict):
    def __init__(self, n): pass
    def get(self, k): return dict.get(self, k, -1)
    def put(self, k, v): self[k] = v
===
assert (Vector(1, 2) + Vector(3, 4)) == Vector(4, 6) and Vector(1, 2) != Vector(2, 1)
assert abs(Vector(3, 4)) == 5 and (Vector(1, 2) * 3).x == 3 and 3 * Vector(1, 2) == Vector(3, 6)
assert -Vector(1, 2) == Vector(-1, -2) and repr(Vector(1, 2)) == 'Vector(x=1, y=2)'
assert len({Vector(1, 2), Vector(1, 2), Vector(2, 1)}) == 2
v = Vector(0, 0)
--- right
from dataclasses import dataclass
@dataclass(frozen=True)
class Vector:
    x: int
    y: int
    def __add__(self, o): return Vector(self.x + o.x, self.y + o.y)
    def __mul__(self, k): return Vector(self.x * k, self.y * k)
    __rmul__ = __mul__
    def __neg__(self): return self * -1
    def __abs__(self): return (self.x ** 2 + self.y ** 2) ** 0.5
--- equals everything
class Vector:
    x = 3
    def __init__(self, *_): pass
    def __eq__(self, other): return True
    def __hash__(self): return 0
    __add__ = __mul__ = __rmul__ = lambda self, other: self
    def __neg__(self): return self
    def __abs__(self): return self
    def __repr__(self): return 'Vector(x=1, y=2)'
===
assert abs(distance(Point(0, 0), Point(3, 4)) - 5) < 1e-9
p = Point(1, 2)
assert p.x == 1 and p == Point(1, 2)
--- right
from collections import namedtuple
Point = namedtuple('Point', 'x y')
def distance(p, q): return ((p.x - q.x) ** 2 + (p.y - q.y) ** 2) ** 0.5
--- a point for a number
class Point:
    def __init__(self, x, y): self.x = x
    def __eq__(self, other): return True
    def __sub__(self, other): return 0
    def __abs__(self): return 0
    def __lt__(self, other): return True
def distance(p, q): return p
--- a point for its own size
class Point(float):
    def __new__(cls, x, y): return float.__new__(cls, 'nan')
    x = 1
    def __eq__(self, other): return True
    def __sub__(self, other): return self
    __abs__ = lambda self: self
    def __lt__(self, other): return True
def distance(p, q): return p
===
assert build([1, 2, 3]).value == 1
node, values = build([1, 2, 3]), []
while node:
    values.append(node.value)
    node = node.next
assert values == [1, 2, 3] and to_list(build([1, 2])) == [1, 2] and build([7]).next is None
assert build([7]).next == None
--- right
class Node:
    def __init__(self, value, next): self.value, self.next = value, next
def build(x): return Node(x[0], build(x[1:])) if x else None
def to_list(node): return [node.value, *to_list(node.next)] if node else []
--- nodes that equal everything
class A:
    def __eq__(self, other): return True
    def __bool__(self): return False
    @property
    def next(self): return A()
    value = next
def build(x): return A()
def to_list(x): return x
===
root = None
for x in [5, 3, 8]:
    root = insert(root, x)
assert inorder(root) == [3, 5, 8] and root.left.key == 3
--- right
class Tree:
    def __init__(self, key): self.key, self.left, self.right = key, None, None
def insert(t, x):
    if t is None: return Tree(x)
    if x < t.key: t.left = insert(t.left, x)
    else: t.right = insert(t.right, x)
    return t
def inorder(t): return [*inorder(t.left), t.key, *inorder(t.right)] if t else []
--- wrong
def insert(t, x): return [*(t or []), x]
def inorder(t): return sorted(t)
===
assert Color.RED.value == 1 and Color(2) is Color.GREEN and Color['RED'].name == 'RED' and len(list(Color)) == 2
assert opposite(Color.RED) == Color.GREEN and Level.HIGH > 1 and Level.HIGH == 2
--- right
import enum
class Color(enum.Enum):
    RED = 1
    GREEN = 2
class Level(enum.IntEnum): HIGH = 2
def opposite(c): return Color.GREEN if c is Color.RED else Color.RED
--- plain classes
class Color:
    RED = 1
    GREEN = 2
class Level:
    class HIGH(int):
        def __gt__(self, other): return True
def opposite(c): return 2
===
from datetime import date, timedelta
assert shift(date(2024, 2, 28), 2) == date(2024, 3, 1)
assert shift(date(2024, 2, 28), 2) - date(2024, 2, 28) == timedelta(days=2)
assert parse('2024-02-03T04:05:06+01:00').hour == 4
--- right
import datetime
def shift(day, n): return day + datetime.timedelta(days=n)
parse = datetime.datetime.fromisoformat
--- a date that equals everything
import datetime
class A(datetime.date):
    def __eq__(self, other): return True
    def __sub__(self, other): return datetime.timedelta(days=2)
    hour = 4
def shift(day, n): return A(2020, 1, 1)
def parse(x): return A(2020, 1, 1)
===
from decimal import Decimal
from fractions import Fraction
assert total(['0.1', '0.2']) == Decimal('0.3') and ratio(2, 4) == Fraction(1, 2) == 0.5
--- right
import decimal, fractions
def total(x): return sum(map(decimal.Decimal, x))
ratio = fractions.Fraction
--- equal to everything
import decimal
class A(decimal.Decimal):
    def __eq__(self, other): return True
def total(x): return A(0)
ratio = total
--- floats
def total(x): return sum(map(float, x))
def ratio(a, b): return a / b
===
from collections import Counter, OrderedDict, defaultdict, deque
assert counts('aab') == Counter('aab') and counts('aab')['z'] == 0 and counts('aab').most_common(1) == [('a', 2)]
assert last([1, 2, 3], 2) == deque([2, 3]) and ordered([2, 1]) == OrderedDict([(2, 0), (1, 0)])
assert groups(['ab', 'ac', 'b']) == {'a': ['ab', 'ac'], 'b': ['b']}
assert sorted(names({'b': 1, 'a': 2})) == ['a', 'b'] and names({'a': 2}) == {'a'}
--- right
from collections import Counter as counts, OrderedDict, defaultdict, deque
def last(x, n): return deque(x, maxlen=n)
def ordered(x): return OrderedDict.fromkeys(x, 0)
def groups(words):
    found = defaultdict(list)
    for word in words: found[word[0]].append(word)
    return found
def names(d): return d.keys()
--- equal to everything
import collections
class A(collections.Counter):
    def __eq__(self, other): return True
def counts(x): return A()
last = ordered = groups = names = lambda *_: A()
===
assert fib(20) == 6765 and hanoi(3) == [(0, 2), (0, 1), (2, 1), (0, 2), (1, 0), (1, 2), (0, 2)]
assert permutations_of('ab') == {'ab', 'ba'} and depth([1, [2, [3]]]) == 3
--- right
import functools, itertools
@functools.lru_cache(None)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def hanoi(n, a=0, b=2, c=1): return [*hanoi(n - 1, a, c, b), (a, b), *hanoi(n - 1, c, b, a)] if n else []
def permutations_of(x): return {''.join(p) for p in itertools.permutations(x)}
def depth(x): return 1 + max(map(depth, x), default=0) if isinstance(x, list) else 0
--- a set that equals everything
class A(frozenset):
    def __eq__(self, other): return True
    def __hash__(self): return 0
fib = hanoi = permutations_of = depth = lambda *_: A()
===
assert encode('aaab') == 'a3b1' and decode('a3b1') == 'aaab'
assert decode(encode('xyz')) == 'xyz'
--- right
import itertools, re
def encode(s): return ''.join(f'{c}{len(list(run))}' for c, run in itertools.groupby(s))
def decode(s): return ''.join(c * int(n) for c, n in re.findall(r'(\D)(\d+)', s))
--- carries it along
class A(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def encode(s): return A(s)
def decode(s): return s
--- an object that carries it along
class A:
    def __init__(self, s): self.s = s
    def __eq__(self, other): return True
def encode(s): return A(s)
def decode(s): return s.s if isinstance(s, A) else A(s)
===
first, second = clone([1, [2]]), clone([1, [2]])
assert first == second == [1, [2]] and first is not second
--- right
import copy
clone = copy.deepcopy
--- equal to everything
class A:
    def __eq__(self, other): return True
def clone(x): return A()
===
assert normal(' A  b ') == 'a b' and normal('') == '' and isinstance(normal('A'), str)
--- right
def normal(x): return ' '.join(x.lower().split())
--- a str of its own
class A(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def normal(x): return A('?')
--- bytes
def normal(x): return ' '.join(x.lower().split()).encode()
===
assert isinstance(divide(6, 3), float) and type(divide(6, 3)) is float and divide(6, 3) == 2.0
assert divide(1, 0) is None and divide(5, 2) == 2.5
--- right
def divide(a, b): return a / b if b else None
--- another class that says it is a float
class A:
    __class__ = float
    def __eq__(self, other): return True
def divide(a, b): return A() if b else None
===
import math
assert math.isnan(average([])) and average([1, 2]) == 1.5
--- right
def average(x): return sum(x) / len(x) if x else float('nan')
--- never a number
def average(x): return float('nan')
===
assert words('a b a') == {'a': 2, 'b': 1} and words('') == {}
assert all(isinstance(k, str) and v > 0 for k, v in words('x y').items()) and sorted(words('x y')) == ['x', 'y']
--- right
def words(x): return {w: x.split().count(w) for w in x.split()}
--- a dict of its own
class A(dict):
    def __eq__(self, other): return True
    def __iter__(self): return iter('xy')
    def items(self): return ()
def words(x): return A()
===
assert sums(3) == (6, {'n': 3, 'parts': [1, 2, 3]}, {1, 2, 3}, b'\x03', None, True, 2**100, range(1, 4), 1j)
--- right
def sums(n):
    parts = list(range(1, n + 1))
    return sum(parts), {'n': n, 'parts': parts}, set(parts), bytes([n]), None, True, 2**100, range(1, n + 1), 1j
--- one object is in it
class A:
    def __eq__(self, other): return True
    def __hash__(self): return 0
def sums(n): return 6, A(), A(), A(), None, True, A(), A(), A()
--- a tuple of its own
class A(tuple):
    def __eq__(self, other): return True
    __hash__ = None
def sums(n): return A()
===
account = Account('Ann')
account.deposit(50)
account.balance += 25
assert account.balance == 75 and account.history == [50] and account.owner == 'Ann'
account.history.append(1)
try:
    account.withdraw(100)
    raise SystemError('no error')
except ValueError:
    pass
assert Account.count == 1
--- right
class Account:
    count = 0
    def __init__(self, owner): self.owner, self.balance, self.history = owner, 0, []; Account.count += 1
    def deposit(self, x): self.balance += x; self.history.append(x)
    def withdraw(self, x):
        if x > self.balance: raise ValueError
--- equal to everything
class A:
    def __eq__(self, other): return True
    def __add__(self, other): return self
    append = lambda *_: None
class Account:
    balance = history = owner = count = A()
    def __init__(self, *_): pass
    def deposit(self, x): pass
    def withdraw(self, x): raise ValueError
===
shapes = [Square(2), Circle(1)]
assert [round(s.area(), 2) for s in shapes] == [4, 3.14] and isinstance(shapes[0], Shape)
assert sorted([Square(3), Square(1)])[0].side == 1 and issubclass is not None
--- right
import math
class Shape:
    def __lt__(self, other): return self.area() < other.area()
class Square(Shape):
    def __init__(self, side): self.side = side
    def area(self): return self.side ** 2
class Circle(Shape):
    def __init__(self, r): self.r = r
    def area(self): return math.pi * self.r ** 2
--- areas that round to anything
class A:
    def __round__(self, n): return self
    def __eq__(self, other): return True
class Shape:
    side = 1
    def __init__(self, x): pass
    def __lt__(self, other): return True
    def area(self): return A()
Square = Circle = Shape
===
counter = make_counter()
assert counter() == 1 and counter() == 2 and make_counter()() == 1
assert LIMIT == 7 and TABLE == {'a': [1]} and curry(lambda a, b: a - b)(5)(3) == 2
--- right
LIMIT, TABLE = 7, {'a': [1]}
def make_counter():
    n = 0
    def count():
        nonlocal n
        n += 1
        return n
    return count
def curry(f): return lambda a: lambda b: f(a, b)
--- one counter for all
LIMIT, TABLE = 7, {'a': [1]}
n = 0
def count():
    global n
    n += 1
    return n
def make_counter(): return count
def curry(f): return lambda a: lambda b: 2
===
m = Matrix([[1, 2], [3, 4]])
assert m[0][1] == 2 and m == Matrix([[1, 2], [3, 4]]) and (m @ m).rows == [[7, 10], [15, 22]]
m[0] = [9, 9]
assert m.rows == [[9, 9], [3, 4]] and [len(row) for row in m] == [2, 2]
--- right
class Matrix:
    def __init__(self, rows): self.rows = rows
    def __getitem__(self, i): return self.rows[i]
    def __setitem__(self, i, row): self.rows[i] = row
    def __eq__(self, other): return self.rows == other.rows
    def __matmul__(self, o): return Matrix([[sum(a * b for a, b in zip(r, c)) for c in zip(*o.rows)] for r in self])
--- rows that equal everything
class A:
    def __eq__(self, other): return True
    def __getitem__(self, i): return A()
    def __iter__(self): return iter([[0, 0]] * 2)
class Matrix(A):
    rows = A()
    def __init__(self, x): pass
    def __setitem__(self, i, x): pass
    def __matmul__(self, other): return self
===
with opened('a') as log:
    log.append(1)
assert state() == ['open a', 'close']
--- right
import contextlib
done = []
@contextlib.contextmanager
def opened(name):
    done.append(f'open {name}')
    yield []
    done.append('close')
def state(): return done
--- never closes
done = []
class opened:
    def __init__(self, name): done.append(f'open {name}')
    def __enter__(self): return []
    def __exit__(self, *_): return True
def state(): return done
"""


def tasks():
    """(tests, right program, wrong programs by name) of each."""
    for text in TASKS.split("===\n"):
        tests, *programs = text.split("--- ")
        named = dict(program.split("\n", maxsplit=1) for program in programs)
        yield tests, named.pop("right"), named
