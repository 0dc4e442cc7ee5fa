"""What tests ask of a program, what they take from the standard library, and when arguments may change under them."""

import time

import pytest

from gvm_jax.sandbox.requirements import read


@pytest.mark.parametrize(
    ("tests", "names", "imports"),
    [
        ("assert add(1, 2) == 3", ["add"], []), ("import math\nassert math.isclose(area(2), 4)", ["area"], []),
        ("assert math.isclose(area(2), 4)", ["area"], ["import math"]),
        ("assert copy([1]) == [1] and copy.__name__", ["copy"], []),
        ("def check(candidate):\n    assert candidate(1) == 1\ncheck(f)", ["f"], []),
        ("def check(f):\n    assert f(1) == 1\ncheck(f)", ["f"], []),
        ("import os.path as p\nclass T:\n    g = f\n    def run(self, x=h): return [y for y in p.split(x)], y",
         ["f", "h", "y"], []),
        ("def setup():\n    global made\n    made = f(1)\nsetup()\nassert made", ["f"], []),
        ("for i, (a, b) in enumerate(CASES):\n    assert f(a) == b, i", ["CASES", "f"], []),
        ("try:\n    f(1)\nexcept ValueError as error:\n    assert str(error)", ["f"], []),
        ("assert [f(x) for x in range(3)] == [0, 1, 2]", ["f"], []), ("assert sum([1, 2]) == 3", [], []),
        ("assert isclose(area(2), 4)", ["area"], ["from math import isclose"]),
        ("x = Counter('a')\nassert Counter(f('a')) == x", ["f"], ["from collections import Counter"]),
        ("assert gcd(4, 6) == 2 and lcm(4, 6) == 12", ["gcd", "lcm"], []),
        ("assert factorial(3) == 6\nassert add(1, 2) == 3", ["add", "factorial"], []),
        ("assert add(factorial(3), 1) == 7", ["add"], ["from math import factorial"]),
    ],
)  # fmt: skip
def test_names_that_tests_ask_a_program_for(tests, names, imports):
    found = read(tests)
    assert (found.names, found.text) == (names, "".join(line + "\n" for line in imports) + tests)


@pytest.mark.parametrize(
    "tests",
    [
        "x = [3, 1]\nassert f(x) is None and x == [1, 3]",
        "x = [3, 1]\nf(x)\nassert x == sorted([3, 1])",
        "for x, want in CASES:\n    f(x)\n    assert x == want",
        "x = [1, 1, 2]\nk = f(x)\nassert k == 2 and x[:k] == [1, 2]",
        "h = []\npush(h, 2)\npush(h, 1)\nassert pop(h) == 1\nassert h == [2]",
        "def check(candidate):\n    x = [2, 1]\n    candidate(x)\n    assert x == [1, 2]\ncheck(f)",
        "x = [3, 1]\nbefore = x.copy()\nf(x)\nassert x == before[::-1]",
        "assert f([1, 2]) == [2, 1]",
    ],
)
def test_arguments_that_are_looked_at_alone_show_what_became_of_them(tests):
    assert read(tests.replace("CASES", "[([2, 1], [1, 2])]")).in_place


@pytest.mark.parametrize(
    "tests",
    [
        "x = [3, 1]\nassert f(x) == sorted(x)",
        "x = [3, 1]\ny = f(x)\nassert len(y) == len(x)",
        "x = [3, 1]\ny = f(x)\nn = len(x)\nassert len(y) == n",
        "x = [3, 1]\nwant = x\nassert f(x) == want",
        "x = want = [3, 1]\nassert f(x) == want",
        "x = [3, 1]\ny = f(x)\nfor i in range(len(x)):\n    assert y[i] == i",
        "x = {'a': 1}\ny = f(x)\nfor key, value in x.items():\n    assert y[value] == key",
        "x = [3, 1]\ndef same(a, b):\n    return sorted(a) == sorted(b)\nassert same(f(x), x)",
        "x = [3, 1]\ndef check(fn, a, want):\n    assert fn(a) == want\ncheck(f, x, x)",
        "def check(candidate):\n    x = [1]\n    assert candidate(x) == sorted(x)\ncheck(f)",
        "def run(a):\n    return f(a)\nx = [3, 1]\nassert run(x) == sorted(x)",
        "table = {'f': f}\nx = [3, 1]\nassert table['f'](x) == sorted(x)",
        "x = [3, 1]\nfor fn in [f]:\n    assert fn(x) == sorted(x)",
        "g = lambda a: f(a)\nx = [3, 1]\nassert g(x) == sorted(x)",
        "xs = [[3, 1], [2]]\nys = list(map(f, xs))\nassert ys == [sorted(x) for x in xs]",
        "found = []\nx = [3, 1]\nfound.append(f(x))\nassert found[0] == sorted(x)",
        "s = Sorter()\nx = [3, 1]\ny = s.sorted(x)\nassert y == sorted(x)",
        "x = [3, 1]\nassert f(*[x]) == sorted(x)",
        "x = [3, 1]\nassert f(values=x) == sorted(x)",
        "x = [3, 1]\nassert (y := f(x)) and y[0] == min(x)",
        "for x, want in [(a, a) for a in ([3, 1], [2])]:\n    assert f(x) == want",
        "x = [3, 1]\nif f(x) != sorted(x): raise ValueError",
        "x = [3, 1]\nok = f(x) == sorted(x)\nassert ok",
        "rows = [[3, 1]]\nassert [f(row) for row in rows] == rows",
    ],
)
def test_arguments_beside_results_stay_what_they_were(tests):
    assert not read(tests).in_place


def test_long_tests_take_linear_time():
    start = time.monotonic()
    read("".join(f"x{i} = x{i - 1}\n" for i in range(1, 1000)) + "assert f(x9) == 2")
    read("".join(f"x{i} = f(x{i - 1}, [{i}])\nassert x{i} == 4\n" for i in range(1, 300)))
    assert time.monotonic() - start < 5
