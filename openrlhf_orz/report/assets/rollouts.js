"use strict";
/* The rollout browser: pick a step, filter, search, sort; read one response; compare those to the same prompt. */
(function () {
  const { el } = Report;
  const PAGE = 150; // rows of the list drawn at a time
  const state = { run: 0, step: "all", verdict: "all", outcome: "all", truncated: false, reflection: false, values: false, text: "", sort: "order", limit: PAGE, chosen: null, compare: false, tint: "values" };
  let parts = {}, limits = [];

  const isRight = (row) => row.right;
  const isCut = (row) => row.stop_reason === "length";
  const promptOf = (row, run = state.run) => Report.rollouts[run].prompts[row.prompt] || "";

  /** Why a response has the reward it has, in words. */
  function why(row) {
    const rule = row.rule ? `by the rule “${row.rule}”` : "by Math-Verify";
    const cut = isCut(row) ? ` It was cut by length${row.reward > 0 ? "" : ", so it earns nothing"}.` : "";
    const reasons = {
      right: row.rule === "identical" ? "The answer is the reference, character by character." : `The answer equals the reference, ${rule}.`,
      wrong: `The answer does not equal the reference, ${rule}.`,
      no_answer: "There is no closed <answer> block with a \\boxed{} in it.",
      unparsable: "The answer, or the reference, is no mathematical object.",
      refused: `A guard refused the answer before it was parsed${row.rule ? `: “${row.rule}”` : ""}.`,
      timeout: "Comparing the answer took longer than it may.",
      crashed: "The grading process died on this answer, twice.",
    };
    const changed = row.trained !== null && row.trained !== row.reward;
    const trained = changed ? ` Its reward is ${row.reward}; it was trained on as ${row.trained}, after penalties.` : "";
    return (reasons[row.verdict] || "No verdict was recorded.") + cut + trained;
  }

  function chip(row) {
    const label = row.verdict || (row.reward === null ? "no reward" : isRight(row) ? "right" : "wrong");
    const kind = isRight(row) ? "right" : label === "wrong" ? "wrong" : "other";
    return el("span", { class: `chip ${kind}` }, label.replace("_", " ") + (isCut(row) ? ", cut" : ""));
  }

  /** Text with every occurrence of what is searched for marked. */
  function marked(text) {
    const wanted = state.text.toLowerCase(), nodes = [];
    const lower = text.toLowerCase();
    // a few letters change their length with their case: then places would not agree
    if (!wanted || lower.length !== text.length) return [text];
    let from = 0;
    for (let count = 0; count < 500; count++) {
      const at = lower.indexOf(wanted, from);
      if (at < 0) break;
      nodes.push(text.slice(from, at), el("mark", {}, text.slice(at, at + wanted.length)));
      from = at + wanted.length;
    }
    nodes.push(text.slice(from));
    return nodes;
  }

  /** A response with its thinking and its answer told apart. The prompt has opened <think> already. */
  function response(text) {
    const box = el("div", { class: "text response", dir: "auto", tabindex: "0", role: "region", "aria-label": "response" });
    const end = text.indexOf("</think>"), open = text.lastIndexOf("<answer>");
    const close = open < 0 ? -1 : text.indexOf("</answer>", open);
    const tag = (name) => el("span", { class: "tag" }, name);
    let at = 0;
    if (end >= 0 && (open < 0 || end < open)) {
      box.append(el("span", { class: "think" }, ...marked(text.slice(0, end)), tag("</think>")));
      at = end + 8;
    } else if (open < 0) {
      box.append(el("span", { class: "think" }, ...marked(text)));
      at = text.length;
    }
    if (close >= 0) {
      box.append(...marked(text.slice(at, open)));
      box.append(el("span", { class: "answer" }, tag("<answer>"), ...marked(text.slice(open + 8, close)), tag("</answer>")));
      at = close + 9;
    }
    box.append(...marked(text.slice(at)));
    return box;
  }

  /** The response by token where it has values and a tint is chosen, else as text. */
  function shown(run, row) {
    if (!row.pieces || state.tint === "none") return response(row.response);
    limits[run] = limits[run] || Report.tokenLimits(Report.rollouts[run].rows.filter((other) => other.pieces));
    return Report.tokenView(row, state.tint, limits[run], state.text);
  }

  /** What tokens are tinted by; only where a response that is shown has values. */
  function tints(rows) {
    if (!rows.some((row) => row.pieces)) return "";
    const button = (tint, text) => el("button", { type: "button", id: `tint-${tint}`, "aria-pressed": String(state.tint === tint), onclick: () => { state.tint = tint; showDetail(); document.getElementById(`tint-${tint}`).focus(); } }, text);
    return el("span", { class: "tints", role: "group", "aria-label": "tint tokens by" }, "Tint by ", button("values", "value"), button("advantages", "advantage"), button("none", "nothing"));
  }

  function facts(row) {
    const stop = { length: "cut by length", eos: "end-of-text token" }[row.stop_reason] || (row.stop_reason ? `“${row.stop_reason}”` : "not recorded");
    const pairs = [["extracted", row.extracted || "(none)"], ["reference", row.reference], ["why", why(row)], ["ended at", stop], ["tokens", Report.format(row.tokens)]];
    if (row.reflection) pairs.push(["reflection", "yes"]);
    return el("dl", {}, ...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", { dir: "auto" }, value)]));
  }

  function found() {
    const wanted = state.text.toLowerCase();
    const data = Report.rollouts[state.run];
    const rows = data.rows.filter((row) =>
      (state.step === "all" || row.step === Number(state.step)) &&
      (state.outcome === "all" || (state.outcome === "right") === isRight(row)) &&
      (state.verdict === "all" || row.verdict === state.verdict) &&
      (!state.truncated || isCut(row)) && (!state.reflection || row.reflection) && (!state.values || row.pieces) &&
      (!wanted || row.response.toLowerCase().includes(wanted) || promptOf(row).toLowerCase().includes(wanted) || row.reference.toLowerCase().includes(wanted)));
    const by = { longest: (a, b) => b.tokens - a.tokens, shortest: (a, b) => a.tokens - b.tokens };
    if (state.sort in by) rows.sort(by[state.sort]);
    return rows;
  }

  /** All responses in the page to the prompt of a row, of every run and step. */
  function samePrompt(row) {
    const prompt = promptOf(row);
    return Report.rollouts.flatMap((data, run) => {
      const place = data.prompts.indexOf(prompt);
      return place < 0 ? [] : data.rows.filter((other) => other.prompt === place).map((other) => ({ run, row: other }));
    });
  }

  function where(run, row) {
    return (Report.runs.length > 1 ? `${Report.runs[run].name}, ` : "") + `step ${row.step}, response ${row.place + 1}`;
  }

  function showDetail() {
    const row = state.chosen;
    if (!row) return parts.detail.replaceChildren(el("p", { class: "hint" }, "No response fits these filters."));
    const others = samePrompt(row), steps = new Set(others.map(({ run, row: other }) => `${run}/${other.step}`)).size;
    const prompt = promptOf(row);
    const compare = el("button", { type: "button", id: "compare", "aria-pressed": String(state.compare), onclick: () => { state.compare = !state.compare; showDetail(); } },
      state.compare ? "Back to one response" : `Compare ${others.length} responses to this prompt (${steps} ${steps === 1 ? "step" : "steps"})`);
    const head = el("div", { class: "bar" }, chip(row), el("strong", {}, where(state.run, row)), compare, tints(state.compare ? others.slice(0, 60).map((other) => other.row) : [row]));
    const question = el("details", { open: prompt.length < 1500 }, el("summary", {}, "Prompt"), el("div", { class: "text prompt", dir: "auto" }, ...marked(prompt)));
    if (!state.compare) return parts.detail.replaceChildren(head, question, facts(row), shown(state.run, row));
    const drawn = others.slice(0, 60);
    const cards = drawn.map(({ run, row: other }) => el("article", { class: "card" }, el("div", { class: "bar" }, chip(other), el("strong", {}, where(run, other))), facts(other), shown(run, other)));
    const rest = others.length - drawn.length;
    parts.detail.replaceChildren(head, question, el("div", { class: "cards" }, ...cards), rest ? el("p", { class: "hint" }, `${rest} more are not drawn.`) : "");
  }

  function showList() {
    const rows = found();
    if (!rows.includes(state.chosen)) state.chosen = rows[0] || null;
    parts.count.textContent = `${rows.length.toLocaleString("en")} of ${Report.rollouts[state.run].rows.length.toLocaleString("en")}`;
    const buttons = rows.slice(0, state.limit).map((row) => {
      const text = row.response.replace(/\s+/g, " ").slice(0, 90);
      const button = el("button", { type: "button", "aria-current": String(row === state.chosen), onclick: () => choose(row, button) },
        chip(row), ` step ${row.step} · ${Report.format(row.tokens)} tokens${row.pieces ? " · values" : ""}`, el("small", { dir: "auto" }, text));
      return button;
    });
    if (rows.length > state.limit) buttons.push(el("button", { type: "button", class: "more", onclick: () => { state.limit += PAGE; showList(); } }, `Show more (${(rows.length - state.limit).toLocaleString("en")} left)`));
    parts.list.replaceChildren(...buttons);
    showDetail();
  }

  function choose(row, button) {
    state.chosen = row;
    parts.list.querySelectorAll("[aria-current=true]").forEach((other) => other.setAttribute("aria-current", "false"));
    button.setAttribute("aria-current", "true");
    showDetail();
  }

  function update(change) {
    Object.assign(state, change, { limit: PAGE });
    showList();
  }

  function select(label, key, options) {
    const node = el("select", { id: `filter-${key}`, onchange: () => update({ [key]: node.value }) }, ...options.map(([value, text]) => el("option", { value }, text)));
    return el("label", {}, label, " ", node);
  }
  function tick(label, key) {
    const node = el("input", { type: "checkbox", id: `filter-${key}`, onchange: () => update({ [key]: node.checked }) });
    return el("label", {}, node, label);
  }

  function build() {
    const data = Report.rollouts[state.run], home = document.getElementById("browser");
    document.getElementById("left-out").textContent = data.leftOut;
    const several = Report.runs.length > 1;
    const run = el("select", { id: "filter-run", onchange: () => { Object.assign(state, { run: run.selectedIndex, step: "all", verdict: "all", outcome: "all", truncated: false, reflection: false, values: false, text: "", chosen: null, compare: false }); build(); } }, ...Report.runs.map((one) => el("option", {}, one.name)));
    run.selectedIndex = state.run;
    const pick = several ? [el("label", {}, "Run ", run)] : [];
    if (!data.rows.length) return home.replaceChildren(el("div", { class: "filters" }, ...pick), el("p", { class: "hint" }, "No rollouts to show."));
    const steps = [...new Set(data.rows.map((row) => row.step))], verdicts = [...new Set(data.rows.map((row) => row.verdict).filter(Boolean))].sort();
    let timer = 0;
    const search = el("input", { type: "search", id: "filter-text", placeholder: "Search text", "aria-label": "Search prompts, responses and references", oninput: () => { clearTimeout(timer); timer = setTimeout(() => update({ text: search.value }), 150); } });
    parts = {
      count: el("output", { id: "found", "aria-live": "polite" }),
      list: el("div", { class: "list", role: "group", "aria-label": "Responses" }),
      detail: el("div", { class: "detail", "aria-live": "polite" }),
    };
    parts.list.addEventListener("keydown", (event) => {
      const move = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      const next = move && document.activeElement[move];
      if (!next) return;
      event.preventDefault();
      next.focus();
      if (!next.classList.contains("more")) next.click();
    });
    home.replaceChildren(
      el("div", { class: "filters" }, ...pick,
        select("Step", "step", [["all", "all"], ...steps.map((step) => [step, step])]),
        select("Outcome", "outcome", [["all", "all"], ["right", "right"], ["wrong", "not right"]]),
        select("Verdict", "verdict", [["all", "all"], ...verdicts.map((verdict) => [verdict, verdict.replace("_", " ")])]),
        tick("cut by length", "truncated"), tick("reflection", "reflection"),
        ...(data.rows.some((row) => row.pieces) ? [tick("with values", "values")] : []),
        select("Sort", "sort", [["order", "as generated"], ["longest", "longest first"], ["shortest", "shortest first"]]),
        search, parts.count),
      el("div", { class: "panes" }, parts.list, parts.detail));
    showList();
  }

  Report.buildRollouts = build;
})();
