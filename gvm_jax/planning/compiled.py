"""Compiles one program of a run and says what it takes; out of memory is an answer, not an error."""

import dataclasses
import re
import time

import jax

from gvm_jax.planning.costs import Costs, program_costs
from gvm_jax.planning.hlo import Shape, parse

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """Of one program on one device, in bytes. `costs` is None where it did not fit on the device by itself."""

    name: str
    seconds: float  # to compile
    arguments: int
    results: int  # those that do not take an argument's place
    temporaries: int
    code: int
    costs: Costs | None

    @property
    def fits_alone(self) -> bool:
        """The compiler found room for it."""
        return self.costs is not None


def compile_program(
    name: str, lowered: jax.stages.Lowered, devices: int, loop_runs: int, cache: jax.ShapeDtypeStruct | None
) -> CompiledProgram:
    """Compile for the devices that the program was lowered for.

    Args:
      name: of the program.
      lowered: it.
      devices: in the mesh.
      loop_runs: how often loops run whose end depends on data.
      cache: the KV cache, whose reads by kernels are not counted here.
    """
    begin = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = _used_bytes(str(error))
        return CompiledProgram(name, time.perf_counter() - begin, 0, 0, used, 0, None)
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    by_hand = None
    if cache is not None:
        dtype = {"bfloat16": "bf16", "float32": "f32"}[cache.dtype.name]
        by_hand = Shape(dtype, cache.sharding.shard_shape(cache.shape)[1:])  # a device has one replica
    return CompiledProgram(
        name=name,
        seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        costs=program_costs(parse(compiled.as_text()), devices, loop_runs, by_hand),
    )


def _used_bytes(message: str) -> int:
    """What the compiler says that the program needs: "Used 20.31G of 15.75G hbm"."""
    used = re.search(r"Used ([\d.]+)([KMGT]?)i?B? of", message)
    return int(float(used.group(1)) * _UNITS[used.group(2)]) if used else 0
