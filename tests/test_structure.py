"""Imports point one way, and the graders' processes stay free of JAX."""

import ast
import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).parent.parent / "gvm_jax"
LAYER = {"errors": 0, "rewards": 1, "config": 2, "runtime": 3, "models": 4, "rollout": 5, "allocation": 5, "data": 5}
LAYER |= {"training": 6, "strategies": 6, "lab": 7, "sandbox": 7, "planner": 7, "evaluation": 7, "command": 7}
LAYER |= {"reasoner": 7}
ENTRY_POINTS = {"train", "convert", "report", "benchmark", "variance", "compare", "plan", "evaluate", "inspect_data"}
ENTRY_POINTS |= {"__main__"}


def part(module: str) -> str:
    return module.split(".")[1]


def imports():
    """(importing module, imported module) for every import of the package in the package."""
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(("gvm_jax", *file.relative_to(PACKAGE).with_suffix("").parts))
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and node.module == "gvm_jax":
                names = [f"gvm_jax.{alias.name}" for alias in node.names]
            yield from ((module, name) for name in names if name and name.startswith("gvm_jax."))


def test_imports_point_one_way():
    wrong = []
    for module, imported in imports():
        a, b = part(module), part(imported)
        above = a in ENTRY_POINTS or (b in LAYER and LAYER[a] > LAYER[b])
        if a != b and a != "__init__" and not above:
            wrong.append(f"{module} imports {imported}")
    assert not wrong, wrong


def test_every_module_has_a_layer():
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__"} == set(LAYER) | ENTRY_POINTS


def test_rewards_import_no_jax():
    code = "import sys, gvm_jax.rewards, gvm_jax.sandbox.python_tests; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0
