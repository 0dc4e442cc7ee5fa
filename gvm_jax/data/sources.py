"""Reads a data set from files, from the Hugging Face hub or built in, into checked rows (problem, answer)."""

import csv
import difflib
import json
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gvm_jax.data.arithmetic import SPLIT_SIZES, arithmetic_rows
from gvm_jax.data.errors import DataError
from gvm_jax.data.named import NAMED
from gvm_jax.rewards.answers import extract_boxed

NO_BOX = "no \\boxed{} to take the answer from"


class Row(NamedTuple):
    """A problem and its reference answer; a row's place in the data set is its prompt id."""

    problem: str
    answer: str
    dropped: str = ""  # why the row makes no prompt; "" = it does


def load_rows(
    path: str,
    subset: str = "",
    split: str = "train",
    problem_column: str = "problem",
    answer_column: str = "answer",
    answer_after: str = "",
    answer_from: str = "column",
    section: str = "data",
) -> list[Row]:
    r"""Loads a data set and checks every row.

    An answer may be a string, a number (72.0 becomes "72") or a list, of which the first counts, as in the
    evaluation of arXiv 2505.02391. A problem is a text, or a chat, a list of messages with `role` and `content` as
    in verl's files: its last user message. Of a chat nothing else is used; `data.system_prompt` stands in for its
    system message. Problems are kept to the letter; answers lose surrounding space.

    Args:
      path: `builtin:arithmetic`; a .json, .jsonl, .parquet or .csv file; a folder of them; or a hub name.
        What is on disk wins; what looks like a local path but is not there is never looked up on the hub.
      subset: configuration name of a hub data set; "" = its default.
      split: split of a hub or built-in data set. Of a folder, the files whose name holds it as a word are
        read (`train-00000-of-00002.parquet`, `gsm8k_train.jsonl`), in the order of their names; all of them
        if it is "". A single file is read whole.
      problem_column: column with the problem; dots lead into nested ones (`extra_info.question`), numbers into
        lists (`messages.0.content`). A column that has the whole name is taken first.
      answer_column: column with the reference answer, likewise.
      answer_after: keep the answer's text after the last such mark ("####" for GSM8K); "" = all of it.
      answer_from: "column" = that is the answer; "list" = of a list all texts are, a line each; "boxed" = its last
        `\boxed{...}` is. A row without one is marked as dropped, and one without a text is an error.
      section: config section that names the data set, for error messages: "data" or "evaluation".

    Raises:
      DataError: the data set is not there, cannot be read, is empty, lacks a column, or a row has no problem
        or no answer.
    """
    table = _load_table(path, subset, split, section)
    where = f"{section}.path = {path!r}"
    if len(table) == 0:
        raise DataError(f"{where} holds no rows (split {split!r}); at least one is needed.")
    not_evaluation = " (It has the columns of data.path; evaluation.path = '' evaluates nothing.)" * (section != "data")
    for name, column in (("problem_column", problem_column), ("answer_column", answer_column)):
        if _value(table[0], column) is _MISSING:
            raise DataError(
                f"data.{name} = {column!r} is not a column of {where}. Columns found: "
                f"{', '.join(map(str, table[0]))}. First row: {_shorten(table[0])}. Set data.{name} to "
                "one of the columns; dots lead into nested ones." + not_evaluation
            )

    rows = []
    for number, record in enumerate(table):
        try:
            problem = _problem_text(_value(record, problem_column))
            answer = _answer_text(_value(record, answer_column), answer_after, whole_list=answer_from == "list")
        except DataError as error:
            raise DataError(
                f"{where}, row {number} (counted from 0): {error}. Fix or remove the row: {_shorten(record)}"
            ) from None
        if answer_from == "boxed":
            answer = extract_boxed(answer) or ""
        rows.append(Row(problem, answer, "" if answer else NO_BOX))
    return rows


def looks_local(path: str) -> bool:
    """Whether a path that is not there was meant as a local one, by its spelling: /x, ./x, ~/x, x.jsonl."""
    return path.startswith(("/", ".", "~")) or pathlib.Path(path).suffix.lower() in _READERS


def _load_table(path: str, subset: str, split: str, section: str) -> Sequence[dict]:
    """The data set as a sequence of records."""
    local = pathlib.Path(path).expanduser()
    if not path:
        raise DataError(f"{section}.path is empty; name a data set: {_ALLOWED}.")
    if path.startswith("builtin:"):
        if path != "builtin:arithmetic":
            raise DataError(f"{section}.path = {path!r}: the only built-in data set is builtin:arithmetic.")
        if split not in SPLIT_SIZES:
            raise DataError(f"{section}.split = {split!r}: {path} has the splits {', '.join(SPLIT_SIZES)}.")
        return arithmetic_rows(split)
    if local.is_file():
        return _read_file(local, section)
    if local.is_dir():
        return [record for file in _split_files(local, split, section) for record in _read_file(file, section)]
    if looks_local(path):
        raise DataError(f"{section}.path = {path!r}: there is no such file or folder. Allowed: {_ALLOWED}.")
    near = difflib.get_close_matches(path, NAMED, n=1, cutoff=0.8)  # the hub's own names are OWNER/NAME
    if near and path not in NAMED:
        raise DataError(f"{section}.path = {path!r}: no such data set; did you mean {near[0]!r}?")
    return _load_from_hub(path, subset, split, section)


