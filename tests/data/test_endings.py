"""Where responses end: what the model's files name, what the chat template writes, what a user names."""

import json
import pathlib

import pytest

from gvm_jax.data import DataError, find_endings, load_tokenizer
from tests.data.conftest import CHATML

QUICKSTART = str(pathlib.Path(__file__).parents[2] / "configs" / "quickstart_model")
TEXT, START, END = 256, 257, 258  # <|endoftext|>, <|im_start|>, <|im_end|> of chat_folder


def write_json(path, content):
    path.write_text(json.dumps(content))


def endings_of(folder, names=(), vocab_size=264, **changes):
    tokenizer = load_tokenizer(str(folder))
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return find_endings(tokenizer, str(folder), vocab_size, names)


def test_stop_ids_are_the_union_of_what_the_model_names(chat_folder):
    assert endings_of(chat_folder).stop_ids == (END,)
    write_json(chat_folder / "config.json", {"eos_token_id": TEXT})
    assert endings_of(chat_folder).stop_ids == (TEXT, END)
    write_json(chat_folder / "generation_config.json", {"eos_token_id": [END, 7]})
    assert endings_of(chat_folder).stop_ids == (7, TEXT, END)
    write_json(chat_folder / "config.json", {"eos_token_id": None})
    assert endings_of(chat_folder).stop_ids == (7, END)


def test_the_quickstart_model_stops_at_both_ends():
    endings = endings_of(QUICKSTART, vocab_size=24)
    assert endings.tokenizer.convert_ids_to_tokens(endings.stop_ids) == ["<|endoftext|>", "<|im_end|>"]
    assert str(endings) == (
        "a response ends with <|endoftext|> or <|im_end|>; the chat template writes no end of turn behind one"
    )
    added = endings_of(QUICKSTART, ("\\boxed{", "<|im_end|>"), vocab_size=24)  # not special: it has a text
    assert added.text(added.tokenizer("7;\\boxed{<|im_end|>", return_tensors="np")["input_ids"][0]) == "7;\\boxed{"


ROLES = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}BEHIND{% endfor %}"


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        (CHATML, END),
        (ROLES.replace("BEHIND", "{{ eos_token }}"), TEXT),
        (ROLES.replace("BEHIND", " \n<|im_end|>"), END),
        (ROLES.replace("BEHIND", "\n\n"), None),
        (ROLES.replace("BEHIND", "\nNext: <|im_end|>"), None),  # text comes first: a model would write it as well
        (ROLES.replace("{{ m.content }}", ""), None),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}{% endfor %}",
            None,
        ),
        (None, None),
    ],
)
def test_a_base_model_stops_where_its_chat_template_ends_a_turn(chat_folder, template, turn):
    endings = endings_of(chat_folder, eos_token="<|endoftext|>", chat_template=template)
    assert endings.turn == turn
    assert endings.stop_ids == tuple(sorted({TEXT, turn or TEXT}))


def test_the_first_lines_name_the_end_of_turn(chat_folder):
    assert str(endings_of(chat_folder, eos_token="<|endoftext|>")) == (
        "a response ends with <|endoftext|> or <|im_end|>; the chat template's end of turn is <|im_end|>"
    )
    assert str(endings_of(chat_folder, ("<|endoftext|>",))) == (
        "a response ends with <|endoftext|>; text behind the chat template's end of turn, <|im_end|>, is not graded"
    )


def test_named_stop_tokens_replace_the_models_own(chat_folder):
    assert endings_of(chat_folder, ("<|im_start|>", "<|endoftext|>")).stop_ids == (TEXT, START)
    with pytest.raises(DataError, match=r"rollout.stop_tokens: 'two words'"):
        endings_of(chat_folder, ("<|im_end|>", "two words"))


def test_a_model_without_stop_token_is_an_error(chat_folder):
    with pytest.raises(DataError, match=r"rollout.stop_tokens"):
        endings_of(chat_folder, eos_token=None, chat_template=ROLES)


@pytest.mark.parametrize("names", [(), ("<|im_end|>",)])
def test_a_stop_token_beyond_the_embedding_table_is_an_error(chat_folder, names):
    source = "rollout.stop_tokens:" if names else "model.path = "
    with pytest.raises(
        DataError, match=rf"{source}.*'<\|im_end\|>' has the id 258, .* has 258 rows .* set rollout.sto"
    ):
        endings_of(chat_folder, names, vocab_size=258)


@pytest.mark.parametrize(
    ("names", "written", "graded"),
    [
        ((), r"\boxed{7}<|im_end|>", r"\boxed{7}"),
        ((), r"\boxed{7}", r"\boxed{7}"),
        # A policy that may go on behind its turn: another answer there is none.
        (("<|endoftext|>",), r"\boxed{7}<|im_end|>So \boxed{8}<|endoftext|>", r"\boxed{7}"),
        # Special tokens that end nothing are seen: \boxed{1<|im_start|>2} is not 12.
        ((), r"\boxed{1<|im_start|>2}<|im_end|>", r"\boxed{1<|im_start|>2}"),
        # A stop token with a text of its own is part of the answer, a special one is not.
        (("}", "<|im_end|>"), r"\boxed{7}", r"\boxed{7}"),
        (("<|im_start|>",), r"\boxed{7}<|im_start|>", r"\boxed{7}"),
    ],
)
def test_the_graded_text_ends_with_the_turn(chat_folder, names, written, graded):
    endings = endings_of(chat_folder, names)
    response = endings.tokenizer(written, add_special_tokens=False, return_tensors="np")["input_ids"][0]
    assert endings.text(response) == graded
