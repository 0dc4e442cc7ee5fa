"""Plans of a tiny model, compiled for the CPU's virtual devices in place of a TPU's."""

import dataclasses
import io
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from gvm_jax.config import ConfigError, get_config, validate
from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.packed_attention import segment_attention
from gvm_jax.models.qwen2 import Model, UnstackedQwen2
from gvm_jax.planning.advice import advice
from gvm_jax.planning.chips import CHIPS, Topology
from gvm_jax.planning.compiled import compile_program
from gvm_jax.planning.costs import program_costs
from gvm_jax.planning.hlo import parse
from gvm_jax.planning.model_flops import Workload, body_flops, head_flops, layer_weights, program_flops
from gvm_jax.planning.parts import build, replicated_arrays
from gvm_jax.planning.planner import make_plan
from gvm_jax.planning.report import show, summary
from gvm_jax.planning.search import candidates, search
from gvm_jax.runtime.mesh import replica_mesh

TINY = pathlib.Path(__file__).parents[1] / "models/golden/tiny_untied"
WORKLOAD = Workload(4, 8)


@dataclasses.dataclass(frozen=True)
class OfTheCpu(Topology):
    """Virtual CPU devices in a TPU's place, with as much memory as is said."""

    def devices(self) -> list:
        return jax.devices()[: self.size]

    def host(self) -> Topology:
        return self


def topology(size=4, memory=2**30) -> Topology:
    return OfTheCpu("tpu", dataclasses.replace(CHIPS["v5e"], hbm_bytes=memory), size)


def tiny_config(**mesh):
    config = get_config()
    config.model.path, config.data.path = str(TINY), "unread"
    config.model.compute_dtype, config.model.attention = "float32", "xla"
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
    model, rows, length = Model(network, network=UnstackedQwen2), 2, 32

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
    assert [*build(pilots, topology(), 100).step.lower()] == ["pilot", "train step"]


def test_the_policy_is_held_while_sampling_and_dropped_before_the_update(plan):
    decode, train = plan.program("decode 8"), plan.program("train step")
    assert plan.parts.replicas == plan.parts.engine.replicas == 4
    assert decode.held["KV pages"] == plan.parts.engine.cache_bytes / 4
    assert decode.held["parameters"] == train.held["parameters"] > 0
    assert "KV pages" not in train.held and "rollout weights" not in train.held


def test_replicas_share_the_samples(plan):
    decode, prefill, copy = (plan.program(name) for name in ("decode 8", "prefill", "copy pages"))
    assert decode.model_flops == program_flops(build(tiny_config(), topology(1), 100), "decode 8", WORKLOAD) * 4
    assert (plan.runs(decode), plan.runs(prefill), plan.runs(copy)) == (1, 1, 1), "4 samples of 8 tokens a replica"
    config = tiny_config(fsdp=4)
    config.rollouts_per_step, config.prompts_per_step = 160, 128
    for tensor, blocks in ((1, 5), (2, 10), (4, 20)):  # of 8 samples x 8 tokens
        config.rollout.tensor = tensor
        parts = build(config, topology(), 100)
        more = dataclasses.replace(plan, parts=parts)
        assert parts.replicas == 4 // tensor and more.runs(decode) == blocks
        assert more.runs(prefill) == 2 * tensor  # 128 prompts of 4 tokens, 64 tokens at once
        assert more.runs(copy) == blocks


def test_slots_without_a_sample_shorten_nothing(plan):
    """4 samples a replica: twice the slots leave the blocks as many, and a narrower batch is what a step runs."""
    config = tiny_config(fsdp=4)
    config.rollout.slots = 64
    parts = build(config, topology(), 100)
    assert parts.width == 8
    many = dataclasses.replace(plan, parts=parts, workload=Workload(4, 64))
    assert many.runs(plan.program("decode 8")) == 8
    assert many.runs(dataclasses.replace(plan.program("decode 8"), name="decode 64")) == 0


def test_a_replica_of_more_devices_holds_less_on_each():
    held = {}
    for tensor in (1, 2):
        config = tiny_config(fsdp=4)
        config.model.compute_dtype, config.rollout.tensor = "bfloat16", tensor
        held[tensor] = build(config, topology(), 100).held()
    assert held[2]["rollout weights"] == pytest.approx(held[1]["rollout weights"] / 2, rel=0.05)
    assert held[2]["KV pages"] == held[1]["KV pages"] / 2


