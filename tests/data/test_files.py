"""Formats, encodings and folders that people have: the same rows of each, or an error that names it."""

import csv
import gzip
import io
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from gvm_jax.data import DataError, Row, load_rows

RECORDS = [{"problem": "1+1?", "answer": "2"}, {"problem": 'Häuser, "3"\nand 4\u2028?', "answer": "7"}]
ROWS = [Row("1+1?", "2"), Row('Häuser, "3"\nand 4\u2028?', "7")]


def lines(records):
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)


def as_csv(records):
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, records[0].keys())
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def write_rows(folder, **problems):
    """Files of one row each, whose problem is given; __ in a name is a folder, its format .jsonl."""
    for name, problem in problems.items():
        file = folder / f"{name.replace('__', '/')}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(lines([{"problem": problem, "answer": 1}]))


def problems_of(path, **arguments):
    return [row.problem for row in load_rows(str(path), **arguments)]


TEXTS = {
    "a.jsonl": lines(RECORDS),
    "lines.json": lines(RECORDS),
    "list.json": json.dumps(RECORDS),
    "indented.json": json.dumps(RECORDS, indent=1, ensure_ascii=False),
    "object.json": json.dumps({"version": "1.0", "tags": ["a"], "data": RECORDS}),
    "indented_object.json": json.dumps({"version": "1.0", "data": RECORDS}, indent=2),
    "a.csv": as_csv(RECORDS),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_every_format_and_encoding_gives_the_same_rows(tmp_path, name, encoding, packed):
    content = TEXTS[name].encode(encoding)
    file = tmp_path / (f"{name}.gz" if packed else name)
    file.write_bytes(gzip.compress(content) if packed else content)
    assert load_rows(str(file)) == ROWS


def test_an_object_that_is_a_row_is_a_row(tmp_path):
    record = {"problem": [{"role": "user", "content": "1+1?"}], "answer": 2}
    for text in (json.dumps(record), json.dumps(record, indent=1)):
        (tmp_path / "a.json").write_text(text)
        assert load_rows(str(tmp_path / "a.json")) == [Row("1+1?", "2")]
    (tmp_path / "a.json").write_text(json.dumps({"train": RECORDS, "test": RECORDS}))
    with pytest.raises(DataError, match=r"'problem' is not a column of .*Columns found: train, test"):
        load_rows(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", "Häuser".encode("latin-1"), "cannot be read as .jsonl: it is neither UTF-8 nor UTF-16"),
        ("a.jsonl.gz", b"not packed", "cannot be read as .jsonl.gz: Not a gzipped file"),
        ("a.csv.gz", gzip.compress(b"problem,answer\n" * 99, mtime=0)[:-9], "as .csv.gz: Compressed file ended"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer .*git lfs pull"),
        ("a.json", b"[" * 100_000, "cannot be read as .json"),
        ("a.parquet.gz", b"", "extension is '.parquet.gz'; allowed are .*.jsonl.gz"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^data.path.*{name}.*{words}"):
        load_rows(str(tmp_path / name))


def test_a_long_field_in_a_column_that_nobody_uses_is_nothing_to_mind(tmp_path):
    long = {"jsonl": {"x": int("9" * 4000), "y": "a" * 300_000}, "csv": {"y": "a" * 300_000}}
    (tmp_path / "a.csv").write_text(as_csv([{**RECORDS[0], **long["csv"]}]), newline="")
    (tmp_path / "a.jsonl").write_text(lines([{**RECORDS[0], **long["jsonl"]}]).replace("9" * 4000, "9" * 5000))
    for name in ("a.csv", "a.jsonl"):
        assert load_rows(str(tmp_path / name)) == ROWS[:1]


def test_a_comma_without_quotes_cuts_no_problem_short(tmp_path):
    (tmp_path / "a.csv").write_text("problem,answer\n" + "1+1?,2\n" * 19 + "What is 1,234 + 1?,1235\n")
    rows = load_rows(str(tmp_path / "a.csv"))
    assert rows[:19] == [Row("1+1?", "2")] * 19 and rows[19].dropped.startswith("more fields than the header")


def test_numbers_are_the_ones_that_the_file_wrote(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"problem": "?", "answer": 1e-07}\n{"problem": "?", "answer": 0.1234567890123456789}\n'
    )
    assert [row.answer for row in load_rows(str(tmp_path / "a.jsonl"))] == ["0.0000001", "0.1234567890123456789"]
    numbers = [72.0, 0.1, 1e-7]
    for kind in (pyarrow.float64(), pyarrow.float32()):
        table = pyarrow.table({"problem": ["?"] * 3, "answer": pyarrow.array(numbers, kind)})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        datasets.Dataset(table).save_to_disk(str(tmp_path / f"saved {kind}"))
        for path in (tmp_path / "a.parquet", tmp_path / f"saved {kind}"):
            assert [row.answer for row in load_rows(str(path))] == ["72", "0.1", "0.0000001"]


def test_folders_that_datasets_saved_are_read(tmp_path):
    train, test = datasets.Dataset.from_list(RECORDS), datasets.Dataset.from_list(RECORDS[:1])
    train.select([1, 0]).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path / "both"))
    assert load_rows(str(tmp_path / "one")) == load_rows(str(tmp_path / "one"), split="test") == ROWS[::-1]
    assert load_rows(str(tmp_path / "both")) == load_rows(str(tmp_path / "both/train")) == ROWS
    assert load_rows(str(tmp_path / "both"), split="test") == load_rows(str(tmp_path), "both", "test") == ROWS[:1]
    with pytest.raises(DataError, match=r"data.split = 'dev': .*both holds the splits train, test"):
        load_rows(str(tmp_path / "both"), split="dev")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"data.path: .*one cannot be read as saved by save_to_disk"):
        load_rows(str(tmp_path / "one"))


README = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: "x/*.jsonl"}
  - {split: dev, path: y/b.jsonl}
- config_name: socratic
  data_files: "y/*.jsonl"
---
A data set.
"""


def test_a_clone_is_read_by_what_its_readme_declares(tmp_path):
    write_rows(tmp_path, x__a="xa", x__b="xb", y__a="ya", y__b="yb")
    (tmp_path / "README.md").write_text(README)
    assert problems_of(tmp_path, subset="main") == ["xa", "xb"]
    assert problems_of(tmp_path, subset="main", split="dev") == ["yb"]
    assert problems_of(tmp_path, subset="socratic") == ["ya", "yb"]
    for subset, words in (("", "Config name is missing"), ("other", "'other' not found")):
        with pytest.raises(
            DataError, match=rf"subsets main, socratic; data.subset = '{subset}' cannot .*{words}"
        ) as raised:
            load_rows(str(tmp_path), subset=subset)
        assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=r"README.md declares .*'main' the splits train, dev; set data.split to one"):
        load_rows(str(tmp_path), subset="main", split="test")


@pytest.mark.parametrize(
    "readme", [None, "No metadata.", "---\nlicense: mit\n---\n", "---\nconfigs:\n- config_name: d\n---\n"]
)
def test_a_clone_without_such_a_readme_is_read_by_the_names_of_files_and_folders(tmp_path, readme):
    write_rows(tmp_path, main__train="m", main__test="t", socratic__train="s", **{"data__d-00000-of-1": "d"})
    (tmp_path / "dataset_infos.json").write_text('{"main": {}, "socratic": {}}')
    write_rows(tmp_path, **{".cache__train": "hidden"})
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert problems_of(tmp_path, subset="main") == ["m"]
    assert problems_of(tmp_path, subset="socratic") == ["s"]
    # Where there is no choice, the hub's name for the subset says nothing.
    assert problems_of(tmp_path, split="test") == problems_of(tmp_path, split="test", subset="x") == ["t"]
    for subset in ("", "x"):
        with pytest.raises(DataError, match=r"'train' is in several folders of it, main, socratic; set data.subset"):
            load_rows(str(tmp_path), subset=subset)


def test_the_one_declared_subset_is_meant_by_every_name(tmp_path):
    write_rows(tmp_path, x__a="xa", y__train="y")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- {config_name: d, data_files: x/*}\n---\n")
    assert problems_of(tmp_path) == problems_of(tmp_path, subset="main") == ["xa"]


def test_files_of_the_folder_itself_go_before_those_below_it(tmp_path):
    write_rows(tmp_path, train="here", old__train="below")
    assert problems_of(tmp_path) == ["here"]


def test_a_readme_that_is_broken_is_named(tmp_path):
    write_rows(tmp_path, train="here")
    for broken in ("[", "5", "[data_files]"):
        (tmp_path / "README.md").write_text(f"---\nconfigs: {broken}\n---\n")
        with pytest.raises(DataError, match=r"data.path = .* its README.md cannot be read"):
            load_rows(str(tmp_path))
