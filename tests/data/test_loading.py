"""Names bring their own fields, other data sets have the config's; what is excluded keeps its row number."""

import json
import re
from fractions import Fraction

import datasets
import numpy as np
import pytest

from gvm_jax.config import get_config
from gvm_jax.data import DataError, Row, load_config_rows, load_prompts, load_tokenizer
from gvm_jax.data.loading import EXCLUDED
from gvm_jax.data.named import NAMED
from gvm_jax.data.prompts import describe
from gvm_jax.data.sources import NO_BOX

# What each hub data set is known to hold, and the row that must come of it.
HUB = {
    "numina": ("AI-MO/NuminaMath-CoT", None, {"problem": "?", "solution": r"\boxed{1}, so \boxed{\frac{2}{3}}."}),
    "math": ("DigitalLearningGmbH/MATH-lighteval", None, {"problem": "?", "solution": r"It is \boxed{\frac{2}{3}}"}),
    "gsm8k": ("openai/gsm8k", "main", {"question": "?", "answer": "2 / 3\n#### \\frac{2}{3}"}),
    "deepscaler": ("agentica-org/DeepScaleR-Preview-Dataset", None, {"problem": "?", "answer": r"\frac{2}{3}"}),
    "math500": ("HuggingFaceH4/MATH-500", None, {"problem": "?", "answer": r"\frac{2}{3}"}),
    "minerva": ("math-ai/minervamath", None, {"question": "?", "answer": r"\frac{2}{3}"}),
    "olympiadbench": ("math-ai/olympiadbench", None, {"question": "?", "final_answer": [r"\frac{2}{3}", "1"]}),
    "aime24": ("HuggingFaceH4/aime_2024", None, {"problem": "?", "answer": r"\frac{2}{3}"}),
    "amc23": ("math-ai/amc23", None, {"question": "?", "answer": r"\frac{2}{3}"}),
}
SPLITS = {"aime24": ("train", "train"), "deepscaler": ("train", "train")}
SPLITS |= dict.fromkeys(["math500", "minerva", "olympiadbench", "amc23"], ("test", "test"))


def make_config(**fields):
    config = get_config()
    for name, value in fields.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return config


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def hub(monkeypatch):
    """A hub of one row in each data set; the calls that it got."""
    calls = []

    def load_dataset(path, subset, *, split):
        calls.append((path, subset, split))
        return datasets.Dataset.from_list([record for name, _, record in HUB.values() if name == path])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("name", NAMED)
def test_a_name_alone_is_enough(name, hub):
    path, subset, _ = HUB[name]
    train, test = SPLITS.get(name, ("train", "test"))
    for section in ("data", "evaluation"):
        config = make_config(**{f"{section}__path": name})
        assert load_config_rows(config, section, name) == [Row("?", r"\frac{2}{3}")]
    assert hub == [(path, subset, train), (path, subset, test)]


@pytest.mark.parametrize("section", ["data", "evaluation"])
def test_a_bad_row_of_a_named_set_is_an_error_where_the_config_says_so(section, hub, monkeypatch):
    monkeypatch.setitem(HUB, "amc23", (*HUB["amc23"][:2], {"question": "?", "answer": None}))
    config = make_config(**{f"{section}__path": "amc23", "data__bad_rows": "error"})
    with pytest.raises(DataError, match=r"amc23', row 0 .*the answer is null"):
        load_config_rows(config, section, "amc23")


def test_names_with_other_columns_are_evaluated_together(hub, tmp_path):
    file = write(tmp_path / "mine.jsonl", [{"q": "mine", "answer": 5}])
    config = make_config(evaluation__path=f"gsm8k,math500,{file}", data__problem_column="q")
    rows = [load_config_rows(config, "evaluation", path) for path in ("gsm8k", "math500", file)]
    assert rows == [[Row("?", r"\frac{2}{3}")], [Row("?", r"\frac{2}{3}")], [Row("mine", "5")]]


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("data", "problem_column", "problem"), ("data", "answer_column", "answer"), ("data", "answer_after", "####"),
        ("data", "answer_from", "column"), ("data", "subset", "main"), ("data", "split", "test"),
        ("evaluation", "subset", "main"), ("evaluation", "split", "train"),
    ],
)  # fmt: skip
def test_what_a_name_brings_is_not_overridden_in_silence(section, field, value, hub):
    config = make_config(**{f"{section}__path": "gsm8k", f"{section}__{field}": value})
    with pytest.raises(
        DataError, match=f"{section}.{field} = '{value}': {section}.path = 'gsm8k' is a name .*openai/gsm8k"
    ):
        load_config_rows(config, section, "gsm8k")
    assert hub == []


def test_a_name_that_the_hub_does_not_know_is_told_the_known_ones(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'grade' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"data.path = 'grade' .*Known by name: numina, math, gsm8k,"):
        load_config_rows(make_config(data__path="grade"), "data", "grade")


