import json
import pathlib

import pytest

from gvm_jax.data import DataError, load_tokenizer, stop_token_ids

QUICKSTART = str(pathlib.Path(__file__).parents[2] / "configs" / "quickstart_model")


def write_json(path, content):
    path.write_text(json.dumps(content))


def test_a_missing_folder_is_an_error_and_never_looked_up_on_the_hub(tmp_path):
    with pytest.raises(DataError, match=r"model.path = .*/nowhere.*no such folder"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_a_folder_without_tokenizer_json_is_an_error_that_lists_what_is_there(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(DataError, match=r"no tokenizer.json.*model.safetensors"):
        load_tokenizer(str(tmp_path))


def test_a_broken_tokenizer_json_is_a_data_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"model.path"):
        load_tokenizer(str(tmp_path))


def test_stop_ids_are_the_union_of_what_the_model_names(chat_folder):
    tokenizer = load_tokenizer(str(chat_folder))  # <|endoftext|> 256, <|im_start|> 257, <|im_end|> 258
    assert stop_token_ids(tokenizer, str(chat_folder)) == (258,)
    write_json(chat_folder / "config.json", {"eos_token_id": 256})
    assert stop_token_ids(tokenizer, str(chat_folder)) == (256, 258)
    write_json(chat_folder / "generation_config.json", {"eos_token_id": [258, 7]})
    assert stop_token_ids(tokenizer, str(chat_folder)) == (7, 256, 258)
    write_json(chat_folder / "config.json", {"eos_token_id": None})
    assert stop_token_ids(tokenizer, str(chat_folder)) == (7, 258)


def test_named_stop_tokens_replace_the_models_own(chat_folder):
    tokenizer = load_tokenizer(str(chat_folder))
    assert stop_token_ids(tokenizer, str(chat_folder), ("<|im_start|>", "<|endoftext|>")) == (256, 257)
    with pytest.raises(DataError, match=r"rollout.stop_tokens: 'two words'"):
        stop_token_ids(tokenizer, str(chat_folder), ("<|im_end|>", "two words"))


def test_a_model_without_stop_token_is_an_error(chat_folder):
    tokenizer = load_tokenizer(str(chat_folder))
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"rollout.stop_tokens"):
        stop_token_ids(tokenizer, str(chat_folder))


def test_the_quickstart_model_stops_at_both_ends():
    tokenizer = load_tokenizer(QUICKSTART)
    names = tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer, QUICKSTART))
    assert names == ["<|endoftext|>", "<|im_end|>"]
