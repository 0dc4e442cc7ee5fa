"use strict";
// Elements, numbers and the frame of a chart. Text reaches the page through text nodes and attributes alone.

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// The state of the controls, which the address keeps: `#verdict=wrong&smooth=0.6`.
const KEPT = ["against", "smooth", "hide", "run", "beside", "span", "query", "of", "step", "verdict", "order"];
const address = new URLSearchParams([...new URLSearchParams(location.hash.slice(1))].filter(([name]) => KEPT.includes(name)));

function remember(name, value, usual = "") {
  if (String(value) === String(usual)) address.delete(name);
  else address.set(name, value);
  history.replaceState(null, "", `#${address}`);
}

const known = (value) => value !== null && value !== undefined;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function short(value) {
  if (!known(value)) return "?";
  const size = Math.abs(value);
  if (size >= 1e4) {
    const [unit, sign] = size >= 999500000 ? [1e9, "G"] : size >= 999500 ? [1e6, "M"] : [1e3, "k"];
    return `${Number((value / unit).toPrecision(3))}${sign}`;
  }
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3)));
}

const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;
const stepsOf = ([first, last]) => (first === last ? `step ${first}` : `steps ${first} to ${last}`);
const series = (number) => `var(--c${number % 8})`;
const dashes = (number) => ["", "6 4", "2 3", "9 3 2 3"][Math.floor(number / 8) % 4];
const SPACES = { "--cold": "oklch", "--empty": "oklab" }; // by the first colour: around the wheel, or straight
const mixed = (low, high, share) => `color-mix(in ${SPACES[low]}, var(${low}), var(${high}) ${Math.round(100 * clamp(share, 0, 1))}%)`;

// An axis whose ends are ticks, so that they cover the data.
function axis(label, low, high, about = 5) {
  const raw = (high - low) / about || Math.abs(high) / about || 1 / about;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * ([1, 2, 5].find((factor) => factor * unit >= raw * 0.999) || 10);
  const first = Math.floor(low / step + 1e-3), last = Math.max(Math.ceil(high / step - 1e-3), first + 1);
  return { label, low: first * step, high: last * step, ticks: Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step) };
}

// All ticks of an axis have one unit and one number of digits.
function tickTexts(values) {
  const most = Math.max(...values.map(Math.abs)), power = Math.floor(Math.log10(most || 1));
  const [unit, sign] = most >= 1e9 ? [1e9, "G"] : most >= 1e6 ? [1e6, "M"] : most >= 1e4 ? [1e3, "k"] : most < 1e-3 && most > 0 ? [10 ** power, `e${power}`] : [1, ""];
  const digits = clamp(Math.ceil(-Math.log10(Math.abs(values[1] - values[0]) / unit) - 1e-6), 0, 6);
  return values.map((value) => (value === 0 ? "0" : `${(value / unit).toFixed(digits)}${sign}`));
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of high / low > 300 ? [1] : [1, 2, 5]) found.push(factor * 10 ** power);
  return found.filter((tick) => tick >= low && tick <= high);
}

