r"""Ordinary ways to write an answer, derived from a reference by rules of layout that leave its value alone.

`python -m tests.rewards.spellings FILE.jsonl ...` prints which share of them is accepted for the answers of data sets
(columns `answer`, or GSM8K's "#### N"), and of answers of other rows, by the grader and by math-verify alone.
"""

import collections
import json
import random
import re
import sys
import time
from fractions import Fraction

_WIDE = {ord(digit): ord("０") + int(digit) for digit in "0123456789"}
_ARABIC = {ord(digit): ord("٠") + int(digit) for digit in "0123456789"}
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_AROUND = {
    "as it is": ("", ""), "full stop": ("", "."), "comma": ("", ","), "semicolon": ("", ";"), "blanks": ("  ", " "),
    "lines": ("\n", "\n"), "dollars": ("$", "$"), "inline": (r"\(", r"\)"), "display style": (r"\displaystyle ", ""),
    "braces": ("{", "}"), "answer": (r"\text{Answer: } ", ""), "the answer is": ("The answer is ", ""),
    "final answer": (r"\textbf{Final answer:} ", ""), "stars": ("**", "**"), "line break": ("", r" \\"),
    "thin blank after": ("", r"\,"), "equals sign": ("= ", ""), "colour": (r"\color{red}{", "}"),
    "text colour": (r"\textcolor{blue}{", "}"), "about": (r"\approx ", ""), "invisible": ("\u200b", "\ufeff"),
}  # fmt: skip
_TEXTLESS = {
    "blanks around signs": (r"(?<=[\w)}])([-+])(?=[\w\\(])", r" \1 "), "blanks of LaTeX": (r"(?<!\\) ", r"\\ "),
    "left": (r"(?<!left)(?<!right)([(\[])", r"\\left\1"), "big": (r"(?<!left)(?<!right)([()\[\]])", r"\\big\1"),
    "mathrm": (r"\\mbox\{ ?(\w+)\}", r"\\mathrm{\1}"), "minus sign": "-−", "en dash": "-–",
}  # fmt: skip
_ANYWHERE = {
    "without blanks": (r"(?<![a-zA-Z]) | (?![a-zA-Z])", ""), "blanks after commas": (r",(?=\S)(?!\d{3})(?!\\!)", ", "),
    "dfrac": (r"\\d?frac", r"\\dfrac"), "tfrac": (r"\\d?frac", r"\\tfrac"), "cfrac": (r"\\d?frac", r"\\cfrac"),
    "frac with blanks": (r"frac\{(\w+)\}", r"frac { \1 } "),
    "short fraction": (r"frac\{(\d)\}\{(\d)\}(?!\d)", r"frac\1\2"),
    "long fraction": (r"\\frac ?(\d) ?(\d)(?!\d)", r"\\frac{\1}{\2}"), "long root": (r"\\sqrt(\d)", r"\\sqrt{\1}"),
    "short root": (r"\\sqrt\{(\d)\}", r"\\sqrt\1"), "root sign": (r"\\sqrt\{(\d+)\}", r"√\1"),
    "sqrt()": (r"\\sqrt\{(\d+)\}", r"sqrt(\1)"), "no left, right": (r"\\left|\\right", ""), "pi": (r"\\pi\b", "π"),
    "infinity": (r"\\infty", "∞"), "union": (r"\\cup", "∪"), "plus or minus": (r"\\pm", "±"),
    "element": (r"\\in ", "∈ "),
    "raised digits": (r"(?<!\})\^(\d)", lambda match: match[1].translate(_RAISED)), "long power": (r"\^(\d)", r"^{\1}"),
    "long base": (r"_(\d+)", r"_{\1}"), "short base": (r"_\{(\d)\}", r"_\1"), "degree sign": (r"\^\\circ", "°"),
    "degree in braces": (r"\^\\circ", r"^{\\circ}"), "degree": (r"\^\\circ", r"\\degree"),
    "degrees": (r"\^\\circ", r"\\text{ degrees}"), "degrees, plain": (r"\^\\circ", " degrees"),
    "no degrees": (r"\^\\circ", ""), "mbox": (r"\\text\{", r"\\mbox{"), "text": (r"\\mbox\{", r"\\text{"),
    "textbf": (r"\\(?:text|mbox)\{", r"\\textbf{"), "plain words": (r"\\(?:text|mbox)\{([^{}]*)\}(?!\^)", r"\1"),
    "upper case": (r"^\\text\{(\w+)\}$", lambda match: rf"\text{{{match[1].upper()}}}"),
    "letter alone": (r"^\\text\{\((\w)\)\}$", r"\1"), "bmatrix": ("pmatrix", "bmatrix"),
    "no dollar sign": (r"\\\$", ""),
    "plain dollar sign": (r"\\\$", "$"), "no variable": (r"^[a-z] ?= ?|^[a-z] ?\\in ?", ""),
    "lbrace": (r"\\([{}])", lambda match: r"\lbrace " if match[1] == "{" else r"\rbrace "),
}  # fmt: skip
_SEPARATORS = {
    "thousands": ",", "thousands in braces": "{,}", "thousands, thin": r"\,", "thousands, blank": " ",
    "thousands, negative blank": r",\!", "thousands, Unicode": "\u2009", "thousands, narrow": "\u202f",
    "no thousands": "",
}  # fmt: skip
_SCALAR = re.compile(r"(?!.*(?:text|mbox|cup|infty|_|matrix|x|\\in ))[^,=<>;:]*")
_THOUSANDS = re.compile(r"(\\\$)?(-?)(\d{1,3}(?:,(?:\\! ?)?\d{3})+|\d{4,})")


