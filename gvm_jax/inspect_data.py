"""Show a data set as the model will see it: `gvm-jax inspect --config=configs/qwen25_0p5b_gsm8k.py`.

Prints how many rows make prompts and why others are dropped, the lengths of the prompts, and rows as they are: the
rendered chat with its special tokens, and the reference answer as the verifier gets it. Of the model it needs the
tokenizer alone; where there is a config.json too, tokens that the model has no row for are an error, as in a run.
"""

import sys
from collections.abc import Sequence

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from gvm_jax import command
from gvm_jax.config import ConfigError, validate
from gvm_jax.data import build_prompts, check_prompts, load_config_rows, load_tokenizer
from gvm_jax.data.errors import by_reason, counted
from gvm_jax.data.prompts import TOO_LONG, UNREADABLE, UNREADABLE_ADVICE, repeats
from gvm_jax.data.tokenizer import read_model_json
from gvm_jax.rewards import Grader, VerifierFailure

PERCENTILES = (0, 50, 90, 99, 100)

_ROWS = flags.DEFINE_integer("rows", 3, "How many rows to show: the first.", lower_bound=0)
_ROW = flags.DEFINE_multi_integer("row", None, "Row to show, counted from 0, in place of the first.")
_SECTION = flags.DEFINE_enum("section", "data", ["data", "evaluation"], "Section whose data set is shown.")


def inspect(config: ConfigDict, section: str = "data", shown: Sequence[int] | None = None, first: int = 3) -> list[str]:
    """Lines about a data set.

    Args:
      config: a run's; its data sets, model.path and the verifier's limits are looked at.
      section: "data" or "evaluation".
      shown: numbers of the rows to show; None = the first ones.
      first: how many these are.

    Raises:
      ConfigError, DataError: bad input, or no such row.
      VerifierFailure: the verifier cannot start.
    """
    validate(config)
    data, limit, path = config.data, config.data.max_prompt_tokens, config[section].path
    tokenizer = load_tokenizer(config.model.path)
    rows = load_config_rows(config, section, path)
    shown = list(range(min(first, len(rows)))) if shown is None else shown
    if wrong := [number for number in shown if not 0 <= number < len(rows)]:
        raise ConfigError(f"--row={wrong[0]}: {section}.path = {path!r} has the rows 0 to {len(rows) - 1}")
    # All that have a problem, however long: the lengths are what max_prompt_tokens is chosen by.
    whole = build_prompts(
        [row._replace(dropped="" if row.problem else row.dropped) for row in rows],
        tokenizer, data.system_prompt, data.user_template, sys.maxsize,
    )  # fmt: skip
    if vocab_size := read_model_json(config.model.path, "config.json").get("vocab_size"):
        check_prompts(whole, tokenizer, vocab_size, data.system_prompt, data.user_template)
    tokens = dict(zip(whole.ids.tolist(), whole.tokens, strict=True))
    lengths = np.array([len(tokens.get(number, ())) for number in range(len(rows))])
    with Grader(**config.rewards) as grader:
        readable = grader.parses([row.answer for row in rows])
        reasons = [
            row.dropped or (TOO_LONG if length > limit else "" if reads else UNREADABLE)
            for row, length, reads in zip(rows, lengths, readable, strict=True)
        ]
        dropped = by_reason({number: reason for number, reason in enumerate(reasons) if reason})
        kept = [number for number, reason in enumerate(reasons) if not reason]
        problems, reference_answers = (
            [rows[number].problem for number in kept],
            [rows[number].answer for number in kept],
        )
        notes = [*whole.notes, *repeats(kept, problems, reference_answers, grader.equivalent)]
    percentiles = zip(PERCENTILES, np.percentile(lengths[whole.ids], PERCENTILES, method="higher"), strict=True)
    lines = [
        f"data      {path}: {len(rows):,} rows, {len(kept):,} prompts",
        *(f"dropped   {counted(numbers)}: {reason}" for reason, numbers in dropped.items()),
        f"tokens    {', '.join(f'{share} %: {length}' for share, length in percentiles)} of all rows' prompts; "
        f"data.max_prompt_tokens = {limit}",
    ]
    if 2 * sum(readable) < len(rows):
        notes = [UNREADABLE_ADVICE, *notes]
    lines += [f"note      {note}" for note in notes]
    for number in shown:
        reads = "the verifier reads it" if readable[number] else "the verifier cannot read it"
        lines += [
            "",
            f"row {number}: {lengths[number]} tokens" + (f"; dropped: {reasons[number]}" if reasons[number] else ""),
            *(f"  | {line}" for line in tokenizer.decode(tokens.get(number, ())).split("\n")),
            f"  answer: {rows[number].answer!r} ({reads})",
        ]
    return lines


def main() -> None:
    """Parse flags, print."""
    logging.set_verbosity(logging.ERROR)
    config, section = command.config(), _SECTION.value
    with command.one_line(VerifierFailure):
        if not config[section].path:
            raise ConfigError(f"{section}.path is empty; name a data set with --config.{section}.path=")
        print(*inspect(config, section, _ROW.value, _ROWS.value), sep="\n")


if __name__ == "__main__":
    command.run(main, shared=["config"])
