"""The rows of configs/domains.py: right answers score, others do not, and the files are what the config says."""

import pytest

from configs import domains
from configs.domains_data import sentences
from gvm_jax.config import validate
from gvm_jax.data import load_config_rows
from gvm_jax.rewards import Grader
from gvm_jax.sandbox.requirements import read

SOLUTIONS = """
def double(x): return x + x
def count_vowels(text): return sum(text.lower().count(c) for c in "aeiou")
def middle(*numbers): return sorted(numbers)[1]
def is_palindrome(text): return all(a == b for a, b in zip(text.lower(), reversed(text.lower())))
def digit_sum(n): return n % 10 + digit_sum(n // 10) if n else 0
def second_largest(numbers): return ([None, *sorted(set(numbers))][-2:] + [None])[0] if len(set(numbers)) > 1 else None
def flatten(lists): return sum(lists, [])
def is_leap(year): return __import__("calendar").isleap(year)
def initials(name): return "".join(word[0] for word in name.upper().split())
def clamp(x, low, high): return sorted([low, x, high])[1]
def common(a, b): return sorted(set(a) & set(b))
def factorial(n): return __import__("math").factorial(n)
def longest_word(text): return max(text.split(), key=len)
def rotate(items, k): return items[k:] + items[:k]
def celsius(fahrenheit): return (fahrenheit - 32) / 1.8
def run_lengths(text): return [(c, len(list(run))) for c, run in __import__("itertools").groupby(text)]
def is_prime(n): return n > 1 and all(n % d for d in range(2, n))
def invert(mapping): return {value: key for key, value in mapping.items()}
def chunks(items, size): return [items[i : i + size] for i in range(0, len(items), size)]
def greatest_divisor(a, b): return max(d for d in range(1, a + 1) if a % d == b % d == 0)
def without_duplicates(items): return list(dict.fromkeys(items))
def caesar(text, shift): return "".join(chr((ord(c) - 97 + shift) % 26 + 97) if "a" <= c <= "z" else c for c in text)
def running_sums(numbers): return list(__import__("itertools").accumulate(numbers))
def balanced(text):
    depth = 0
    for c in text:
        depth += {"(": 1, ")": -1}.get(c, 0)
        if depth < 0: return False
    return depth == 0
def triple(x): return 3 * x
def count_words(text): return len(text.split())
def swap_ends(items): return items[-1:] + items[1:-1] + items[:1] if len(items) > 1 else items
def square_sum(n): return n * (n + 1) * (2 * n + 1) // 6
def most_frequent(text): return max(text, key=text.count)
def transpose(rows): return [list(column) for column in zip(*rows)]
def is_sorted(numbers): return sorted(numbers) == numbers
def binary(n): return format(n, "b")
"""


def rows_of(argument):
    config = domains.get_config(argument)
    validate(config)
    train, test = (load_config_rows(config, name, config[name].path) for name in ("data", "evaluation"))
    assert (len(train), len(test)) == (24, 8)
    assert len({row.problem for row in train + test}) == 32
    return config, train + test


@pytest.mark.parametrize(
    ("argument", "right", "wrong"),
    [
        ("exact", lambda answer: f"That is so. The answer is {answer}.", lambda answer: "The answer is E."),
        (
            "python_tests",
            lambda tests: f"```python{SOLUTIONS}```",
            lambda tests: f"```python\ndef {read(tests).names[0]}(*arguments): return None\n```",
        ),
    ],
)
def test_right_answers_score_and_others_do_not(argument, right, wrong):
    config, rows = rows_of(argument)
    references = [row.answer for row in rows]
    with Grader(**config.rewards.to_dict() | {"workers": 2, "max_failure_rate": 0.0}) as grader:
        assert grader.parses(references).all()
        accepted = grader.grade(list(map(right, references)), references)
        rejected = grader.grade(list(map(wrong, references)), references)
    assert [row.problem for row, verdict in zip(rows, accepted, strict=True) if verdict.score != 1] == []
    assert [row.problem for row, verdict in zip(rows, rejected, strict=True) if verdict.score != 0] == []


def test_sentences_are_graded_by_length_and_word():
    config, rows = rows_of("function")
    for row in rows:
        least, most, word = row.answer.split()
        assert f'{least} to {most} words that contains the word "{word}"' in row.problem
    right = ["The river runs all night.", "A river's bank: one RIVER!", "We saw the river."]
    wrong = ["The river runs.", "The water runs all night.", "The river runs all night", "The river runs. All night."]
    wrong += ["river river river river river.", "", "The rivers run all night.", "We saw the long river last night."]
    references = ["4 6 river"] * (len(right) + len(wrong))
    assert [score for score, _ in sentences.score(right + wrong, references)] == [1.0] * 3 + [0.0] * 8
    with Grader(**config.rewards.to_dict() | {"workers": 1, "max_failure_rate": 0.0}) as grader:
        assert [verdict.score for verdict in grader.grade(right, references[:3])] == [1.0] * 3
