// The charts, each from the numbers of the runs that it shows.

const COSTS = { rollouts: "rollouts, pilots included", tokens: "sampled tokens", updates: "optimizer updates", seconds: "seconds without evaluation", steps: "steps" };

// Name in the data, caption, note, label of the axis, factor.
const CURVES = [
  ["train/loss", "Loss", "mean over the updates of a step", "loss"],
  ["train/gradient_norm", "Gradient norm", "before the clip, mean over the updates", "norm"],
  ["train/entropy", "Entropy", "of the policy at the trained tokens", "nats a token"],
  ["train/kl", "KL", "estimated, to the reference policy", "nats a token"],
  ["train/clip_fraction", "Clip fraction", "tokens with a clipped importance ratio", "share"],
  ["rollout/response_tokens", "Response length", "mean over the rollouts of a step", "tokens"],
  ["rollout/truncated", "Cut responses", "at rollout.max_new_tokens", "share"],
  ["speed/sampling", "Speed of sampling", "sampled tokens by seconds of rollouts", "tokens/s"],
  ["speed/step", "Speed of a step", "sampled tokens by seconds of all phases", "tokens/s"],
  ["device/peak_memory_bytes", "Peak memory of a device", "the most so far of any local one", "GiB", 2 ** -30],
  ["host/resident_bytes", "Memory of the host's process", "", "GiB", 2 ** -30],
  ["rollout/logprob_mismatch", "Mismatch of sampler and trainer", "mean |difference of log-probabilities| of a token", "nats"],
  ["train/truncated_weights", "Truncated weights", "tokens at objective.importance_cap", "share"],
  ["allocation/ideal_variance_ratio", "Possible gain of allocation", "1 + CV² of G/√p", "ratio"],
  ["train/packing_efficiency", "Packing efficiency", "samples' share of the computed tokens", "share"],
];

