"use strict";
/* One chart: lines, or layers on top of each other, for one or several runs; by uPlot. */
(function () {
  const { el, format } = Report;
  const DASHES = [[], [6, 4], [2, 3], [10, 4, 2, 4]];
  const state = { span: 1, axis: "step" };
  Report.chartState = state;

  /** Lines of all runs on one x axis: {x, lines: [{label, colour, dash, values}]}; missing points are null. */
  function align(spec, runs) {
    const found = [];
    runs.forEach((run, r) => {
      const rows = spec.of ? run[spec.of] : run.metrics;
      spec.lines(run).forEach((line, l) => {
        const values = rows[line.key];
        if (!values || values.every((value) => value === null)) return;
        const several = runs.length > 1;
        found.push({
          label: several ? `${run.name}${line.label ? ": " + line.label : ""}` : line.label || line.key,
          colour: several ? r : line.colour ?? l, dash: several ? DASHES[l % DASHES.length] : [],
          x: spec.x ? rows[spec.x] : Report.xOf(run, rows, state.axis), values, scale: line.scale || 1, layer: line.layer,
        });
      });
    });
    const x = [...new Set(found.flatMap((line) => line.x.filter((v) => v !== null)))].sort((a, b) => a - b);
    const place = new Map(x.map((value, i) => [value, i]));
    for (const line of found) {
      const raw = new Array(x.length).fill(null), smooth = new Array(x.length).fill(null);
      const smoothed = Report.smooth(line.values, spec.x ? 1 : state.span);
      line.x.forEach((value, i) => {
        if (value === null || line.values[i] === null) return;
        raw[place.get(value)] = line.values[i] * line.scale;
        smooth[place.get(value)] = smoothed[i] * line.scale;
      });
      line.raw = raw;
      line.smooth = smooth;
    }
    return { x, lines: found };
  }

  function axes(spec) {
    const text = () => Report.colour("--soft"), grid = { stroke: () => Report.colour("--line"), width: 1 };
    const names = { step: "step", hours: "hours of training", tokens: "tokens" };
    const common = { stroke: text, grid, ticks: grid, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
    return [
      { ...common, label: spec.xLabel || names[state.axis], labelSize: 18, size: 30, values: (u, ticks) => ticks.map((v) => (!spec.x && state.axis === "step" && !Number.isInteger(v) ? "" : format(v))) },
      { ...common, label: spec.unit || "", labelSize: 18, size: 54, values: (u, ticks) => ticks.map(format) },
    ];
  }

  /** The table for uPlot: each line smoothed, and beneath it, faint, as measured. */
  function plain(data, own) {
    const columns = [data.x], series = [{ label: own || state.axis, value: (u, v) => format(v) }];
    for (const line of data.lines) {
      const points = { show: line.values.length < 40, size: 5 };
      const look = { spanGaps: true, dash: line.dash };
      if (state.span > 1 && !own) {
        columns.push(line.raw);
        series.push({ ...look, label: line.label + " (measured)", stroke: () => Report.series(line.colour) + "44", width: 1, points: { show: false }, value: (u, v) => format(v), faint: true });
      }
      columns.push(line.smooth);
      series.push({ ...look, label: line.label, stroke: () => Report.series(line.colour), width: 2, points, value: (u, v) => format(v) });
    }
    return { columns, series };
  }

  function stacked(data) {
    const columns = [data.x], series = [{ label: state.axis, value: (u, v) => format(v) }];
    let sum = data.x.map(() => 0);
    const layers = data.lines.map((line) => (sum = sum.map((below, i) => below + (line.smooth[i] ?? 0))));
    for (let l = layers.length - 1; l >= 0; l--) { // the highest first: each one covers what is beneath
      const line = data.lines[l];
      columns.push(layers[l]);
      series.push({
        label: line.label, stroke: () => Report.series(line.colour), fill: () => Report.series(line.colour), width: 0,
        points: { show: false }, value: (u, v, s, i) => (i === null ? "–" : format(line.smooth[i])),
      });
    }
    return { columns, series };
  }

  class Chart {
    constructor(spec, runs) {
      this.spec = spec;
      this.runs = runs;
      this.plot = el("div", { class: "plot", tabindex: "0", role: "img" });
      this.figure = el("figure", { id: `chart-${spec.id}`, class: spec.wide ? "wide" : false },
        (this.caption = el("figcaption", {}, el("h3", {}, spec.title), el("span", { class: "hint" }, spec.hint || ""))), this.plot);
      this.plot.addEventListener("keydown", (event) => this.key(event));
    }

    draw() {
      if (this.u) this.u.destroy();
      this.u = null;
      const data = align(this.spec, this.runs);
      this.plot.replaceChildren();
      if (!data.lines.length || !data.x.length) {
        this.plot.append(el("p", { class: "hint" }, this.spec.missing || `Not recorded: ${this.spec.keys || this.spec.title}.`));
        this.drawn = false;
        this.plot.style.minHeight = "0";
        this.figure.classList.add("missing");
        this.plot.removeAttribute("tabindex");
        return;
      }
      const { columns, series } = (this.spec.stack ? stacked : plain)(data, this.spec.xLabel);
      const low = this.spec.stack ? 0 : this.spec.low, high = this.spec.high;
      const cap = this.spec.stack ? this.outlier(columns[1]) : null;
      const range = (u, min, max) => {
        if (min === null) return [0, 1];
        if (min === 0 && max === 0) return [0, high ?? 1];
        if (cap !== null) max = Math.min(max, cap);
        const pad = Math.max((max - min) * 0.06, Math.abs(max) * 1e-3, 1e-9);
        return [low === undefined ? min - pad : Math.min(low, min), high === undefined ? max + pad : Math.max(high, max)];
      };
      const xs = data.x, single = xs.length === 1;
      const options = {
        width: Math.max(240, this.plot.clientWidth), height: this.spec.height || 210,
        scales: { x: { time: false, range: (u, min, max) => (single ? [xs[0] - 1, xs[0] + 1] : [min, max]) }, y: { range } },
        axes: axes(this.spec), series, legend: { live: true, markers: { width: 0, fill: (u, i) => (i ? u.series[i].stroke(u, i) : "transparent") } },
        hooks: { setCursor: [(u) => { if (u.cursor.idx === null || u.cursor.left < 0) u.setLegend({ idx: xs.length - 1 }, false); }] },
        cursor: { sync: { key: `orz-${this.spec.x || state.axis}` }, focus: { prox: 24 }, points: { size: 6 } }, focus: { alpha: 0.35 },
      };
      this.u = new uPlot(options, columns, this.plot);
      this.u.root.querySelectorAll(".u-series").forEach((row, i) => {
        if (series[i].faint || i === 0) row.style.display = i === 0 ? "" : "none";
      });
      this.u.setLegend({ idx: xs.length - 1 }, false); // without a cursor: the last values
      this.drawn = true;
      const last = data.lines.map((line) => {
        const values = line.smooth.filter((v) => v !== null);
        return `${line.label} from ${format(values[0])} to ${format(values[values.length - 1])}`;
      });
      this.plot.setAttribute("aria-label", `${this.spec.title}: ${last.join("; ")}. Arrow keys read values.`);
    }

    /** Where the axis ends if single steps (the engine's warm-up) stand far above the rest; null if none does. */
    outlier(sums) {
      const sorted = [...sums].sort((a, b) => a - b), usual = sorted[Math.floor(sorted.length * 0.75)];
      const far = sums.filter((sum) => sum > 4 * usual).length;
      const hint = this.figure.querySelector(".hint");
      hint.textContent = (this.spec.hint || "") + (far ? `; ${far === 1 ? "one step goes" : `${far} steps go`} beyond the top, to ${format(sorted[sorted.length - 1])}` : "");
      return far ? 1.6 * usual : null;
    }

    /** Arrow keys move the cursor by a step, with shift by ten; Home and End go to the ends. */
    key(event) {
      if (!this.u) return;
      const xs = this.u.data[0], by = event.shiftKey ? 10 : 1;
      const moves = { ArrowLeft: -by, ArrowRight: by, Home: -Infinity, End: Infinity };
      if (event.key === "Escape") return this.u.setCursor({ left: -10, top: -10 });
      if (!(event.key in moves)) return;
      event.preventDefault();
      const at = Math.min(xs.length - 1, Math.max(0, (this.u.cursor.idx ?? 0) + moves[event.key]));
      this.u.setCursor({ left: this.u.valToPos(xs[at], "x"), top: this.u.over.clientHeight / 2 });
    }

    fit() {
      const width = Math.max(240, this.plot.clientWidth);
      if (this.u && this.u.width !== width) this.u.setSize({ width, height: this.u.height });
    }
  }

  Report.Chart = Chart;
})();
