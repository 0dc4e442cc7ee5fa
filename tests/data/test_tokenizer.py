import pytest

from gvm_jax.data import DataError, load_tokenizer
from gvm_jax.data.tokenizer import read_model_json


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


@pytest.mark.parametrize(("content", "problem"), [("{", "is no JSON"), ("[1]", "holds no JSON object")])
def test_a_json_file_beside_it_that_is_broken_is_a_data_error(chat_folder, content, problem):
    (chat_folder / "generation_config.json").write_text(content)
    with pytest.raises(DataError, match=rf"model.path = .*generation_config.json {problem}"):
        read_model_json(str(chat_folder), "generation_config.json")
    assert read_model_json(str(chat_folder), "config.json") == {}
