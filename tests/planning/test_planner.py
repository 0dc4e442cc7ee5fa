"""Plans of a tiny model, compiled for the CPU's virtual devices in place of a TPU's."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs import default
from gvm_jax.config import ConfigError
from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.qwen2 import Model, segment_attention
from gvm_jax.planning.advice import advice
from gvm_jax.planning.chips import CHIPS, Topology
from gvm_jax.planning.compiled import compile_program
from gvm_jax.planning.costs import program_costs
from gvm_jax.planning.hlo import parse
from gvm_jax.planning.model_flops import Workload, body_flops, head_flops, layer_weights, program_flops
from gvm_jax.planning.parts import build, replicated_arrays
from gvm_jax.planning.planner import make_plan
from gvm_jax.planning.report import summary
from gvm_jax.planning.search import candidates, search

TINY = pathlib.Path(__file__).parents[1] / "models/golden/tiny_untied"
WORKLOAD = Workload(4, 8)


@dataclasses.dataclass(frozen=True)
class OfTheCpu(Topology):
    """Virtual CPU devices in a TPU's place, with as much memory as is said."""

    def devices(self) -> list:
        return jax.devices()[: self.size]


def topology(size=4, memory=2**30) -> Topology:
    return OfTheCpu("tpu", dataclasses.replace(CHIPS["v5e"], hbm_bytes=memory), size)


def tiny_config(**mesh):
    config = default.get_config()
    config.model.path, config.data.path = str(TINY), "unread"
    config.model.compute_dtype = "float32"
    config.prompts_per_step, config.rollouts_per_step = 4, 16
    config.data.max_prompt_tokens, config.rollout.max_new_tokens = 8, 16
    config.rollout.slots, config.rollout.page_size, config.rollout.prefill_tokens = 8, 8, 64
    config.optimizer.updates_per_step, config.optimizer.micro_batch = 2, 4
    config.gradient_norms.method = "update"
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = (mesh.get(axis, 1) for axis in ("data", "fsdp", "tensor"))
    return config


@pytest.fixture(scope="module")
def plan():
    lines = []
    made = make_plan(build(tiny_config(fsdp=4), topology(), 100), WORKLOAD, lines.append)
    assert any("train step" in line for line in lines)  # progress
    return made


def test_the_weights_of_a_layer_are_the_models():
    network = Qwen2Config.from_folder(TINY)
    layers = Model(network).abstract_params["layers"]
    kernels = sum(layers[name]["kernel"].size for name in layers if name.endswith("proj"))
    assert layer_weights(network) * network.num_hidden_layers == kernels


def test_model_operations_are_those_of_a_program_without_loops():
    network = dataclasses.replace(
        Qwen2Config.from_folder(TINY), hidden_size=256, intermediate_size=512, vocab_size=1024, head_dim=64
    )
    model, rows, length = Model(network, stacked=False), 2, 32

    def logits(params, tokens):
        module = model.bind(params)
        attention = segment_attention(jnp.ones_like(tokens))
        hidden, _ = module(tokens, jnp.broadcast_to(jnp.arange(length), tokens.shape), attention)
        return module.logits(hidden)

    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    compiled = jax.jit(logits).lower(model.abstract_params, tokens).compile()
    expected = body_flops(network, rows * length, length) + head_flops(network, rows * length)
    assert program_costs(parse(compiled.as_text()), 1).flops == expected
    assert compiled.cost_analysis()["flops"] == pytest.approx(expected, rel=0.1)  # norms and softmaxes are in it


def test_the_update_is_three_passes_over_every_row(plan):
    network = plan.parts.network
    weights = network.num_hidden_layers * layer_weights(network)
    attention = 4 * network.num_hidden_layers * network.num_attention_heads * network.head_dim * 25 / 2
    row = 3 * (24 * (2 * weights + attention) + 16 * 2 * network.hidden_size * network.vocab_size)
    config = tiny_config(fsdp=4)
    config.allocation.strategy = "uniform"
    parts = build(config, topology(), 100)
    assert program_flops(parts, "train step", WORKLOAD) == pytest.approx(16 * row)
    config.objective.kl_coefficient = 0.1  # the reference's forward pass
    assert program_flops(build(config, topology(), 100), "train step", WORKLOAD) == pytest.approx(16 * row * 4 / 3)


def test_every_program_is_planned(plan):
    assert [p.name for p in plan.programs] == ["prefill", "copy pages", "decode 8", "train step"]
    assert plan.fits and plan.step_seconds > 0 and plan.tokens_per_second_per_chip > 0
    pilots = tiny_config(fsdp=4)
    pilots.allocation.mode, pilots.allocation.pilot_samples = "pilot", 1
    pilots.gradient_norms.method, pilots.gradient_norms.chunk = "gram", 4
    assert [*build(pilots, topology(), 100).steps.lower()] == ["pilot", "train step"]


