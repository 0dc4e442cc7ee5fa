"""What the commands share: the flags --config and --workdir, and one line for every error in a flag."""

import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

WRONG_FLAGS = 2  # exit code

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, or file.py:argument.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, or gs://BUCKET/FOLDER for training; default: of runs/, by the config's name."
)
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull", "-helpshort", "-helpfull"}


def run(main: Callable[[], None], required: Sequence[str] = ("config",)) -> None:
    """Parses the flags, then calls `main`. Ends with `WRONG_FLAGS` where they are wrong."""
    flags.mark_flags_as_required(list(required))
    app.run(lambda _: main(), flags_parser=_parse)


def fail(message: str) -> NoReturn:
    """Ends the command for a mistake in its flags."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(WRONG_FLAGS)


def config() -> ConfigDict:
    """The config of --config with the fields that --config.FIELD=VALUE set."""
    return _CONFIG.value


def config_path() -> str:
    """What --config is, argument and all."""
    return config_flags.get_config_filename(flags.FLAGS["config"])


def config_name() -> str:
    """`configs/quickstart.py:raft` -> `quickstart-raft`."""
    path, _, argument = config_path().partition(":")
    name = pathlib.Path(path).stem
    return f"{name}-{argument}" if argument else name


def given_workdir() -> str | None:
    """What --workdir is."""
    return _WORKDIR.value


def workdir(prefix: str = "") -> str:
    """--workdir, or runs/ with the prefix and the config's name."""
    return _WORKDIR.value or f"runs/{prefix}{config_name()}"


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:
        sys.exit(0 if _HELP & set(argv) else WRONG_FLAGS)
    except flags.Error as error:
        fail(_reason(str(error)))
    except (AttributeError, KeyError) as error:
        while error.args and isinstance(error.args[0], Exception):  # ml_collections wraps one in another
            error = error.args[0]
        reason = " ".join(str(error.args[0]).split())
        fail(f"a --config.FIELD flag names no field: {reason} (configs/default.py lists the fields)")
    except OSError as error:  # relative paths are relative to the folder it is run from
        fail(f"--config: {_last_line(str(error))}; name a file of configs/ or one of your own")
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; options are written --name=value")
    if _CONFIG.value is not None and not pathlib.Path(config_path().partition(":")[0]).is_file():
        fail(f"--config={config_path()}: no such file; name one of configs/ or one of your own")
    if _WORKDIR.value == "":
        fail("--workdir= is empty; name a folder, or leave the flag out for runs/ and the config's name")
    return rest


def _reason(message: str) -> str:
    """absl's message, or the last line of the traceback of a config file that is in it."""
    if missing := re.match(r"flag --(\w+)=None: ", message):
        example = {"config": "configs/quickstart.py"}.get(missing[1], "VALUE")
        return f"--{missing[1]} is missing: give --{missing[1]}={example}; --help lists the flags"
    if not message.startswith("flag --"):
        return " ".join(message.split())
    flag, _, reason = message.removeprefix("flag ").partition(": ")
    return f"{flag}: {_last_line(reason) if 'Traceback' in reason else ' '.join(reason.split())}"


def _last_line(message: str) -> str:
    line = message.strip().splitlines()[-1].strip()
    return re.sub(r"^[\w.]*(Error|Exception): ", "", line)
