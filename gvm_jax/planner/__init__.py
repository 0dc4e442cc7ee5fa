"""Does a config fit a topology: `print(render(plan(config, "v5e:4x4")))`."""

from gvm_jax.planner.abstract_run import Assumptions
from gvm_jax.planner.planner import Plan, plan
from gvm_jax.planner.search import search
from gvm_jax.planner.tables import render

__all__ = ["Assumptions", "Plan", "plan", "render", "search"]
