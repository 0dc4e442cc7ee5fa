// The charts, each from the numbers of the runs that it shows.

const COSTS = { rollouts: "rollouts, pilots included", tokens: "sampled tokens", updates: "optimizer updates", seconds: "seconds without evaluation", steps: "steps" };

function learning(caption, note, table, label, runs, cost, dots) {
  const shown = runs.filter((run) => run[table].value.some(known));
  if (!shown.length) return nothing(caption, "None of the runs shown has it.");
  const points = (run) => run[table].value.map((value, i) => [run[table][cost][i], value, run[table].steps[i]]).filter(([at, value]) => known(at) && known(value));
  const most = Math.max(...shown.flatMap((run) => points(run).map(([at]) => at)), 1e-9);
  const values = shown.flatMap((run) => points(run).map(([, value]) => value));
  const [least, highest] = extent(values), room = 0.08 * (highest - least || 1);
  const y = { label, low: least >= 0 ? Math.max(least - room, 0) : least - room, high: highest <= 1 ? Math.min(highest + room, 1) : highest + room };
  return chart({
    caption, note, y, x: { label: COSTS[cost], low: 0, high: most },
    paint(plot) {
      for (const run of shown) {
        const at = points(run).map(([x, value, step]) => ({ x: plot.x(x), y: plot.y(value), text: `${run.name}, step ${step}\n${label} ${short(value)}\n${short(x)} ${COSTS[cost]}` }));
        plot.layer.append(draw("polyline", { points: at.map((mark) => `${mark.x},${mark.y}`).join(" "), fill: "none", "stroke-width": dots ? 2 : 1.5, "stroke-opacity": shown.length > 8 ? 0.65 : 1, style: `stroke:${series(run.colour)}`, "stroke-dasharray": dashes(run.colour) }));
        if (dots && shown.length <= 8) for (const mark of at) plot.layer.append(draw("circle", { cx: mark.x, cy: mark.y, r: 2.6, style: `fill:${series(run.colour)}` }));
        plot.marks.push(...at);
      }
    },
  });
}

const extent = (values) => (values.length ? [Math.min(...values), Math.max(...values)] : [0, 1]);
const everything = (runs, column) => runs.flatMap((run) => run.windows.flatMap((window) => window[column])).filter(known);

// Axes and colours are those of all spans of all `peers`, so that spans and runs can be compared.
function scatter(run, peers, fraction, by) {
  const caption = by === "rate" ? "Samples by believed accept rate" : "Samples by believed gradient norm G";
  if (!run.windows.length) return nothing(caption, "There is no allocation.jsonl.");
  const window = run.windows[Math.round(fraction * (run.windows.length - 1))];
  const [least, most] = extent(everything(peers, "norm"));
  const log = least > 0 && most / least > 5;
  const axis = { label: "believed gradient norm G", low: log ? least / 1.1 : Math.min(least, 0), high: most * (log ? 1.1 : 1.05), log };
  const colour = by === "rate"
    ? (i) => known(window.norm[i]) && most > least ? (log ? Math.log(window.norm[i] / least) / Math.log(most / least) : (window.norm[i] - least) / (most - least)) : 0
    : (i) => window.rate[i] ?? 0;
  const part = window.count.length < window.prompts ? `; ${window.count.length} of ${window.prompts} prompts` : "";
  return chart({
    caption, note: `${run.name}, ${stepsOf(window.span)}${part}`,
    x: by === "rate" ? { label: "believed accept rate p", low: 0, high: 1 } : axis,
    y: { label: "samples", low: 0, high: extent(everything(peers, "count"))[1] * 1.04 },
    key: [by === "rate" ? ramp("--cold", "--warm", short(least), short(most), "G") : ramp("--cold", "--warm", "0", "1", "p")],
    paint(plot) {
      window[by].forEach((value, i) => {
        if (!known(value)) return;
        const x = plot.x(value), y = plot.y(window.count[i]);
        plot.layer.append(draw("circle", { cx: x, cy: y, r: 3.4, "fill-opacity": 0.75, style: `fill:${mixed("--cold", "--warm", colour(i))}` }));
        plot.marks.push({ x, y, text: `prompt ${window.prompt[i]}: ${short(window.count[i])} samples\nbelieved p ${short(window.rate[i])}, G ${short(window.norm[i])}\naccepted ${known(window.accepted[i]) ? percent(window.accepted[i]) : "?"}` });
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

const PART_COLOURS = { rollout: 0, reward: 2, allocation: 3, update: 1, evaluation: 7, correct: 2, wrong: 1, slow: 6, no_answer: 7, timeout: 3, error: 4 };

function stacked(run, peers, name, caption, note, label, format) {
  const { spans, parts } = run[name];
  const names = Object.keys(parts);
  if (!spans.length || !names.length) return nothing(caption, "There is no metrics.jsonl.");
  const sums = (peer) => peer[name].spans.map((_, i) => Object.values(peer[name].parts).reduce((sum, part) => sum + part[i], 0));
  const sorted = peers.flatMap(sums).sort((a, b) => a - b);
  const usual = sorted[Math.floor(0.9 * (sorted.length - 1))];
  // One step that compiles would make all others flat.
  const high = sorted.at(-1) > 2.5 * usual && usual > 0 ? 1.6 * usual : sorted.at(-1) || 1;
  const cut = sums(run).some((sum) => sum > high) ? "; bars that reach the top are longer" : "";
  return chart({
    caption, note: `${run.name}; ${note}${cut}`, nearest: "x", x: { label: "step", bands: firstSteps(spans) }, y: { label, low: 0, high },
    key: names.map((part, i) => swatch(series(PART_COLOURS[part] ?? i), part.replaceAll("_", " "))),
    paint(plot) {
      const width = ((plot.area[1] - plot.area[0]) / spans.length) * 0.86;
      sums(run).forEach((sum, i) => {
        let below = 0;
        names.forEach((part, number) => {
          const from = plot.y(Math.min(below, high)), to = plot.y(Math.min((below += parts[part][i]), high));
          if (from - to > 0.05) plot.layer.append(draw("rect", { x: plot.x(i) - width / 2, y: to, width, height: from - to, style: `fill:${series(PART_COLOURS[part] ?? number)}` }));
        });
        if (sum > high) plot.layer.append(draw("text", { x: plot.x(i) + width / 2 + 3, y: plot.area[3] + 9 }, format(sum)));
        const lines = names.filter((part) => parts[part][i] > 0).map((part) => `${part.replaceAll("_", " ")} ${format(parts[part][i])}`);
        const top = plot.y(Math.min(sum, high));
        plot.marks.push({ x: plot.x(i), y: top, box: [plot.x(i) - width / 2, top, width, plot.area[2] - top], text: [stepsOf(spans[i]), ...lines].join("\n") });
      });
    },
  });
}
