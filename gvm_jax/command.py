"""The command line that all commands share: --config and its fields, --workdir, --help, --version, errors, exit codes.

Exit codes, of tpu_scripts/ too:

- 0: success.
- 2: refused (`InputError`): a flag, a field, an environment variable, or data, a model or a folder that one of them
  names cannot be used. The same command would be refused again; the message says how to mend it.
- 1: failed: a disk, a network, numbers that are not finite, the verifier on too many answers; with a traceback, a
  bug of this program. `plan` also ends with 1 if the config does not fit.
- 75: another process of the run is missing or failed, and reports its own error.
- 130 and 143: interrupted, or told to stop; the same command goes on.
"""

import contextlib
import functools
import logging
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict

import gvm_jax
from gvm_jax.config import FIELDS, OPTIONS, ConfigError, from_text, hint, is_option, load_config
from gvm_jax.errors import InputError
from gvm_jax.runtime.workdir import workdir_path

REFUSED = 2  # exit code
INTERRUPTED = 130  # likewise, as shells have it
QUICKSTART = "configs/quickstart.py"

_CONFIG = flags.DEFINE_string("config", None, "Config file, or FILE:ARGUMENT; one of configs/, or your own.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, or gs://BUCKET/FOLDER for training. Default: runs/ and the config's name."
)
_FIELD = ("--config.FIELD=VALUE", "Sets a field of the config; may be repeated. `gvm-jax config` lists the fields.")
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull", "-helpshort", "-helpfull"}
_loaded = ConfigDict()  # the config of --config, once `run` has read the flags


def run(
    main: Callable[[], None],
    required: Sequence[str] = ("config",),
    shared: Sequence[str] = ("config", "workdir"),
    default_config: str | None = None,
) -> None:
    """Parses the flags, then calls `main`. Ends with `REFUSED` where they are wrong.

    Args:
      main: of the command's module, whose docstring and own flags --help shows.
      required: flags that must be given.
      shared: which of this module's flags the command has.
      default_config: value of --config where it is not given.
    """
    for name in {"config", "workdir"} - set(shared):
        delattr(flags.FLAGS, name)
    if default_config:
        flags.set_default(_CONFIG, default_config)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself, and absl would again

    def interruptible(_) -> None:
        try:
            main()
        except KeyboardInterrupt:  # a second one, or one where nothing is to be saved
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)

    app.run(interruptible, flags_parser=functools.partial(parse, main, required))


def fail(message: str) -> NoReturn:
    """Ends the command for a mistake in its input."""
    print(f"error: {message}", file=sys.stderr)
    end = SystemExit(f"error: {message}")  # the other processes of a run are told the text
    end.code = REFUSED
    raise end


@contextlib.contextmanager
def one_line(*failures: type[Exception]) -> Iterator[None]:
    """Ends the command with one line where the body raises an `InputError`, an `OSError` or one of `failures`."""
    try:
        yield
    except InputError as error:
        fail(str(error))
    except (OSError, *failures) as error:
        sys.exit(f"error: {error}")


def config() -> ConfigDict:
    """The config of --config with the fields that --config.FIELD=VALUE set."""
    return _loaded


def config_path() -> str:
    """The value of --config, argument and all."""
    return _CONFIG.value


def config_name() -> str:
    """`configs/quickstart.py:raft` -> `quickstart-raft`."""
    return name_of(config_path())


def name_of(path: str) -> str:
    """The name of a config by the value of --config."""
    path, _, argument = path.partition(":")
    name = pathlib.Path(path).stem
    return f"{name}-{argument}" if argument else name


def given_workdir() -> str | None:
    """The value of --workdir."""
    return _WORKDIR.value


def workdir(prefix: str = "") -> str:
    """--workdir, or runs/ with the prefix and the config's name. Ends the command where it can be none."""
    found = _WORKDIR.value or f"runs/{prefix}{config_name()}"
    try:
        workdir_path(found)
    except ConfigError as error:
        fail(str(error))
    return found


