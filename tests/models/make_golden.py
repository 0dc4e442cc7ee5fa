"""Make the golden files of test_parity.py with transformers' Qwen2 in float32 (needs torch).

python tests/models/make_golden.py                   # golden/tiny_untied/: a random tiny model and its logits
python -m tests.models.make_golden --odd             # golden/odd_folders.npz: logits of odd_folders.py's folders
python tests/models/make_golden.py --model FOLDER    # golden/qwen25_0p5b.npz: the Qwen2.5-Coder-0.5B-Instruct
"""

import argparse
import pathlib
import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

GOLDEN = pathlib.Path(__file__).parent / "golden"
QUESTIONS = [
    "Natalia sold 48 clips in April and half as many in May. How many did she sell altogether?",
    "What is 17 * 23?",
    "A train travels 60 km in 45 minutes. What is its speed in km/h?",
    "Solve x^2 - 5x + 6 = 0.",
    "If 3 pens cost $4.50, how much do 7 pens cost?",
]
LOGIT_COLUMNS = 1024  # every 148th entry of the vocabulary: enough to catch an error, small enough to ship


def make_tiny() -> None:
    """Untied embeddings, 4 query heads on 2 KV heads, biases that are not zero, hidden size not heads x head_dim."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=False,
        max_position_embeddings=128, eos_token_id=1, bos_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = GOLDEN / "tiny_untied"
    model.save_pretrained(folder)
    tokens = torch.randint(0, config.vocab_size, (4, 40))
    with torch.no_grad():
        logits = model(tokens).logits
    np.savez_compressed(folder / "golden.npz", tokens=tokens.numpy().astype(np.int32), logits=logits.numpy())


def make_odd() -> None:
    """Logits of the last tokens of a sequence, of every folder that transformers loads, in float32."""
    from tests.models import odd_folders

    tokens = torch.arange(24)[None]
    logits = {}
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        for i, (name, change) in enumerate(odd_folders.LOADED.items()):
            folder = odd_folders.make(pathlib.Path(temporary) / str(i), change)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            logits[name] = model(tokens).logits[0, -2:].numpy()
    np.savez_compressed(GOLDEN / "odd_folders.npz", **logits)


def make_real(folder: str) -> None:
    """Logits at every position of one prompt, and 64 greedy tokens after each of five."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    arrays = {}
    for i, question in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": question}]
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model.generate(
                tokens, max_new_tokens=64, do_sample=False, repetition_penalty=1.0, eos_token_id=[-1],
                temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
            if i == 0:
                logits = model(tokens).logits[0]
                arrays["columns"] = np.linspace(0, logits.shape[-1] - 1, LOGIT_COLUMNS).astype(np.int32)
                arrays["logits"] = logits[:, arrays["columns"]].numpy()
        arrays[f"prompt_{i}"] = tokens[0].numpy().astype(np.int32)
        arrays[f"greedy_{i}"] = output[0, tokens.shape[1] :].numpy().astype(np.int32)
    np.savez_compressed(GOLDEN / "qwen25_0p5b.npz", **arrays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of Qwen2.5-Coder-0.5B-Instruct; default: the random tiny model")
    parser.add_argument("--odd", action="store_true", help="the folders of odd_folders.py")
    arguments = parser.parse_args()
    if arguments.odd:
        make_odd()
    else:
        make_real(arguments.model) if arguments.model else make_tiny()
