// Copyright 2026 The stepalign_jax authors.
// SPDX-License-Identifier: Apache-2.0
// One rollout, opened: bars, tokens beside the critique, and the numbers of a token.

const DRAWN_CHARACTERS = 20_000; // of each side at first
const MOST_SPANS = 60_000; // tokens; beyond, a text is shown without them

/** What tokens may be coloured by: a name, and the value (thousandths, signed) of token i. */
const COLOURS = {
  advantage: {
    title: "advantage",
    of: (/** @type {Rollout} */ r, c, i) => r.advantages[c]?.[i],
  },
  surprise: {
    title: "surprise of the solver",
    of: (/** @type {Rollout} */ r, _c, i) => r.logprobs?.[i],
  },
  loss: { title: "loss", of: (/** @type {Rollout} */ r, c, i) => r.losses[c]?.[i] },
};

/**
 * @typedef {Object} View what is shown, and how
 * @property {Rollout} rollout
 * @property {string[]} names of its contexts
 * @property {string} title
 * @property {number} left context by which the left side is coloured
 * @property {string} right "text", or the index of another context
 * @property {keyof typeof COLOURS} colour
 * @property {number} scale thousandths that have the full colour
 * @property {number} limit characters of each side
 * @property {string} loss what the loss of a token is
 */

/**
 * @param {Element} place
 * @param {View} view
 */
function drawRollout(place, view) {
  const { rollout, left, right } = view;
  place.replaceChildren();
  const beside = right === "text" ? left : Number(right);
  const shown = [...new Set([left, beside])].filter((c) => rollout.advantages[c]);
  const first = firstDifference(rollout, left);
  if (shown.length) place.append(stripsOf(view, shown, first));
  else place.append(make("p", { class: "note" }, whyNoNumbers(rollout, left)));
  place.append(key(view));
  place.append(pairs(view, first));
  if (Math.max(rollout.text.length, rollout.contexts[left]?.length ?? 0) > view.limit) {
    const words = `Only the first ${grouped(view.limit)} characters of each text are drawn. `;
    const all = make("button", { type: "button" }, `Draw all ${grouped(rollout.text.length)}`);
    all.addEventListener("click", () => drawRollout(place, { ...view, limit: Infinity }));
    place.append(make("p", { class: "cut" }, words, all));
  }
  const card = make("div", { class: "card", role: "status", hidden: true });
  place.append(card);
  listenToTokens(place, view, card);
}

/** @param {Rollout} rollout @param {number} c */
function whyNoNumbers(rollout, c) {
  return rollout.failures[c]
    ? "The context failed, so that the teacher was not asked: these tokens have no advantage."
    : "No advantages are known of this rollout.";
}

/**
 * Index of the first reasoning step that differs from the context's; -1: none, or no steps.
 * @param {Rollout} rollout
 * @param {number} c
 */
function firstDifference(rollout, c) {
  const known = rollout.firstError ?? -2;
  if (known >= 0) return known;
  const context = rollout.contexts[c] ?? "",
    theirs = rollout.contextSteps[c] ?? [];
  const texts = [
    [rollout.text, rollout.steps],
    [context, theirs],
  ].map(([text, steps]) =>
    partsOf(/** @type {string} */ (text), /** @type {number[]} */ (steps))
      .filter((part) => part.step >= 0)
      .map((part) => withoutSpaces(/** @type {string} */ (text).slice(part.start, part.end))),
  );
  if (!texts[0].length || !texts[1].length) return -1;
  const count = Math.max(texts[0].length, texts[1].length);
  for (let i = 0; i < count; i++) if (texts[0][i] !== texts[1][i]) return i;
  return -1;
}

/** @param {View} view @param {number[]} shown @param {number} first */
function stripsOf(view, shown, first) {
  const { rollout, names } = view;
  const starts = rollout.steps.filter((_, i) => i % 2 === 0);
  const borders = starts
    .map((start, step) => ({
      at: rollout.ends ? rollout.ends.findIndex((end) => end > start) : -1,
      first: step === first,
    }))
    .filter((border) => border.at >= 0);
  let limit = 500;
  for (const c of shown)
    for (const value of rollout.advantages[c] ?? []) limit = Math.max(limit, Math.abs(value));
  const all = make("div", { class: "strips" });
  for (const c of shown)
    all.append(strip(names[c], rollout.advantages[c] ?? [], limit, borders));
  return all;
}

/** @param {View} view */
function key(view) {
  const end = (view.scale / 1000).toFixed(1);
  const words = {
    advantage: [`−${end} and less`, `+${end} and more nats`],
    surprise: ["expected", "unlikely"],
    loss: ["0", `${end} nats`],
  };
  const [low, high] = words[view.colour];
  return make(
    "p",
    { class: "key " + view.colour },
    make("span", { class: "ramp", "aria-hidden": "true" }),
    make("span", {}, low),
    make("span", {}, high),
    make(
      "span",
      { class: "marked" },
      make("i", { class: "changed" }, "differs"),
      " from the text beside it",
    ),
  );
}

/** @param {View} view @param {number} first */
function pairs(view, first) {
  const { rollout, left, right, limit } = view;
  const rows = make("div", {
    class: "pairs",
    tabindex: "0",
    role: "group",
    "aria-label": "Tokens of the rollout: arrow keys go from one to the next",
  });
  rows.append(heads(view));
  const mine = partsOf(rollout.text, rollout.steps);
  const theirs = partsOf(rollout.contexts[left] ?? "", rollout.contextSteps[left] ?? []);
  /** @type {[Part|null, Part|null][]} */
  const both = right === "text" ? pairsOf(mine, theirs) : mine.map((part) => [part, part]);
  let token = 0;
  for (const [ours, other] of both) {
    if (Math.min(ours?.start ?? Infinity, other?.start ?? Infinity) >= limit) continue;
    const step = Math.max(ours?.step ?? -1, other?.step ?? -1);
    const { cells, kind, next } = cellsOf(view, ours, other, token);
    const classes = `pair ${kind}` + (step >= 0 && step === first ? " first" : "");
    rows.append(
      make("div", { class: classes }, gutter(view, step, first, token, next), ...cells),
    );
    token = next;
  }
  return rows;
}

