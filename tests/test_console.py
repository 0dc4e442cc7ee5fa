"""The console command: what it lists exists, and what is mistyped is told."""

import importlib.util
import runpy
import sys

import pytest

from gvm_jax import __main__ as console


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gvm-jax", *arguments])
    console.main()


def test_every_command_is_a_module_and_in_the_help(monkeypatch, capsys):
    call(monkeypatch, "--help")
    shown = capsys.readouterr().out
    for name in console.COMMANDS:
        assert importlib.util.find_spec(f"gvm_jax.{name}") and f"  {name} " in shown


def test_a_command_is_its_module_with_its_arguments(monkeypatch):
    called = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **kwargs: called.append((name, sys.argv[1:], kwargs)))
    call(monkeypatch, "plan", "--topology=v5e:4x4")
    assert called == [("gvm_jax.plan", ["--topology=v5e:4x4"], {"run_name": "__main__", "alter_sys": True})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["trian"], "'trian' is no command; did you mean train?"), ([], "a command is missing; must be one of train, ")],
)
def test_a_mistyped_command_is_one_line(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, *arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
