"""The quickstart's task, `builtin:arithmetic`: sums of single digits, solved by writing down running sums.

A problem is "7+5+9", a right response "12;21;\\boxed{21}". The mix of difficulties is uneven on purpose, so
that prompts differ in how much another rollout of them is worth. `demonstrations` teaches a base model that
knows the skill but slips, as a pretrained model does; `write_tokenizer` makes the folder of that model.
"""

import functools
import itertools
import json
import pathlib
import random
from collections.abc import Iterator
from typing import NamedTuple


class Difficulty(NamedTuple):
    """A class of problems."""

    fraction: float  # of all problems
    min_terms: int
    max_terms: int  # inclusive; the number of terms is uniform, as far as there are distinct problems


# Whoever has learned the demonstrations solves k terms with probability ((1 - GIVE_UP_RATE)(1 - SLIP_RATE))^(k - 1):
# short problems nearly always, the longest about once in 15 tries. With k terms a prompt has 2k tokens and a response,
# stop token included, at most 4k + 2: 24 and 50 for 12.
DIFFICULTIES = (
    Difficulty(fraction=0.50, min_terms=2, max_terms=3),
    Difficulty(fraction=0.25, min_terms=5, max_terms=7),
    Difficulty(fraction=0.25, min_terms=9, max_terms=12),
)
GIVE_UP_RATE = 0.22  # probability that a demonstration stops before a step and boxes the sum so far
SLIP_RATE = 0.01  # probability that a step's sum is one too small
SPLIT_SIZES = {"train": 256, "test": 256}  # few enough that a short run comes back to each prompt
SEED = 2505  # of the problems; another seed is another data set

CHARACTERS = "0123456789+;=}"  # a token's id is its place in CHARACTERS, then in ADDED_TOKENS
BOXED, END_OF_TEXT, END_OF_TURN = ADDED_TOKENS = ("\\boxed{", "<|endoftext|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ message.content }}={% else %}"
    "{{ raise_exception('the arithmetic model takes one user message and no other: "
    "set data.system_prompt to an empty string') }}"
    "{% endif %}{% endfor %}"
)


def arithmetic_rows(split: str) -> list[dict]:
    """The problems of "train" or "test", in an order mixed over difficulties; no problem is in both, nor twice in one.

    Returns:
      Rows with "problem" (the sum's text), "answer" (int) and "terms" (their number).
    """
    return [{"problem": _text(terms), "answer": sum(terms), "terms": len(terms)} for terms in _problems()[split]]


def demonstrations(seed: int, n: int, flawed: bool = True) -> Iterator[tuple[str, str]]:
    """Solutions to teach a base model, in the mix of difficulties, never of a test problem.

    Before each step a flawed demonstration may give up and box the sum so far, and a step may slip to a sum that is
    one too small, from which it goes on. Both make the answer too small, so they never cancel: it is right exactly
    where there is no flaw. Giving up is one habit in many places, so a policy can unlearn it everywhere at once.

    Args:
      seed: equal seeds give equal demonstrations.
      n: how many; fewer are the first of more.
      flawed: False = all of them right.

    Yields:
      Pairs (problem, response), such as ("7+5+9", "12;21;\\\\boxed{21}"), without the stop token.
    """
    rng = random.Random(f"demonstrations {seed}")
    held_out = set(_problems()["test"])
    for _ in range(n):
        (difficulty,) = _draw_difficulties(rng, 1)
        while (terms := _draw_terms(rng, difficulty)) in held_out:
            pass
        total, sums = terms[0], []
        for term in terms[1:]:
            if flawed and rng.random() < GIVE_UP_RATE:
                break
            total += term - (flawed and rng.random() < SLIP_RATE)
            sums.append(f"{total};")
        yield _text(terms), "".join(sums) + f"\\boxed{{{total}}}"


def write_tokenizer(folder: str | pathlib.Path) -> None:
    """Writes the quickstart model's folder but for the weights: tokenizer, chat template, tiny Qwen2 config.

    The shipped folder is made by

        python -c "import gvm_jax.data; gvm_jax.data.write_tokenizer('configs/quickstart_model')"
    """
    import tokenizers

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: i for i, token in enumerate((*CHARACTERS, *ADDED_TOKENS))}

    # For model type qwen2, AutoTokenizer insists on a Qwen2Tokenizer: byte-level BPE, here without any merge.
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={token: ids[token] for token in CHARACTERS}, merges=[])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_tokens([BOXED])  # not a special token: the graded text keeps it
    tokenizer.add_special_tokens([END_OF_TEXT, END_OF_TURN])
    tokenizer.save(str(folder / "tokenizer.json"))

    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    special_ids = {"bos_token_id": ids[END_OF_TEXT], "pad_token_id": ids[END_OF_TEXT]}
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": -(-len(ids) // 8) * 8,  # a multiple of 8 can be sharded
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "dtype": "bfloat16",
        "eos_token_id": ids[END_OF_TURN],
        **special_ids,
    }
    generation_config = {"eos_token_id": [ids[END_OF_TURN], ids[END_OF_TEXT]], **special_ids}
    contents = {"tokenizer_config": tokenizer_config, "config": config, "generation_config": generation_config}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _text(terms: tuple[int, ...]) -> str:
    return "+".join(map(str, terms))


def _draw_difficulties(rng: random.Random, n: int) -> list[Difficulty]:
    return rng.choices(DIFFICULTIES, weights=[difficulty.fraction for difficulty in DIFFICULTIES], k=n)


def _draw_terms(rng: random.Random, difficulty: Difficulty) -> tuple[int, ...]:
    return tuple(rng.choices(range(1, 10), k=rng.randint(difficulty.min_terms, difficulty.max_terms)))


@functools.cache
def _problems() -> dict[str, list[tuple[int, ...]]]:
    """The distinct problems of each split, as their terms."""
    rng = random.Random(SEED)
    drawn = _draw_difficulties(rng, sum(SPLIT_SIZES.values()))
    for difficulty in DIFFICULTIES:
        wanted = drawn.count(difficulty)
        there_are = sum(9**terms for terms in range(difficulty.min_terms, difficulty.max_terms + 1))
        if wanted > there_are // 2:
            raise ValueError(f"{difficulty}: {wanted} distinct problems wanted of {there_are}; allow more terms")
    problems: dict[tuple[int, ...], None] = {}  # a set that keeps its order
    for difficulty in drawn:
        while (terms := _draw_terms(rng, difficulty)) in problems:
            pass
        problems[terms] = None
    # The few shortest problems are used up early in the draw: unshuffled, the last split would have none.
    shuffled = rng.sample(list(problems), k=len(problems))
    remaining = iter(shuffled)
    return {split: list(itertools.islice(remaining, size)) for split, size in SPLIT_SIZES.items()}
