// Copyright 2026 The stepalign_jax authors.
// SPDX-License-Identifier: Apache-2.0
// The numbers of one token, under the pointer or at the arrow keys.

/** @param {Element} place @param {View} view @param {HTMLElement} card */
function listenToTokens(place, view, card) {
  let current = -1;
  const rows = /** @type {HTMLElement} */ (place.querySelector(".pairs"));
  /** @param {number} token @param {Element|null} near */
  const show = (token, near) => {
    for (const old of place.querySelectorAll(".t.here")) old.classList.remove("here");
    current = token;
    markInStrips(place, token);
    card.hidden = token < 0;
    if (token < 0) return;
    const spans = place.querySelectorAll(`.t[data-i="${token}"]`);
    for (const span of spans) span.classList.add("here");
    fillCard(card, view, token);
    putBeside(card, near ?? spans[0] ?? rows);
  };
  place.addEventListener("pointerover", (event) => {
    const span = /** @type {Element} */ (event.target).closest(".t");
    if (span) show(Number(/** @type {HTMLElement} */ (span).dataset.i), span);
  });
  place.addEventListener("pointermove", (/** @type {any} */ event) => {
    const svg = /** @type {Element} */ (event.target).closest("svg.strip");
    if (!svg) return;
    const box = svg.getBoundingClientRect(),
      count = view.rollout.tokens.length;
    show(
      Math.max(
        0,
        Math.min(count - 1, Math.floor(((event.clientX - box.left) / box.width) * count)),
      ),
      null,
    );
  });
  place.addEventListener("pointerleave", () => show(-1, null));
  rows.addEventListener("blur", () => show(-1, null));
  rows.addEventListener("keydown", (event) => {
    const count = view.rollout.tokens.length;
    const to = {
      ArrowRight: current + 1,
      ArrowLeft: Math.max(current, 1) - 1,
      Home: 0,
      End: count - 1,
    }[event.key];
    if (to === undefined || !count) return;
    event.preventDefault();
    show(Math.min(to, count - 1), null);
    place.querySelector(".t.here")?.scrollIntoView({ block: "nearest" });
  });
}

/** @param {Element} card @param {View} view @param {number} i */
function fillCard(card, view, i) {
  const { rollout, names, left, right } = view;
  const start = rollout.ends ? (i ? rollout.ends[i - 1] : 0) : 0;
  const text = rollout.ends ? rollout.text.slice(start, rollout.ends[i]).slice(0, 40) : "";
  const head = make("p", {}, `Token ${i + 1} of ${rollout.tokens.length} `);
  const said = make("bdi", { dir: "auto" });
  appendText(said, text.replaceAll("\n", "↵"));
  head.append(said, make("span", { class: "note" }, ` id ${rollout.tokens[i]}`));
  const shown = right === "text" ? [left] : [...new Set([left, Number(right)])];
  const solver = rollout.logprobs?.[i];
  const rows = [
    ["advantage", ...shown.map((c) => nats(rollout.advantages[c]?.[i], true))],
    ["log π solver", ...shown.map(() => nats(solver))],
    [
      "log π teacher",
      ...shown.map((c) =>
        solver !== undefined && rollout.advantages[c]
          ? nats(solver + rollout.advantages[c][i])
          : "–",
      ),
    ],
    [view.loss, ...shown.map((c) => nats(rollout.losses[c]?.[i]))],
    ["entropy of solver", ...shown.map(() => nats(rollout.entropy?.[i]))],
    ["entropy of teacher", ...shown.map((c) => nats(rollout.entropies[c]?.[i]))],
  ].filter(([, ...values]) => values.some((value) => value !== "–"));
  const table = make("table");
  if (shown.length > 1)
    table.append(
      make("tr", {}, make("td"), ...shown.map((c) => make("th", { scope: "col" }, names[c]))),
    );
  for (const [name, ...values] of rows) {
    table.append(
      make(
        "tr",
        {},
        make("th", { scope: "row" }, name),
        ...values.map((value) => make("td", {}, value)),
      ),
    );
  }
  card.replaceChildren(head, table);
}

/** @param {HTMLElement} card @param {Element} near */
function putBeside(card, near) {
  const box = near.getBoundingClientRect(),
    own = card.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, innerWidth - own.width - 8));
  const below = box.bottom + 8 + own.height < innerHeight;
  card.style.left = left + "px";
  card.style.top = Math.max(8, below ? box.bottom + 8 : box.top - own.height - 8) + "px";
}
