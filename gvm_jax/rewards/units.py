r"""Units of measurement and counted things after a number: `\text{ cm}^2`, `m/s`, ` dollars`, `^\circ`."""

import re

_SYMBOLS = (
    "m cm mm km nm dm in ft yd mi g kg mg lb lbs oz s sec min h hr hrs yr L l mL ml dL gal qt pt A V W J N Pa K C F "
    "Hz kHz MHz GHz kW kWh kJ MJ kPa eV keV MeV GeV mol rad deg mph kph km/h bps ppm USD EUR cc sq cu units unit"
).split()
_FUNCTIONS = "sin cos tan cot sec csc log ln exp mod max min gcd lcm sqrt det choose inf sup lim arg pi".split()
# With these a statement follows, not a unit: "7 or maybe not".
STATEMENTS = frozenset(
    "or and not no nor never neither maybe perhaps possibly probably if unless except but wrong incorrect false least "
    "most than otherwise instead either nothing unknown plus minus cannot isn doesn don won aren wasn impossible fails "
    "doubtful think guess wait hmm alternatively vs versus divided multiplied modulo factorial root".split()
)
# Nor are these a unit, alone: 7 halves; "five-dollar bills" is one.
_NUMBERS = frozenset(
    "half halves thirds fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths eighth hundred two "
    "three four five six seven eight nine ten eleven twelve".split()
)
_NO_UNITS = STATEMENTS | _NUMBERS
_OPERATION = re.compile(
    r" ?(?:\\text\{ ?)?(?:squared|cubed|over|to the|per hundred)(?![a-zA-Z])"
)  # 7 squared, not 7 cm squared
_POWER = r"(?:\^(?:\{-?\d\}|-?\d))?"
_TEXT = r"\\text\{(?P<text>(?:[^{}\\\d]|(?<=[a-zA-Z^-])\d)*)\}"
_NAME = r"(?P<name>[A-Za-z]+)"
_SIGN = r"(?P<sign>\\(?:Omega|AA)(?![a-zA-Z])|[MLR]_(?:\\odot|\{\\odot\}))"
_ATOM = re.compile(
    rf"(?:\^\\circ ?(?:[CF](?![A-Za-z]))?|(?P<blank> ?)(?:{_SIGN}|(?:\\mu ?)?(?:{_TEXT}|{_NAME})){_POWER})"
)
_BETWEEN = re.compile(r"/|\\cdot ?|\*|\.(?=[A-Za-z\\])")
_QUOTIENT = re.compile(r"\\frac\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")


def is_unit(text: str, attached: bool = True) -> bool:
    """Whether a canonical text that follows a number is a unit or the name of what is counted, or "".

    Args:
        text: what follows the number.
        attached: whether letters right after the number may be a unit (3m), which they are not where 3m may be three
            times m: in a reference.
    """
    if _OPERATION.match(text):
        return False
    if quotient := _QUOTIENT.fullmatch(text):
        return is_unit(quotient[1]) and is_unit(quotient[2])
    at = 0
    while at < len(text):
        if at and (between := _BETWEEN.match(text, at)):
            at = between.end()
        atom = _ATOM.match(text, at)
        if not atom or not _is_name(atom, attached or at > 0):
            return False
        at = atom.end()
    return True


def _is_name(atom: re.Match, attached: bool) -> bool:
    if atom["sign"] is not None:
        return attached
    if atom["text"] is not None:
        return not _NO_UNITS & set(re.findall(r"[a-z]+(?:-[a-z]+)*", atom["text"].lower()))
    name = atom["name"]
    if name is None:  # degrees
        return True
    if (name in _FUNCTIONS and name not in _SYMBOLS) or name.lower() in _NO_UNITS:
        return False
    if name in _SYMBOLS and (attached or (len(name) > 1 and atom["blank"])):
        return True
    return atom["blank"] == " " and len(name) > 2 and re.search("[aeiouy]", name.lower()) is not None
