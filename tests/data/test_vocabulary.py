"""The tokenizer beside the embedding table: ids without a text, tokens without a row."""

import json
import types

import pytest
import tokenizers

from gvm_jax.data import DataError, Row, build_prompts, check_prompts, load_tokenizer, textless_ids
from tests.data.conftest import CHATML

ROWS = [Row("One?", "1"), Row("Two ~?", "2")]
TILDE = 93  # of chat_folder


@pytest.fixture
def tokenizer(chat_folder):
    """The byte ~ has the id 270 in place of 93, and 262 is the empty text; the special tokens are 257 to 259."""
    file = chat_folder / "tokenizer.json"
    content = json.loads(file.read_text())
    assert content["model"]["vocab"]["~"] == TILDE
    content["model"]["vocab"] |= {"~": 270, "": 262}
    file.write_text(json.dumps(content))
    return load_tokenizer(str(chat_folder))


def test_ids_without_a_text_are_holes_and_the_rows_behind_the_tokenizer(tokenizer):
    holes = range(TILDE, TILDE + 1), range(256, 257)
    assert textless_ids(tokenizer, 272) == (*holes, range(260, 270), range(271, 272))
    assert textless_ids(tokenizer, 272, kept=(TILDE, 265)) == (
        holes[1], range(260, 265), range(266, 270), range(271, 272),
    )  # fmt: skip
    assert textless_ids(tokenizer, 259) == holes


def test_a_blank_is_a_text_where_a_decoder_drops_the_first_one():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"▁": 0, "a": 1}, unk_token="a"))
    words.decoder = tokenizers.decoders.Metaspace()
    assert words.decode([0]) == ""
    assert textless_ids(types.SimpleNamespace(backend_tokenizer=words), 3) == (range(2, 3),)


@pytest.mark.parametrize(
    ("system", "user", "template", "row", "writer"),
    [
        ("", "{problem}", CHATML, 1, "the problem"),
        ("Be ~.", "{problem}", CHATML, 0, "data.system_prompt"),
        ("", "{problem}~", CHATML, 0, "data.user_template"),
        ("", "{problem}", "{{ messages[-1].content }}~", 0, "the chat template"),
    ],
)
def test_a_token_without_a_row_is_an_error_that_names_its_writer(tokenizer, system, user, template, row, writer):
    tokenizer.chat_template = template
    prompts = build_prompts(ROWS, tokenizer, system, user, 1000)
    message = rf"Row {row} \(counted from 0\): the token '~' has the id 270, but .* table has 270 rows .* {writer}:"
    with pytest.raises(DataError, match=message):
        check_prompts(prompts, tokenizer, 270, system, user)
    check_prompts(prompts, tokenizer, 271, system, user)
