"""Programs that solve their task pass; those that only want to pass do not."""

import collections
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gvm_jax.sandbox.requirements import read
from gvm_jax.sandbox.runner import run
from tests.sandbox.tasks import NUMBER_TESTS, SQUARE, SQUARES, tasks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined by means of Linux")


def verdicts(root, cases):
    """(verdict, reason) of each (tests, program)."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda case: run(case[1], read(case[0]), str(root), 30.0, 256 * 2**20), cases))


def test_programs_that_solve_their_task_pass(tmp_path):
    cases = [(tests, right) for tests, right, _ in tasks()] + [(tests, SQUARE) for tests in NUMBER_TESTS]
    assert len(cases) > 40
    refused = [(*case, found) for case, found in zip(cases, verdicts(tmp_path, cases), strict=True) if any(found[1:])]
    assert refused == []


@pytest.mark.slow
def test_programs_that_do_not_solve_their_task_fail(tmp_path):
    cases = {(tests, name): program for tests, _, wrong in tasks() for name, program in wrong.items()}
    for i, (name, program) in enumerate(SQUARES.items()):  # a part of all pairs
        cases |= {(tests, name): program for tests in NUMBER_TESTS[i % 4 :: 4]}
    assert len(cases) > 100
    found = verdicts(tmp_path, [(tests, program) for (tests, _), program in cases.items()])
    assert {case: outcome for case, outcome in zip(cases, found, strict=True) if outcome.verdict != "failed"} == {}
    assert collections.Counter(bool(outcome.reason) for outcome in found) == {True: len(cases)}
