"""Reads a data set from files, from the Hugging Face hub or built in, into checked rows (problem, answer)."""

import difflib
import itertools
import math
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from gvm_jax.data.arithmetic import SPLIT_SIZES, arithmetic_rows
from gvm_jax.data.errors import DataError, by_reason, describe_reasons
from gvm_jax.data.files import EXTENSIONS, is_data_file, read_file, read_folder, records_of
from gvm_jax.data.named import NAMED
from gvm_jax.data.values import MISSING, BadRowError, answer_text, lookup, problem_text
from gvm_jax.rewards.answers import extract_boxed

if TYPE_CHECKING:
    import datasets

NO_BOX = "no \\boxed{} to take the answer from"
MOST_BAD = 0.05  # of the rows, rounded up to a whole one, may be bad and dropped
_HEAD = 1000  # rows that are looked at for a column


class Row(NamedTuple):
    """A problem and its reference answer; a row's place in the data set is its prompt id."""

    problem: str  # "" of a bad row without one
    answer: str  # "" of a row without one
    dropped: str = ""  # why the row makes no prompt; "" = it does


def load_rows(
    path: str,
    subset: str = "",
    split: str = "train",
    problem_column: str = "problem",
    answer_column: str = "answer",
    answer_after: str = "",
    answer_from: str = "column",
    bad_rows: str = "drop",
    section: str = "data",
) -> list[Row]:
    r"""Loads a data set and checks every row.

    An answer may be a string, a number (72.0 becomes "72"), true or false, a chat, which ends with it, or a list, of
    which the first counts, as in the evaluation of arXiv 2505.02391. A problem is a text, or a chat, a list of messages
    with `role` and `content` as in verl's files: its last user message. Of a chat nothing else is used;
    `data.system_prompt` stands in for its system message. Problems are kept to the letter; answers lose surrounding
    space.

    A row is bad if its problem or answer is null, missing, empty or no text, or lacks the mark of `answer_after`. One
    without a box is dropped too but not bad, nor is one whose answer the verifier cannot read: some data sets hold many
    proofs, so `MOST_BAD` is no bound for them.

    Args:
      path: `builtin:arithmetic`; a .json, .jsonl, .parquet or .csv file (all but Parquet also with .gz); a folder of
        them, saved by `save_to_disk` or cloned from the hub; or a hub name. What is on disk wins; what looks like a
        local path but is not there is never looked up on the hub.
      subset: configuration name of a hub data set, or of its clone; "" = its default.
      split: split of a hub or built-in data set, or of a folder, as `read_folder` finds it. A file is read whole.
      problem_column: column with the problem; dots lead into nested ones (`extra_info.question`), numbers into
        lists (`messages.0.content`). A column that has the whole name is taken first.
      answer_column: column with the reference answer, likewise.
      answer_after: keep the answer's text after the last such mark ("####" for GSM8K); "" = all of it.
      answer_from: "column" = that is the answer; "list" = of a list all texts are, a line each; "boxed" = its last
        `\boxed{...}` is. A row without one is marked as dropped.
      bad_rows: "drop" = bad rows are marked as dropped, up to `MOST_BAD`; "error" = one is an error.
      section: config section that names the data set, for error messages: "data" or "evaluation".

    Raises:
      DataError: the data set is not there, cannot be read, is empty, lacks a column, or has (too many) bad rows.
    """
    table = _load_table(path, subset, split, section)
    head = list(itertools.islice(table, _HEAD))
    if len(head) == 1:
        head = _unwrapped(head[0], problem_column)
    where = f"{section}.path = {path!r}"
    if not head:
        raise DataError(f"{where} holds no rows (split {split!r}); at least one is needed.")
    not_evaluation = " (It has the columns of data.path; evaluation.path = '' evaluates nothing.)" * (section != "data")
    for name, column in (("problem_column", problem_column), ("answer_column", answer_column)):
        if all(lookup(record, column) is MISSING for record in head):
            raise DataError(
                f"data.{name} = {column!r} is not a column of {where}. Columns found: "
                f"{', '.join(map(str, head[0]))}. First row: {_shorten(head[0])}. Set data.{name} to "
                "one of the columns; dots lead into nested ones." + not_evaluation
            )

    rows, bad, example = [], {}, None
    for number, record in enumerate(itertools.chain(head, table)):
        row, is_bad = _read_row(record, problem_column, answer_column, answer_after, answer_from)
        rows.append(row)
        if is_bad:
            bad[number] = row.dropped
            example = example or record
    if len(bad) > (math.ceil(MOST_BAD * len(rows)) if bad_rows == "drop" else 0):
        number, reason = next(iter(bad.items()))
        reasons = by_reason(bad)
        why = ", since more of them point to a wrong file or field" if bad_rows == "drop" else ""
        raise DataError(
            f"{where}, row {number} (counted from 0): {reason}. Fix or remove the row: {_shorten(example)}. "
            f"Bad rows, of {len(rows):,}: {describe_reasons(reasons)}. Where problem and answer are in a row is set by "
            f"the fields of data; data.bad_rows = 'drop' leaves out up to {MOST_BAD:.0%} of bad rows{why}."
        )
    return rows


