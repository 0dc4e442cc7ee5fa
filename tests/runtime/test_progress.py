"""Lines align, the header comes back, and nothing but plain text is printed."""

import io

from rich.console import Console

from gvm_jax.runtime.progress import ProgressPrinter, final_table

NUMBERS = {"reward": 0.25, "accept_rate": 0.5, "rollouts": 8192, "updates": 4, "seconds": 61.27}


def printed(steps, **kwargs) -> list[str]:
    out = io.StringIO()
    printer = ProgressPrinter(1000, file=out, **kwargs)
    for step in range(1, steps + 1):
        printer.step(step, tokens=1_000_000 * step, held_out_accuracy=0.5 if step % 10 == 0 else None, **NUMBERS)
    return out.getvalue().splitlines()


def test_a_line_a_step_with_the_numbers_under_their_titles():
    header, *lines = printed(10)
    assert header.split("  ")[-1].strip() == "seconds"
    assert lines[0].split() == ["1/1000", "0.250", "0.500", "8,192", "1,000,000", "4", "61.3"]
    assert lines[9].split() == ["10/1000", "0.250", "0.500", "0.500", "8,192", "10,000,000", "4", "61.3"]
    assert len({len(line) for line in (header, *lines)}) == 1
    column = header.index("held-out")
    assert lines[0][column : column + 8].strip() == "" and lines[9][column : column + 8].strip() == "0.500"


def test_a_step_without_rollouts_has_blanks():
    out = io.StringIO()
    ProgressPrinter(5, file=out).step(0, held_out_accuracy=0.25, rollouts=0, tokens=0, updates=0, seconds=2)
    header, line = out.getvalue().splitlines()
    assert line.split() == ["0/5", "0.250", "0", "0", "0", "2.0"]
    assert line[header.index("held-out") :].split()[0] == "0.250"


def test_the_header_comes_back_every_twenty_lines():
    lines = printed(45)
    assert [index for index, line in enumerate(lines) if "accept rate" in line] == [0, 21, 42]


def test_plain_text_only_and_silence_off_the_first_process():
    assert all(line.isprintable() for line in printed(3))
    assert printed(3, active=False) == []


def test_final_table_has_a_row_for_each_mapping():
    console = Console(file=io.StringIO(), width=80)
    console.print(final_table([{"run": "raft", "accuracy": 0.4}, {"run": "gvm"}], title="Held out"))
    text = console.file.getvalue()
    assert all(word in text for word in ("Held out", "run", "accuracy", "raft", "0.4", "gvm"))