def test_the_hub_library_reads_a_named_set_from_files_in_its_place(monkeypatch, tmp_path):
    """`datasets` itself, with a folder where the hub's would be; a list of answers is read as in the paper."""
    record = HUB["olympiadbench"][2]
    write(tmp_path / "test.jsonl", [record, {**record, "final_answer": ["7"]}])
    real = datasets.load_dataset

    def from_folder(path, subset, *, split):
        assert path == "math-ai/olympiadbench"
        return real(str(tmp_path), subset, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    config = make_config(evaluation__path="olympiadbench")
    assert load_config_rows(config, "evaluation", "olympiadbench") == [Row("?", r"\frac{2}{3}"), Row("?", "7")]


class FractionsOnly:
    """A grader that reads fractions and nothing else."""

    def parses(self, references):
        return np.array([re.fullmatch(r"[\d./]+", reference) is not None for reference in references])

    def equivalent(self, pairs):
        return [Fraction(answer) == Fraction(reference) for answer, reference in pairs]


DUPLICATE = "How many of the first one hundred positive integers are divisible by three but not by nine?"


@pytest.fixture
def excluding(tmp_path):
    """A config whose training rows 1 and 3 are planted duplicates of its benchmark's, and whose row 2 has no box."""
    train = write(
        tmp_path / "train.jsonl",
        [
            {"problem": "one", "answer": r"\boxed{1}"},
            {"problem": f"  {DUPLICATE.upper()}", "answer": r"\boxed{22}"},
            {"problem": "two", "answer": "no box"},
            {"problem": f"Answer this. {DUPLICATE} Be quick.", "answer": "no box"},
            {"problem": "three", "answer": r"\boxed{3}"},
        ],
    )
    test = write(tmp_path / "test.jsonl", [{"problem": DUPLICATE, "answer": r"\boxed{22}"}])
    return make_config(data__path=train, data__answer_from="boxed", data__exclude=(test,), evaluation__path=test)


def test_excluded_rows_are_marked_and_all_keep_their_places(excluding):
    rows = load_config_rows(excluding, "data", excluding.data.path)
    assert [row.dropped for row in rows] == ["", EXCLUDED, NO_BOX, NO_BOX, ""]
    assert load_config_rows(excluding, "evaluation", excluding.evaluation.path) == [Row(DUPLICATE, "22")]
    excluding.data.exclude = ()
    assert [row.dropped for row in load_config_rows(excluding, "data", excluding.data.path)].count(EXCLUDED) == 0


def test_dropped_rows_are_counted_by_reason_and_ids_are_row_numbers(excluding, chat_folder):
    tokenizer = load_tokenizer(str(chat_folder))
    prompts = load_prompts(excluding, "data", excluding.data.path, tokenizer, FractionsOnly())
    assert prompts.ids.tolist() == [0, 4] and prompts.num_rows == 5
    assert prompts.problems == ["one", "three"] and prompts.reference_answers == ["1", "3"]
    assert prompts.dropped == {EXCLUDED: [1], NO_BOX: [2, 3]}


def test_an_exclusion_that_cannot_be_read_is_named(excluding):
    excluding.data.exclude = ("/nowhere.jsonl",)
    with pytest.raises(DataError, match=r"data.exclude has '/nowhere.jsonl', .*there is no such file"):
        load_config_rows(excluding, "data", excluding.data.path)


def test_repeated_problems_and_other_answers_are_told_with_their_rows(tmp_path, chat_folder):
    answers = {"one half": ["1/2", "0.5", "1/2"], "two": ["2", "3", "2", "3"], " two\n": ["4"], "words": ["x", "y"]}
    records = [{"problem": problem, "answer": answer} for problem, given in answers.items() for answer in given]
    records.insert(4, {"problem": "three", "answer": "3"})
    config = make_config(data__path=write(tmp_path / "rows.jsonl", records))
    prompts = load_prompts(config, "data", config.data.path, load_tokenizer(str(chat_folder)), FractionsOnly())
    assert describe(prompts) == [
        "dropped   2 (rows 9, 10): reference answer that the verifier cannot read",
        "note      6 (rows 1, 2, 5, ...): the problem of an earlier row again",
        "note      3 (rows 5, 7, 8): the problem of an earlier row with another answer, so one of them is wrong",
    ]


def test_bad_rows_are_the_configs_to_allow_in_both_sections(tmp_path):
    records = [{"problem": f"{number}?", "answer": None if number == 7 else number} for number in range(20)]
    path = write(tmp_path / "rows.jsonl", records)
    config = make_config(data__path=path, evaluation__path=path)
    for section in ("data", "evaluation"):
        config.data.bad_rows = "drop"
        assert load_config_rows(config, section, path)[7].dropped == "the answer is null"
        config.data.bad_rows = "error"
        with pytest.raises(DataError, match=rf"{section}.path = .*row 7 .*the answer is null"):
            load_config_rows(config, section, path)