/** @param {View} view */
function heads({ rollout, names, left, right }) {
  if (right !== "text") {
    const titles = [left, Number(right)].map((c) => make("h3", {}, "Under " + names[c]));
    return make("div", { class: "pair heads" }, make("span"), ...titles);
  }
  const seen = make("h3", {}, "What the teacher saw");
  const failed = rollout.failures[left];
  if (failed) seen.append(make("span", { class: "failed" }, failed));
  else if (!rollout.contexts[left]) seen.append(make("span", { class: "note" }, ": nothing"));
  return make("div", { class: "pair heads" }, make("span"), make("h3", {}, "Rollout"), seen);
}

/**
 * The two cells of a row, whether they are the same, and the token that follows.
 * @param {View} view
 * @param {Part|null} ours
 * @param {Part|null} other of the context; beside another context, the same part
 * @param {number} token the first one of `ours`
 */
function cellsOf(view, ours, other, token) {
  const { rollout, left, right, limit } = view;
  const cells = [0, 1].map(() => make("div", { class: "cell", dir: "auto" }));
  const text = ours && rollout.text.slice(ours.start, Math.min(ours.end, limit));
  const spans = rollout.ends && rollout.tokens.length <= MOST_SPANS;
  /** @type {string|null} */
  let beside = null;
  if (right === "text" && other) {
    beside = (rollout.contexts[left] ?? "").slice(other.start, Math.min(other.end, limit));
  }
  const same = right !== "text" || withoutSpaces(text ?? "") === withoutSpaces(beside ?? "");
  // What has nothing beside it is different as a whole, and is not marked piece by piece.
  const [marks, theirs] =
    same || text === null || beside === null ? [[], []] : changes(text, beside);
  let next = token;
  if (ours && spans) {
    next = appendTokens(cells[0], view, left, ours, token, marks);
    if (right !== "text") appendTokens(cells[1], view, Number(right), ours, token, []);
  } else if (text !== null) {
    appendMarked(cells[0], text, marks);
  }
  if (beside !== null) appendMarked(cells[1], beside, theirs);
  return { cells, kind: same ? "same" : "differs", next };
}

/**
 * @param {View} view
 * @param {number} step
 * @param {number} first the reasoning step to name
 * @param {number} from its first token
 * @param {number} to one past its last
 */
function gutter(view, step, first, from, to) {
  const cell = make("div", { class: "gutter" });
  if (step >= 0) cell.append(make("span", { class: "number" }, String(step + 1)));
  const values = view.rollout.advantages[view.left]?.slice(from, to);
  if (values?.length && step >= 0) {
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    cell.append(make("span", { class: "mean" }, nats(Math.round(mean), true).slice(0, -1)));
  }
  if (step >= 0 && step === first) {
    const known = (view.rollout.firstError ?? -2) >= 0;
    cell.append(
      make("span", { class: "first-word" }, known ? "first error" : "first difference"),
    );
  }
  return cell;
}

/**
 * Appends a text with marks.
 * @param {Element} cell
 * @param {string} text
 * @param {number[][]} marks [start, end) of it
 */
function appendMarked(cell, text, marks) {
  let place = 0;
  for (const [start, end] of marks) {
    appendText(cell, text.slice(place, start));
    const mark = make("ins", { class: "changed" });
    appendText(mark, text.slice(start, end));
    cell.append(mark);
    place = end;
  }
  appendText(cell, text.slice(place));
}

/**
 * Appends the tokens that begin in a part; returns the next token.
 * @param {Element} cell @param {View} view @param {number} c context @param {Part} part
 * @param {number} token @param {number[][]} marks of the part's text
 */
function appendTokens(cell, view, c, part, token, marks) {
  const { rollout, colour, limit } = view;
  const ends = /** @type {number[]} */ (rollout.ends);
  const end = Math.min(part.end, limit),
    last = end >= rollout.text.length;
  for (; token < ends.length; token++) {
    const start = token ? ends[token - 1] : 0;
    if (start >= end && !(last && start === end)) break;
    const text = rollout.text.slice(start, ends[token]);
    const changed = marks.some(
      ([a, b]) => start - part.start < b && ends[token] - part.start > a,
    );
    const span = make("span", { class: changed ? "t changed" : "t", "data-i": token });
    if (text) appendText(span, text === "\n" ? "↵\n" : text);
    else span.append(make("span", { class: "sign" }, "▪"));
    tint(span, colour, COLOURS[colour].of(rollout, c, token), view.scale);
    cell.append(span);
  }
  const written = token ? ends[token - 1] : 0;
  if (token === ends.length && written < end) {
    appendText(cell, rollout.text.slice(Math.max(written, part.start), end)); // by no token
  }
  return token;
}

/**
 * @param {HTMLElement} span
 * @param {string} colour
 * @param {number|null|undefined} value thousandths
 * @param {number} scale of the full colour
 */
function tint(span, colour, value, scale) {
  if (value === null || value === undefined) return;
  const strength = Math.min(1, Math.abs(value) / scale);
  if (strength < 0.02) return;
  span.dataset.sign = colour === "advantage" ? (value < 0 ? "less" : "more") : "much";
  span.style.setProperty("--strength", (0.55 * Math.sqrt(strength) * 100).toFixed(0) + "%");
}