def test_the_policy_is_held_while_sampling_and_dropped_before_the_update(plan):
    decode, train = plan.program("decode 8"), plan.program("train step")
    assert decode.held["KV pages"] == plan.parts.engine.cache_bytes
    assert decode.held["parameters"] == train.held["parameters"] > 0
    assert "KV pages" not in train.held and "rollout weights" not in train.held


def test_state_halves_when_the_fsdp_axis_doubles():
    state = {}
    for fsdp in (1, 2, 4):
        held = build(tiny_config(fsdp=fsdp), topology(fsdp), 100).held()
        state[fsdp] = held["parameters"] + held["optimizer"]
    assert state[2] / state[1] == pytest.approx(0.5, rel=0.15)
    assert state[4] / state[2] == pytest.approx(0.5, rel=0.15)


def test_what_is_held_is_what_the_compiler_is_given(plan):
    parts, train = plan.parts, plan.program("train step")
    compiled = parts.steps.lower()["train step"].compile()
    rollouts = 16 * (24 * 4 + 4 + 4 + 16 * 4 + 4 + 1) + 16 * 4
    given = compiled.memory_analysis().argument_size_in_bytes
    assert sum(train.held.values()) + rollouts == pytest.approx(given, rel=0.02)


def test_replicated_arrays_are_found():
    split = replicated_arrays(build(tiny_config(fsdp=4), topology(), 100).steps.abstract_state.params, least_bytes=1000)
    assert split == []
    whole = build(tiny_config(data=4), topology(), 100).steps.abstract_state
    found = replicated_arrays(whole.params, least_bytes=1000)
    assert any("embed_tokens" in path for path, _ in found)
    one = build(tiny_config(), topology(1), 100).steps.abstract_state
    assert replicated_arrays(one.params, least_bytes=1000) == []


def test_a_plan_that_does_not_fit_says_what_to_change(plan):
    most = max(p.total for p in plan.programs)
    small = topology(memory=0.9 * most)
    tight = dataclasses.replace(plan, parts=dataclasses.replace(plan.parts, topology=small))
    assert not tight.fits
    text = "\n".join([*advice(tight), *summary(tight)])
    assert "does not fit: needs" in text and "--config." in text and "frees about" in text
    assert advice(plan) == [] and "fits: " in summary(plan)[-1]


def test_out_of_memory_at_compilation_is_an_answer(plan):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: ... Used 20.31G of 15.75G hbm. Exceeded by 4.56G.")

    found = compile_program("train step", Lowered(), 4, 8, None)
    assert not found.fits_alone and found.temporaries == int(20.31 * 2**30)
    failed = dataclasses.replace(plan.program("train step"), fits_alone=False, costs=None)
    whole = dataclasses.replace(plan, programs=(failed,))
    assert not whole.fits and whole.step_seconds is None


@pytest.mark.parametrize("name", ["v9:4x4", "v5e", "v5e:4x4x4", "v5e:0x4", "h100:2x4", "v5p:4x4", "v5e:four"])
def test_a_wrong_topology_lists_what_is_allowed(name):
    with pytest.raises(ConfigError, match=r"--topology=.*(v5e:4x4|v5p:4x4x4|h100:8)"):
        Topology.parse(name)


def test_topologies_count_devices():
    assert [Topology.parse(n).size for n in ("v5e:4x4", "v5p:2x2x2", "tpu7x:2x2x1", "h200:8")] == [16, 8, 8, 8]


def test_a_gpu_is_estimated():
    parts = build(tiny_config(fsdp=2), Topology.parse("h100:2"), 100)
    made = make_plan(parts, WORKLOAD)
    assert [p.name for p in made.programs] == ["decode 8", "train step"]
    assert made.fits and made.step_seconds is None
    assert any(line.startswith("estimate:") for line in summary(made))


def test_the_search_knows_every_mesh_that_the_config_allows():
    config = tiny_config()
    config.rollouts_per_step = 32
    found = list(candidates(config, topology(), 100))
    meshes = {tuple(c.config.mesh[a] for a in ("data", "fsdp", "tensor")) for c in found}
    assert meshes == {(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)}
    assert {c.config.optimizer.micro_batch for c in found if c.config.mesh.tensor == 4} == {1, 2, 4, 8, 16}


def test_the_search_compiles_the_likeliest_and_returns_those_that_fit(monkeypatch):
    monkeypatch.setattr("gvm_jax.planning.search.MOST", 1)
    lines = []
    ((candidate, found),) = search(tiny_config(), topology(1), 100, WORKLOAD, lines.append)
    assert found.fits and found.step_seconds > 0 and [p.name for p in found.programs] == ["decode 8", "train step"]
    assert candidate.config.mesh.fsdp == 1 and "--config.optimizer.micro_batch=" in candidate.name
    assert any("1 will be compiled" in line for line in lines)
    assert search(tiny_config(), topology(1, memory=1), 100, WORKLOAD, lines.append) == []


def test_only_config_json_is_needed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(json.loads((TINY / "config.json").read_text())))
    config = tiny_config(fsdp=4)
    config.model.path = str(tmp_path)
    assert build(config, topology(), 100).network == Qwen2Config.from_folder(TINY)
