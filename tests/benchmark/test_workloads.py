"""Workloads: exact lengths, the chat frame, counts, and the check of what came back."""

import dataclasses
import json

import pytest

from gvm_jax.benchmark.workloads import GVM_COUNTS, PREFILL_SAMPLES, gradient_norms, grouped, gsm8k, prefill


@pytest.mark.parametrize("length", [4, 7, 8, 31, 120])
def test_grouped_prompts_have_exactly_the_length_and_keep_the_chat_frame(texts, length):
    workload = grouped(texts, prompts=5, samples=3, prompt_tokens=length, new_tokens=6)
    assert [len(prompt) for prompt in workload.prompts] == [length] * 5
    for i, prompt in enumerate(workload.prompts):
        expected = "".join(texts.questions[(i + k) % 4] for k in range(4)) * length
        assert texts.tokenizer.decode(prompt) == expected[: length - 1] + "="
    assert workload.counts == [3] * 5 and workload.cases == [workload.counts]
    assert workload.stop_ids == [] and workload.max_new_tokens == 6


def test_grouped_is_8_by_8_of_120_and_128_tokens_by_default(texts):
    workload = grouped(texts)
    assert (len(workload.prompts), workload.counts, workload.max_new_tokens) == (8, [8] * 8, 128)
    assert {len(prompt) for prompt in workload.prompts} == {120}
    with pytest.raises(ValueError, match="prompts of 1 tokens"):
        grouped(texts, prompt_tokens=1)


def test_gsm8k_takes_the_first_24_questions_whole(texts):
    many = dataclasses.replace(texts, questions=[f"{i}+{i}" for i in range(30)])
    workload = gsm8k(many)
    assert [texts.tokenizer.decode(prompt) for prompt in workload.prompts] == [f"{i}+{i}=" for i in range(24)]
    assert workload.stop_ids == [16] and workload.max_new_tokens == 400
    assert gsm8k(many, prompts=26).counts == [*GVM_COUNTS, *GVM_COUNTS[:2]]
    with pytest.raises(ValueError, match="holds 4 questions"):
        gsm8k(texts)


def test_gvm_counts_are_many_few_and_few_many():
    assert len(GVM_COUNTS) == 24 and sum(GVM_COUNTS) == 192 and sum(count <= 4 for count in GVM_COUNTS) == 16
    assert (min(GVM_COUNTS), max(GVM_COUNTS)) == (1, 32)


def test_prefill_is_one_token_of_as_many_samples_as_any_case(texts):
    workload = prefill(texts)
    assert workload.max_new_tokens == 1 and workload.counts == [max(PREFILL_SAMPLES)] * 8
    assert workload.cases == [[n] * 8 for n in PREFILL_SAMPLES]


def test_gradient_norms_are_of_the_answers_cut_to_one_length(texts):
    answers = dataclasses.replace(texts, answers=["46;+46", "15;+15"])
    workload = gradient_norms(answers, response_tokens=9, prompts=3, prompt_tokens=7)
    assert workload.prompts == grouped(texts, prompts=3, prompt_tokens=7).prompts
    decoded = [texts.tokenizer.decode(response) for response in workload.responses]
    assert decoded == ["46;+4615;", "15;+1546;", "46;+4615;"] and workload.counts == [1] * 3


def test_responses_that_were_not_asked_for_are_refused(texts):
    exact = grouped(texts, prompts=2, samples=2, prompt_tokens=9, new_tokens=5)
    exact.check([5, 5, 5, 5], [2, 2])
    for lengths in ([5, 5, 5], [5, 5, 5, 5, 5], [5, 5, 4, 5], [5, 5, 6, 5]):
        with pytest.raises(ValueError, match="4 responses of 5 to 5 tokens"):
            exact.check(lengths, [2, 2])
    stopping = gsm8k(texts, prompts=3, new_tokens=5)
    stopping.check([1, 5, 3], [3])
    with pytest.raises(ValueError, match="of 1 to 5 tokens"):
        stopping.check([0, 5, 3], [3])


def test_the_file_holds_workload_and_settings(texts, tmp_path):
    workload = grouped(texts, prompts=1, prompt_tokens=5)
    workload.write(tmp_path / "w.json", {"slots": 3})
    read = json.loads((tmp_path / "w.json").read_text())
    assert read["prompts"] == workload.prompts and read["slots"] == 3 and read["pad_id"] == 15
