"""What the commands share: the flags --config and --workdir, their help, one line for an error, and the exit codes.

How every command ends, and the scripts of tpu_scripts/ too:

- 0: it has done what it was asked.
- 2: it was asked for what it cannot do: a flag, the config, an environment variable, or data, a model or a folder that
  one of them names is refused (`InputError`). The same command would be refused again; the line says what to mend.
- 1: it was asked rightly, and failed: a disk, a network, numbers that are not finite, the verifier on too many answers;
  with a traceback, a defect of this program. `plan` ends with 1 where the config does not fit.
- 75: another process of the run is missing or failed, and says why itself.
- 130 and 143: it was interrupted, or told to stop; the same command goes on.
"""

import contextlib
import difflib
import functools
import logging
import os
import pathlib
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from gvm_jax.config import RULES, ConfigError, hint
from gvm_jax.errors import InputError
from gvm_jax.runtime.workdir import workdir_path

REFUSED = 2  # exit code
INTERRUPTED = 130  # likewise, as shells have it

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, or file.py:argument.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, or gs://BUCKET/FOLDER for training; default: of runs/, by the config's name."
)
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull", "-helpshort", "-helpfull"}
_FIELD = (
    "--config.FIELD=VALUE",
    "Sets a field of the config, which gvm_jax/config/defaults.py explains. May be repeated.",
)


def run(
    main: Callable[[], None], required: Sequence[str] = ("config",), shared: Sequence[str] = ("config", "workdir")
) -> None:
    """Parses the flags, then calls `main`. Ends with `REFUSED` where they are wrong.

    Args:
      main: of the command's module, whose docstring and own flags --help shows.
      required: flags that must be given.
      shared: which of this module's flags the command has.
    """
    for name in {"config", "workdir"} - set(shared):
        delattr(flags.FLAGS, name)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself, and absl would again

    def interruptible(_) -> None:
        try:
            main()
        except KeyboardInterrupt:  # a second one, or one where nothing is to be saved
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)

    flags.mark_flags_as_required(list(required))
    app.run(interruptible, flags_parser=functools.partial(_parse, main, required))


def fail(message: str) -> NoReturn:
    """Ends the command for a mistake in what it was given."""
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
    return _CONFIG.value


def config_path() -> str:
    """What --config is, argument and all."""
    return config_flags.get_config_filename(flags.FLAGS["config"])


def config_name() -> str:
    """`configs/quickstart.py:raft` -> `quickstart-raft`."""
    return name_of(config_path())


def name_of(path: str) -> str:
    """The name of a config by what --config is."""
    path, _, argument = path.partition(":")
    name = pathlib.Path(path).stem
    return f"{name}-{argument}" if argument else name


def given_workdir() -> str | None:
    """What --workdir is."""
    return _WORKDIR.value


def workdir(prefix: str = "") -> str:
    """--workdir, or runs/ with the prefix and the config's name. Ends the command where it can be none."""
    found = _WORKDIR.value or f"runs/{prefix}{config_name()}"
    try:
        workdir_path(found)
    except ConfigError as error:
        fail(str(error))
    return found


def help_text(main: Callable[[], None], required: Sequence[str]) -> str:
    """What --help prints: the docstring of the command's module, which has an example, and its flags."""
    module = main.__module__
    own = flags.FLAGS.get_flags_for_module(sys.argv[0] if module == "__main__" else module)
    shared = [flags.FLAGS[name] for name in ("config", "workdir") if name in flags.FLAGS]
    flag_list = sorted([*shared, *own], key=lambda flag: flag.name not in required)  # required ones first
    rows = [(_shown(flag), _meaning(flag, flag.name in required)) for flag in flag_list]
    if "config" in flags.FLAGS:
        rows.insert(1, _FIELD)
    lines = [sys.modules[module].__doc__.strip(), "", "flags:"]
    for shown, meaning in rows:
        wrapped = textwrap.wrap(meaning, width=86)
        first = [f"  {shown}"] if len(shown) > 26 else []
        start = f"  {'' if first else shown:26}  "
        lines += [*first, start + wrapped[0], *(" " * 30 + line for line in wrapped[1:])]
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