// The frame: { caption, note, x, y, key, nearest, small, paint }. An axis is that of `axis`, { label, low, high, log: true },
// or { label, bands }, whose bands have labels and equal widths. `paint(plot)` draws into plot.layer and adds plot.marks, the things to point at:
// { x, y, text, box }, in the units of the drawing. Arrow keys go from mark to mark.
function chart({ caption, note = "", x, y, key = [], nearest = "both", small = false, paint }) {
  const size = { width: small ? 400 : 580, height: small ? 220 : 300, left: y.bands ? 78 : 64, right: 12, top: 12, bottom: 44 };
  const area = [size.left, size.width - size.right, size.height - size.bottom, size.top];
  const svg = draw("svg", { viewBox: `0 0 ${size.width} ${size.height}`, tabindex: 0, role: "img", "aria-label": `${caption}. ${note} Arrow keys go through its values.` });
  const place = (axis, from, to) => {
    if (axis.bands) return (band) => from + ((band + 0.5) * (to - from)) / axis.bands.length;
    const at = axis.log ? Math.log : (value) => value;
    const span = at(axis.high) - at(axis.low) || 1;
    return (value) => from + ((at(value) - at(axis.low)) / span) * (to - from);
  };
  const plot = { layer: draw("g"), marks: [], x: place(x, area[0], area[1]), y: place(y, area[2], area[3]), area };
  const marksOf = (axis, most) => {
    if (axis.log) return logTicks(axis.low, axis.high).map((tick) => [tick, short(tick)]);
    const all = axis.bands ? axis.bands.map((band, i) => [i, band]) : tickTexts(axis.ticks).map((text, i) => [axis.ticks[i], text]);
    const every = Math.ceil(all.length / most);
    return all.filter((_, i) => i % every === 0);
  };
  for (const [at, text] of marksOf(y, 12)) {
    const place = plot.y(at);
    if (!y.bands) svg.append(draw("line", { class: "grid", x1: area[0], x2: area[1], y1: place, y2: place }));
    svg.append(draw("text", { x: area[0] - 7, y: place + 4, "text-anchor": "end" }, text));
  }
  for (const [at, text] of marksOf(x, small ? 6 : 10)) svg.append(draw("text", { x: plot.x(at), y: area[2] + 17, "text-anchor": "middle" }, text));
  svg.append(
    draw("text", { x: (area[0] + area[1]) / 2, y: size.height - 6, "text-anchor": "middle" }, x.label),
    draw("text", { transform: `translate(13 ${(area[2] + area[3]) / 2}) rotate(-90)`, "text-anchor": "middle" }, y.label),
    plot.layer,
  );
  paint(plot);
  const figure = make("figure", {}, make("figcaption", {}, caption, make("small", {}, note)), make("div", { class: "key" }, ...key), svg);
  pointing(figure, svg, plot.marks, size, nearest);
  return figure;
}

function pointing(figure, svg, marks, size, nearest) {
  const tip = make("div", { class: "tip", role: "status", hidden: true });
  const ring = draw("g", { class: "ring" });
  svg.append(ring);
  figure.append(tip);
  let current = -1;
  const hide = () => { tip.hidden = true; ring.replaceChildren(); current = -1; };
  const show = (index) => {
    current = index;
    const { x, y, text, box } = marks[index];
    ring.replaceChildren(box ? draw("rect", { x: box[0], y: box[1], width: box[2], height: box[3] }) : draw("circle", { cx: x, cy: y, r: 6 }));
    tip.textContent = text;
    tip.hidden = false;
    const frame = svg.getBoundingClientRect(), outer = figure.getBoundingClientRect(), scale = frame.width / size.width;
    const left = frame.left - outer.left + x * scale + 12, top = frame.top - outer.top + y * scale - 10;
    tip.style.left = `${left + tip.offsetWidth > outer.width ? left - tip.offsetWidth - 24 : left}px`;
    tip.style.top = `${clamp(top, 0, outer.height - tip.offsetHeight)}px`;
  };
  const find = (event) => {
    const frame = svg.getBoundingClientRect(), scale = size.width / frame.width;
    const px = (event.clientX - frame.left) * scale, py = (event.clientY - frame.top) * scale;
    let best = -1, least = nearest === "x" ? 30 : 900;
    marks.forEach((mark, i) => {
      const distance = nearest === "x" ? Math.abs(mark.x - px) : (mark.x - px) ** 2 + (mark.y - py) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    if (best < 0) hide();
    else show(best);
  };
  svg.addEventListener("pointermove", find);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!move || !marks.length) return;
    event.preventDefault();
    show(current < 0 ? 0 : (current + move + marks.length) % marks.length);
  });
}

const swatch = (colour, text) => make("span", {}, make("span", { class: "swatch", style: `background:${colour}` }), text);
const ramp = (low, high, from, to, what) =>
  make("span", {}, `${what} ${from}`, make("span", { class: "ramp", style: `background:linear-gradient(to right in ${SPACES[low]}, var(${low}), var(${high}))` }), to);
const nothing = (caption, why) => make("figure", {}, make("figcaption", {}, caption), make("p", { class: "none" }, why));

function choice(label, options, value, onchange) {
  const select = make("select", { onchange: () => onchange(select.value) }, ...options.map(([id, text]) => make("option", { value: id, selected: id === value }, text)));
  return make("label", {}, make("span", {}, label), select);
}
