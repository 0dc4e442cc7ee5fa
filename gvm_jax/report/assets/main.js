// Puts the page together from its data.

const { runs, groups, steps } = JSON.parse(document.getElementById("data").textContent);
const show = (id, ...children) => document.getElementById(id).replaceChildren(...children);

function learningSection() {
  const hidden = new Set();
  let cost = "rollouts";
  const paint = () => {
    const shown = runs.filter((_, i) => !hidden.has(i));
    show("learning-charts",
      learning("Held-out accuracy", "by evaluation", "evaluation", "accuracy", shown, cost, true),
      learning("Train reward", "mean over the rollouts of a step", "training", "reward", shown, cost, false));
  };
  const axes = Object.entries(COSTS).map(([name, text]) =>
    make("label", {}, make("input", { type: "radio", name: "cost", checked: name === cost, onchange: () => { cost = name; paint(); } }), ` ${text}`));
  const toggle = (group, shown) => { for (const i of group.runs) hidden[shown ? "delete" : "add"](i); paint(); };
  const toggles = groups.map((group, i) =>
    make("label", {}, make("input", { type: "checkbox", checked: true, onchange: (event) => toggle(group, event.target.checked) }), " ", swatch(series(i), group.name)));
  show("learning-controls", make("fieldset", {}, make("legend", {}, "Against"), ...axes), ...(runs.length > 1 ? [make("fieldset", {}, make("legend", {}, "Runs"), ...toggles)] : []));
  paint();
}

function insideSection() {
  let first = 0, second = runs.findIndex((run) => run.colour !== runs[0].colour), fraction = 1;
  if (second < 0) second = runs.length > 1 ? 1 : -1;
  const charts = [
    (run, peers) => scatter(run, peers, fraction, "rate"),
    (run, peers) => scatter(run, peers, fraction, "norm"),
    (run, peers) => heatMap(run, peers, "budget", "Where the budget went", "share of a step's samples", "believed accept rate", "samples"),
    (run, peers) => heatMap(run, peers, "accept_rates", "Accept rates of the prompts", "share of a step's prompts; 0 and 1 apart", "accept rate of the samples", "prompts"),
    (run, peers) => stacked(run, peers, "phases", "Where the seconds went", "mean of a step", "seconds", (seconds) => `${short(seconds)} s`),
    (run, peers) => stacked(run, peers, "endings", "Verdicts", "share of a step's rollouts", "share", percent),
  ];
  const paint = () => {
    const chosen = [first, second].filter((i) => i >= 0).map((i) => runs[i]);
    show("inside-charts", ...charts.flatMap((draws) => chosen.map((run) => draws(run, chosen))));
  };
  const named = runs.map((run, i) => [String(i), run.name]);
  const spans = Math.max(...runs.map((run) => run.windows.length));
  const slider = make("input", { type: "range", min: 0, max: Math.max(spans - 1, 0), step: 1, value: spans - 1, oninput: () => { fraction = Number(slider.value) / Math.max(spans - 1, 1); paint(); } });
  show("inside-controls",
    ...(runs.length > 1 ? [
      choice("Run", named, String(first), (i) => { first = Number(i); paint(); }),
      choice("beside", [["-1", "no other"], ...named], String(second), (i) => { second = Number(i); paint(); }),
    ] : []),
    ...(spans > 1 ? [make("label", {}, make("span", {}, "Steps of the first two charts"), slider)] : []));
  paint();
}

learningSection();
insideSection();
browser(runs, steps);