def _parse(main: Callable[[], None], required: Sequence[str], argv: list[str]) -> list[str]:
    if _HELP & set(argv):
        print(help_text(main, required))
        sys.exit(0)
    given = ""
    if "config" in flags.FLAGS:
        _check_fields(argv[1:])
        given = _given_config(argv)
    if not given and any(re.match(r"--?(no)?config\.", argument) for argument in argv[1:]):
        fail(
            "--config is missing, whose field is to be set: give --config=configs/quickstart.py; --help lists the flags"
        )
    if given and not (file := pathlib.Path(given.partition(":")[0])).is_file():
        fail(f"--config={given}: no such file; {_file_hint(file)}")
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, OSError) as error:  # OSError: relative paths are relative to the folder it is run from
        fail(_of_config_file(error, argv) or _reason(str(error)))
    except Exception as error:
        # The config file is run here, so this may be anything.
        if problem := _of_config_file(error, argv):
            fail(problem)
        raise
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; options are written --name=value")
    if "workdir" in flags.FLAGS and _WORKDIR.value == "":
        fail("--workdir= is empty; name a folder, or leave the flag out for runs/ and the config's name")
    return rest


def _check_fields(arguments: Sequence[str]) -> None:
    """Ends the command for a --config.FIELD flag that names no field."""
    for argument in arguments:
        if not (flag := re.match(r"--?(no)?config\.([^=\[]+)", argument)):
            continue
        name = flag[2]
        if fields := [f"--config.{field}" for field in RULES if field.startswith(f"{name}.")]:
            fail(f"--config.{name}: a section; set a field of it, such as {fields[0]}={argument.partition('=')[2]}")
        if name not in RULES:
            fail(f"--config.{name}: no such field; {hint(name, '--config.')}")


def _file_hint(path: pathlib.Path) -> str:
    """What to do about a config file that is not there."""
    folder = path.parent if path.parent.is_dir() else pathlib.Path("configs")
    near = difflib.get_close_matches(str(path), map(str, folder.glob("*.py")), n=1)
    return f"did you mean {near[0]}?" if near else "name one of configs/ or one of your own"


def _of_config_file(error: BaseException, argv: Sequence[str]) -> str | None:
    """One line for an error that loading the config file raised, with file and line; None for another error."""
    given = _given_config(argv)
    path, _, argument = given.partition(":")
    for raised in _chain(error):
        if isinstance(raised, SyntaxError):
            return f"{raised.filename}, line {raised.lineno}: {raised.msg}"
        frames = traceback.extract_tb(raised.__traceback__)
        reason = _words(raised)
        if inside := [frame for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(path)]:
            if isinstance(raised, ConfigError):  # it says all itself
                return f"--config={given}: {raised}"
            return f"{path}, line {inside[-1].lineno}: {_reason_inside(raised, reason, inside[-1].line or '')}"
        if "get_config" in reason and isinstance(raised, AttributeError):
            return f"--config={given}: the file defines no get_config(), which returns the config"
        if reason.startswith("get_config() ") and isinstance(raised, TypeError):
            return f"--config={given}: its get_config() does not fit the argument {argument!r}; {reason}"
    return None


def _words(error: BaseException) -> str:
    """The error's message in one line; ml_collections puts one error into another."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    return " ".join(str(error.args[0] if error.args else error).split())


def _given_config(argv: Sequence[str]) -> str:
    """What --config is by the arguments, before they are parsed; "" where it is not among them."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if flag := re.fullmatch(r"--?config(?:=(.*))?", argument):
            return following if flag[1] is None else flag[1]
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, the one it was raised from, and so on: absl and ml_collections wrap what a config file raises."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason_inside(error: BaseException, reason: str, line: str) -> str:
    """What is wrong in a line of a config file."""
    key = re.match(r"""(?:Key )?["'](\w+)["']""", reason)
    if key and isinstance(error, AttributeError | KeyError):
        written = re.search(rf"\.((?:\w+\.)*{key[1]})\b", line)
        name = written[1] if written else key[1]
        return f"the config has no field {name}; {hint(name)}"
    if isinstance(error, ModuleNotFoundError) and error.name == "configs":
        reason += "; run the command in the checkout's folder"
    return f"{type(error).__name__}: {reason}"


def _reason(message: str) -> str:
    """absl's message in one line, with what to do about it."""
    if missing := re.match(r"flag --(\w+)=None: ", message):
        example = {"config": "configs/quickstart.py"}.get(missing[1], "VALUE")
        return f"--{missing[1]} is missing: give --{missing[1]}={example}; --help lists the flags"
    if (field := re.match(r"flag --config\.([\w.]+)=.*?: ", message, re.DOTALL)) and field[1] in RULES:
        return f"{field[0].removeprefix('flag ')}must be {RULES[field[1]].allowed}"
    flag, _, reason = message.removeprefix("flag ").partition(": ")
    return " ".join((f"{flag}: {reason}" if message.startswith("flag --") else message).split())
