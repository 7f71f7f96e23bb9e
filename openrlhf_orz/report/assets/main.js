"use strict";
/* Puts the page together; theme, smoothing, x axis and refreshing. */
(async function () {
  const { el, format } = Report;
  const $ = (id) => document.getElementById(id);

  function theme(name) {
    document.documentElement.dataset.theme = name;
    $("theme").textContent = name === "dark" ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", `Use the ${name === "dark" ? "light" : "dark"} theme`);
  }

  function tiles() {
    if (Report.runs.length > 1) {
      $("legend").hidden = false;
      $("legend").append(...Report.runs.map((run, i) => el("span", { style: `--own: var(--s${i % Report.COLOURS})` }, run.name)));
    }
    const tile = (value, text) => el("div", { class: "tile" }, el("b", {}, value), el("span", {}, text));
    const ends = (values) => {
      const kept = (values || []).filter((value) => value !== null), few = Math.max(1, Math.min(5, Math.floor(kept.length / 4)));
      const mean = (part) => part.reduce((a, b) => a + b, 0) / part.length;
      return kept.length ? `${short(mean(kept.slice(0, few)))} → ${short(mean(kept.slice(-few)))}` : "–";
    };
    const short = (value) => (Math.abs(value) < 10 ? value.toFixed(2) : Math.abs(value) < 100 ? value.toFixed(1) : format(Math.round(value)));
    const sum = (values) => (values || []).reduce((a, b) => a + (b || 0), 0);
    for (const run of Report.runs.slice(0, 4)) {
      const m = run.metrics, name = Report.runs.length > 1 ? `, ${run.name}` : "";
      const best = Object.entries(run.evals).filter(([key]) => /^eval_.*_pass1$/.test(key)).map(([key, values]) => [key.slice(5, -6), values.reduce((a, b) => Math.max(a, b ?? a), 0)]);
      $("tiles").append(tile(ends(m.reward), "reward, first → last steps" + name), tile(ends(m.response_length), "response length, tokens" + name));
      if (name) continue;
      $("tiles").append(
        tile(format(run.steps), "steps" + name), tile(Report.seconds(sum(m.seconds_step)), "in steps" + name), tile(format(sum(m.tokens)), "tokens" + name),
        ...best.slice(0, 4).map(([bench, value]) => tile(format(value), `best accuracy on ${bench}${name}`)));
    }
  }

  function smoothing(span, redraw) {
    Report.chartState.span = span;
    $("smoothing").value = span;
    $("smoothing-now").textContent = span <= 1 ? "off" : `${span} steps`;
    Report.remember("smoothing", span);
    if (redraw) Report.redraw();
  }

  function refreshing(seconds) {
    if (!seconds) return;
    $("refresh-label").hidden = false;
    $("refresh").checked = Report.remember("refresh") !== "off";
    $("refresh").addEventListener("change", () => Report.remember("refresh", $("refresh").checked ? "on" : "off"));
    setInterval(() => { // not while somebody types or reads in another place
      if ($("refresh").checked && !document.hidden && !document.activeElement.matches("input[type=search]")) location.reload();
    }, seconds * 1000);
  }

  try {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    theme(Report.remember("theme") || (dark.matches ? "dark" : "light"));
    dark.addEventListener("change", () => { if (!Report.remember("theme")) { theme(dark.matches ? "dark" : "light"); Report.redraw(); } });
    $("theme").addEventListener("click", () => {
      theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
      Report.remember("theme", document.documentElement.dataset.theme);
      Report.redraw();
    });
    Report.about = JSON.parse($("about").textContent);
    Report.runs = await Report.unpack("runs");
    $("title").textContent = Report.runs.map((run) => run.name).join(", ");
    $("written").textContent = `Written ${new Date(Report.about.written * 1000).toLocaleString()} by python -m openrlhf_orz.cli.report. Everything is in this file.`;
    $("notes").append(...Report.runs.flatMap((run) => run.notes.map((note) => el("li", {}, `${run.name}: ${note}`))));
    tiles();
    const steps = Math.max(...Report.runs.map((run) => run.steps));
    $("smoothing").max = Math.max(2, Math.min(200, Math.ceil(steps / 2)));
    smoothing(Math.min(Number(Report.remember("smoothing")) || (steps > 60 ? Math.ceil(steps / 50) : 1), $("smoothing").max));
    $("smoothing").addEventListener("input", () => smoothing(Number($("smoothing").value), true));
    $("axis").addEventListener("change", () => { Report.chartState.axis = $("axis").value; Report.redraw(); });
    Report.buildCharts();
    Report.redraw();
    let timer = 0;
    new ResizeObserver(() => { clearTimeout(timer); timer = setTimeout(() => Report.charts.forEach((chart) => chart.fit()), 100); }).observe($("content"));
    Report.buildConfig();
    Report.rollouts = await Report.unpack("rollout-data");
    Report.buildFit();
    Report.buildRollouts();
    refreshing(Report.about.refresh);
    if (location.hash) { // the sections have their height only now
      const target = document.getElementById(location.hash.slice(1));
      if (target) target.scrollIntoView();
    }
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    $("failed").hidden = false;
    $("failed").textContent = `This page could not be drawn: ${error}. It needs a browser from 2023 or later.`;
    throw error;
  }
})();
