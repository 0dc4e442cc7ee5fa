"""Problems as the token ids of chats, in which only the template and the config can place control tokens."""

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gvm_jax.data.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(
    problems: Sequence[str],
    numbers: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
    system_prompt: str,
    user_template: str,
) -> tuple[list[list[int]], list[int]]:
    """The token ids of each problem's chat, checked to spell what the chat template rendered.

    They are those of transformers' `apply_chat_template`, but that a special token's text inside a problem, as
    <|im_end|>, is encoded as the characters that it is written with: data is not to end a turn. The system prompt and
    the user template are the config's own, so special tokens in them are such.

    Args:
      problems: texts.
      numbers: of their rows, for messages.
      tokenizer: one with a chat template.
      system_prompt: text of the system message; "" = no such message.
      user_template: text of the user message; `{problem}` is replaced, other braces are kept.

    Returns:
      The ids, and the numbers of the rows whose problem spells a special token.

    Raises:
      DataError: the chat template refuses the messages, or the tokenizer does not know their characters.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts = [system_prompt, user_template, *problems]
    # Unicode keeps its noncharacters, the first of these, out of texts.
    mark = next(char for char in map(chr, range(0xFDD0, 0x110000)) if not any(char in text for text in texts))
    longest_first = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    spelled = re.compile(longest_first or r"(?!)")
    placed = re.compile(f"(?<!{mark})({longest_first})" if special else r"(?!)")

    name = repr(tokenizer.name_or_path)
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    marked = [spelled.sub(lambda match: "".join(mark + character for character in match[0]), p) for p in problems]
    chats = [[*system, {"role": "user", "content": user_template.replace("{problem}", p)}] for p in marked]
    spelling = [place for place, problem in enumerate(problems) if marked[place] != problem]
    try:
        texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        # The template has written the special tokens already.
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        for place in spelling:
            encoded[place] = []
            for part, text in enumerate(placed.split(texts[place])):  # every other part is a special token
                as_text = {"split_special_tokens": True} if part % 2 == 0 else {}
                encoded[place] += tokenizer(text.replace(mark, ""), add_special_tokens=False, **as_text)["input_ids"]
            texts[place] = texts[place].replace(mark, "")
    except Exception as error:  # jinja's and the tokenizer's own errors have no common class
        raise DataError(
            f"model.path: the tokenizer of {name} cannot take the prompts: {error}. "
            f"Check data.system_prompt and data.user_template; the first messages are {chats[0]}."
        ) from error
    # A small vocabulary silently drops what it does not hold. Qwen2.5 normalises to NFC before it encodes.
    decoded = tokenizer.batch_decode(encoded, clean_up_tokenization_spaces=False)
    for number, text, kept in zip(numbers, texts, decoded, strict=True):
        if kept != unicodedata.normalize("NFC", text):
            raise DataError(
                f"Row {number} (counted from 0): the tokenizer of {name} loses characters. The prompt is "
                f"{text[:300]!r}, its tokens spell {kept[:300]!r}. Use data.system_prompt, "
                "data.user_template and problems that its vocabulary can spell."
            )
    return encoded, [numbers[place] for place in spelling]
