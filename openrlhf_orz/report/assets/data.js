"use strict";
/* What the page holds, unpacked, and small helpers. Texts reach the page as text only: nothing here parses HTML. */
const Report = { runs: [], rollouts: [], about: {}, charts: [] };

Report.unpack = async function (id) {
  const packed = document.getElementById(id).textContent.trim();
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};

/** An element: el("p", {class: "hint", onclick: f}, "text", child). Attributes that are false are left out. */
Report.el = function (name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

/** The colour of a CSS variable in the present theme. */
Report.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
Report.COLOURS = 12;
Report.series = (i) => Report.colour(`--s${i % Report.COLOURS}`);

Report.format = function (value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return (value / 1e9).toPrecision(3) + "G";
  if (size >= 1e6) return (value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  if (Number.isInteger(value)) return String(value);
  if (size && size < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
};

Report.seconds = function (value) {
  if (value < 90) return `${Report.format(value)} s`;
  if (value < 5400) return `${(value / 60).toFixed(1)} min`;
  return `${(value / 3600).toFixed(1)} h`;
};

/** Values smoothed by an exponential mean over about `span` steps, unbiased at the start; null stays null. */
Report.smooth = function (values, span) {
  if (span <= 1) return values;
  const keep = 1 - 2 / (span + 1);
  let sum = 0, weight = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    sum = keep * sum + value;
    weight = keep * weight + 1;
    return sum / weight;
  });
};

/** What the reader chose, kept over a reload where the browser allows it. */
Report.remember = function (key, value) {
  try {
    if (value === undefined) return sessionStorage.getItem("orz-report-" + key);
    sessionStorage.setItem("orz-report-" + key, value);
  } catch (error) { /* a file opened with storage forbidden: nothing is remembered */ }
  return null;
};

/** The x values of a run: steps, hours since its first step, or tokens so far. */
Report.xOf = function (run, rows, axis) {
  const steps = rows.step || [];
  if (axis === "step") return steps;
  const metrics = run.metrics, at = new Map();
  let sum = 0;
  (metrics.step || []).forEach((step, i) => {
    // the sum of the steps' own seconds: pauses between a run and its resumption do not count
    const part = axis === "hours" ? (metrics.seconds_step || [])[i] / 3600 : (metrics.tokens || [])[i];
    sum += Number.isFinite(part) ? part : 0;
    at.set(step, sum);
  });
  return steps.map((step) => (step === 0 ? 0 : at.has(step) ? at.get(step) : null));
};
