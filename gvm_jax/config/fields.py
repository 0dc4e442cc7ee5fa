"""Every field of a run's config: its default, its allowed values, its meaning, and whether a resumed run may change it.

Defaults are the settings of the GVM paper (arXiv 2505.02391, section 4) where it gives one. `gvm-jax config [SECTION]`
prints this table.
"""

import math

from gvm_jax.config.rules import Field, OnResume, Rule, choice, integer, is_regular_expression, number, text, texts
from gvm_jax.rewards.verifiers import VERIFIERS, is_path

_FREE, _ROUNDING, _CONTENT = OnResume.FREE, OnResume.ROUNDING, OnResume.CONTENT
_DATA_SET = "a .json/.jsonl/.parquet/.csv file or a folder of them, a hub path, builtin:arithmetic or a name as gsm8k"
_MESH_AXIS = Rule(
    "an integer >= 1, or -1 for the devices that the other axes leave",
    lambda value: type(value) is int and (value == -1 or value >= 1),
)
_PAGE_SIZE = Rule("a power of two from 1 to 128", lambda size: type(size) is int and size in {2**i for i in range(8)})
_DUAL_CLIP = Rule(
    "0 for none, or a number > 1", lambda value: type(value) in (int, float) and (value == 0 or 1 < value < math.inf)
)
_REWARD = text(
    f"{' or '.join(map(repr, VERIFIERS))}, or module:function", lambda name: name in VERIFIERS or is_path(name)
)._replace(choices=tuple(VERIFIERS))

