"""A live line is for terminals alone, and breaks no other line."""

import io
import logging
import os
import pty
import subprocess
import sys

from absl import logging as absl_logging

from gvm_jax.runtime.live import LiveLine, plain_warnings
from gvm_jax.runtime.progress import ProgressPrinter


def test_nothing_is_shown_elsewhere_than_on_a_terminal():
    out = io.StringIO()
    with LiveLine(4, file=out) as live:
        live.phase("rollout")
    assert out.getvalue() == ""


def test_the_live_line_says_phase_tokens_speed_and_the_time_left():
    now, compiling = [0.0], [False]
    live = LiveLine(4, file=io.StringIO(), clock=lambda: now[0], compiling=lambda: compiling[0])

    def at(seconds, phase):
        now[0] = seconds
        live.phase(phase)

    at(1, "rollout")
    live.tokens(300)
    now[0] = 4
    assert live.text() == "step 1/4  sampling  300 tokens  100 tokens/s  4 s"
    at(7, "reward")
    now[0], compiling[0] = 9, True
    assert live.text() == "step 1/4  compiling  300 tokens  50 tokens/s  9 s"
    ProgressPrinter(4, active=False, live=live).step(1, rollouts=1, tokens=300, updates=1, seconds=9.0)
    compiling[0] = False
    at(10, "update")
    assert live.text() == "step 2/4  updating  1 s  26 s left"


ON_A_TERMINAL = """
import time
from absl import logging
from gvm_jax.runtime.live import LiveLine, plain_warnings
from gvm_jax.runtime.progress import ProgressPrinter
plain_warnings()
with LiveLine(2) as live:
    live.phase("rollout")
    live.tokens(1234)
    time.sleep(0.6)
    logging.warning("of step %d", 1)
    ProgressPrinter(2, live=live).step(1, rollouts=1, tokens=2, updates=3, seconds=4)
"""


def test_on_a_terminal_lines_stay_whole_beside_the_live_line():
    main, other = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "60"}
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
    monkeypatch.setattr(logging.getLogger(), "handlers", [absl_logging.get_absl_handler()])
    plain_warnings()
    plain_warnings()
    logging.getLogger("absl").warning("of %d", 3)
    assert capsys.readouterr().err == "warning: of 3\n" and len(logging.getLogger().handlers) == 1
