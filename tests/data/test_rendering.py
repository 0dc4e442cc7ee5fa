"""Only the chat template and the config place control tokens; all other text is encoded as transformers does."""

import collections
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from gvm_jax.data import Row, build_prompts, load_tokenizer
from gvm_jax.data.rendering import render
from tests.data.conftest import SPECIAL_TOKENS as CHATML_TOKENS
from tests.data.test_prompts import by_hand

SYSTEM = "Be brief."
SPECIAL_TOKENS = [*CHATML_TOKENS, "§"]
TEXTS = ["1+1?", "Häuser\n ½ 😀", "<|im_end|", "<|im_end |>", "im_end|>", "<tool_call>", " ", "\ufdd0", "|>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One with merges, with two added tokens that are no special ones, and with a template that trims contents."""
    folder = tmp_path_factory.mktemp("model")
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(merge.split()) for merge in ("< |", "| >", "i m", "e n", "en d", "Ċ Ċ", "Ġ Ġ", "? <|", "|> Ċ")]
    vocabulary = {symbol: i for i, symbol in enumerate([*symbols, *map("".join, merges)])}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_tokens(["<tool_call>", "\\boxed{"])
    made.add_special_tokens(SPECIAL_TOKENS)
    made.save(str(folder / "tokenizer.json"))
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant"
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(str(folder))


def ordinary(tokenizer, problem):
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{problem} Think."}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6).map("".join))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_text_without_special_tokens_is_encoded_as_by_transformers(tokenizer, problem):
    if any(token in problem for token in SPECIAL_TOKENS):
        return
    # Beside a row that takes the other way, too.
    for problems in ([problem], [problem, "<|im_end|>"]):
        encoded, spelling = render(problems, range(len(problems)), tokenizer, SYSTEM, "{problem} Think.")
        assert encoded[0] == ordinary(tokenizer, problem) and spelling == [1][: len(problems) - 1]


@given(st.lists(st.sampled_from([*TEXTS, *SPECIAL_TOKENS, *SPECIAL_TOKENS]), min_size=1, max_size=6).map("".join))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_problem_places_a_special_token(tokenizer, problem):
    (ids,), _ = render([problem], [0], tokenizer, SYSTEM, "{problem} Think.")
    special = collections.Counter(i for i in ids if i >= len(tokenizer) - len(SPECIAL_TOKENS))
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert special == {start: 3, end: 2}
    # The tokens between the template's own are those of the text by itself, read without special tokens.
    user = f"user\n{f'{problem} Think.'.strip()}"
    assert tokenizer.decode(ids) == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>{user}<|im_end|>\n<|im_start|>assistant"
    )
    last_end = len(ids) - 1 - ids[::-1].index(end)
    before = [place for place, i in enumerate(ids) if i == start][1] + 1
    tokenizer.backend_tokenizer.encode_special_tokens = True
    try:
        assert ids[before:last_end] == tokenizer.backend_tokenizer.encode(user, add_special_tokens=False).ids
    finally:
        tokenizer.backend_tokenizer.encode_special_tokens = False


def test_special_tokens_of_the_config_are_tokens(chat_folder):
    rows = [Row("<|im_end|>?", "1"), Row("1+1?", "2")]
    prompts = build_prompts(rows, load_tokenizer(str(chat_folder)), "", "{problem}<|endoftext|>!", 999)
    head, end = [257, *by_hand("user\n")], [256, *by_hand("!"), 258, *by_hand("\n"), 257, *by_hand("assistant\n")]
    assert prompts.tokens[0].tolist() == head + by_hand("<|im_end|>?") + end
    assert prompts.tokens[1].tolist() == head + by_hand("1+1?") + end
    assert prompts.notes == ("1 (row 0): the problem spells a special token (as <|im_end|>), encoded as plain text",)


def test_a_tokenizer_without_special_tokens_has_none_to_keep_out(chat_folder):
    file = chat_folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content |= {"added_tokens": [], "post_processor": None}
    file.write_text(json.dumps(content))
    (chat_folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer = load_tokenizer(str(chat_folder))
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert render(["<|im_end|>"], [0], tokenizer, "", "{problem}") == ([by_hand("<|im_end|>")], [])
