// The samples by prompt: filters, search and a list that grows on demand.

const PAGE = 20;
const ORDERS = { last: "last step first", first: "first step first", long: "longest first" };

function flatSamples(steps) {
  return steps.flatMap(({ run, step, prompts, columns }) => columns.response.map((_, i) => {
    const sample = { run, step };
    for (const [name, column] of Object.entries(columns)) sample[name] = column[i];
    sample.of = prompts[sample.prompt_id] || {};
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
  const wanted = { query: "", of: "", step: "", verdict: "", order: "last" };
  for (const name of Object.keys(wanted)) wanted[name] = address.get(name) ?? wanted[name];
  let groups = [], shown = 0;
  const search = make("input", { type: "search", value: wanted.query, placeholder: "text, or #12 for prompt 12", "aria-label": "Search the samples", oninput: () => update({ query: search.value }) });
  const distinct = (name) => [...new Set(all.map((sample) => sample[name]))];
  const options = (values, every, text = String) => [["", every], ...values.map((value) => [String(value), text(value)])];
  const verdicts = [...options(distinct("status").sort(), "every verdict", (status) => status.replaceAll("_", " ")), ["cut", "cut at the limit"]];
  const filter = (label, name, choices) => choice(label, choices, wanted[name], (value) => update({ [name]: value }));
  controls.append(
    search,
    ...(runs.length > 1 ? [filter("Run", "of", options(distinct("run"), "all", (run) => runs[run].name))] : []),
    filter("Step", "step", options(distinct("step").sort((a, b) => a - b), "all")),
    filter("Verdict", "verdict", verdicts),
    filter("Order", "order", Object.entries(ORDERS)),
  );
  const more = make("button", { type: "button", onclick: () => grow() }, "Show more");

  function answer(sample) {
    const long = sample.response.length > 900;
    return make("div", { class: "sample" },
      make("div", { class: "meta" },
        swatch(partColour(sample.status, 7), `${VERDICTS[sample.status] ?? ""} ${sample.status.replaceAll("_", " ")}`),
        make("span", {}, `reward ${short(sample.reward)}`),
        make("span", {}, `${sample.tokens} tokens${sample.stopped ? "" : ", cut at the limit"}`),
      ),
      make("p", { class: long ? "response long" : "response", ...(long ? { tabindex: 0 } : {}) }, ...marked(sample.response, wanted.query)),
    );
  }

  function card(samples) {
    const [{ run, step, prompt_id, prompt, reference, of }] = samples;
    const follow = () => { search.value = `#${prompt_id}`; update({ query: search.value }); search.focus(); };
    const accepted = known(of.accepted) ? `, ${percent(of.accepted)} accepted` : "";
    return make("article", {},
      make("div", { class: "meta" },
        ...(runs.length > 1 ? [swatch(series(runs[run].colour), runs[run].name)] : []),
        make("span", {}, `step ${step}`),
        make("button", { class: "plain", type: "button", title: "All samples of this prompt", onclick: follow }, `prompt ${prompt_id}`),
        ...(known(of.count) ? [make("span", {}, `${of.count} ${of.count === 1 ? "sample" : "samples"}${accepted}`), make("span", {}, `estimated p ${short(of.p)}, G ${short(of.G)}`)] : []),
        make("span", {}, "reference ", ...marked(reference, wanted.query)),
      ),
      make("p", { class: "prompt" }, ...marked(prompt, wanted.query)),
      ...samples.map(answer),
    );
  }

  function grow() {
    more.remove();
    list.append(...groups.slice(shown, shown + PAGE).map(card));
    shown = Math.min(shown + PAGE, groups.length);
    if (shown < groups.length) list.append(more);
  }

  function update(change) {
    Object.assign(wanted, change);
    for (const [name, value] of Object.entries(change)) remember(name, value, name === "order" ? "last" : "");
    const matching = matcher(wanted.query);
    const matches = all.filter((sample) =>
      (wanted.of === "" || sample.run === Number(wanted.of)) && (wanted.step === "" || sample.step === Number(wanted.step)) &&
      (wanted.verdict === "" || (wanted.verdict === "cut" ? !sample.stopped : sample.status === wanted.verdict)) && matching(sample));
    const byPrompt = new Map();
    for (const sample of matches) {
      const key = `${sample.run}/${sample.step}/${sample.prompt_id}`;
      byPrompt.set(key, [...(byPrompt.get(key) ?? []), sample]);
    }
    const longest = (samples) => Math.max(...samples.map((sample) => sample.tokens));
    const by = { last: ([a], [b]) => b.step - a.step, first: ([a], [b]) => a.step - b.step, long: (a, b) => longest(b) - longest(a) };
    groups = [...byPrompt.values()].sort(by[wanted.order] ?? by.last);
    const accepted = matches.filter((sample) => sample.reward > 0).length;
    count.textContent = matches.length ? `${matches.length} of ${all.length} samples, ${percent(accepted / matches.length)} of them accepted` : `None of ${all.length} samples`;
    list.replaceChildren();
    shown = 0;
    grow();
  }
  update({});
}