# fmt: off
SECTIONS: dict[str, dict[str, Field]] = {
    "": {
        "seed": Field(0, integer(0, 2**32 - 1), "seed of the prompt order, of sampling and of the mini-batch shuffle"),
        "steps": Field(100, integer(1), "training steps; each takes one batch of prompts", _FREE),
        "prompts_per_step": Field(1024, integer(1), "prompts of a step"),
        "rollouts_per_step": Field(8192, integer(1), "the budget: samples of a step over all its prompts and pilots"),
    },
    "model": {
        "path": Field("", text("a Hugging Face folder or hub name of a Qwen2.5 model", bool), "the initial model",
            _CONTENT),
        "compute_dtype": Field("auto", choice("auto", "bfloat16", "float32"),
            "auto: bfloat16 where the device computes it faster"),
        "remat": Field("full", choice("full", "dots", "none"),
            "activations of a layer that the backward pass computes again: full: all; dots: all but the results of its "
            "matrix products", _ROUNDING),
        "attention": Field("auto", choice("auto", "xla", "splash", "cudnn"),
            "of training: splash for TPUs; cudnn for GPUs in bfloat16; auto: the device's kernel, else xla", _ROUNDING),
    },
    "data": {
        "path": Field("", text(_DATA_SET, bool),
            "training data; a short name of gvm_jax/data/named.py brings subset, split and columns with it", _CONTENT),
        "subset": Field("", text(), "configuration of a hub data set ('main' of openai/gsm8k), also of a clone on "
            "disk; '' = its default", _CONTENT),
        "split": Field("", text(), "split to train on; '' = train", _CONTENT),
        "problem_column": Field("", text(), "column with the problem, a text or a chat; a.b is b inside of a; "
            "'' = problem", _CONTENT),
        "answer_column": Field("", text(), "column with the reference answer; '' = answer", _CONTENT),
        "answer_from": Field("", choice("", "column", "list", "boxed"),
            "list: all texts of the column, a line each; boxed: the last \\boxed{} in it; '' = column", _CONTENT),
        "answer_after": Field("", text(), "keep the answer's text after the last such mark ('####' for GSM8K)",
            _CONTENT),
        "bad_rows": Field("drop", choice("drop", "error"),
            "rows whose problem or answer is null, missing, empty, no text or without the mark of answer_after: drop "
            "(and count; more than 5 % are an error), or one is an error", _CONTENT),
        "exclude": Field((), texts("a tuple of data sets: \"('math500', 'aime24')\" on the command line",
            lambda name: "," not in name),  # a list without quotes would be one text
            "data sets, named as evaluation.path is, whose problems are left out of training", _CONTENT),
        "system_prompt": Field("Please reason step by step, and put your final answer within \\boxed{}.", text(),
            "text of the system message; '' = no such message"),
        "user_template": Field("{problem} Let's think step by step and output the final answer within \\boxed{}.",
            text("a text with {problem} in it", lambda template: "{problem}" in template),
            "text of the user message; {problem} is replaced by the problem"),
        "max_prompt_tokens": Field(1024, integer(1), "longer prompts are dropped and counted"),
    },
    "evaluation": {
        "path": Field("", text(f"{_DATA_SET}, or '' for no evaluation"),
            "held-out data; unless it is a short name, it has the columns of the section data", _CONTENT),
        "subset": Field("", text(), "as data.subset", _CONTENT),
        "split": Field("", text(), "split to evaluate on; '' = test", _CONTENT),
        "prompts": Field(256, integer(1), "rows that are used: the first ones"),
        "samples": Field(1, integer(1), "samples k of each; accuracy is avg@k, beside pass@2, pass@4, ..., maj@k"),
        "every": Field(10, integer(1), "steps between evaluations; step 0 and the last one are evaluated too", _FREE),
        "temperature": Field(1.0, number(at_least=0), "sampling temperature; 0 = greedy"),
    },
    "rollout": {
        "max_new_tokens": Field(3072, integer(1), "response tokens, stop token included"),
        "temperature": Field(1.0, number(above=0), "of the policy that is sampled and trained"),
        "top_p": Field(1.0, number(above=0, at_most=1), "nucleus sampling; 1 = off"),
        "top_k": Field(0, integer(0), "sample among the k likeliest tokens; 0 = off"),
        "stop_tokens": Field((), texts("a tuple of texts that are not empty"),
            "() = those of the model's config, generation config, tokenizer and chat template"),
        "slots": Field(64, integer(1), "sequences that a replica of the model decodes at once", _ROUNDING),
        "page_size": Field(64, _PAGE_SIZE, "tokens in a page of the KV cache", _ROUNDING),
        "pages": Field(0, integer(0), "pages of a replica's KV cache; 0 = as many as the slots can need", _ROUNDING),
        "block_steps": Field(8, integer(1), "decode steps between two looks of the host at the slots", _ROUNDING),
        "prefill_tokens": Field(512, integer(1), "prompt tokens computed at once", _ROUNDING),
        "attention": Field("auto", choice("auto", "xla", "tpu", "tpu_shared", "gpu"),
            "kernel of decoding; auto: tpu or gpu on such a device, else xla", _ROUNDING),
        "tensor": Field(0, integer(0), "devices of a replica, all of one process; 0 = mesh.tensor", _ROUNDING),
        "weight_dtype": Field("compute", choice("compute", "int8"),
            "compute: model.compute_dtype; int8: weights are rounded for sampling alone"),
    },
    "rewards": {
        "function": Field("math", _REWARD,
            "grader of a response: math; math_verify (as the GVM authors do); exact (short answers, choices); "
            "python_tests (programs, by the tests of their row); or a function of your own; gvm_jax/rewards/README.md"),
        "workers": Field(0, integer(0), "grader processes; 0 = one per CPU core", _FREE),
        "deadline_seconds": Field(5.0, number(above=0),
            "a slower check counts as a timeout and its worker is replaced; a program is 'slow'", _FREE),
        "memory_mib": Field(1024, integer(1), "MiB that a check or a program may allocate (on Linux)", _FREE),
        "max_failure_rate": Field(0.2, number(at_least=0, at_most=1),
            "verifier errors and timeouts per rollout above which the run stops", _FREE),
    },
    "allocation": {
        "strategy": Field("gvm", text("the name of a strategy, or module:Class of your own", bool),
            "how the budget is shared among prompts; gvm_jax/allocation/README.md has the strategies' formulas"),
        "mode": Field("online", choice("online", "pilot"),
            "online: statistics of earlier visits; pilot: sample pilot_samples first"),
        "pilot_samples": Field(4, integer(1), "samples of each prompt before its allocation, in pilot mode"),
        "pilot_weight": Field(0.5, number(at_least=0, below=1),
            "weight λ of the estimate λ·pilot + (1-λ)·fresh, in pilot mode; 0 = pilots are discarded"),
        "min_samples": Field(1, integer(1), "fewest (fresh) samples of a prompt; no prompt is dropped"),
        "max_samples": Field(0, integer(0), "most (fresh) samples of a prompt; 0 = no cap"),
        "cost": Field("samples", choice("samples", "tokens"),
            "unit of the budget; tokens: each prompt's mean response length is its price"),
        "prompt_pool": Field(1, integer(1), "candidates for each prompt of a step; 1 = every prompt of an epoch"),
        "prompt_temperature": Field(0.1, number(above=0),
            "τ: candidates are drawn in proportion to exp(√(p(1-p))/τ)"),
        "accept_rate_prior": Field(2.0, number(at_least=0),
            "pseudo-samples that pull an accept rate to the population's mean"),
        "gradient_norm_prior": Field(2.0, number(at_least=0),
            "pseudo-samples that pull a log gradient norm to the population's mean"),
        "decay": Field(0.9, number(at_least=0, at_most=1), "factor on a prompt's statistics at each new visit"),
    },
    "gradient_norms": {
        "method": Field("gram", choice("gram", "vmap"),
            "gram: norms of embed_tokens and lm_head, by a forward and backward pass without weight gradients; "
            "vmap: of any parameters, by a gradient for each sample"),
        "parameters": Field("embed_tokens", text("a regular expression", is_regular_expression),
            "searched in the parameters' paths"),
        "chunk": Field(1, integer(1), "packed rows of a pass, as optimizer.micro_batch; with vmap samples", _ROUNDING),
        "max_samples": Field(0, integer(0), "accepted samples measured a step, spread over prompts; 0 = all"),
    },
    "objective": {
        "algorithm": Field("raft_pp",
            choice("raft", "raft_pp", "reinforce", "rloo", "grpo", "dr_grpo", "dapo", "gspo"),
            "a row of the table in gvm_jax/training/objectives.py"),
        "weighting": Field("auto", choice("log_likelihood", "reward", "sequence_mean", "token_mean", "auto"),
            "weights of samples and tokens, explained in gvm_jax/training/objectives.py; auto: the algorithm's"),
        "clip_low": Field(0.2, number(at_least=0, at_most=1),
            "the importance ratio is clipped below 1 - clip_low (GSPO publishes 3e-4, and 4e-4 for clip_high)"),
        "clip_high": Field(0.2, number(at_least=0), "the importance ratio is clipped above 1 + clip_high"),
        "dual_clip": Field(0.0, _DUAL_CLIP, "c: a negative advantage pulls at most c-fold; 0 = no such clip"),
        "mask_truncated": Field(False, Rule("True or False", lambda value: isinstance(value, bool)),
            "leave responses that were cut at max_new_tokens out of the loss"),
        "importance_cap": Field(2.0, number(above=0),
            "C of a token's weight min(π_old/π_behaviour, C), where rollout.weight_dtype = int8 samples with other "
            "weights than are trained"),
        "kl_coefficient": Field(0.0, number(at_least=0),
            "weight of the KL penalty to the initial model; 0 = none, and no copy of the model is kept"),
        "kl_estimator": Field("k3", choice("k1", "k2", "k3"), "estimator of the KL divergence"),
    },
    "optimizer": {
        "updates_per_step": Field(4, integer(1), "optimizer updates, each on an equal share of the step's rollouts"),
        "micro_batch": Field(8, integer(1),
            "rollouts of the greatest length (data.max_prompt_tokens + rollout.max_new_tokens) that one forward and "
            "backward pass has room for", _ROUNDING),
        "samples_per_row": Field(1, integer(1),
            "rollouts of the greatest length that a row of the pass has room for. A row holds as many real ones as "
            "fit: longer rows waste less (train/packing_efficiency), and attention costs more", _ROUNDING),
        "learning_rate": Field(1e-6, number(above=0), "of AdamW"),
        "warmup_updates": Field(0, integer(0), "updates of linear warm-up to learning_rate, which then is constant"),
        "b1": Field(0.9, number(at_least=0, below=1), "decay of AdamW's first moment"),
        "b2": Field(0.999, number(at_least=0, below=1), "decay of AdamW's second moment"),
        "weight_decay": Field(0.01, number(at_least=0), "of AdamW"),
        "max_gradient_norm": Field(1.0, number(above=0), "gradients are clipped to this global norm"),
        "max_skipped_updates": Field(5, integer(1),
            "updates whose loss or gradient is not finite are skipped; so many in a row stop the run", _FREE),
        "logprob_chunk": Field(512, integer(1),
            "response tokens of a device whose vocabulary logits are held at once", _ROUNDING),
    },
    "mesh": {
        "data": Field(-1, _MESH_AXIS, "devices of the batch axis", _ROUNDING),
        "fsdp": Field(1, _MESH_AXIS, "of the batch axis that also shards parameters and optimizer state", _ROUNDING),
        "tensor": Field(1, _MESH_AXIS, "of the axis that shards heads, feed-forward and vocabulary", _ROUNDING),
    },
    "distributed": {  # a run of several processes; gvm_jax/runtime/distributed.py finds them
        "start_seconds": Field(300.0, number(above=0), "wait for processes that start late; then the missing ones are "
            "named", _FREE),
        "peer_seconds": Field(60.0, number(above=0), "a process that is silent for so long ends the run", _FREE),
    },
    "journal": {
        "samples": Field(16, integer(0), "samples of a step whose text goes to samples.jsonl, spread over its "
            "prompts", _FREE),
    },
    "wandb": {
        "project": Field("", text(), "Weights & Biases project; '' = off. Needs the extra gvm_jax[wandb]", _FREE),
    },
    "checkpoint": {
        "every": Field(10, integer(1), "steps between checkpoints; the last step is saved too", _FREE),
        "keep": Field(2, integer(1), "newest checkpoints kept; the older ones replace one that is damaged", _FREE),
        "keep_best": Field(1, integer(0), "checkpoints kept beside them: those of the best held-out accuracy", _FREE),
    },
}
# fmt: on

FIELDS: dict[str, Field] = {
    f"{section}.{name}".removeprefix("."): field
    for section, fields in SECTIONS.items()
    for name, field in fields.items()
}
# A section without fields of its own: the strategy that `allocation.strategy` names declares them.
OPTIONS = "allocation.options"
