r"""One spelling of the many that the same mathematics has: `½.`, `\dfrac 12` and `$\frac{1}{2}$` are `\frac{1}{2}`.

Layout changes and values do not: characters of Unicode become LaTeX's commands, spacing and styles go, arguments get
their braces, and what stands around an answer (punctuation, "the answer is", markup, currencies) comes off. Pure
functions in linear time.
"""

import functools
import re
import unicodedata

CURRENCIES = "$€£¥₹₽₩₺₫₴₦฿¢"
_CHARACTERS = {
    "−": "-", "‐": "-", "‑": "-", "‒": "-", "–": "-", "﹣": "-", "∕": "/", "⁄": "/", "÷": r"\div ", "×": r"\times ",
    "✕": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "∗": "*", "±": r"\pm ", "∓": r"\mp ",
    "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "º": r"^\circ ",
    "∘": r"\circ ", "∠": r"\angle ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}", "′": "'", "’": "'", "٪": "%", "٫": ".", "٬": ",", "⟨": r"\langle ", "⟩": r"\rangle ",
    "\u00c5": r"\AA ", "\u212b": r"\AA ", "ϕ": r"\phi ", "ϵ": r"\epsilon ", "µ": r"\mu ", "\t": " ",
    "\n": " ", "\r": " ",
}  # fmt: skip
for _name in (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu xi pi rho sigma tau phi chi psi omega".split()
):
    for _case, _command in (("SMALL", _name), ("CAPITAL", _name.capitalize())):
        _CHARACTERS[unicodedata.lookup(f"GREEK {_case} LETTER {_name}")] = rf"\{_command.replace('amda', 'ambda')} "

