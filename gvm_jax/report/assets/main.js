// Puts the page together from its data.

const { runs, groups, steps } = JSON.parse(document.getElementById("data").textContent);
const show = (id, ...children) => document.getElementById(id).replaceChildren(...children);

function learningSection() {
  const hidden = new Set((address.get("hide") ?? "").split(",").filter(Boolean).map(Number)); // numbers of groups
  let cost = address.get("against") in COSTS ? address.get("against") : "rollouts";
  let smooth = clamp(Number(address.get("smooth")) || 0, 0, 0.99);
  const paint = () => {
    const shown = runs.filter((_, i) => !groups.some((group, number) => hidden.has(number) && group.runs.includes(i)));
    const questions = [...new Set(shown.map((run) => run.evaluation.questions).filter(known))];
    const bars = questions.length && shown.length <= 4 ? `; bars: 95 % intervals (Wilson) of ${questions.join(" or ")} questions` : "";
    show("learning-charts",
      curve({ caption: "Held-out accuracy", note: `by evaluation${bars}`, table: "evaluation", name: "accuracy", label: "accuracy", runs: shown, cost, dots: true }),
      curve({ caption: "Train reward", note: "mean over the rollouts of a step", table: "training", name: "reward/mean", label: "reward", runs: shown, cost, smooth }));
    const there = CURVES.filter(([name]) => runs.some((run) => run.training.values[name]));
    show("training-charts", ...(there.length ? there : CURVES.slice(0, 1)).map(([name, caption, note, label, factor]) =>
      curve({ caption, note, table: "training", name, label, factor, runs: shown, cost, smooth, small: true })));
  };
  const axes = Object.entries(COSTS).map(([name, text]) =>
    make("label", {}, make("input", { type: "radio", name: "cost", checked: name === cost, onchange: () => { cost = name; remember("against", cost, "rollouts"); paint(); } }), ` ${text}`));
  const toggle = (number, shown) => { hidden[shown ? "delete" : "add"](number); remember("hide", [...hidden].sort((a, b) => a - b).join(",")); paint(); };
  const toggles = groups.map((group, i) =>
    make("label", {}, make("input", { type: "checkbox", checked: !hidden.has(i), onchange: (event) => toggle(i, event.target.checked) }), " ", swatch(series(i), group.name)));
  const said = make("output", {}, String(smooth));
  const slider = make("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: smooth, oninput: () => { smooth = Number(slider.value); said.textContent = smooth; remember("smooth", smooth, 0); paint(); } });
  show("learning-controls",
    make("fieldset", {}, make("legend", {}, "Against"), ...axes),
    make("label", { title: "Weight of the moving average; evaluations are not smoothed" }, make("span", {}, "Smoothing"), slider, " ", said),
    ...(runs.length > 1 ? [make("fieldset", {}, make("legend", {}, "Runs"), ...toggles)] : []));
  paint();
}

function insideSection() {
  const chosenBefore = (name, usual) => (runs[address.get(name)] || address.get(name) === "-1" ? Number(address.get(name)) : usual);
  let first = Math.max(chosenBefore("run", 0), 0), other = runs.findIndex((run) => run.colour !== runs[0].colour);
  if (other < 0) other = runs.length > 1 ? 1 : -1;
  let second = chosenBefore("beside", other), fraction = address.has("span") ? clamp(Number(address.get("span")) || 0, 0, 1) : 1;
  const charts = [
    (run, peers) => scatter(run, peers, fraction, "rate"),
    (run, peers) => scatter(run, peers, fraction, "norm"),
    (run, peers) => heatMap(run, peers, "budget", "Where the budget went", "share of a step's samples", "estimated accept rate", "samples"),
    (run, peers) => heatMap(run, peers, "accept_rates", "Accept rates of the prompts", "share of a step's prompts; 0 and 1 apart", "accept rate of the samples", "prompts"),
    (run, peers) => stacked(run, peers, "phases", "Where the seconds went", "mean of a step", "seconds", (seconds) => `${short(seconds)} s`),
    (run, peers) => stacked(run, peers, "endings", "Verdicts", "share of a step's rollouts", "share", percent),
  ];
  const paint = () => {
    const chosen = [first, second].filter((i) => i >= 0).map((i) => runs[i]);
    show("inside-charts", ...charts.flatMap((draws) => chosen.map((run) => draws(run, chosen))));
  };
  const named = runs.map((run, i) => [String(i), run.name]);
  const spans = Math.max(...runs.map((run) => run.windows.length)), last = Math.max(spans - 1, 1);
  const slider = make("input", { type: "range", min: 0, max: Math.max(spans - 1, 0), step: 1, value: Math.round(fraction * last), oninput: () => { fraction = Number(slider.value) / last; remember("span", fraction, 1); paint(); } });
  show("inside-controls",
    ...(runs.length > 1 ? [
      choice("Run", named, String(first), (i) => { first = Number(i); remember("run", i, 0); paint(); }),
      choice("beside", [["-1", "no other"], ...named], String(second), (i) => { second = Number(i); remember("beside", i, other); paint(); }),
    ] : []),
    ...(spans > 1 ? [make("label", {}, make("span", {}, "Steps of the first two charts"), slider)] : []));
  paint();
}

// A link within the page must not drop the controls' state from the address.
for (const link of document.querySelectorAll("nav a"))
  link.addEventListener("click", (event) => { event.preventDefault(); document.querySelector(link.getAttribute("href")).scrollIntoView(); });
addEventListener("hashchange", () => location.reload());
learningSection();
insideSection();
browser(runs, steps);