def looks_local(path: str) -> bool:
    """Whether a path that is not there was meant as a local one, by its spelling: /x, ./x, ~/x, x.jsonl."""
    return path.startswith(("/", ".", "~")) or is_data_file(path)


def _read_row(
    record: dict, problem_column: str, answer_column: str, answer_after: str, answer_from: str
) -> tuple[Row, bool]:
    """The row, and whether it is bad."""
    problem = ""
    try:
        if None in record:  # csv.DictReader's place for what has no column: part of an unquoted text, most likely
            raise BadRowError("more fields than the header has columns; a comma in a text wants quotes")
        problem = problem_text(lookup(record, problem_column))
        answer = answer_text(lookup(record, answer_column), answer_after, whole_list=answer_from == "list")
    except BadRowError as error:
        return Row(problem, "", str(error)), True
    if answer_from == "boxed":
        answer = extract_boxed(answer) or ""
    return Row(problem, answer, "" if answer else NO_BOX), False


def _unwrapped(record: dict, problem_column: str) -> list[dict]:
    """The rows of a file of one object: itself, or, where that is no row, its one list of objects."""
    lists = [value for value in record.values() if isinstance(value, list) and all(isinstance(v, dict) for v in value)]
    return lists[0] if lookup(record, problem_column) is MISSING and len(lists) == 1 else [record]


def _load_table(path: str, subset: str, split: str, section: str) -> Iterator[dict]:
    """The data set's records."""
    local = pathlib.Path(path).expanduser()
    if not path:
        raise DataError(f"{section}.path is empty; name a data set: {_ALLOWED}.")
    if path.startswith("builtin:"):
        if path != "builtin:arithmetic":
            raise DataError(f"{section}.path = {path!r}: the only built-in data set is builtin:arithmetic.")
        if split not in SPLIT_SIZES:
            raise DataError(f"{section}.split = {split!r}: {path} has the splits {', '.join(SPLIT_SIZES)}.")
        return iter(arithmetic_rows(split))
    if local.is_file():
        return read_file(local, section)
    if local.is_dir():
        return read_folder(local, subset, split, section)
    if looks_local(path):
        raise DataError(f"{section}.path = {path!r}: there is no such file or folder. Allowed: {_ALLOWED}.")
    near = difflib.get_close_matches(path, NAMED, n=1, cutoff=0.8)  # the hub's own names are OWNER/NAME
    if near and path not in NAMED:
        raise DataError(f"{section}.path = {path!r}: no such data set; did you mean {near[0]!r}?")
    return records_of(_load_from_hub(path, subset, split, section))


def _load_from_hub(path: str, subset: str, split: str, section: str) -> "datasets.Dataset":
    import datasets

    try:
        return datasets.load_dataset(path, subset or None, split=split)
    except Exception as error:  # datasets raises many kinds: no network, no such name, subset or split, gated
        reason = "is not reachable" if isinstance(error, ConnectionError) else "could not give it"
        names = f" Known by name: {', '.join(NAMED)}." if "/" not in path else ""
        raise DataError(
            f"{section}.path = {path!r} (subset {subset!r}, split {split!r}) is not on disk, and the Hugging "
            f"Face hub {reason}: {type(error).__name__}: {error}. Check the name, {section}.subset, "
            f"{section}.split and the network; a local {EXTENSIONS} file needs none.{names}"
        ) from error


def _shorten(record: dict) -> str:
    """The record on one line, long values cut."""
    values = {key: str(value) for key, value in record.items()}
    return ", ".join(f"{key}: {text if len(text) <= 80 else text[:79] + '…'!r}" for key, text in values.items())


_ALLOWED = (
    f"a {EXTENSIONS} file, a folder of them, a hub name such as openai/gsm8k, builtin:arithmetic, "
    f"or one of {', '.join(NAMED)}"
)