def split_fields(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The fields that arguments such as --config.steps=3 set, by name, and the other arguments.

    A value may follow its flag as the next argument. A field that is True or False may be given without a value:
    --config.FIELD or --noconfig.FIELD.

    Raises:
      ConfigError: unknown fields, or values of a wrong type; with all of them, one a line.
    """
    fields, rest, wrong, remaining = {}, [], [], iter(arguments)
    for argument in remaining:
        if not (flag := re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)):
            rest.append(argument)
            continue
        negated, name, text = flag.groups()
        known = FIELDS.get(name)
        if text is None:
            text = str(not negated) if known and isinstance(known.default, bool) else next(remaining, "")
        if inside := [field for field in (*FIELDS, f"{OPTIONS}.NAME") if field.startswith(f"{name}.")]:
            wrong.append(f"--config.{name}: a section; set a field of it, such as --config.{inside[0]}={text}")
        elif known is None and not is_option(name):
            wrong.append(f"--config.{name}: no such field; {hint(name, '--config.')}")
        else:
            fields[name] = from_text(text, known and known.default)
            if known and type(fields[name]) is not type(known.default):
                wrong.append(f"--config.{name}={text}: must be {known.allowed}")
    if wrong:
        raise ConfigError("\n  ".join(wrong))
    return fields, rest


def help_text(main: Callable[[], None], required: Sequence[str]) -> str:
    """The output of --help: the docstring of the command's module, which has an example, and its flags."""
    module = main.__module__
    own = flags.FLAGS.get_flags_for_module(sys.argv[0] if module == "__main__" else module)
    shared = [flags.FLAGS[name] for name in ("config", "workdir") if name in flags.FLAGS]
    flag_list = sorted([*shared, *own], key=lambda flag: flag.name not in required)  # required ones first
    rows = [(_shown(flag), _meaning(flag, flag.name in required)) for flag in flag_list]
    if "config" in flags.FLAGS:
        rows.insert(1, _FIELD)
    lines = [sys.modules[module].__doc__.strip(), "", "flags:"]
    for shown, meaning in [*rows, ("--version", "Prints the version.")]:
        indent = " " * 30
        start = f"  {shown:26}  " if len(shown) <= 26 else f"  {shown}\n{indent}"
        lines.append(start + f"\n{indent}".join(textwrap.wrap(meaning, width=86)))
    return "\n".join(lines)


def _shown(flag: flags.Flag) -> str:
    if flag.boolean:
        return f"--[no]{flag.name}"
    kinds = {"config": "FILE", "workdir": "FOLDER"}
    types = {"int": "INTEGER", "float": "NUMBER", "comma separated list of strings": "A,B,..."}
    return f"--{flag.name}={kinds.get(flag.name) or types.get(flag.flag_type(), 'VALUE')}"


def _meaning(flag: flags.Flag, required: bool) -> str:
    meaning = " ".join((flag.help or "").split())
    if required:
        return f"{meaning} Required."
    return meaning if flag.boolean or flag.default in (None, "", []) else f"{meaning} Default: {flag.default}."


def parse(main: Callable[[], None], required: Sequence[str], argv: list[str]) -> list[str]:
    """Parses the flags and loads the config; arguments as for `run`. Ends the command for --help and for mistakes."""
    global _loaded
    if _HELP & set(argv):
        print(help_text(main, required))
        sys.exit(0)
    if {"--version", "-version"} & set(argv):
        print(f"gvm_jax {gvm_jax.__version__}")
        sys.exit(0)
    with one_line():
        fields, rest = split_fields(argv) if "config" in flags.FLAGS else ({}, argv)
        try:
            rest = flags.FLAGS(rest)
        except flags.Error as error:
            fail(" ".join(str(error).removeprefix("flag ").split()))
        if missing := [name for name in required if flags.FLAGS[name].value in (None, "", [])]:
            example = QUICKSTART if missing[0] == "config" else "VALUE"
            fail(f"--{missing[0]} is missing: give --{missing[0]}={example}; --help lists the flags")
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}; options are written --name=value")
        if "workdir" in flags.FLAGS and _WORKDIR.value == "":
            fail("--workdir= is empty; name a folder, or leave the flag out for runs/ and the config's name")
        if "config" in flags.FLAGS and _CONFIG.value:
            _loaded = load_config(_CONFIG.value, fields)
    return rest
