"""Lines align, the header comes back, a live line is for terminals alone, and nothing breaks the table."""

import io
import logging
import os
import pty
import subprocess
import sys

import pytest
from rich.console import Console

from gvm_jax.runtime.progress import ProgressPrinter, SampleProgress, final_table, plain_warnings

NUMBERS = {"reward": 0.25, "accept_rate": 0.5, "rollouts": 8192, "updates": 4, "seconds": 61.27}


def printed(steps, **kwargs) -> list[str]:
    out = io.StringIO()
    printer = ProgressPrinter(1000, file=out, **kwargs)
    for step in range(1, steps + 1):
        printer.phase("rollout")
        printer.tokens(step)
        printer.step(step, tokens=1_000_000 * step, held_out_accuracy=0.5 if step % 10 == 0 else None, **NUMBERS)
    printer.close()
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


def test_the_live_line_says_phase_tokens_speed_and_the_time_left():
    now, compiling = [0.0], [False]
    printer = ProgressPrinter(4, file=io.StringIO(), clock=lambda: now[0], compiling=lambda: compiling[0])

    def at(seconds, phase):
        now[0] = seconds
        printer.phase(phase)

    at(1, "rollout")
    printer.tokens(300)
    now[0] = 4
    assert printer.status() == "step 1/4  sampling  300 tokens  100 tokens/s  4 s"
    at(7, "reward")
    now[0], compiling[0] = 9, True
    assert printer.status() == "step 1/4  compiling  300 tokens  50 tokens/s  9 s"
    printer.step(1, rollouts=1, tokens=300, updates=1, seconds=9.0)
    compiling[0] = False
    at(10, "update")
    assert printer.status() == "step 2/4  updating  1 s  26 s left"


ON_A_TERMINAL = """
import sys, time
from absl import logging
from gvm_jax.runtime.progress import ProgressPrinter, plain_warnings
plain_warnings()
printer = ProgressPrinter(2)
printer.phase("rollout")
printer.tokens(1234)
time.sleep(0.6)
logging.warning("of step %d", 1)
printer.step(1, rollouts=1, tokens=2, updates=3, seconds=4)
printer.close()
"""


def test_on_a_terminal_lines_stay_whole_beside_the_live_line():
    main, other = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", ON_A_TERMINAL], stdout=other, stderr=other, env=environment, check=True)
    os.close(other)
    lines = os.read(main, 100_000).decode().replace("\r", "\n").splitlines()
    os.close(main)
    plain = [line.split("\x1b[2K")[-1] for line in lines]
    assert any("step 1/2  sampling  1,234 tokens" in line for line in lines)
    assert "warning: of step 1" in plain
    assert any(line.split() == ["1/2", "1", "2", "3", "4.0"] for line in plain)
    assert not any("\x1b[?25l" in line for line in lines), "a killed process could not bring the cursor back"


def test_warnings_are_plain_lines_once(monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    plain_warnings()
    plain_warnings()
    logging.getLogger("absl").warning("of %d", 3)
    assert capsys.readouterr().err == "warning: of 3\n"


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
