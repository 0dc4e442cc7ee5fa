import json
import re

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from gvm_jax.data import DataError, Row, load_rows
from gvm_jax.data.sources import NO_BOX

RECORDS = [{"problem": "1+1?", "answer": "2"}, {"problem": 'Häuser, "3"\nand 4\u2028?', "answer": "7"}]
ROWS = [Row("1+1?", "2"), Row('Häuser, "3"\nand 4\u2028?', "7")]


def write_lines(path, records):
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return str(path)


def write_parquet(path, records):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)


@pytest.fixture
def no_hub(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", refuse)


def test_a_folder_is_read_by_split_in_the_order_of_names(tmp_path):
    write_lines(tmp_path / "train-00001-of-2.jsonl", [{"problem": "b", "answer": 1}])
    write_lines(tmp_path / "train-00000-of-2.jsonl", [{"problem": "a", "answer": 1}])
    write_lines(tmp_path / "my_test.jsonl", [{"problem": "c", "answer": 1}])
    write_lines(tmp_path / "notrain.jsonl", [{"problem": "d", "answer": 1}])
    (tmp_path / "train.md").write_text("not data")
    problems = {split: [row.problem for row in load_rows(str(tmp_path), split=split)] for split in ("train", "test")}
    assert problems == {"train": ["a", "b"], "test": ["c"]}
    with pytest.raises(DataError, match=r"data.split = 'dev'.*my_test.jsonl"):
        load_rows(str(tmp_path), split="dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no .json, .jsonl, .parquet, .csv file"):
        load_rows(str(tmp_path / "empty"))


def test_a_local_path_wins_over_the_hub(tmp_path, monkeypatch, no_hub):
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    write_lines(tmp_path / "openai" / "gsm8k" / "train.jsonl", RECORDS)
    monkeypatch.chdir(tmp_path)
    assert load_rows("openai/gsm8k") == ROWS


@pytest.mark.parametrize(
    "path", ["/no/where", "./nowhere", "../nowhere", "~/no-such-folder", "data/rows.jsonl", "x.csv"]
)
def test_what_looks_local_but_is_not_there_is_never_looked_up_on_the_hub(path, no_hub):
    with pytest.raises(DataError, match=r"evaluation.path = .*no such file or folder"):
        load_rows(path, section="evaluation")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("math5000", "data.path = 'math5000': no such data set; did you mean 'math500'\\?"),
        ("", "data.path is empty"),
        ("rows.txt", "'.txt'; allowed are .json"),
    ],
)
def test_other_paths_that_name_no_data_are_errors_too(tmp_path, monkeypatch, no_hub, path, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").touch()
    with pytest.raises(DataError, match=words):
        load_rows(path)


def test_a_hub_name_is_loaded_with_its_subset_and_split(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"question": "1+1?", "answer": "so\n#### 2"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = load_rows("openai/gsm8k", "main", "test", problem_column="question", answer_after="####")
    assert rows == [Row("1+1?", "2")]
    load_rows("openai/gsm8k", problem_column="question")
    assert asked == [
        (("openai/gsm8k", "main"), {"split": "test"}),
        (("openai/gsm8k", None), {"split": "train"}),
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("Couldn't reach it"), "is not reachable.*Couldn't reach it"),
        (ValueError('Unknown split "x"'), "could not give it.*Unknown split"),
    ],
)
def test_a_hub_that_fails_is_an_error_that_names_the_way_without_it(monkeypatch, error, words):
    def load_dataset(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=rf"data.path = 'some/name'.*{words}.*a local .json"):
        load_rows("some/name")