def test_a_topology_has_hosts():
    names = ["v5e:4x4", "v5e:2x2", "v5p:4x4x4", "v6e:2x4", "tpu7x:2x2x2", "h100:8"]
    hosts = [Topology.parse(name).host() for name in names]
    assert [(host.name, host.size) for host in hosts] == [
        ("v5e:2x2", 4), ("v5e:2x2", 4), ("v5p:2x2x1", 4), ("v6e:2x2", 4), ("tpu7x:2x2x1", 8), ("h100:8", 8),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:2x2x4", "v6e:2x4"])
def test_a_hosts_chips_are_replicas_of_a_pod(name):
    """libtpu's own hosts; the mesh follows the links, so its neighbours may sit in different ones."""
    pytest.importorskip("libtpu", reason="topologies want libtpu: pip install '.[tpu]'")
    whole = Topology.parse(name)
    config = tiny_config(fsdp=whole.size)
    config.rollouts_per_step, config.optimizer.micro_batch = 32, whole.size
    config.model.compute_dtype, config.rollout.tensor = "bfloat16", 4
    parts = build(config, whole, 100)
    assert (parts.replicas, parts.engine.replicas) == (whole.size // 4, 1)
    dealt = replica_mesh(parts.mesh, 4, 4).devices[:, 0]
    assert all(len({device.process_index for device in devices}) == 1 for devices in dealt)
    assert {d.id for d in dealt.flat} == {d.id for d in parts.mesh.devices.flat}
    config.rollout.tensor = 8
    with pytest.raises(ConfigError, match=r"rollout\.tensor = 8 .*must divide the 4 device\(s\) of a process"):
        build(config, whole, 100)


def test_state_halves_when_the_fsdp_axis_doubles():
    state = {}
    for fsdp in (1, 2, 4):
        held = build(tiny_config(fsdp=fsdp), topology(fsdp), 100).held()
        state[fsdp] = held["parameters"] + held["optimizer"]
    assert state[2] / state[1] == pytest.approx(0.5, rel=0.15)
    assert state[4] / state[2] == pytest.approx(0.5, rel=0.15)


def test_what_is_held_is_what_the_compiler_is_given(plan):
    parts, train = plan.parts, plan.program("train step")
    compiled = parts.step.lower()["train step"].compile()
    rollouts = 16 * (24 * 4 + 4 + 4 + 16 * 4 + 4 + 1) + 16 * 4
    given = compiled.memory_analysis().argument_size_in_bytes
    assert sum(train.held.values()) + rollouts == pytest.approx(given, rel=0.02)


def test_replicated_arrays_are_found():
    split = replicated_arrays(build(tiny_config(fsdp=4), topology(), 100).step.abstract_state.params, least_bytes=1000)
    assert split == []
    whole = build(tiny_config(data=4), topology(), 100).step.abstract_state
    found = replicated_arrays(whole.params, least_bytes=1000)
    assert any("embed_tokens" in path for path, _ in found)
    one = build(tiny_config(), topology(1), 100).step.abstract_state
    assert replicated_arrays(one.params, least_bytes=1000) == []


def test_a_plan_that_does_not_fit_says_what_to_change(plan):
    most = max(p.total for p in plan.programs)
    small = topology(memory=0.9 * most)
    tight = dataclasses.replace(plan, parts=dataclasses.replace(plan.parts, topology=small))
    assert not tight.fits
    text = "\n".join([*advice(tight), *summary(tight)])
    assert "does not fit: needs" in text and "--config." in text and "frees about" in text
    assert advice(plan) == [] and "fits: " in summary(plan)[-1]


def test_advice_names_the_fields_of_the_rollouts():
    config = tiny_config(fsdp=4)
    config.model.compute_dtype = "bfloat16"
    bf16 = make_plan(build(config, topology(), 100), WORKLOAD, only=("decode 8",))
    held = bf16.programs[0].held
    small = topology(memory=held["parameters"] + held["optimizer"] + held["KV pages"])
    text = "\n".join(advice(dataclasses.replace(bf16, parts=dataclasses.replace(bf16.parts, topology=small))))
    for field in ("--config.rollout.tensor=2 (now 1)", "--config.rollout.pages=", "--config.rollout.slots="):
        assert field in text


@pytest.mark.parametrize(("network", "micro_batch"), [({}, 4), ({"hidden_size": 46, "head_dim": 16}, 12)])
def test_what_is_advised_can_be_built(plan, network, micro_batch):
    """Of a plan with a byte of memory: all that there is to advise. A hidden size of 46 cannot be split into four."""
    config = tiny_config(data=2, fsdp=2)
    config.rollouts_per_step, config.optimizer.micro_batch = 48, micro_batch
    config.model.remat, config.optimizer.logprob_chunk, config.gradient_norms.chunk = "dots", 64, 2
    network = dataclasses.replace(Qwen2Config.from_folder(TINY), **network)
    parts = build(config, topology(memory=1), 100, network)
    lines = [line for line in advice(dataclasses.replace(plan, parts=parts)) if line.startswith("--config")]
    assert len(lines) >= 5
    for line in lines:
        changed = parts.config.copy_and_resolve_references()
        for field, value in re.findall(r"--config\.([\w.]+)=(\w+)", line):
            changed.update_from_flattened_dict({field: int(value) if value.isdigit() else value})
        validate(changed)
        build(changed, topology(), 100, network)


def test_pages_are_copied_in_place(without_cache):
    """With the heads of Qwen2.5-Math-1.5B, whose cache a TPU's compiler likes to lay out in another way."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install '.[tpu]'")
    config = tiny_config(fsdp=4)
    config.model.compute_dtype, config.rollout.page_size, config.rollout.pages = "bfloat16", 64, 1024
    network = dataclasses.replace(
        Qwen2Config.from_folder(TINY), hidden_size=256, num_attention_heads=2, num_key_value_heads=2, head_dim=128
    )
    parts = build(config, Topology.parse("v5e:2x2"), 100, network)
    compiled = parts.engine.lower()["copy pages"].compile()
    assert compiled.memory_analysis().temp_size_in_bytes < parts.held()["KV pages"] / 100


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


@pytest.mark.parametrize(("name", "kernels"), [("auto", "gpu"), ("gpu", "gpu"), ("xla", "xla")])
def test_the_plan_of_a_gpu_names_the_attention_that_a_run_takes(name, kernels):
    config = tiny_config()
    config.rollout.attention, config.model.attention, config.model.compute_dtype = name, "auto", "bfloat16"
    parts = build(config, Topology.parse("h100:1"), 100)
    console = Console(file=io.StringIO(), width=200)
    show(make_plan(parts, WORKLOAD), console)
    assert f"attention {kernels}; trained with attention cudnn" in console.file.getvalue()


def test_kernels_of_another_platform_are_refused_as_in_a_run_there():
    config = tiny_config()
    config.rollout.attention = "tpu"
    with pytest.raises(ConfigError, match=r"rollout\.attention = 'tpu': runs on a TPU, .* platform 'gpu'"):
        build(config, Topology.parse("h100:1"), 100)


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
