import pytest

from gvm_jax.data import DataError, load_tokenizer
from gvm_jax.data.tokenizer import read_model_json


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "model.path = .*no such folder"),
        ({"model.safetensors": ""}, "no tokenizer.json.*model.safetensors"),
        ({"tokenizer.json": "{}"}, "model.path"),
    ],
)
def test_a_folder_that_holds_no_tokenizer_is_an_error_and_never_looked_up_on_the_hub(tmp_path, files, words):
    for name, content in (files or {}).items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        load_tokenizer(str(tmp_path if files else tmp_path / "nowhere"))


@pytest.mark.parametrize(("content", "problem"), [("{", "is no JSON"), ("[1]", "holds no JSON object")])
def test_a_json_file_beside_it_that_is_broken_is_a_data_error(chat_folder, content, problem):
    (chat_folder / "generation_config.json").write_text(content)
    with pytest.raises(DataError, match=rf"model.path = .*generation_config.json {problem}"):
        read_model_json(str(chat_folder), "generation_config.json")
    assert read_model_json(str(chat_folder), "config.json") == {}