_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\d+|[a-zA-Z]+|\s+|.", re.DOTALL)
_BLANKS = {
    "\\" + name for name in [*",;:> ~", *"quad qquad enspace thinspace medspace thickspace enskip hfill".split()]
}
_BLANKS |= {r"\euro", r"\pounds", r"\textdollar", r"\texteuro", r"\textsterling", r"\$", "~", *CURRENCIES, r"\(", r"\)"}
_DROPPED = {"\\" + name for name in ["/", *"displaystyle textstyle scriptstyle limits nolimits nonumber".split()]}
_DROPPED |= {rf"\{size}{side}" for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r", "m")}
_SIDES = {r"\left", r"\right", r"\mleft", r"\mright"}
_WITH_ARGUMENT = {r"\hspace", r"\vspace", r"\color", r"\textcolor", r"\label", r"\tag"}
_STYLES = {
    "\\" + name for name in "mbox hbox mathrm rm mathit mathsf mathtt mathnormal mathup boldsymbol bm pmb".split()
}
_STYLES |= {rf"\text{name}" for name in ("", "bf", "it", "rm", "sf", "tt", "sc", "normal", "up")} | {r"\mathbf"}
_RENAMED = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\tbinom": r"\binom",
    r"\leq": r"\le", r"\leqslant": r"\le", r"\leqq": r"\le", r"\geq": r"\ge", r"\geqslant": r"\ge", r"\geqq": r"\ge",
    r"\neq": r"\ne", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\ast": "*",
    r"\varnothing": r"\emptyset", r"\dots": r"\ldots", r"\cdots": r"\ldots", r"\dotsc": r"\ldots", r"\%": "%",
    r"\degree": r"^\circ ", r"\textdegree": r"^\circ ", r"\land": r"\wedge", r"\lor": r"\vee", "bmatrix": "pmatrix",
    "Bmatrix": "pmatrix", "infinity": r"\infty ", "pi": r"\pi ",
}  # fmt: skip
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\s+", " "),
        (r"={2,}", "="),
        (r"\^ ?\{ ?\^? ?\\circ ?\}|\^ ?\^? ?\\circ", r"^\\circ "),
        (r"\{ ?, ?\}", ","),
        (r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac ?(\d) ?\{", r"\\frac{\1}{"),
        (r"\\frac ?(\{[^{}]*\}) ?(\d)", r"\\frac\1{\2}"),
        (r"\\sqrt ?(\d+)", r"\\sqrt{\1}"),
        (r"\\?(?<![a-zA-Z])sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt ?\[(\w)\] ?(\d+)", r"\\sqrt[\1]{\2}"),
        (r"(?<!\w)(\d+|[a-z]) ?\\choose ?(\d+|[a-z])(?!\w)", r"\\binom{\1}{\2}"),
        (r"\\text ?\{ ?all real(?:s| numbers) ?\}", r"\\mathbb{R}"),
        (r"\\text ?\{ ?(\\(?:infty|pi|AA|Omega)) ?\}", r"\1 "),
        (r"\\text ?\{([^{}():\\]{2,40}): ?\} ?(?=\S)", r"\\text{\1}="),  # \text{Total cost: } 25
        (r"(?<=\d) ?(?:\\text ?\{ ?to ?\}|(?<= )to(?= )) ?(?=\d)", ":"),
        (r"\\text ?\{([^{}a-zA-Z\\]*)\}", r" \1 "),  # \mathbf{7}
        (r"(\\[a-zA-Z]+)(?=\\text ?\{ ?[a-zA-Z] ?\})", r"\1 "),
        (r"\\text ?\{ ?([a-zA-Z]) ?\}(?= ?[=^_(])", r"\1"),  # \mathrm{x} = 5
        (r"\\text ?\{ ?([eiknxyz]) ?\}", r"\1"),  # 2\mathrm{i}; these are no units
        (r"(?<=\d) i(?![a-zA-Z])", "i"),
    )
)
_ANSWER = r"(?:(?:so|thus|hence|therefore|the|my|our|final|correct|right|is),?\s+)*answer\s*(?:is|was|:|=)?\s*:?\s*"
_ABOUT = r"(?:about|approximately|approx\.?|roughly)\s*"
_BEFORE = re.compile(
    rf"(?:\s|[*`\"=:,;]|\\approx(?![a-zA-Z])|\\text\s*\{{\s*(?:{_ANSWER}|{_ABOUT})\}}|(?:{_ANSWER}|{_ABOUT})(?![a-zA-Z]))+",
    re.IGNORECASE,
)
_AFTER = ' *`".,;:'


@functools.lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    r"""The text in one spelling; `106°` becomes `106^\circ`, `\textbf{Answer:} 7.` becomes `7`.

    Returns:
        LaTeX with white space between words, numbers and commands alone, and in lists that without it would be one
        number (100, 200); "" where nothing is left.
    """
    text = "".join(_renamed(_TOKEN.findall(_without_unicode(text))))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return re.sub(r"\s+", _needed_blank, _bare(text))


def words(text: str) -> list[str]:
    r"""Letters side by side in a canonical text, in lower case, those in `\text{}` too; commands are none."""
    return [word.lower() for word in re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", text)]


def _without_unicode(text: str) -> str:
    """ASCII's and LaTeX's spelling of each character that has one."""
    parts: list[str] = []
    script = ""  # of the run of raised or lowered characters that is open
    for character in text:
        kind, *codes = unicodedata.decomposition(character).split() or [""]
        raised = {"<super>": "^", "<sub>": "_"}.get(kind, "") if character not in _CHARACTERS else ""
        if raised != script:
            parts.append(("}" if script else "") + (raised + "{" if raised else ""))
            script = raised
        parts.append(_spelled(character, kind, codes))
    return "".join(parts) + ("}" if script else "")


def _spelled(character: str, kind: str, codes: list[str]) -> str:
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    if character < "\x80" or character in CURRENCIES:
        return character
    if kind == "<fraction>":
        numerator, _, denominator = "".join(chr(int(code, 16)) for code in codes).partition("\N{FRACTION SLASH}")
        return rf" \frac{{{numerator}}}{{{denominator}}}"
    category = unicodedata.category(character)
    if category in ("Nd", "Zs", "Cf"):
        return str(unicodedata.decimal(character)) if category == "Nd" else " " if category == "Zs" else ""
    normal = unicodedata.normalize("NFKC", character)
    return normal if normal == character else "".join(_CHARACTERS.get(part, part) for part in normal)


def _renamed(tokens: list[str]) -> list[str]:
    """Tokens without those that only style or space, and commands by one of their names."""
    kept: list[str] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if token in _SIDES:
            at += at < len(tokens) and tokens[at] == "."
        elif token in _WITH_ARGUMENT:
            while at < len(tokens) and tokens[at] != "}":
                at += 1
            at += 1
        elif token in _BLANKS or (token in (r"\[", r"\]") and not kept) or token.isspace():
            kept.append(" ")
        elif token in _STYLES:
            kept.append(r"\text")
        elif token == r"\!":
            while at < len(tokens) and tokens[at].isspace():
                at += 1
        elif token not in _DROPPED:
            kept.append(_RENAMED.get(token, token))
    return kept


def _bare(text: str) -> str:
    """The answer without what stands around it."""
    before = ""
    while before != text:
        before = text
        text = text.rstrip(_AFTER)
        if text.endswith("\\\\") or text.endswith(r"\]"):
            text = text[:-2]
        if prefix := _BEFORE.match(text):
            text = text[prefix.end() :]
        if text.startswith("{") and _closing(text) == len(text) - 1:
            text = text[1:-1]
    return text


def _closing(text: str) -> int:
    """The place at which the brace that opens at 0 is closed, -1 if it is not."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return match.start()
    return -1


def _needed_blank(blank: re.Match) -> str:
    text, start, end = blank.string, blank.start(), blank.end()
    if re.match(r"\d{3}(?!\d)", text[end : end + 4]) and re.fullmatch(r"\d,", text[max(0, start - 2) : start]):
        return " "  # the list 100, 200
    return " " if 0 < start and end < len(text) and text[start - 1].isalnum() and text[end].isalnum() else ""
