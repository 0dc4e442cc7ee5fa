"""One page of HTML with everything in it: style, program and data. It opens from a disk and fetches nothing.

Whatever a run wrote is text to the page, never markup: in HTML it is escaped, in the data `<`, `>` and `&` are written
as JSON escapes, the program puts it into text nodes alone, and a content security policy allows this one program by
its hash and no other.
"""

import base64
import hashlib
import html
import importlib.resources
import itertools
import json
import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

from gvm_jax.config import flat, get_config
from gvm_jax.report import series
from gvm_jax.report.final_numbers import final_numbers, side_by_side
from gvm_jax.report.records import RunRecord, groups
from gvm_jax.report.texts import texts

_SCRIPTS = ("kit.js", "charts.js", "browser.js", "main.js")
_DIGITS = 5  # significant ones of a number in the page


def render(runs: Sequence[RunRecord]) -> bytes:
    """The page of one run or of several, in UTF-8."""
    files = importlib.resources.files("gvm_jax.report") / "assets"
    script = "\n".join((files / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    samples, left_out = texts(list(runs))
    numbers = {run: number for number, group in enumerate(groups(runs)) for run in group.runs}
    data = {
        "runs": [run_data(run, numbers[i]) for i, run in enumerate(runs)],
        "groups": [{"name": group.name, "runs": group.runs} for group in groups(runs)],
        "steps": samples,
    }
    page = string.Template((files / "page.html").read_text(encoding="utf-8")).substitute(
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=html.escape(title),
        about=html.escape(about(runs)),
        style=(files / "page.css").read_text(encoding="utf-8"),
        notices=notices(runs, left_out),
        numbers=tiles(runs[0]) if len(runs) == 1 else table(runs),
        settings=settings(runs),
        data=embedded(data),
        script=script,
    )
    return page.encode("utf-8", "replace")  # a name or a config may hold half of a surrogate pair


def run_data(run: RunRecord, colour: int) -> dict[str, Any]:
    """All that the charts draw of a run."""
    return {
        "name": run.name,
        "colour": colour,
        "evaluation": series.evaluation(run),
        "training": series.training(run),
        "windows": series.windows(run),
        "budget": series.budget(run),
        "accept_rates": series.accept_rates(run),
        "phases": series.phases(run),
        "endings": series.endings(run),
    }


def embedded(data: Any) -> str:
    """JSON that can stand in a script element: no text in it can end the element or begin another."""
    text = json.dumps(_short(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def about(runs: Sequence[RunRecord]) -> str:
    """A line on what was run; of several runs what is common to all."""
    fields = [flat(run.config) for run in runs]

    def shared(name: str) -> Any:
        values = {str(field.get(name)) for field in fields}
        return values.pop() if len(values) == 1 and fields[0].get(name) is not None else None

    named = {
        "model": shared("model.path"),
        "data": shared("data.path"),
        "objective": shared("objective.algorithm"),
        "allocation": shared("allocation.strategy"),
        "prompts a step": shared("prompts_per_step"),
        "rollouts a step": shared("rollouts_per_step"),
    }
    line = " · ".join(f"{name} {value}" for name, value in named.items() if value is not None)
    made = runs[0].about if len(runs) == 1 else {}
    again = f", resumed {made['date']}" if made.get("date") != made.get("started") else ""
    where = {
        "started": made.get("started", "") + again,
        "commit": made.get("commit"),
        "devices": f"{made['devices']} x {made['device']}" if "devices" in made else None,
        "jax": made.get("jax"),
    }
    return " · ".join([line, *(f"{name} {value}" for name, value in where.items() if value)])


def notices(runs: Sequence[RunRecord], left_out: Sequence[str]) -> str:
    """What the page cannot show and why, the runs of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for run in runs:
        for reason in run.missing():
            by_reason.setdefault(reason, []).append(run.name)
    lines = [
        reason if len(names) == len(runs) else f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()
    ]
    items = "".join(f"<li>{html.escape(line)}</li>" for line in [*lines, *left_out])
    return f'<ul class="notices" aria-label="What is missing">{items}</ul>' if items else ""


def tiles(run: RunRecord) -> str:
    """The final numbers of one run."""
    pairs = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in final_numbers(run).items()
    )
    return f'<dl class="tiles">{pairs}</dl>' if pairs else "<p>None: no step was finished yet.</p>"


def table(runs: Sequence[RunRecord]) -> str:
    """The final numbers of several runs, a row each."""
    rows = side_by_side(runs)
    head = "".join(f'<th scope="col">{html.escape(row[""])}</th>' for row in rows)
    body = "".join(
        f'<tr><th scope="row">{html.escape(run.name)}</th>'
        + "".join(f"<td>{html.escape(row[run.name])}</td>" for row in rows)
        + "</tr>"
        for run in runs
    )
    return _scrolled("Final numbers", f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody>")


def settings(runs: Sequence[RunRecord]) -> str:
    """The config of one run by section, with the defaults of fields that differ; of several the fields that differ."""
    fields = [flat(run.config) for run in runs]
    names = list(dict.fromkeys(name for field in fields for name in field))
    defaults = flat(get_config().to_dict()) if len(runs) == 1 else {}
    if len(runs) > 1:
        names = [name for name in names if len({repr(field.get(name)) for field in fields}) > 1]
    if not names:
        return "<p>The same for all runs.</p>" if any(fields) else "<p>No config.json.</p>"
    columns = [run.name for run in runs] if len(runs) > 1 else ["of this run", "default, where it differs"]
    titles = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in columns)
    bodies = []
    for section, of_section in itertools.groupby(sorted(names, key=lambda name: (_section(name), name)), _section):
        rows = [f'<tr><th scope="rowgroup" colspan="{len(columns) + 1}">{html.escape(section or "run")}</th></tr>']
        for name in of_section:
            cells = [_shown(field, name) for field in fields]
            changed = bool(defaults) and _shown(defaults, name) != cells[0]
            cells += [_shown(defaults, name) if changed else ""] if len(runs) == 1 else []
            data = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            label = html.escape(name.removeprefix(f"{section}."))
            rows.append(f'<tr{" class=changed" if changed else ""}><th scope="row">{label}</th>{data}</tr>')
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    return _scrolled("Settings", f"<thead><tr><td></td>{titles}</tr></thead>{''.join(bodies)}")


def _section(name: str) -> str:
    return name.rpartition(".")[0]


def _scrolled(label: str, rows: str) -> str:
    return f'<div class="scrolled" tabindex="0" role="region" aria-label="{label}"><table>{rows}</table></div>'


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name], ensure_ascii=False) if name in fields else "(absent)"


def _short(value: Any) -> Any:
    """The value as a browser takes it: few digits, null for what is not finite, no half of a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, Mapping):
        return {name: _short(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.{_DIGITS}g}")
    return value
