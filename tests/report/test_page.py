"""The page stands alone, text of runs stays text, and what is missing is said; a browser is asked if there is one."""

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from gvm_jax import report
from gvm_jax.report.__main__ import default_out, main
from gvm_jax.report.page import render
from gvm_jax.report.records import groups, read_run, read_runs

HOSTILE = "</script x></script><img src=x onerror=\"document.title='taken'\"><!-- &lt;b&gt; \u2028 \ud800"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


def write_run(folder, steps=3, hostile=False, seed=0, **config):
    """A run's files as training writes them; a hostile one has markup wherever it can have text."""
    text = HOSTILE if hostile else "2+3"
    folder.mkdir(parents=True)
    config = {"steps": steps, "seed": seed, "data": {"path": text}, "journal": {"samples": 4}} | config
    (folder / "config.json").write_text(json.dumps(config))
    totals = lambda i: {  # noqa: E731
        f"total/{name}": 10 * i for name in ("rollouts", "sampled_tokens", "updates", "seconds", "seconds/evaluation")
    }
    rows = {
        "metrics": [
            {"step": i, "reward/mean": 0.5, "reward/accept_rate": 0.5, "reward/correct": 0.5, "reward/wrong": 0.5}
            | {"train/loss": -0.1 * i, "seconds/rollout": 1.0, "seconds/update": 2.0, **totals(i)}
            for i in range(1, steps + 1)
        ],
        "evaluation": [{"step": i, "accuracy": i / 4, **totals(i)} for i in range(steps + 1)],
        "allocation": [
            {"step": i, "prompt_id": [7, 8], "count": [1, 3], "believed_accept_rate": [0.25, None]}
            | {"believed_gradient_norm": [1.0, 20.0], "accept_rate": [0.0, 1.0]}
            for i in range(1, steps + 1)
        ],
        "samples": [
            {"step": i, "prompt_id": [7, 8], "prompt": [text, "1+1"], "reference": [text, "2"], "reward": [0.0, 1.0]}
            | {"response": [f"{text} of {i}", f"two {i}"], "status": ["wrong", "correct"], "tokens": [5, 2]}
            | {"stopped": [0, 1]}
            for i in range(1, steps + 1)
        ],
    }
    for table, lines in rows.items():
        (folder / f"{table}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Elements(html.parser.HTMLParser):
    """Elements with their attributes, and the text of scripts by type."""

    def __init__(self, page: bytes):
        super().__init__()
        self.found, self.scripts, self._open = [], {}, None
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._open = dict(attrs).get("type", "") if tag == "script" else None

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open is not None:
            self.scripts[self._open] = self.scripts.get(self._open, "") + data


def test_the_page_fetches_nothing_and_runs_one_program(tmp_path):
    page = Elements(render([read_run(write_run(tmp_path / "run"))]))
    tags = [tag for tag, _ in page.found]
    assert tags.count("script") == 2 and set(page.scripts) == {"application/json", ""}
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(tags)
    for tag, attributes in page.found:
        assert not any(name.startswith("on") or name == "src" for name in attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith("#")
    (policy,) = (a["content"] for _, a in page.found if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and re.search(r"script-src 'sha256-[\w+/]{43}='", policy)
    assert "http" not in page.scripts[""].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", page.scripts[""])


def test_hostile_text_stays_text(tmp_path):
    runs = [read_run(write_run(tmp_path / "a" / "<b onload=x>", hostile=True), HOSTILE)]
    for page in (render(runs), render([*runs, read_run(write_run(tmp_path / "plain"))])):
        elements = Elements(page)
        assert "<" not in page.decode().partition('id="data">')[2].partition("</script>")[0]
        assert not [tag for tag, _ in elements.found if tag in ("img", "b")]
        data = json.loads(elements.scripts["application/json"])
        text = HOSTILE.replace("\ud800", "\ufffd")
        assert data["runs"][0]["name"] == text and data["steps"][0]["columns"]["response"][0] == text + " of 1"
        assert len(elements.scripts[""]) > 10_000 and "learningSection" in elements.scripts[""]


def test_a_run_is_all_in_the_data(tmp_path):
    data = json.loads(Elements(render([read_run(write_run(tmp_path / "run"))])).scripts["application/json"])
    (run,) = data["runs"]
    evaluation, training = run["evaluation"], run["training"]
    assert evaluation["values"]["accuracy"] == [0, 0.25, 0.5, 0.75] and evaluation["rollouts"] == [0, 10, 20, 30]
    assert training["values"]["train/loss"] == [-0.1, -0.2, -0.3] and training["steps"] == [1, 2, 3]
    assert training["values"]["speed/sampling"] == [10] * 3 and "train/kl" not in training["values"]
    assert run["windows"][2]["rate"] == [0.25, None] and run["windows"][2]["count"] == [1, 3]
    assert run["budget"]["cells"][0][2] == 0.25, "the samples of a prompt without an estimate are in no bin"
    assert [step["step"] for step in data["steps"]] == [1, 2, 3]
    assert data["steps"][0]["prompts"]["8"] == {"count": 3, "p": None, "G": 20, "accepted": 1}


def test_a_page_says_when_where_and_with_which_settings_a_run_was_made(tmp_path):
    folder = write_run(tmp_path / "run", evaluation={"every": 10, "samples": 3})
    assert "started" not in render([read_run(folder)]).decode()
    about = {
        "started": "2026-01-02",
        "date": "2026-01-03",
        "commit": "abc",
        "devices": 8,
        "device": "cpu",
        "jax": "0.10",
    }
    (folder / "about.json").write_text(json.dumps(about))
    page = render([read_run(folder)]).decode()
    assert "started 2026-01-02, resumed 2026-01-03 · commit abc · devices 8 x cpu · jax 0.10</p>" in page
    sections = re.findall(r'rowgroup" colspan="3">(\w+)<', page)
    assert sections == ["run", "data", "evaluation", "journal"]
    changed = re.findall(r'<tr class=changed><th scope="row">(\w+)</th><td>(.*?)</td><td>(.*?)</td>', page)
    assert ("samples", "3", "1") in changed and "every" not in [name for name, _, _ in changed]


def test_runs_that_differ_in_the_seed_share_a_colour_and_are_named_by_what_is_their_own(tmp_path):
    folders = [write_run(tmp_path / name, seed=i, lr=name[0]) for i, name in enumerate(("a/s0", "a/s1", "b/s0"))]
    runs = read_runs(folders)
    page = render(runs)
    data = json.loads(Elements(page).scripts["application/json"])
    assert [(run["name"], run["colour"]) for run in data["runs"]] == [("a/s0", 0), ("a/s1", 0), ("b/s0", 1)]
    assert data["groups"] == [{"name": "a (2 seeds)", "runs": [0, 1]}, {"name": "b/s0", "runs": [2]}]
    assert [group.name for group in groups([*read_runs(folders[:1]), *read_runs(folders[1:2])])] == ["s0 and 1 more"]
    settings = page.decode().partition("Settings</summary>")[2].partition("</details>")[0]
    assert re.findall(r'<th scope="row">(\w+)</th>', settings) == ["lr", "seed"]


@pytest.mark.parametrize("table", ["metrics", "evaluation", "allocation", "samples"])
def test_a_file_that_is_missing_is_said(table, tmp_path):
    folder = write_run(tmp_path / "run")
    assert "<ul" not in render([read_run(folder)]).decode()
    (folder / f"{table}.jsonl").unlink()
    report.show(folder)
    page = (folder / "plots/report.html").read_text()
    assert f"{table}.jsonl is missing" in page.partition('<ul class="notices"')[2].partition("</ul>")[0]


def test_a_run_that_only_began_an_old_one_and_one_that_stopped_have_pages(tmp_path):
    began = tmp_path / "began"
    began.mkdir()
    (began / "config.json").write_text('{"steps": 5, "journal": {"samples": 0}, "evaluation": {"path": ""}}')
    old = write_run(tmp_path / "old", journal={})
    (old / "samples.jsonl").unlink()
    stopped = write_run(tmp_path / "stopped")
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    (stopped / "config.json").write_text('{"steps": 9}')
    missing = {run.name: " ".join(run.missing()) for run in read_runs([began, old, stopped])}
    for words in ("0 of 5 steps", "evaluation.path is empty", "journal.samples is 0", "metrics.jsonl is missing"):
        assert words in missing["began"]
    assert missing["old"].startswith("No samples to read: the run's config has no journal.samples")
    assert missing["stopped"].startswith("3 of 9 steps are done")
    report.show_several([began, old, stopped], tmp_path / "out")
    assert "stopped: 3 of 9 steps are done" in (tmp_path / "out/report.html").read_text()


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    main()


def test_pages_and_plots_go_where_they_are_said_to_be(tmp_path, monkeypatch, capsys):
    a, b = write_run(tmp_path / "study/a"), write_run(tmp_path / "study/b")
    call(monkeypatch, a)
    call(monkeypatch, a, b)
    call(monkeypatch, a, b, f"--out={tmp_path / 'out'}")
    shown = capsys.readouterr().out.replace("\n", "")
    for folder in (a / "plots", tmp_path / "study/plots/a+b", tmp_path / "out"):
        assert f"page        {folder}/report.html" in shown
        assert sorted(os.listdir(folder)) == ["overview.png", "report.html"]


def test_pages_of_other_runs_are_other_pages(tmp_path):
    def run(*parts):
        return str(tmp_path.joinpath("runs", *parts))

    nested = [[run("a", seed), run("b", seed)] for seed in ("seed-0", "seed-1")]
    long = [[run(f"a-run-with-a-long-name-{i}") for i in numbers] for numbers in (range(9), range(8), range(1, 9))]
    spaces = [[run("a b"), run("c")], [run("a-b"), run("c")]]
    pages = [default_out(runs) for runs in ([run("a"), run("b")], [run("a"), run("c")], *nested, *long, *spaces)]
    assert pages[0] == tmp_path / "runs/plots/a+b"
    assert len(set(pages)) == len(pages) and {page.parent for page in pages} == {tmp_path / "runs/plots"}
    assert max(len(page.name) for page in pages) <= 80


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([""], "is not the folder of a run.*give those in it, such as .*/broken$"),
        (["study"], "is not the folder of a run.*give those in it, such as"),
        (["x"], "x: is not the folder of a run.*give a --workdir"),
        (["study/a", "x"], "x: is not the folder of a run"),
        (["broken"], r"error: .*allocation\.jsonl, line 1: not JSON; remove or repair"),
    ],
)
def test_a_folder_that_is_no_run_or_has_a_broken_line_is_one_line(folders, message, tmp_path, monkeypatch):
    write_run(tmp_path / "study/a")
    (write_run(tmp_path / "broken") / "allocation.jsonl").write_text("nonsense\n")
    with pytest.raises(SystemExit, match=message) as raised:
        call(monkeypatch, *(tmp_path / folder for folder in folders))
    assert "\n" not in str(raised.value)


def test_of_several_folders_those_that_are_no_runs_are_left_out_with_a_word(tmp_path, monkeypatch, capsys):
    run, other = write_run(tmp_path / "a"), tmp_path / "plots"
    other.mkdir()
    call(monkeypatch, other, run)
    said = capsys.readouterr()
    assert said.err == f"left out    {other}: not the folder of a run\n"
    assert f"page        {run}/plots/report.html" in said.out.replace("\n", "") and "export" not in said.out


ACTIONS = """
const texts = (selector) => [...document.querySelectorAll(selector)].map((element) => element.textContent);
const act = (element, event, value) => { element.value = value; element.dispatchEvent(new Event(event)); };
const found = { figures: texts("figcaption").length, groups: texts("article").length, all: texts(".sample").length };
const search = document.querySelector("input[type=search]");
act(search, "input", "TWO 2");
found.search = texts(".response"); found.marks = texts("mark");
act(search, "input", "#7");
found.prompt = texts(".response").length;
act(search, "input", "");
for (const [name, select] of Object.entries({ step: 1, verdict: 2 })) {
  const element = document.querySelectorAll("#sample-controls select")[select];
  act(element, "change", { step: "3", verdict: "cut" }[name]);
  found[name] = texts(".sample").length;
}
const svg = document.querySelector("#learning-charts svg");
svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
found.tip = document.querySelector(".tip").textContent;
document.querySelectorAll("input[type=radio]")[3].click();
document.querySelector("#learning-controls input[type=checkbox]").click();
found.lines = document.querySelectorAll("#learning-charts polyline").length;
found.axis = texts("#learning-charts svg text").includes("seconds without evaluation");
found.cut = texts(".response").every((text) => !text.startsWith("two"));
found.address = location.hash;
document.title = JSON.stringify(found);
"""


SEEN = """
const verdict = document.querySelectorAll("#sample-controls select")[2].value;
const [samples, lines] = [".sample", "#learning-charts polyline"].map((name) => document.querySelectorAll(name).length);
document.title = JSON.stringify([verdict, samples, lines]);
"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_a_browser_draws_filters_and_runs_nothing_else(tmp_path):
    runs = read_runs([write_run(tmp_path / "a", hostile=True), write_run(tmp_path / "b")])
    page = render(runs).decode()

    def title(text, name, address=""):
        (tmp_path / name).write_text(text)
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --disable-dev-shm-usage --dump-dom"
        ).split()
        flags += [f"--user-data-dir={tmp_path / name}.profile", "--host-resolver-rules=MAP * ~NOTFOUND"]
        command = [CHROMIUM, *flags, (tmp_path / name).as_uri() + address]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=180).stdout
        assert "<article>" in shown and "<img" not in shown, shown[-2000:]
        return html.unescape(re.search(r"<title>(.*?)</title>", shown)[1])

    assert title(page.replace("</body>", f"<script>{ACTIONS}</script></body>"), "a.html") == "2 runs", "not by its hash"
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page)
    found = json.loads(title(open_page.replace("</body>", f"<script>{ACTIONS}</script></body>"), "b.html"))
    restored = title(open_page.replace("</body>", f"<script>{SEEN}</script></body>"), "c.html", found["address"])
    assert json.loads(restored) == ["cut", 2, 2]
    tip = found.pop("tip")
    assert tip.startswith("a, step 1\naccuracy 0.25") and "10 rollouts" in tip
    assert found == {
        "figures": 17, "groups": 12, "all": 12, "search": ["two 2", "two 2"], "marks": ["two 2", "two 2"],
        "prompt": 6, "step": 4, "verdict": 2, "cut": True, "axis": True, "lines": 2,
        "address": "#step=3&verdict=cut&against=seconds&hide=0",
    }  # fmt: skip
