"""Scores of records that can be counted by hand."""

import pytest

from gvm_jax.evaluation.scores import summarize, table_rows


def record(question, sample, answer, status, tokens=2, stopped=True):
    return {
        "question": question,
        "sample": sample,
        "answer": answer,
        "status": status,
        "tokens": [7] * tokens,
        "stopped": stopped,
    }


RECORDS = [
    record(0, 0, "5", "correct"), record(0, 1, "5.0", "correct"), record(0, 2, "6", "wrong"),
    record(0, 3, None, "no_answer", 10, stopped=False),
    record(3, 0, "1", "wrong"), record(3, 1, "1", "wrong"), record(3, 2, "2", "correct"), record(3, 3, "x", "error"),
]  # fmt: skip


def same_number(pairs):
    def number(text):
        return float(text) if text[0].isdigit() else text

    return [number(a) == number(b) for a, b in pairs]


def test_scores_are_means_over_questions():
    found = summarize(RECORDS, 4, same_number, seed=0)
    means = {name: score["mean"] for name, score in found["scores"].items()}
    assert means == pytest.approx(
        {"avg@4": 3 / 8, "pass@1": 3 / 8, "pass@2": (5 / 6 + 3 / 6) / 2, "pass@4": 1.0, "maj@4": 0.5}
    )
    assert all(score["low"] <= score["mean"] <= score["high"] for score in found["scores"].values())
    assert (found["questions"], found["samples"]) == (2, 4)
    assert found["mean_tokens"] == 24 / 8 and found["cut_off"] == found["error"] == found["no_answer"] == 1 / 8


def test_of_one_sample_the_mean_is_all_there_is():
    assert list(summarize(RECORDS[:3], 1, same_number, seed=0)["scores"]) == ["avg@1"]


def test_the_table_has_a_column_a_data_set_and_their_mean():
    one = summarize(RECORDS, 4, same_number, seed=0)
    two = summarize(RECORDS[:4], 4, same_number, seed=0)
    rows = table_rows({"a": one, "b": two})
    assert rows[0] == {"": "questions", "a": "2", "b": "1", "mean": ""}
    by_name = {row[""]: row for row in rows}
    assert by_name["avg@4"] == {"": "avg@4", "a": "0.375 [0.250, 0.500]", "b": "0.500 [0.500, 0.500]", "mean": "0.438"}
    assert by_name["cut off"]["a"] == "12.5%" and by_name["tokens, mean"]["b"] == "4"
    assert "mean" not in table_rows({"a": one})[1]