BAD = [
    ({"answer": None}, "the answer is null"),
    ({}, "the answer is missing"),
    ({"answer": " \n"}, "the answer is empty"),
    ({"answer": {"a": 1}}, "the answer is neither text nor number but an object"),
    ({"answer": "5 ####"}, "the answer is empty"),
    ({"answer": "5"}, "the answer lacks the mark of data.answer_after = '####'"),
    ({"answer": "#### \udc80"}, "the answer holds a lone surrogate (\\ud800 to \\udfff), which is no character"),
    ({"problem": None, "answer": "#### 5"}, "the problem is null"),
    ({"problem": "", "answer": "#### 5"}, "the problem is empty"),
    ({"problem": 7, "answer": "#### 5"}, "the problem is no text but a number"),
    (
        {"problem": "x\ud83d", "answer": "#### 5"},
        "the problem holds a lone surrogate (\\ud800 to \\udfff), which is no ",
    ),
]


def write_bad(path, record, good, bad=1):
    """Good rows with bad ones at the places 3, 5, 7, ..."""
    records = [{"problem": f"{number}?", "answer": f"so #### {number}"} for number in range(good + bad)]
    for place in range(3, 3 + 2 * bad, 2):
        records[place] = {"problem": "the bad one", **record}
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return str(path)


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_a_bad_row_is_dropped_under_its_reason_or_an_error_that_shows_it(tmp_path, record, reason):
    path = write_bad(tmp_path / "rows.jsonl", record, good=19)
    rows = load_rows(path, answer_after="####")
    assert len(rows) == 20 and rows[3].dropped.startswith(reason)
    assert [(row, row.dropped) for row in rows[:3] + rows[4:]] == [
        (Row(f"{number}?", str(number)), "") for number in range(20) if number != 3
    ]
    # What a person needs stands in one printable line.
    with pytest.raises(DataError, match=rf"row 3 \(counted from 0\): {re.escape(reason)}.*data.bad_rows") as raised:
        load_rows(path, answer_after="####", bad_rows="error")
    assert "\n" not in str(raised.value) and str(raised.value).encode("utf-8")


def test_more_bad_rows_than_five_in_a_hundred_are_an_error_that_counts_them(tmp_path):
    for good, bad in ((8, 1), (19, 1), (20, 2), (38, 2)):
        rows = load_rows(write_bad(tmp_path / "rows.jsonl", {"answer": None}, good, bad))
        assert [number for number, row in enumerate(rows) if row.dropped] == list(range(3, 3 + 2 * bad, 2))
    path = write_bad(tmp_path / "rows.jsonl", {"answer": None}, good=50, bad=4)
    with pytest.raises(DataError, match=r"row 3 .*of 54: 4 \(rows 3, 5, 7, ...\): the answer is null.*up to 5%"):
        load_rows(path)


def test_a_first_row_without_the_column_is_a_bad_row_and_not_a_wrong_name(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"problem": "?"}, *[{"problem": "?", "answer": 1}] * 19])
    assert [row.dropped for row in load_rows(path)] == ["the answer is missing"] + [""] * 19


def test_the_answer_is_what_follows_the_last_mark(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"problem": "?", "answer": "#### 1 is wrong\n#### 1,234 "}])
    assert load_rows(path, answer_after="####") == [Row("?", "1,234")]


@pytest.mark.parametrize(("column", "field"), [("problem", "problem_column"), ("answer", "answer_column")])
def test_a_missing_column_is_an_error_with_the_columns_found_and_the_first_row(tmp_path, column, field):
    path = write_lines(tmp_path / "rows.jsonl", [{**RECORDS[0], "solution": "long " * 100}])
    with pytest.raises(
        DataError, match=rf"data.{field} = 'x'.*Columns found: problem, answer, solution.*1\+1"
    ) as raised:
        load_rows(path, **{field: "x"})
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.json", "[]"), ("b.json", '{"rows": []}'), ("a.csv", "problem,answer\n")],
)
def test_an_empty_data_set_is_an_error(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"data.path = .*holds no rows"):
        load_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "a.jsonl",
            '{"problem": "?", "answer": 1}\n\n{"problem": "?", "answer"\n',
            r"a.jsonl, line 3: malformed JSON",
        ),
        ("a.json", '[\n {"problem": "?"},\n {"problem" "?"}\n]', r"a.json, line 3: malformed JSON"),
        ("a.json", '{\n "rows": [\n}', r"a.json, line 3: malformed JSON.*one list of objects"),
        ("a.json", '[{"problem": "?", "answer": 1}, 5]', r"a.json, row 1 .*'5'"),
        ("a.parquet", "not parquet", r"a.parquet cannot be read as .parquet"),
    ],
)
def test_a_malformed_file_is_an_error_with_its_place(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"data.path: .*{words}"):
        load_rows(str(tmp_path / name))