def spellings(reference: str) -> dict[str, str]:
    """Of each rule that changes something here, what it makes of a reference, by the rule's name."""
    r = reference
    made = {name: before + r + after for name, (before, after) in _AROUND.items()}
    rules = _ANYWHERE if "text" in r else _ANYWHERE | _TEXTLESS
    for name, rule in rules.items():
        made[name] = r.replace(*rule) if isinstance(rule, str) else re.sub(*rule, r)
    if _SCALAR.fullmatch(r):
        made["variable"] = f"x = {r}"
    if not re.search(r"[{_^]\d|frac|sqrt", r):
        made["wide digits"] = r.translate(_WIDE)
    plain = r
    if match := _THOUSANDS.fullmatch(r):
        plain = match[2] + re.sub(r"[,\\! ]", "", match[3])
        for name, separator in _SEPARATORS.items():
            made[name] = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", lambda _: separator, plain)  # noqa: B023
    made |= _integer(plain) if re.fullmatch(r"-?\d+", plain) else {}
    made |= _decimal(r) if re.fullmatch(r"-?\d*\.\d+", r) else {}
    match = re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}", r)
    made |= _fraction(match[1], int(match[2]), int(match[3])) if match else {}
    return {name: text for name, text in made.items() if text != r or name == "as it is"}


def _integer(n: str) -> dict[str, str]:
    sign, digits = ("-", n[1:]) if n[0] == "-" else ("", n)
    power, part = len(digits) - 1, digits[1:].rstrip("0")
    mantissa = sign + digits[0] + (f".{part}" if part else "")
    made = {
        "n.0": n + ".0", "n.00": n + ".00", "leading zero": f"{sign}0{digits}", "money": rf"\${n}", "cents": f"${n}.00",
        "euro": f"{n} €", "pounds": f"£{n}", "dollars": f"{n} dollars", "unit": rf"{n} \text{{ meters}}",
        "hours": f"{n} hours",
        "unit, mathrm": rf"{n}\ \mathrm{{cm}}^2", "unit, plain": f"{n} m^2", "counted": rf"{n}\text{{ red apples}}",
        "counted, plain": f"{n} more apples", "per": rf"{n} \text{{ km/h}}", "fraction": rf"\frac{{{n}}}{{1}}",
        "not reduced": rf"\frac{{{2 * int(n)}}}{{2}}", "slash": f"{3 * int(n)}/3", "bold": rf"\mathbf{{{n}}}",
        "bracketed": f"({n})", "e": f"{mantissa}e{power}", "E+": f"{mantissa}E+{power:02}", "e-1": f"{n}0e-1",
        "times ten": rf"{mantissa} \times 10^{{{power}}}", "dot ten": rf"{mantissa}\cdot 10^{power}",
        "star ten": f"{mantissa}*10^{power}", "times sign": f"{mantissa} × 10{str(power).translate(_RAISED)}",
        "sum": f"{int(n) - 1} + 1", "chain": f"{int(n) - 1} + 1 = {n}", "other digits": n.translate(_ARABIC),
    }  # fmt: skip
    if not sign:
        made |= {"plus": "+" + n, "ordinal": rf"{n}^{{\text{{th}}}}", "ordinal, plain": f"{n}th"}
        made["root"] = rf"\sqrt{{{int(n) ** 2}}}"
    return made


