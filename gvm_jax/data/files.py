"""Reads the records of data files and of folders of them, without a look at their columns."""

import csv
import gzip
import io
import json
import pathlib
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING

from gvm_jax.data.errors import DataError, names

if TYPE_CHECKING:
    import datasets
    import pyarrow

_SAVED = ("dataset_dict.json", "state.json")  # one of them is in a folder that `datasets` saved
_LFS_POINTER = b"version https://git-lfs"


def is_data_file(path: str | pathlib.PurePath) -> bool:
    """Whether the name ends as that of a file that can be read."""
    return _extension(path) in _READERS


def read_file(file: pathlib.Path, section: str) -> Iterator[dict]:
    """The records of a file in the format that its name tells; `section` of the config names it, for messages.

    Raises:
      DataError: an unknown format, or a file that cannot be read.
    """
    extension = _extension(file)
    if extension not in _READERS:
        raise DataError(
            f"{section}.path = {str(file)!r}: the file's extension is {extension!r}; allowed are {', '.join(_READERS)}."
        )
    try:
        with file.open("rb") as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise DataError(f"{file} is a Git LFS pointer in place of the data; get that with git lfs pull")
        yield from _READERS[extension](file)
    except DataError as error:
        raise DataError(f"{section}.path: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{section}.path: {file} cannot be read as {extension}: it is neither UTF-8 nor UTF-16 ({error})"
        ) from error
    # pyarrow's errors are ValueErrors or of the kind NotImplementedError.
    except (ValueError, OSError, EOFError, RecursionError, NotImplementedError, csv.Error, zlib.error) as error:
        raise DataError(f"{section}.path: {file} cannot be read as {extension}: {error}") from error


def read_folder(folder: pathlib.Path, subset: str, split: str, section: str) -> Iterator[dict]:
    """The records of a folder.

    Of a folder that `datasets` saved (`save_to_disk`), those of the split, or all if it holds one alone. Of a clone of
    a hub data set, those of the files that its README.md declares for subset and split. Of any other folder, those of
    the files that have the split as a word of their path (`train-00000-of-00002.parquet`, `test/part1.jsonl`), in the
    order of their names: files of the folder itself, or, if none is meant, those of one folder below it. The subset is
    the name of such a folder; where there is no choice, it is not looked at.

    Raises:
      DataError: no file is meant, or files of several folders are.
    """
    base = folder / subset if subset and (folder / subset).is_dir() else folder
    if any((base / name).is_file() for name in _SAVED):
        return _read_saved(base, split, section)
    files = _declared_files(folder, subset, split, section) or _named_files(folder, base, split, section)
    return (record for file in files for record in read_file(file, section))


def records_of(dataset: "datasets.Dataset") -> Iterator[dict]:
    """The records of a data set of the hub's library."""
    for table in dataset.with_format("arrow").iter(batch_size=1000):  # no image or sound is decoded
        yield from _records(table)


