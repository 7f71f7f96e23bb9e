"use strict";
/* The configuration of each run, and where the runs differ. */
(function () {
  const { el } = Report;
  // of a place, not of an experiment
  const PLACES = /^(orz\.run_dir|orz\.scratch|ckpt\.(output_dir|path)|logger\.tensorboard_dir)$/;

  Report.buildConfig = function () {
    const runs = Report.runs, several = runs.length > 1, home = document.getElementById("settings");
    if (runs.every((run) => !Object.keys(run.flags).length && !Object.keys(run.versions).length)) {
      home.append(el("p", { class: "hint" }, "No configuration was recorded."));
      return;
    }
    const rowsOf = (of, prefix) => [...new Set(runs.flatMap((run) => Object.keys(run[of])))].sort().map((key) => ({
      key, name: prefix + key, values: runs.map((run) => run[of][key]), given: runs.map((run) => of === "flags" && run.explicit.includes(key)),
    }));
    const rows = [
      { key: "commit", name: "git commit", values: runs.map((run) => run.commit || undefined), given: runs.map(() => false) },
      ...rowsOf("versions", "version of "), ...rowsOf("flags", "--"),
    ];
    for (const row of rows) row.differs = several && new Set(row.values).size > 1 && !PLACES.test(row.key);
    const body = el("tbody"), count = el("output", { "aria-live": "polite" });
    const show = el("select", { id: "config-show", onchange: draw }, ...[["differs", "what differs"], ["given", "what was given"], ["all", "everything"]].filter(([value]) => several || value !== "differs").map(([value, text]) => el("option", { value }, text)));
    const search = el("input", { type: "search", placeholder: "Search flags", "aria-label": "Search flags", oninput: draw });
    function draw() {
      const text = search.value.toLowerCase();
      const kept = rows.filter((row) => (show.value === "all" || row.differs && show.value === "differs" || show.value === "given" && row.given.some(Boolean)) &&
        (row.name.toLowerCase().includes(text) || row.values.some((value) => String(value).toLowerCase().includes(text))));
      count.textContent = `${kept.length} of ${rows.length}`;
      body.replaceChildren(...kept.map((row) => el("tr", { class: row.differs ? "differs" : false }, el("th", { scope: "row" }, row.name),
        ...row.values.map((value, i) => el("td", { class: row.given[i] ? "given" : false }, value ?? "–")))));
    }
    home.append(
      el("p", { class: "hint" }, "Bold: given on the command line; the rest are defaults." + (several ? " Marked: the runs differ." : "")),
      el("div", { class: "filters" }, el("label", {}, "Show ", show), search, count),
      el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "configuration" },
        el("table", { class: "flags" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "flag"), ...runs.map((run) => el("th", { scope: "col" }, run.name)))), body)));
    draw();
  };
})();
