// The samples: filters, search and a list that grows on demand.

const PAGE = 40;
const BADGES = { correct: "--c2", wrong: "--c1", slow: "--c6", timeout: "--c3", error: "--c4" };
const ORDERS = { last: "last step first", first: "first step first", long: "longest first" };

function flatSamples(steps) {
  return steps.flatMap(({ run, step, ...columns }) => columns.response.map((_, i) => {
    const sample = { run, step };
    for (const [name, column] of Object.entries(columns)) sample[name] = column[i];
    sample.text = `${sample.prompt}\n${sample.response}\n${sample.reference}`.toLowerCase();
    return sample;
  }));
}

// `#12` finds the samples of prompt 12, anything else a part of the text in any case.
function matcher(query) {
  const id = /^#(\d+)$/.exec(query.trim());
  if (id) return (sample) => String(sample.prompt_id) === id[1];
  return (sample) => sample.text.includes(query.toLowerCase());
}

function marked(text, query) {
  const parts = [], lower = text.toLowerCase(), wanted = query.toLowerCase();
  let from = 0;
  // Lower case of another length would shift the places.
  if (wanted && lower.length === text.length)
    for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, from)) {
      parts.push(text.slice(from, at), make("mark", {}, text.slice(at, at + wanted.length)));
      from = at + wanted.length;
    }
  return [...parts, text.slice(from)];
}

function browser(runs, steps) {
  const controls = document.getElementById("sample-controls"), count = document.getElementById("sample-count"), list = document.getElementById("sample-list");
  const all = flatSamples(steps);
  if (!all.length) {
    count.textContent = "No samples were kept.";
    return;
  }
  const wanted = { query: "", run: "", step: "", verdict: "", order: "last" };
  let matches = [], shown = 0;
  const search = make("input", { type: "search", placeholder: "text, or #12 for prompt 12", "aria-label": "Search the samples", oninput: () => update({ query: search.value }) });
  const distinct = (name) => [...new Set(all.map((sample) => sample[name]))];
  const options = (values, every, text = String) => [["", every], ...values.map((value) => [String(value), text(value)])];
  const verdicts = [...options(distinct("status").sort(), "every verdict", (status) => status.replaceAll("_", " ")), ["cut", "cut at the limit"]];
  controls.append(
    search,
    ...(runs.length > 1 ? [choice("Run", options(distinct("run"), "all", (run) => runs[run].name), "", (run) => update({ run }))] : []),
    choice("Step", options(distinct("step").sort((a, b) => a - b), "all"), "", (step) => update({ step })),
    choice("Verdict", verdicts, "", (verdict) => update({ verdict })),
    choice("Order", Object.entries(ORDERS), "last", (order) => update({ order })),
  );
  const more = make("button", { type: "button", onclick: () => grow() }, "Show more");

  function card(sample) {
    const follow = () => { search.value = `#${sample.prompt_id}`; update({ query: search.value }); search.focus(); };
    const long = sample.response.length > 900;
    return make("article", {},
      make("div", { class: "meta" },
        make("span", { class: "badge", style: `background:var(${BADGES[sample.status] || "--c7"})` }, sample.status.replaceAll("_", " ")),
        ...(runs.length > 1 ? [swatch(series(runs[sample.run].colour), runs[sample.run].name)] : []),
        make("span", {}, `step ${sample.step}`),
        make("button", { class: "plain", type: "button", title: "All samples of this prompt", onclick: follow }, `prompt ${sample.prompt_id}`),
        make("span", {}, `reward ${short(sample.reward)}`),
        make("span", {}, `${sample.tokens} tokens${sample.stopped ? "" : ", cut at the limit"}`),
        make("span", {}, "reference ", ...marked(sample.reference, wanted.query)),
      ),
      make("p", { class: "prompt" }, ...marked(sample.prompt, wanted.query)),
      make("p", { class: long ? "response long" : "response", ...(long ? { tabindex: 0 } : {}) }, ...marked(sample.response, wanted.query)),
    );
  }

  function grow() {
    more.remove();
    list.append(...matches.slice(shown, shown + PAGE).map(card));
    shown = Math.min(shown + PAGE, matches.length);
    if (shown < matches.length) list.append(more);
  }

  function update(change) {
    Object.assign(wanted, change);
    const matching = matcher(wanted.query);
    matches = all.filter((sample) =>
      (wanted.run === "" || sample.run === Number(wanted.run)) && (wanted.step === "" || sample.step === Number(wanted.step)) &&
      (wanted.verdict === "" || (wanted.verdict === "cut" ? !sample.stopped : sample.status === wanted.verdict)) && matching(sample));
    const by = { last: (a, b) => b.step - a.step, first: (a, b) => a.step - b.step, long: (a, b) => b.tokens - a.tokens };
    matches.sort(by[wanted.order]);
    const accepted = matches.filter((sample) => sample.reward > 0).length;
    count.textContent = matches.length ? `${matches.length} of ${all.length} samples, ${percent(accepted / matches.length)} of them accepted` : `None of ${all.length} samples`;
    list.replaceChildren();
    shown = 0;
    grow();
  }
  update({});
}