def _split_files(folder: pathlib.Path, split: str, section: str) -> list[pathlib.Path]:
    """The folder's data files of a split; reading all in silence would train on the test split."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _READERS)
    if not files:
        raise DataError(f"{section}.path = {str(folder)!r}: no {', '.join(_READERS)} file in this folder.")
    chosen = [file for file in files if not split or split in re.split(r"[-_.]", file.stem)]
    if not chosen:
        raise DataError(
            f"{section}.split = {split!r}: no file of the folder {str(folder)!r} has this word in its name. "
            f"Files found: {', '.join(file.name for file in files)}. Set {section}.split to a word in the "
            f"names, or {section}.path to one file."
        )
    return chosen


def _read_file(file: pathlib.Path, section: str) -> list[dict]:
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(
            f"{section}.path = {str(file)!r}: the file's extension is {file.suffix!r}; allowed are "
            f"{', '.join(_READERS)}."
        )
    try:
        return reader(file)
    except DataError as error:
        raise DataError(f"{section}.path: {error}") from None
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's and the decoder's errors are ValueErrors
        raise DataError(f"{section}.path: {file} cannot be read as {file.suffix}: {error}") from error


def _read_json(file: pathlib.Path) -> list[dict]:
    """One list of objects, or one object a line; .json files come as both."""
    text = file.read_text(encoding="utf-8-sig")
    is_list = text.lstrip().startswith("[")
    chunks = [text] if is_list else text.split("\n")
    rule = "one JSON object a line, or one list of objects, is allowed"
    records = []
    for number, chunk in enumerate(chunks, start=1):
        if not chunk.strip():
            continue
        try:
            parsed = json.loads(chunk)
        except json.JSONDecodeError as error:
            line = number + error.lineno - 1
            raise DataError(f"{file}, line {line}: malformed JSON ({error.msg}); {rule}") from None
        for record in parsed if is_list else [parsed]:
            if not isinstance(record, dict):
                raise DataError(f"{file}, row {len(records)} (counted from 0) is {_kind(record)}; {rule}")
            records.append(record)
    return records


def _read_parquet(file: pathlib.Path) -> list[dict]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file).to_pylist()


def _read_csv(file: pathlib.Path) -> list[dict]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream, strict=True))


def _load_from_hub(path: str, subset: str, split: str, section: str) -> Sequence[dict]:
    import datasets

    try:
        return datasets.load_dataset(path, subset or None, split=split)
    except Exception as error:  # datasets raises many kinds: no network, no such name, subset or split, gated
        reason = "is not reachable" if isinstance(error, ConnectionError) else "could not give it"
        names = f" Known by name: {', '.join(NAMED)}." if "/" not in path else ""
        raise DataError(
            f"{section}.path = {path!r} (subset {subset!r}, split {split!r}) is not on disk, and the Hugging "
            f"Face hub {reason}: {type(error).__name__}: {error}. Check the name, {section}.subset, "
            f"{section}.split and the network; a local {', '.join(_READERS)} file needs none.{names}"
        ) from error


def _value(record: dict, column: str) -> object:
    """What a column holds, its own or a nested one; `_MISSING` if there is none."""
    if column in record:
        return record[column]
    value: object = record
    for part in column.split("."):
        if isinstance(value, list) and part.isdecimal():
            value = dict(enumerate(value)).get(int(part), _MISSING)
        else:
            value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
    return value


def _problem_text(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        said = [message.get("content") for message in value if message.get("role") == "user"]
        if not said:
            raise DataError("the problem is a chat without a message of the role 'user'")
        value = said[-1]
    if not isinstance(value, str):
        raise DataError(f"the problem is not text but {_kind(value)}")
    if not value.strip():
        raise DataError("the problem is empty")
    return value


def _answer_text(value: object, answer_after: str, whole_list: bool) -> str:
    if isinstance(value, list | tuple) and value:
        if whole_list and all(isinstance(item, str) for item in value):
            value = "\n".join(value)
        else:
            value = value if whole_list else value[0]
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
    elif isinstance(value, float) and math.isfinite(value):
        text = str(int(value)) if value.is_integer() else repr(value)
    elif isinstance(value, str):
        text = value
    else:
        raise DataError(f"the answer is {_kind(value)}; a string, a number or a list of them is allowed")
    if answer_after:
        _, mark, text = text.rpartition(answer_after)
        if not mark:
            raise DataError(f"the answer lacks the mark of data.answer_after = {answer_after!r}")
    if not text.strip():
        raise DataError("the answer is empty")
    return text.strip()


def _kind(value: object) -> str:
    if value is None or value is _MISSING:
        return "null" if value is None else "missing"
    return f"{str(value)[:80]!r} ({type(value).__name__})"


def _shorten(record: dict) -> str:
    """The record on one line, long values cut."""
    values = {key: str(value) for key, value in record.items()}
    return ", ".join(f"{key}: {text if len(text) <= 80 else text[:79] + '…'!r}" for key, text in values.items())


_MISSING = object()  # unlike null, which a column may hold
_READERS: dict[str, Callable[[pathlib.Path], list[dict]]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
_ALLOWED = (
    f"a {', '.join(_READERS)} file, a folder of them, a hub name such as openai/gsm8k, builtin:arithmetic, "
    f"or one of {', '.join(NAMED)}"
)
