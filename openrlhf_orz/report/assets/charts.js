"use strict";
/* The pictures: the paper's, and what a run's health is read from. Keys are those of docs/metrics.md. */
(function () {
  const { el } = Report;
  const lines = (...pairs) => () => pairs.map(([key, label, more]) => ({ key, label, ...more }));

  const names = (run, suffixes) => {
    const found = [];
    for (const key of Object.keys(run.evals || {})) {
      const suffix = suffixes.find((end) => key.startsWith("eval_") && key.endsWith(end) && key.length > 5 + end.length);
      if (suffix) found.push({ key, label: key.slice(5, -suffix.length) });
    }
    return found;
  };
  const matching = (pattern) => (run) =>
    Object.keys(run.metrics).filter((key) => pattern.test(key)).map((key) => ({ key, label: key }));

  const SECTIONS = {
    training: [
      { id: "reward", title: "Reward", hint: "mean of the 0/1 reward (Fig. 2)", low: 0, high: 1, lines: lines(["reward", "reward"], ["reward_trained", "after penalties"]) },
      { id: "length", title: "Response length", hint: "tokens (Fig. 2, 6)", lines: (run) => lines(["response_length", "mean"], ...(Report.runs.length > 1 ? [] : [["response_length_p10", "10 %", { colour: 7 }], ["response_length_p90", "90 %", { colour: 5 }]]))(run) },
      { id: "format", title: "Format and truncation", hint: "share of responses (Fig. 4)", low: 0, high: 1, lines: lines(["format", "in the format"], ["truncated", "cut by length"]) },
      { id: "prompts", title: "Prompts", hint: "share of prompts, n responses each", low: 0, high: 1, lines: lines(["pass_at_n", "any right (pass@n)"], ["all_right", "all right"], ["all_wrong", "all wrong"]) },
      { id: "right-wrong", title: "Length of right and wrong responses", hint: "mean tokens", lines: lines(["response_length_right", "right", { colour: 2 }], ["response_length_wrong", "wrong", { colour: 1 }]) },
      { id: "verdicts", title: "Verdicts that are neither right nor wrong", hint: "responses a step", low: 0, lines: lines(["verdict_no_answer", "no answer"], ["verdict_unparsable", "unparsable"], ["verdict_refused", "refused"], ["verdict_timeout", "timeout"], ["verdict_crashed", "crashed"]) },
    ],
    benchmarks: [
      { id: "eval-accuracy", title: "Accuracy by benchmark", hint: "mean over samples (Fig. 5)", of: "evals", low: 0, lines: (run) => names(run, ["_pass1"]), missing: "This run was not evaluated (--eval.dataset, --eval.steps)." },
      { id: "eval-length", title: "Response length by benchmark", hint: "mean tokens (Fig. 5)", of: "evals", lines: (run) => names(run, ["_response_length_mean"]), missing: "This run was not evaluated." },
      { id: "eval-truncated", title: "Cut by length, by benchmark", hint: "share of responses", of: "evals", low: 0, lines: (run) => names(run, ["_truncated_rate"]), missing: "This run was not evaluated." },
    ],
    reasoning: [
      { id: "reflection-length", title: "Reflection length", hint: "tokens (Fig. 7)", lines: lines(["response_length", "all responses", { colour: 0 }], ["reflection_length_right", "right and reflecting", { colour: 2 }]) , keys: "reflection_length_right" },
      { id: "reflection", title: "Reflection", hint: "“wait,” “recheck” “retry” “alternatively,” “however,”", low: 0, lines: lines(["reflection", "share of responses"], ["reflection_reward", "their mean reward"]), keys: "reflection" },
      { id: "repetition", title: "Repetition", hint: "share of 4-grams that stood before", low: 0, lines: lines(["repetition", "mean"], ["repetition_p90", "90 %", { colour: 5 }]), keys: "repetition" },
    ],
    speed: [
      { id: "phases", title: "Seconds of a step, by phase", hint: "the phases of a step follow each other", stack: true, one: true, unit: "s", lines: lines(["seconds_generation", "generation"], ["seconds_experience", "experience"], ["seconds_training", "training"], ["seconds_sync", "weight sync"], ["seconds_checkpoint", "checkpoint"]) },
      { id: "tokens", title: "Tokens per second", low: 0, hint: "of the whole step, and of each phase", lines: lines(["tokens_per_second", "step"], ["tokens_per_second_generation", "generation (response tokens)"], ["tokens_per_second_experience", "experience"], ["tokens_per_second_training", "training"]) },
      { id: "memory", title: "Memory", low: 0, hint: "GiB of a rank's or an engine's processes", lines: lines(...["actor", "critic", "engine", "driver"].flatMap((role, i) => [[`${role}_memory_mib`, role, { scale: 1 / 1024, colour: i }], [`${role}_gpu_memory_mib`, `${role}, GPU`, { scale: 1 / 1024, colour: i + 4 }]])) },
    ],
    health: [
      { id: "gradients", title: "Gradient norm", hint: "before clipping", low: 0, lines: lines(["actor_grad_norm", "policy"], ["critic_grad_norm", "critic"]) },
      { id: "explained", title: "Critic: explained variance", hint: "before its updates; first and last mini-batch", high: 1, lines: (run) => {
        const keys = Object.keys(run.metrics).filter((key) => key.startsWith("explained_variance_minibatch_")).sort();
        const ends = keys.length ? [{ key: keys[0], label: "first mini-batch", colour: 5 }, { key: keys[keys.length - 1], label: "last mini-batch", colour: 3 }] : [];
        return [{ key: "explained_variance", label: "whole rollout" }, ...ends];
      } },
      { id: "entropy", title: "Entropy", hint: "nats a token", low: 0, lines: lines(["entropy", "entropy"]) },
      { id: "losses", title: "Losses", lines: lines(["policy_loss", "policy"], ["critic_loss", "critic"]) },
      { id: "values", title: "Value and return", hint: "mean over tokens", lines: lines(["value_mean", "value"], ["return_mean", "return"]) },
      { id: "gap", title: "Off-policy gap", hint: "|log p of vLLM − log p of the trainer|, mean", low: 0, lines: lines(["logprob_gap_mean", "when sampled"], ["sync_logprob_gap_mean", "after the sync"]), keys: "logprob_gap_mean" },
      { id: "clip", title: "PPO: KL and clipping", hint: "0 in strict on-policy training", lines: lines(["ppo_kl", "KL to the old policy"], ["ppo_clip_ratio", "clipped share"]) },
      { id: "faults", title: "Skipped steps and faults survived", hint: "as counted by the run", low: 0, lines: matching(/skip|fault|fail|restart|recover|retr(y|ie)|resum|redone|respawn|empty/i), missing: "This run counted no skipped steps and no faults." },
    ],
  };

  Report.buildCharts = function () {
    const runs = Report.runs, several = runs.length > 1;
    for (const [section, specs] of Object.entries(SECTIONS)) {
      const home = document.querySelector(`#${section} .charts`);
      for (const spec of specs) {
        const chart = new Report.Chart(spec, spec.one ? runs.slice(0, 1) : runs);
        if (spec.one && several) {
          const pick = el("select", { "aria-label": `${spec.title}: run`, onchange: () => { chart.runs = [runs[pick.selectedIndex]]; chart.draw(); } }, ...runs.map((run) => el("option", {}, run.name)));
          chart.caption.append(pick);
        }
        home.append(chart.figure);
        Report.charts.push(chart);
      }
    }
    const keys = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))].filter((key) => key !== "step").sort();
    const spec = { id: "any", title: "Any metric", hint: "docs/metrics.md says what each key is", lines: () => [{ key: pick.value, label: several ? "" : pick.value }] };
    const pick = el("select", { "aria-label": "metric", onchange: () => { Report.remember("key", pick.value); any.draw(); } }, ...keys.map((key) => el("option", {}, key)));
    const any = new Report.Chart(spec, runs);
    const kept = Report.remember("key");
    pick.value = keys.includes(kept) ? kept : keys.includes("group_reward_std") ? "group_reward_std" : keys[0] || "";
    any.caption.append(pick);
    document.querySelector("#health .charts").append(any.figure);
    Report.charts.push(any);
  };

  const parts = (name) => (run) => (run.fit.labels || []).map((label, i) => ({ key: `${name}_${i}`, label, colour: [7, 5, 0][i] }));
  const FIT = [
    { id: "fit-variance", title: "Critic: explained variance by position", hint: "tenths of a response; rollouts with values, before the step's updates", high: 1, lines: parts("variance") },
    { id: "fit-calibration", title: "Critic: calibration by position", hint: "mean distance of value and return by tenth of the values", low: 0, lines: parts("calibration") },
    { id: "fit-means", title: "Mean value and return by position", hint: "of the last of these steps", lines: (run) => {
      const last = (run.fit.labels || []).length - 1;
      return [{ key: `value_${last}`, label: "value", colour: 0 }, { key: `return_${last}`, label: "return", colour: 1 }];
    } },
  ];

  /** What the rollouts with values say of the critic; they are unpacked after the other charts are drawn. */
  Report.buildFit = function () {
    Report.runs.forEach((run, i) => (run.fit = Report.rollouts[i].fit || {}));
    for (const spec of FIT) {
      const chart = new Report.Chart({ ...spec, of: "fit", x: "position", xLabel: "per cent of the response", missing: "Not recorded: --orz.rollout_values N writes values into the rollouts." }, Report.runs);
      document.querySelector("#health .charts").append(chart.figure);
      Report.charts.push(chart);
      chart.draw();
    }
  };

  Report.redraw = () => Report.charts.forEach((chart) => chart.draw());
})();
