"""The README's example and the notebook run as they stand, with a smaller step."""

import pathlib
import re

import nbclient
import nbformat
import pytest

import gvm_jax

ROOT = pathlib.Path(__file__).parent.parent


def test_the_public_names_are_there():
    assert set(gvm_jax.__all__) <= set(dir(gvm_jax))
    for name in gvm_jax.__all__:
        assert getattr(gvm_jax, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        _ = gvm_jax.Trainr


@pytest.mark.slow
def test_the_readmes_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(example.splitlines()) <= 25
    load_config = gvm_jax.load_config
    fields = {"prompts_per_step": 4, "rollouts_per_step": 16, "evaluation.path": "", "rollout.slots": 32}
    monkeypatch.setattr(gvm_jax, "load_config", lambda path: load_config(path, fields), raising=False)
    names = {}
    exec(example, names)
    assert names["logprobs"].shape == (24, 50) and (names["norms"] >= 0).all()
    assert set(names["rewards"]) <= {0, 1} and names["rollouts"].rollouts.group.shape == (16,)
    assert int(names["state"].step) == 1
    first_line = capsys.readouterr().out.splitlines()[0]
    assert "boxed" in first_line


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    notebook = nbformat.read(ROOT / "configs/allocation.ipynb", as_version=4)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kept = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert any("image/png" in output.get("data", {}) for outputs in kept for output in outputs), "no plot is kept"