// Exponential moving average, unbiased at its start.
function smoothed(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (!known(value)) return value;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function curve({ caption, note, table, name, label, factor = 1, runs, cost, smooth = 0, dots = false, small = false }) {
  const shown = runs.filter((run) => run[table].values[name]?.some(known));
  if (!shown.length) return nothing(caption, "None of the runs shown has it.");
  const line = (run, values) => values.map((value, i) => [run[table][cost][i], known(value) ? value * factor : null, i]).filter(([at, value]) => known(at) && known(value));
  const raw = new Map(shown.map((run) => [run, line(run, run[table].values[name])]));
  const bars = shown.length <= 4 ? shown.filter((run) => run[table].values.low && name === "accuracy") : [];
  const all = [...raw.values()].flat(), bounds = bars.flatMap((run) => [...run[table].values.low, ...run[table].values.high]).filter(known);
  const [low, high] = extent([...all.map(([, value]) => value), ...bounds]);
  return chart({
    caption, note, small, x: axis(COSTS[cost], 0, Math.max(...all.map(([at]) => at), 1e-9), 8), y: axis(label, low, high, small ? 4 : 5),
    paint(plot) {
      for (const run of shown) {
        const colour = series(run.colour), path = (points) => points.map(([x, value]) => `${plot.x(x)},${plot.y(value)}`).join(" ");
        const stroke = (points, opacity) => plot.layer.append(draw("polyline", { points: path(points), fill: "none", "stroke-width": dots ? 2 : 1.5, "stroke-opacity": opacity, style: `stroke:${colour}`, "stroke-dasharray": dashes(run.colour) }));
        const points = smooth ? line(run, smoothed(run[table].values[name], smooth)) : raw.get(run);
        if (smooth) stroke(raw.get(run), 0.25);
        stroke(points, shown.length > 8 ? 0.65 : 1);
        const { low, high } = bars.includes(run) ? run[table].values : {};
        if (low) for (const [x, , i] of points) plot.layer.append(draw("line", { class: "bar", x1: plot.x(x), x2: plot.x(x), y1: plot.y(low[i]), y2: plot.y(high[i]), style: `stroke:${colour}` }));
        for (const [x, value, i] of points) {
          if (dots && shown.length <= 8) plot.layer.append(draw("circle", { cx: plot.x(x), cy: plot.y(value), r: 2.6, style: `fill:${colour}` }));
          const interval = low ? ` [${short(low[i])}, ${short(high[i])}]` : "";
          plot.marks.push({ x: plot.x(x), y: plot.y(value), text: `${run.name}, step ${run[table].steps[i]}\n${label} ${short(value)}${interval}\n${short(x)} ${COSTS[cost]}` });
        }
      }
    },
  });
}

const extent = (values) => (values.length ? [Math.min(...values), Math.max(...values)] : [0, 1]);
const everything = (runs, column) => runs.flatMap((run) => run.windows.flatMap((window) => window[column])).filter(known);

// Axes and colours are those of all spans of all `peers`, so that spans and runs can be compared.
function scatter(run, peers, fraction, by) {
  const caption = by === "rate" ? "Samples by estimated accept rate" : "Samples by estimated gradient norm G";
  if (!run.windows.length) return nothing(caption, "There is no allocation.jsonl.");
  const window = run.windows[Math.round(fraction * (run.windows.length - 1))];
  const [least, most] = extent(everything(peers, "norm"));
  const log = least > 0 && most / least > 5;
  const norms = log ? { label: "estimated gradient norm G", low: least / 1.1, high: most * 1.1, log } : axis("estimated gradient norm G", Math.min(least, 0), most);
  const colour = by === "rate"
    ? (i) => known(window.norm[i]) && most > least ? (log ? Math.log(window.norm[i] / least) / Math.log(most / least) : (window.norm[i] - least) / (most - least)) : 0
    : (i) => window.rate[i] ?? 0;
  const part = window.count.length < window.prompts ? `; ${window.count.length} of ${window.prompts} prompts` : "";
  return chart({
    caption, note: `${run.name}, ${stepsOf(window.span)}${part}`,
    x: by === "rate" ? axis("estimated accept rate p", 0, 1) : norms,
    y: axis("samples", 0, extent(everything(peers, "count"))[1]),
    key: [by === "rate" ? ramp("--cold", "--warm", short(least), short(most), "G") : ramp("--cold", "--warm", "0", "1", "p")],
    paint(plot) {
      window[by].forEach((value, i) => {
        if (!known(value)) return;
        const x = plot.x(value), y = plot.y(window.count[i]);
        plot.layer.append(draw("circle", { cx: x, cy: y, r: 3.4, "fill-opacity": 0.75, style: `fill:${mixed("--cold", "--warm", colour(i))}` }));
        plot.marks.push({ x, y, text: `prompt ${window.prompt[i]}: ${short(window.count[i])} samples\nestimated p ${short(window.rate[i])}, G ${short(window.norm[i])}\naccepted ${known(window.accepted[i]) ? percent(window.accepted[i]) : "?"}` });
      });
    },
  });
}

const firstSteps = (spans) => spans.map(([first]) => String(first));

function heatMap(run, peers, name, caption, note, label, what) {
  const { spans, bins, cells } = run[name];
  if (!spans.length) return nothing(caption, "There is no allocation.jsonl.");
  const most = Math.max(...peers.flatMap((peer) => peer[name].cells.flat()), 1e-9);
  return chart({
    caption, note: `${run.name}; ${note}`, x: { label: "step", bands: firstSteps(spans) }, y: { label, bands: bins },
    key: [ramp("--empty", "--full", "0", percent(most), "share, colour by its square root:")],
    paint(plot) {
      const width = (plot.area[1] - plot.area[0]) / spans.length, height = (plot.area[2] - plot.area[3]) / bins.length;
      cells.forEach((column, i) => column.forEach((share, bin) => {
        const x = plot.x(i), y = plot.y(bin), box = [x - width / 2, y - height / 2, width, height];
        plot.layer.append(draw("rect", { x: box[0], y: box[1], width: width + 0.3, height: height + 0.3, style: `fill:${mixed("--empty", "--full", Math.sqrt(share / most))}` }));
        plot.marks.push({ x, y, box, text: `${stepsOf(spans[i])}, accept rate ${bins[bin]}\n${percent(share)} of the ${what}` });
      }));
    },
  });
}

// Verdicts differ by lightness and by sign too: colours that colour-blind readers tell apart (Okabe and Ito).
const VERDICTS = { correct: "✓", wrong: "✗", slow: "◷", no_answer: "–", timeout: "⌛", error: "!" };
const PHASES = { rollout: 0, reward: 2, allocation: 3, update: 1, evaluation: 7 };
const partColour = (part, i) => (part in VERDICTS ? `var(--${part})` : series(PHASES[part] ?? i));

function stacked(run, peers, name, caption, note, label, format) {
  const { spans, parts } = run[name];
  const names = Object.keys(parts);
  if (!spans.length || !names.length) return nothing(caption, "There is no metrics.jsonl.");
  const sums = (peer) => peer[name].spans.map((_, i) => Object.values(peer[name].parts).reduce((sum, part) => sum + part[i], 0));
  const sorted = peers.flatMap(sums).sort((a, b) => a - b);
  const usual = sorted[Math.floor(0.9 * (sorted.length - 1))];
  // One step that compiles would make all others flat.
  const scale = axis(label, 0, sorted.at(-1) > 2.5 * usual && usual > 0 ? 1.6 * usual : sorted.at(-1) || 1), { high } = scale;
  const cut = sums(run).some((sum) => sum > high) ? "; bars that reach the top are longer" : "";
  return chart({
    caption, note: `${run.name}; ${note}${cut}`, nearest: "x", x: { label: "step", bands: firstSteps(spans) }, y: scale,
    key: names.map((part, i) => swatch(partColour(part, i), part.replaceAll("_", " "))),
    paint(plot) {
      const width = ((plot.area[1] - plot.area[0]) / spans.length) * 0.86;
      sums(run).forEach((sum, i) => {
        let below = 0;
        names.forEach((part, number) => {
          const from = plot.y(Math.min(below, high)), to = plot.y(Math.min((below += parts[part][i]), high));
          if (from - to > 0.05) plot.layer.append(draw("rect", { x: plot.x(i) - width / 2, y: to, width, height: from - to, style: `fill:${partColour(part, number)}` }));
        });
        if (sum > high) plot.layer.append(draw("text", { x: plot.x(i) + width / 2 + 3, y: plot.area[3] + 9 }, format(sum)));
        const lines = names.filter((part) => parts[part][i] > 0).map((part) => `${part.replaceAll("_", " ")} ${format(parts[part][i])}`);
        const top = plot.y(Math.min(sum, high));
        plot.marks.push({ x: plot.x(i), y: top, box: [plot.x(i) - width / 2, top, width, plot.area[2] - top], text: [stepsOf(spans[i]), ...lines].join("\n") });
      });
    },
  });
}
