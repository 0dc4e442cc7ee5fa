"""Every field of a run with its meaning and default; the other files in this folder change some of them.

Override a field on the command line as `--config.section.field=value`. Unknown fields are refused and values are
checked before any device is touched (`gvm_jax/config/rules.py`, which says too which fields may change on resume).
"""

import difflib

from ml_collections import ConfigDict

from gvm_jax.config.rules import ConfigError


def get_config() -> ConfigDict:
    """The defaults: the paper's settings (arXiv 2505.02391, section 4) where it gives one."""
    config = ConfigDict()
    config.seed = 0  # of the prompt order, of every sampled token and of the mini-batch shuffle
    config.steps = 100  # training steps; one step = one batch of prompts
    config.prompts_per_step = 1024  # prompts drawn from the data set for a step
    config.rollouts_per_step = 8192  # the budget: samples of a step over all its prompts, pilots included

    config.model = ConfigDict()
    config.model.path = ""  # Hugging Face folder or hub name of a Qwen2.5 model
    config.model.compute_dtype = "auto"  # float32 | bfloat16 | auto (bfloat16 where the device computes it faster)
    # What of a layer the backward pass computes again instead of keeping it: full (all) | dots (all but the results of
    # its matrix products) | none
    config.model.remat = "full"
    # Of training: xla | splash (TPUs) | cudnn (GPUs, bfloat16) | auto (the kernel of the device, where it has one)
    config.model.attention = "auto"

    config.data = ConfigDict()
    # A .json/.jsonl/.parquet/.csv file (.jsonl.gz too) or a folder of them, a hub path, builtin:arithmetic, or a short
    # name of gvm_jax/data/named.py (numina, math, gsm8k, deepscaler, ...), which brings the fields up to answer_after.
    config.data.path = ""
    # A hub data set's configuration name ("main" for openai/gsm8k), also of its clone on disk; "" = its default
    config.data.subset = ""
    config.data.split = ""  # split to train on; "" = train
    config.data.problem_column = ""  # column with the problem (text or chat; a.b is b inside of a); "" = problem
    config.data.answer_column = ""  # column with the reference answer; "" = answer
    config.data.answer_from = (
        ""  # column | list: all its texts, a line each | boxed: the last \boxed{} in it; "" = column
    )
    config.data.answer_after = ""  # keep only the answer's text after the last such mark ("####" for GSM8K)
    # Rows whose problem or answer is null, missing, empty, no text or without the mark of answer_after: drop (counted;
    # more than 5 % are an error) | error (one is)
    config.data.bad_rows = "drop"
    config.data.exclude = ()  # data sets, named as evaluation.path is, whose problems are left out of training
    config.data.system_prompt = "Please reason step by step, and put your final answer within \\boxed{}."
    config.data.user_template = (  # {problem} is replaced by the problem's text
        "{problem} Let's think step by step and output the final answer within \\boxed{}."
    )
    config.data.max_prompt_tokens = 1024  # longer prompts are dropped, counted and reported

    config.evaluation = ConfigDict()
    # Held-out data, named as data.path is; with the columns of `data`, if it is no short name. "" = no evaluation.
    config.evaluation.path = ""
    config.evaluation.subset = ""  # as data.subset
    config.evaluation.split = ""  # split to evaluate on; "" = test
    config.evaluation.prompts = 256  # the first so many rows
    config.evaluation.samples = 1  # samples k of each; accuracy is avg@k, beside pass@2, pass@4, ..., maj@k
    config.evaluation.every = 10  # steps between evaluations; step 0 and the last step are evaluated too
    config.evaluation.temperature = 1.0  # 0 = greedy

    config.rollout = ConfigDict()
    config.rollout.max_new_tokens = 3072  # response tokens, stop token included
    config.rollout.temperature = 1.0  # of the policy that is sampled and trained
    config.rollout.top_p = 1.0  # nucleus sampling; 1 = off
    config.rollout.top_k = 0  # sample among the k likeliest tokens; 0 = off
    # Texts of stop tokens; () = what the model's config, generation config and tokenizer name, and the chat template's
    # end of turn.
    config.rollout.stop_tokens = ()
    config.rollout.slots = 64  # sequences that a replica of the model decodes at once
    config.rollout.page_size = 64  # tokens in a page of the KV cache; a power of two up to 128
    config.rollout.pages = 0  # pages in a replica's KV cache; 0 = as many as the slots can ever need
    config.rollout.block_steps = 8  # decode steps between two looks of the host at the slots
    config.rollout.prefill_tokens = 512  # prompt tokens computed at once
    config.rollout.attention = "auto"  # xla | tpu | tpu_shared | gpu | auto (by device: tpu, gpu, else xla)
    config.rollout.tensor = 0  # devices of a replica, all of one process; 0 = mesh.tensor
    config.rollout.weight_dtype = "compute"  # compute (model.compute_dtype) | int8 (rounded for sampling alone)

    config.rewards = ConfigDict()
    # What a response is graded by: math | math_verify (as the GVM authors do) | exact (short answers, choices) |
    # python_tests (programs, by the tests of their row) | module:function of your own; gvm_jax/rewards/README.md
    # explains them.
    config.rewards.function = "math"
    config.rewards.workers = 0  # grader processes; 0 = one per CPU core
    config.rewards.deadline_seconds = (
        5.0  # a slower check counts as a timeout and its worker is replaced; a program is "slow"
    )
    config.rewards.memory_mib = 1024  # what a check, or a program, may allocate, in MiB (on Linux)
    config.rewards.max_failure_rate = 0.2  # verifier errors and timeouts per rollout above which the run stops

    config.allocation = ConfigDict()
    # uniform | gvm | gvm_rates | gvm_paper | cures | reinforce_ada_est | reinforce_ada_seq | vip | knapsack | cero |
    # dapo | speed_rl | pods; gvm_jax/allocation/README.md has their formulas
    config.allocation.strategy = "gvm"
    config.allocation.mode = "online"  # online: statistics of earlier visits; pilot: sample pilot_samples first
    config.allocation.pilot_samples = 4  # samples of each prompt before its allocation, in pilot mode
    config.allocation.pilot_weight = 0.5  # λ of the estimate λ·pilot + (1-λ)·fresh, in pilot mode; 0 = discarded
    config.allocation.min_samples = 1  # floor of a prompt's (fresh) samples; at least 1: no prompt is dropped
    config.allocation.max_samples = 0  # cap of a prompt's (fresh) samples; 0 = none
    config.allocation.cost = "samples"  # what counts are spent for: samples | tokens (of each prompt's mean response)
    config.allocation.prompt_pool = 1  # candidates for each prompt of a step; 1 = every prompt of an epoch is taken
    config.allocation.prompt_temperature = 0.1  # τ: candidates are drawn in proportion to exp(√(p(1-p))/τ)
    config.allocation.accept_rate_prior = 2.0  # pseudo-samples that pull an accept rate to the population's mean
    config.allocation.gradient_norm_prior = 2.0  # pseudo-samples that pull a log gradient norm to the population's mean
    config.allocation.decay = 0.9  # factor on a prompt's earlier statistics at each new visit
    # Of single strategies:
    config.allocation.alpha = 1e-3  # gvm: α of Prop. 1, damps prompts that are hardly ever solved
    config.allocation.beta = 2.0  # gvm: β of Prop. 1
    config.allocation.filter_threshold = 0.0  # gvm_paper: drop prompts with a higher accept rate; 0 = off
    config.allocation.filter_insufficient = 0.0  # gvm_paper: drop prompts that expect fewer accepted samples; 0 = off
    config.allocation.group_baseline = "leave_one_out"  # vip: leave_one_out (RLOO) | mean (Dr. GRPO)
    config.allocation.group_size = (
        8  # samples of a group: dapo, speed_rl (20 in the paper), pods, cero, reinforce_ada_seq
    )
    config.allocation.groups = 0  # dapo: mixed groups to sample for; 0 = half of the step's prompts
    config.allocation.screen_samples = 4  # speed_rl: of each prompt before it is decided on
    config.allocation.round_size = 4  # reinforce_ada_seq: samples of a prompt in a round
    config.allocation.max_rounds = 4  # reinforce_ada_seq: rounds of a prompt at most
    config.allocation.accepted_wanted = 2  # reinforce_ada_seq: accepted samples that end a prompt's rounds ...
    config.allocation.rejected_wanted = 2  # ... with this many rejected ones
    config.allocation.saturation = 1.0  # cero: λ of the utility 1 - exp(-4λqn/group_size)

    config.gradient_norms = ConfigDict()
    # gram: of embed_tokens and lm_head, one forward and backward pass without weight gradients | lm_head: of the output
    # head alone, forward only | update: as gram, by the first update's own backward pass, of its samples only |
    # vmap: of any parameters, a gradient for each sample
    config.gradient_norms.method = "gram"
    config.gradient_norms.parameters = "embed_tokens"  # regular expression searched in the parameters' paths
    config.gradient_norms.chunk = 1  # packed rows of a pass, as optimizer.micro_batch; with vmap samples
    config.gradient_norms.max_samples = 0  # accepted samples measured a step, spread over prompts; 0 = all

    config.objective = ConfigDict()
    config.objective.algorithm = "raft_pp"  # raft | raft_pp | reinforce | rloo | grpo | dr_grpo | dapo | gspo
    # log_likelihood | reward | sequence_mean | token_mean | auto (by algorithm); training/objectives.py explains them
    config.objective.weighting = "auto"
    config.objective.clip_low = 0.2  # the importance ratio is clipped below 1 - clip_low (gspo publishes 3e-4 and 4e-4)
    config.objective.clip_high = 0.2  # ... and above 1 + clip_high
    config.objective.dual_clip = 0.0  # c: a negative advantage pulls at most c-fold; 0 = no such clip
    config.objective.mask_truncated = False  # leave responses that were cut at max_new_tokens out of the loss
    # Cap C of the importance weight min(π_old/π_behaviour, C) of a token, where rollouts are drawn with other weights
    # than are trained (rollout.weight_dtype = int8); without effect elsewhere.
    config.objective.importance_cap = 2.0
    config.objective.kl_coefficient = 0.0  # weight of the KL penalty to the initial model; 0 = none, no copy kept
    config.objective.kl_estimator = "k3"  # k1 | k2 | k3

    config.optimizer = ConfigDict()
    config.optimizer.updates_per_step = 4  # optimizer updates, each on an equal share of the step's rollouts
    # Rollouts of the greatest length, data.max_prompt_tokens + rollout.max_new_tokens tokens, that one forward and
    # backward pass has room for.
    config.optimizer.micro_batch = 8
    # ... and that a row of the pass has room for. A row holds as many real rollouts as fit: longer rows waste less,
    # and attention costs more. train/packing_efficiency in the metrics is the share that is not padding.
    config.optimizer.samples_per_row = 1
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_updates = 0  # linear warm-up to learning_rate, then constant
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.max_gradient_norm = 1.0  # global-norm clip
    # An update whose loss or gradient is not finite is left out; after so many in a row the run stops.
    config.optimizer.max_skipped_updates = 5
    config.optimizer.logprob_chunk = 512  # response tokens of a device whose vocabulary logits are held at once

    config.mesh = ConfigDict()
    config.mesh.data = -1  # batch axis; -1 = the devices that the other axes leave
    config.mesh.fsdp = 1  # batch axis that also shards parameters and optimizer state
    config.mesh.tensor = 1  # shards heads, feed-forward and vocabulary

    config.distributed = ConfigDict()  # of a run of several processes; gvm_jax/runtime/distributed.py finds them
    config.distributed.start_seconds = 300.0  # wait for processes that start late; then the missing ones are named
    config.distributed.peer_seconds = 60.0  # a process that is silent for so long is given up, and the run ends

    config.journal = ConfigDict()  # the record of a run in its workdir
    config.journal.samples = 16  # samples of a step whose text goes to samples.jsonl, spread over its prompts; 0 = none

    config.wandb = ConfigDict()  # Weights & Biases, beside the workdir's own files; WANDB_MODE=offline and such hold
    config.wandb.project = ""  # its project; "" = off. Wants pip install -e '.[wandb]'

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 10  # steps between checkpoints; the last step is saved too
    config.checkpoint.keep = 2  # newest checkpoints kept; the older of them stand in for one that is damaged
    # Checkpoints with the best held-out accuracy that are kept beside them, of the saved steps that were evaluated.
    config.checkpoint.keep_best = 1
    return config.lock()


METHODS = {  # argument of the other config files -> (objective.algorithm, allocation.strategy)
    "raft": ("raft_pp", "uniform"),
    "gvm_raft": ("raft_pp", "gvm"),
    "grpo": ("grpo", "uniform"),
    "gvm_grpo": ("grpo", "gvm"),
}


def set_method(config: ConfigDict, method: str) -> None:
    """Set the algorithm and the strategy that an argument such as `configs/quickstart.py:raft` names."""
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"argument {method!r} of the config file: must be one of {', '.join(METHODS)}{meant}")
    config.objective.algorithm, config.allocation.strategy = METHODS[method]
