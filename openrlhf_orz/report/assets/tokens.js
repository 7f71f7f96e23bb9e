"use strict";
/* A response token by token: tinted and underlined by the critic's value, or by the advantage; numbers on demand. */
(function () {
  const { el, format } = Report;
  const REFLECTION = /wait,|recheck|retry|alternatively,|however,/gi, GRAM = 4;
  const WORDS = { values: "value", advantages: "advantage" };

  /** The ends of the scale in a run: of values the range of returns, of advantages what 98 % stay within, around 0. */
  Report.tokenLimits = function (rows) {
    const rewards = rows.map((row) => row.trained ?? row.reward ?? 0);
    const sizes = rows.flatMap((row) => row.advantages).filter((x) => x !== null).map(Math.abs).sort((a, b) => a - b);
    const far = sizes[Math.floor(0.98 * (sizes.length - 1))] || 1;
    return { values: [rewards.reduce((a, b) => Math.min(a, b), 0), rewards.reduce((a, b) => Math.max(a, b), 1)], advantages: [-far, far] };
  };

  /** How a number looks: colour and solid line above the middle of the scale, another and dots below; more, farther. */
  function look(number, [low, high]) {
    if (number === null) return {};
    const place = Math.min(1, Math.max(0, (number - low) / (high - low || 1))) * 2 - 1;
    const strength = Math.abs(place);
    return { class: place < 0 ? "below" : "above", style: `--strength:${Math.round(100 * strength)}%;--thick:${(4 * strength).toFixed(1)}px` };
  }

  /** Which tokens touch one of the [start, end) of the text. */
  function touched(pieces, ranges) {
    const found = new Set();
    let at = 0, next = 0;
    pieces.forEach((piece, i) => {
      while (next < ranges.length && ranges[next][1] <= at) next++;
      if (piece && next < ranges.length && ranges[next][0] < at + piece.length) found.add(i);
      at += piece.length;
    });
    return found;
  }
  const matches = (text, pattern) => [...text.matchAll(pattern)].map((match) => [match.index, match.index + match[0].length]);

  /** Tokens of a run of four that stood before. */
  function repeated(pieces) {
    const seen = new Set(), found = new Set();
    for (let i = 0; i + GRAM <= pieces.length; i++) {
      const gram = JSON.stringify(pieces.slice(i, i + GRAM));
      if (seen.has(gram)) for (let k = i; k < i + GRAM; k++) found.add(k);
      seen.add(gram);
    }
    return found;
  }

  function scale(kind, limits) {
    const steps = [0, 1, 2, 3, 4, 5, 6].map((i) => limits[0] + (i / 6) * (limits[1] - limits[0]));
    const samples = steps.map((number) => {
      const { class: side, style } = look(number, limits);
      return el("span", { class: `tok ${side}`, style }, format(Number(number.toFixed(2))));
    });
    return el("div", { class: "scale", "aria-label": `scale: ${WORDS[kind]}` }, el("span", {}, `${WORDS[kind]}:`), ...samples,
      el("span", { class: "tok reflects" }, "reflection"), el("span", { class: "tok repeats" }, "stood before"));
  }

  /** Scale, read-out and text of a row that has values. `kind` is values or advantages, `wanted` a text to mark. */
  Report.tokenView = function (row, kind, limits, wanted) {
    const { pieces } = row, numbers = row[kind], text = pieces.join("");
    const escaped = wanted && wanted.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const marks = { reflects: touched(pieces, matches(text, REFLECTION)), repeats: repeated(pieces), found: escaped ? touched(pieces, matches(text, new RegExp(escaped, "gi"))) : new Set() };
    const tokens = pieces.map((piece, i) => {
      const { class: side, style } = look(numbers[i], limits[kind]);
      const more = Object.keys(marks).filter((name) => marks[name].has(i));
      return el("span", { class: ["tok", side, ...more].filter(Boolean).join(" "), style, "data-i": i }, piece);
    });
    const box = el("div", { class: "text response tokens", dir: "auto", tabindex: "0", role: "region", "aria-label": `response by token, tinted by ${WORDS[kind]}; left and right arrow read numbers` }, ...tokens);
    const rest = "Point at a token, or press → in the text, to read its numbers.";
    const out = el("output", { class: "readout", "aria-live": "polite" }, rest);
    let at = -1;
    const say = (i) => {
      const parts = Object.entries(WORDS).map(([key, word]) => `${word} ${format(row[key][i])}`);
      const marked = [marks.reflects.has(i) ? "reflection" : "", marks.repeats.has(i) ? "stood before" : ""].filter(Boolean);
      out.textContent = [`token ${i + 1} of ${pieces.length} ${JSON.stringify(pieces[i])}`, ...parts, ...marked].join(", ");
    };
    const show = (i) => {
      if (at >= 0) tokens[at].classList.remove("at");
      at = i;
      tokens[i].classList.add("at");
      tokens[i].scrollIntoView({ block: "nearest" });
      say(i);
    };
    box.addEventListener("keydown", (event) => {
      const last = tokens.length - 1;
      const to = { ArrowRight: Math.min(last, at + 1), ArrowLeft: Math.max(0, at - 1), Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
    const over = (event) => event.target.dataset.i !== undefined && Number(event.target.dataset.i);
    box.addEventListener("mouseover", (event) => over(event) !== false && say(over(event)));
    box.addEventListener("click", (event) => over(event) !== false && show(over(event)));
    box.addEventListener("mouseleave", () => (at < 0 ? (out.textContent = rest) : say(at)));
    return el("div", { class: "by-token" }, scale(kind, limits[kind]), out, box);
  };
})();
