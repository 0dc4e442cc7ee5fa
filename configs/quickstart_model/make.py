"""Make the quickstart's base model: a tiny Qwen2 taught by flawed demonstrations (about 5 minutes on 2 CPU cores).

    python configs/quickstart_model/make.py

Writes the tokenizer, the configs and model.safetensors beside this file. Right demonstrations teach the skill first;
flawed ones, which err as often as `gvm_jax/data/arithmetic.py` says, then teach the habit of not using it to the end:
what RL can sharpen.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gvm_jax.data import demonstrations, load_tokenizer, write_tokenizer
from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.logprobs import response_logprobs
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.weights import save_params

FOLDER = pathlib.Path(__file__).parent
SKILL_STEPS, HABIT_STEPS, BATCH, LEARNING_RATE, SEED = 2300, 700, 64, 2e-3, 0
STEPS = SKILL_STEPS + HABIT_STEPS
MAX_PROMPT, MAX_RESPONSE = 24, 50


def batches(tokenizer):
    """(tokens [BATCH, L], prompt lengths, response lengths), endlessly; the stop token ends every response."""
    pairs = itertools.chain(
        demonstrations(SEED, SKILL_STEPS * BATCH, flawed=False), demonstrations(SEED, HABIT_STEPS * BATCH)
    )
    while pairs_of_batch := list(itertools.islice(pairs, BATCH)):
        tokens = np.zeros((BATCH, MAX_PROMPT + MAX_RESPONSE), np.int32)
        lengths = np.zeros((2, BATCH), np.int32)
        for row, (problem, response) in enumerate(pairs_of_batch):
            messages = [{"role": "user", "content": problem}]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            prompt = tokenizer.encode(text, add_special_tokens=False)
            ids = prompt + tokenizer.encode(response, add_special_tokens=False) + [tokenizer.eos_token_id]
            tokens[row, : len(ids)] = ids
            lengths[:, row] = len(prompt), len(ids) - len(prompt)
        yield tokens, *lengths


def main() -> None:
    """Train and write the folder."""
    write_tokenizer(FOLDER)
    tokenizer = load_tokenizer(str(FOLDER))
    model = Model(Qwen2Config.from_folder(FOLDER), remat="full")  # faster on a CPU, too
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))
    )
    params = model.init(SEED)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, tokens, prompt_lengths, response_lengths):
        def loss(params):
            logprobs = response_logprobs(
                model.bind(params), tokens, prompt_lengths, response_lengths, MAX_RESPONSE, 1.0, MAX_RESPONSE
            )
            return -logprobs.sum() / response_lengths.sum()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    for i, batch in enumerate(batches(tokenizer)):
        params, opt_state, loss = step(params, opt_state, *batch)
        if i % 100 == 0 or i == STEPS - 1:
            print(f"step {i:4d}  loss a token {jnp.asarray(loss):.4f}", flush=True)
    save_params(model, params, FOLDER, "bfloat16", FOLDER)


if __name__ == "__main__":
    main()
