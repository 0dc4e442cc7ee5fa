"""Lines align, the header comes back, and nothing but plain text is printed."""

import io

import pytest
from rich.console import Console

from gvm_jax.runtime.progress import ProgressPrinter, SampleProgress, final_table

NUMBERS = {"reward": 0.25, "accept_rate": 0.5, "rollouts": 8192, "updates": 4, "seconds": 61.27}


def printed(steps, **kwargs) -> list[str]:
    out = io.StringIO()
    printer = ProgressPrinter(1000, file=out, **kwargs)
    for step in range(1, steps + 1):
        printer.step(step, tokens=1_000_000 * step, held_out_accuracy=0.5 if step % 10 == 0 else None, **NUMBERS)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("title", ["held-out", "held-out score"])
def test_a_line_a_step_with_the_numbers_under_their_titles(title):
    header, *lines = printed(10, scores=title == "held-out score")
    assert header.split("  ")[-1].strip() == "seconds"
    assert lines[0].split() == ["1/1000", "0.250", "0.500", "8,192", "1,000,000", "4", "61.3"]
    assert lines[9].split() == ["10/1000", "0.250", "0.500", "0.500", "8,192", "10,000,000", "4", "61.3"]
    assert len({len(line) for line in (header, *lines)}) == 1 and all(line.isprintable() for line in lines)
    column = slice(header.index(title), header.index(title) + len(title))
    assert lines[0][column].strip() == "" and lines[9][column].strip() == "0.500"


def test_a_step_without_rollouts_has_blanks_and_compilations_stand_behind_the_line():
    out = io.StringIO()
    numbers = {"held_out_accuracy": 0.25, "rollouts": 0, "tokens": 0, "updates": 0, "seconds": 2}
    ProgressPrinter(5, file=out).step(0, **numbers, compile_seconds=12.34)
    header, line = out.getvalue().splitlines()
    assert line.split() == ["0/5", "0.250", "0", "0", "0", "2.0", "+", "12.3", "s", "compiling"]
    assert line[header.index("held-out") :].split()[0] == "0.250" and line[: len(header)].endswith(" 2.0")


def test_the_header_comes_back_every_twenty_lines_and_other_processes_are_silent():
    assert [index for index, line in enumerate(printed(45)) if "accept rate" in line] == [0, 21, 42]
    assert printed(3, active=False) == []


def test_final_table_has_a_row_for_each_mapping():
    console = Console(file=io.StringIO(), width=80)
    console.print(final_table([{"run": "raft", "accuracy": 0.4}, {"run": "gvm"}], title="Held out"))
    text = console.file.getvalue()
    assert all(word in text for word in ("Held out", "run", "accuracy", "raft", "0.4", "gvm"))


def test_a_long_sampling_says_how_long_it_takes(capsys):
    now, sampled = [0.0], [0]
    progress = SampleProgress("sums", 1010, 10, lambda: sampled[0], processes=2, every=15.0, clock=lambda: now[0])
    for seconds in (5, 10, 20):  # 100 tokens/s on each of two processes, of samples of 50 tokens
        now[0], sampled[0] = seconds, 100 * seconds
        progress.add(50, correct=seconds == 5)
    now[0], sampled[0] = 250, 25_000
    progress.show()
    there, line, last = capsys.readouterr().out.splitlines()
    assert there == "sums: 10/1,010 samples are there"
    # 1,000 samples of 50 tokens in all, 4,000 of them done, at 200 a second.
    assert line == "sums: 16/1,010 samples, 33.3 % correct, 200 tokens/s, 20 s spent, 3 min 50 s left"
    assert last.endswith("4 min 10 s spent, 0 s left")


def test_other_processes_and_nothing_print_no_line(capsys):
    SampleProgress("sums", 4, 0, lambda: 0).show()
    other = SampleProgress("sums", 4, 1, lambda: 3, every=0.0, active=False)
    other.add(3, correct=True)
    assert capsys.readouterr().out == ""