def _extension(path: str | pathlib.PurePath) -> str:
    suffixes = [suffix.lower() for suffix in pathlib.PurePath(path).suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _read_saved(folder: pathlib.Path, split: str, section: str) -> Iterator[dict]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # of pyarrow, json and datasets
        raise DataError(f"{section}.path: {folder} cannot be read as saved by save_to_disk: {error}") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(f"{section}.split = {split!r}: {folder} holds the splits {names(saved)}; name one of them.")
        saved = saved[split]
    return records_of(saved)


def _declared_files(folder: pathlib.Path, subset: str, split: str, section: str) -> list[pathlib.Path]:
    """The files that a hub data set's README.md declares for a subset and a split; none if it declares none."""
    readme = folder / "README.md"
    if not readme.is_file() or not readme.read_bytes().startswith(b"---"):
        return []
    import datasets
    import huggingface_hub

    try:
        declared = huggingface_hub.DatasetCard.load(readme).data.get("configs") or []
        subsets = [str(one["config_name"]) for one in declared if "data_files" in one]
    except Exception as error:  # YAML's own, and what a list of other things raises
        raise DataError(f"{section}.path = {str(folder)!r}: its README.md cannot be read: {_line(error)}") from error
    if not subsets:
        return []
    where = f"{section}.path = {str(folder)!r}: its README.md declares the subsets {names(subsets)}"
    chosen = subsets[0] if len(subsets) == 1 else subset or None
    try:
        files = datasets.load_dataset_builder(str(folder), chosen).config.data_files
    except Exception as error:  # datasets raises many kinds: no subset is meant, no such one, no such file
        raise DataError(f"{where}; {section}.subset = {subset!r} cannot be had of it: {_line(error)}") from error
    if split not in files:
        raise DataError(f"{where}, and of {chosen!r} the splits {names(files)}; set {section}.split to one of these.")
    return [pathlib.Path(file) for file in files[split]]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _named_files(folder: pathlib.Path, base: pathlib.Path, split: str, section: str) -> list[pathlib.Path]:
    """The data files of a split by their names; reading all in silence would train on the test split."""
    files = [
        file
        for file in sorted(base.rglob("*"))
        if is_data_file(file) and not any(part.startswith(".") for part in file.relative_to(base).parts)
    ]
    if not files:
        raise DataError(f"{section}.path = {str(base)!r}: no {EXTENSIONS} file in this folder or below it.")
    meant = [file for file in files if split in re.split(r"[-_./\\]", str(file.relative_to(folder)))]
    meant = [file for file in meant if file.parent == base] or meant
    if not meant:
        raise DataError(
            f"{section}.split = {split!r}: no file of the folder {str(base)!r} has this word in its name. "
            f"Files found: {names(file.relative_to(base) for file in files)}. Set {section}.split to a word in the "
            f"names, or {section}.path to one file."
        )
    folders = sorted({str(file.parent.relative_to(folder)) for file in meant})
    if len(folders) > 1:
        raise DataError(
            f"{section}.path = {str(folder)!r}: the split {split!r} is in several folders of it, {names(folders)}; set "
            f"{section}.subset to one of them."
        )
    return meant


def _text(file: pathlib.Path) -> str:
    content = file.read_bytes()
    if file.suffix.lower() == ".gz":
        content = gzip.decompress(content)
    return content.decode(json.detect_encoding(content))


def _read_json(file: pathlib.Path) -> list[dict]:
    """One object a line, one list of objects, or one object; .json files come as any of them."""
    rule = "one JSON object a line, one list of objects, or one object with such a list is allowed"
    text, values = _text(file), []
    chunks: Iterable[tuple[int, str]] = enumerate(text.split("\n"), start=1)
    for number, chunk in chunks:
        if not chunk.strip():
            continue
        try:
            values.append(_parse(chunk))
        except json.JSONDecodeError as error:
            if not values:  # the first line is no value of its own: the file is one value
                break
            raise DataError(f"{file}, line {number}: malformed JSON ({error.msg}); {rule}") from None
    if not values and text.strip():
        try:
            values = [_parse(text)]
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, line {error.lineno}: malformed JSON ({error.msg}); {rule}") from None
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            shown = f"{str(value)[:80]!r} ({type(value).__name__})"
            raise DataError(f"{file}, row {number} (counted from 0) is {shown}; {rule}")
    return values


def _parse(text: str) -> object:
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)  # all digits that the file wrote


def _read_parquet(file: pathlib.Path) -> Iterator[dict]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
        yield from _records(pyarrow.Table.from_batches([batch]))


def _read_csv(file: pathlib.Path) -> list[dict]:
    csv.field_size_limit(sys.maxsize)
    return list(csv.DictReader(io.StringIO(_text(file), newline=""), strict=True))


def _records(table: "pyarrow.Table") -> list[dict]:
    import pyarrow

    short = (pyarrow.float16(), pyarrow.float32())  # whose 0.1 Python would show as 0.10000000149
    for place, field in enumerate(table.schema):
        if field.type in short:
            table = table.set_column(place, field.name, table[place].cast(pyarrow.string()).cast(pyarrow.float64()))
    return table.to_pylist()


_READERS: dict[str, Callable[[pathlib.Path], Iterable[dict]]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
EXTENSIONS = ", ".join(_READERS)
_READERS |= {f"{extension}.gz": reader for extension, reader in _READERS.items() if extension != ".parquet"}