VERL = {
    "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "1+1?"}],
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"question": "one and one?", "answers": ["two", "2"]},
}


@pytest.mark.parametrize(("name", "write"), [("rows.jsonl", write_lines), ("rows.parquet", write_parquet)])
@pytest.mark.parametrize(
    ("problem", "answer", "row"),
    [
        ("prompt", "reward_model.ground_truth", Row("1+1?", "2")),
        ("extra_info.question", "extra_info.answers", Row("one and one?", "two")),
        ("prompt.0.content", "extra_info.answers.1", Row("Be kind.", "2")),
    ],
)
def test_nested_columns_and_chats_are_read(tmp_path, name, write, problem, answer, row):
    write(tmp_path / name, [VERL])
    assert load_rows(str(tmp_path / name), problem_column=problem, answer_column=answer) == [row]


def test_the_last_user_message_of_a_chat_is_the_problem(tmp_path):
    said = [("user", "hello"), ("assistant", "hi"), ("user", "1+1?"), ("assistant", "2")]
    chat = [{"role": role, "content": content} for role, content in said]
    path = write_lines(tmp_path / "rows.jsonl", [{"problem": chat, "answer": 2}])
    assert load_rows(path) == [Row("1+1?", "2")]


def test_a_column_with_a_dot_in_its_name_is_taken_first(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"problem": "?", "a.b": 1, "a": {"b": 2}}])
    assert load_rows(path, answer_column="a.b") == [Row("?", "1")]


@pytest.mark.parametrize("column", ["extra_info.answer", "extra_info.answers.2", "prompt.x", "prompt.0.content.x", "."])
def test_a_missing_nested_column_is_an_error(tmp_path, column):
    path = write_lines(tmp_path / "rows.jsonl", [VERL])
    with pytest.raises(
        DataError, match=r"data.answer_column = .*is not a column of .*prompt, reward_model, extra_info"
    ):
        load_rows(path, problem_column="prompt", answer_column=column)
    path = write_lines(tmp_path / "later.jsonl", [{"problem": "?", "a": {"b": 1}}, {"problem": "?", "a": {}}])
    assert load_rows(path, answer_column="a.b")[1].dropped == "the answer is missing"


def test_all_texts_of_a_list_are_the_answer_a_line_each(tmp_path):
    tests = ["assert f(1) == 2", "assert f(2) == 3"]
    path = write_lines(tmp_path / "rows.jsonl", [{"problem": "?", "answer": answer} for answer in (tests, "x = 1\ny")])
    assert load_rows(path, answer_from="list") == [Row("?", "\n".join(tests)), Row("?", "x = 1\ny")]
    assert load_rows(path)[0] == Row("?", tests[0])
    for answer in ([], ["a", 1], None):
        path = write_lines(tmp_path / "broken.jsonl", [{"problem": "?", "answer": answer}])
        assert load_rows(path, answer_from="list")[0].dropped.startswith("the answer is")


@pytest.mark.parametrize("bad_rows", ["drop", "error"])
def test_the_last_box_is_the_answer_and_rows_without_one_are_dropped_but_not_bad(tmp_path, bad_rows):
    answers = [r"\boxed{1} or rather \boxed{ \frac{2}{3} }.", "no box", r"\boxed{}", r"\boxed{cut off"]
    path = write_lines(tmp_path / "rows.jsonl", [{"problem": "?", "answer": answer} for answer in answers])
    expected = [Row("?", r"\frac{2}{3}"), *[Row("?", "", NO_BOX)] * 3]
    assert load_rows(path, answer_from="boxed", bad_rows=bad_rows) == expected
    assert load_rows(path)[1] == Row("?", "no box")