def _decimal(r: str) -> dict[str, str]:
    value = Fraction(r)
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    return {
        "trailing zero": r + "0", "as fraction": rf"{sign}\frac{{{top}}}{{{bottom}}}", "slash": f"{sign}{top}/{bottom}",
        "zero first": re.sub(r"^(-?)\.", r"\g<1>0.", r), "no zero first": re.sub(r"^(-?)0\.", r"\1.", r),
        "e-8": f"{sign}{top * 10**8 // bottom}e-8", "percent": rf"{float(value * 100)!r}\%",
    }  # fmt: skip


def _fraction(sign: str, top: int, bottom: int) -> dict[str, str]:
    written = rf"{sign}\frac{{{top}}}{{{bottom}}}"
    made = {
        "slash": f"{sign}{top}/{bottom}", "slash, blanks": f"{sign}{top} / {bottom}",
        "unit": rf"{written} \text{{ cup}}",
        "not reduced": rf"{sign}\frac{{{2 * top}}}{{{2 * bottom}}}", "quotient": rf"{sign}{top} \div {bottom}",
        "sign within": rf"\frac{{{sign}{top}}}{{{bottom}}}",
    }  # fmt: skip
    if top > bottom / 10:
        made["seven places"] = f"{sign}{top / bottom:.7f}"
    if top > bottom:
        made["mixed"] = rf"{sign}{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}"
    if 100 * top % bottom == 0:
        made |= {"percent": rf"{sign}{100 * top // bottom}\%", "decimal": f"{sign}{top / bottom}"}
    return made


def references_of(path: str) -> list[str]:
    """The references of a data set's file."""
    with open(path, encoding="utf-8") as lines:
        return [str(json.loads(line)["answer"]).rpartition("#### ")[2].strip() for line in lines]


def others(references: list[str], number: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of a spelling of one reference and another reference, of another text."""
    rng, pairs = random.Random(seed), []
    while len(pairs) < number:
        one, other = rng.sample(references, 2)
        if one != other:
            pairs.append((rng.choice(list(spellings(one).values())), other))
    return pairs


def _main(paths: list[str]) -> None:
    from gvm_jax.rewards import Grader

    for path in paths:
        references = list(dict.fromkeys(references_of(path)))
        right = [(text, reference, name) for reference in references for name, text in spellings(reference).items()]
        wrong = others(references, 4000)
        for function in ("math", "math_verify"):
            with Grader(function, 0, 5.0, 1024, 1.0) as grader:

                def scores(cases):
                    verdicts = grader.grade([rf"\boxed{{{case[0]}}}" for case in cases], [case[1] for case in cases])
                    return [verdict.score for verdict in verdicts]

                start = time.monotonic()
                missed = [case for case, score in zip(right, scores(right), strict=True) if not score]
                seconds = time.monotonic() - start
                paid = [case for case, score in zip(wrong, scores(wrong), strict=True) if score > 0]
            print(
                f"{path} {function}: {1 - len(missed) / len(right):.4f} of {len(right):,} spellings of "
                f"{len(references):,} references accepted, {len(paid)} of {len(wrong):,} answers of other rows; "
                f"{len(right) / seconds:,.0f} answers a second"
            )
            print("  missed:", dict(collections.Counter(name for *_, name in missed).most_common(60)))
            if function == "math":
                print(*(f"    missed {case}" for case in missed), *(f"    paid {case}" for case in paid), sep="\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
