// Copyright 2026 The stepalign_jax authors.
// SPDX-License-Identifier: Apache-2.0
// The list of rollouts: search, sort, pages; and the dialog in which one of them is read.

const PAGE = 25; // rows
const CACHED_CHARACTERS = 20_000_000; // of texts that were searched

const list = {
  /** @type {any} */ index: null,
  /** @type {number[]} rows that are shown, in their order */ order: [],
  /** @type {Uint8Array|null} 1 where a search found a row */ found: null,
  sort: "place",
  up: true,
  page: 0,
  query: 0,
  opened: -1,
  /** @type {Map<number, string[]>} */ texts: new Map(),
  characters: 0,
  /** @type {{left: number, right: string, colour: keyof typeof COLOURS}} */
  how: { left: 0, right: "text", colour: "advantage" },
};

async function startExplorer() {
  if (!element("rows")) return;
  list.index = await openBlock("index");
  const { sources } = list.index;
  sources.forEach((source, i) =>
    element("source").append(make("option", { value: i }, source.name)),
  );
  element("sources").hidden = sources.length < 2;
  for (const id of ["shown", "source"]) element(id).addEventListener("change", () => choose(0));
  let waiting = 0;
  element("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 150);
  });
  element("search").form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () =>
      sortBy(/** @type {HTMLElement} */ (button).dataset.sort ?? ""),
    );
  }
  element("back").addEventListener("click", () => choose(list.page - 1));
  element("on").addEventListener("click", () => choose(list.page + 1));
  element("viewer").addEventListener("keydown", onViewerKey);
  choose(0);
}

/** @param {string} name */
function sortBy(name) {
  list.up = list.sort === name ? !list.up : ["step", "problem", "low"].includes(name);
  list.sort = name;
  choose(0);
}

/** Makes the list again, and shows a page of it. @param {number} page */
function choose(page) {
  const { columns, problems, failures } = list.index;
  const source = Number(element("source").value || 0),
    shown = element("shown").value;
  const passes = {
    all: () => true,
    wrong: (r) => !columns.correct[r],
    right: (r) => columns.correct[r],
    failed: (r) => failures[columns.failure[r]],
    cut: (r) => columns.cut[r],
  }[shown];
  list.order = [];
  for (let r = 0; r < columns.step.length; r++) {
    if (columns.source[r] === source && passes(r) && (!list.found || list.found[r]))
      list.order.push(r);
  }
  if (list.sort !== "place") {
    const names = { problem: problems, failure: failures }[list.sort];
    const values = columns[list.sort],
      up = list.up ? 1 : -1;
    const value = (r) => (names ? names[values[r]] : values[r]);
    list.order.sort((a, b) => {
      const x = value(a),
        y = value(b);
      if (x === y) return a - b;
      if (x === null || y === null) return x === null ? 1 : -1;
      return x < y ? -up : up;
    });
  }
  const pages = Math.max(1, Math.ceil(list.order.length / PAGE));
  list.page = Math.max(0, Math.min(page, pages - 1));
  drawPage(pages);
}

/** @param {number} pages */
function drawPage(pages) {
  const rows = list.order.slice(list.page * PAGE, (list.page + 1) * PAGE).map(rowOf);
  element("rows").replaceChildren(...rows);
  element("found").textContent = `${grouped(list.order.length)} rollouts`;
  element("at").textContent = `page ${list.page + 1} of ${grouped(pages)}`;
  element("back").disabled = list.page === 0;
  element("on").disabled = list.page === pages - 1;
  for (const button of document.querySelectorAll("[data-sort]")) {
    const mine = /** @type {HTMLElement} */ (button).dataset.sort === list.sort;
    const heading = /** @type {Element} */ (button.parentElement);
    if (mine) heading.setAttribute("aria-sort", list.up ? "ascending" : "descending");
    else heading.removeAttribute("aria-sort");
  }
}

/** @param {number} r */
function rowOf(r) {
  const { columns, problems, failures } = list.index;
  const open = make("button", { type: "button", class: "open" });
  const title = make("bdi", { dir: "auto" });
  appendText(title, problems[columns.problem[r]] || "(empty)");
  open.append(title);
  const row = make("tr", { class: columns.correct[r] ? "right" : "wrong" });
  const cells = {
    step: columns.step[r] === null ? "–" : String(columns.step[r]),
    problem: open,
    correct: (columns.correct[r] ? "✓ right" : "✗ wrong") + (columns.cut[r] ? ", cut" : ""),
    tokens: grouped(columns.tokens[r]),
    mean: nats(columns.mean[r]),
    low: nats(columns.low[r], true),
    failure: failures[columns.failure[r]] || "usable",
  };
  for (const [name, cell] of Object.entries(cells))
    row.append(make("td", { class: "c-" + name }, cell));
  row.addEventListener("click", () => openRow(r));
  return row;
}

async function search() {
  const words = element("search").value.trim().toLowerCase();
  const query = ++list.query;
  if (!words) {
    list.found = null;
    return choose(0);
  }
  const { columns, problems } = list.index;
  const found = new Uint8Array(columns.step.length);
  /** @type {Map<number, number[]>} */
  const byChunk = new Map();
  columns.chunk.forEach((chunk, r) => {
    if (chunk < 0)
      found[r] = Number(problems[columns.problem[r]].toLowerCase().includes(words));
    else if (byChunk.has(chunk)) byChunk.get(chunk)?.push(r);
    else byChunk.set(chunk, [r]);
  });
  let done = 0;
  for (const [chunk, rows] of byChunk) {
    const texts = await textsOf(chunk);
    if (query !== list.query) return; // somebody typed on
    for (const r of rows) found[r] = Number(texts[columns.at[r]].includes(words));
    if (++done % 20 === 0)
      element("found").textContent = `searching, ${Math.floor((100 * done) / byChunk.size)} %`;
  }
  list.found = found;
  choose(0);
}

/**
 * @param {number} chunk
 * @returns {Promise<string[]>} what can be searched of each of its rollouts
 */
async function textsOf(chunk) {
  const known = list.texts.get(chunk);
  if (known) return known;
  const records = await openBlock("t" + chunk);
  const texts = records.map(([problem, answer, text, contexts]) =>
    [problem, answer, text, ...contexts].join("\n").toLowerCase(),
  );
  const size = texts.reduce((sum, text) => sum + text.length, 0);
  if (list.characters + size <= CACHED_CHARACTERS) {
    list.characters += size;
    list.texts.set(chunk, texts);
  }
  return texts;
}

/** @param {number} r */
async function openRow(r) {
  const { columns, sources } = list.index,
    dialog = element("viewer");
  list.opened = r;
  const names = sources[columns.source[r]].contexts;
  if (columns.chunk[r] < 0) {
    const file = `rollouts/step_${String(columns.step[r]).padStart(5, "0")}.jsonl`;
    const where =
      "The text of this rollout is not in this page: " +
      `it is row ${columns.place[r] + 1} of ${file} of the run.`;
    dialog.replaceChildren(viewerHead(r, null), make("p", {}, where));
  } else {
    const rollout = await openRollout(columns.chunk[r], columns.at[r]);
    if (list.opened !== r) return; // another was opened meanwhile
    const place = make("div", { class: "rollout" });
    const draw = () => {
      const { how } = list;
      const left = how.left < names.length ? how.left : 0;
      const right =
        how.right === "text" || Number(how.right) >= names.length ? "text" : how.right;
      const loss =
        sources[columns.source[r]].name === "training"
          ? lossName(dialog.dataset.loss)
          : lossName("forward_kl");
      drawRollout(place, {
        rollout,
        names,
        title: "",
        left,
        right,
        colour: how.colour,
        scale: 1000 * list.index.scale,
        limit: DRAWN_CHARACTERS,
        loss,
      });
    };
    dialog.replaceChildren(viewerHead(r, rollout), viewerControls(names, draw), place);
    draw();
  }
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

/** @param {string} objective */
function lossName(objective) {
  const names = {
    forward_kl: "KL(teacher‖solver)",
    reverse_kl: "KL(solver‖teacher)",
    jsd: "JSD",
  };
  return names[objective] ?? "loss";
}

/** @param {number} r @param {Rollout|null} rollout */
function viewerHead(r, rollout) {
  const { columns } = list.index,
    place = list.order.indexOf(r);
  const title = make("h2", { id: "viewer-title" });
  const facts = make(
    "p",
    { class: "facts" },
    make(
      "b",
      { class: columns.correct[r] ? "right" : "wrong" },
      columns.correct[r] ? "✓ right" : "✗ wrong",
    ),
  );
  const step = columns.step[r] === null ? "" : `optimizer step ${columns.step[r]}, `;
  facts.append(
    ` · ${step}${grouped(columns.tokens[r])} tokens${columns.cut[r] ? ", truncated" : ""}`,
  );
  title.append(
    step
      ? `Rollout ${columns.place[r] + 1} of step ${columns.step[r]}`
      : `Rollout ${columns.place[r] + 1}`,
  );
  const problem = make("div", { class: "problem" });
  if (rollout) {
    const text = make("bdi", { dir: "auto" }),
      answer = make("bdi", { dir: "auto" });
    appendText(text, rollout.problem.slice(0, DRAWN_CHARACTERS));
    appendText(answer, rollout.answer.slice(0, 1_000));
    problem.append(text);
    facts.append(" · expected ", answer);
  }
  const buttons = make("div", { class: "buttons" });
  const add = (words, label, to) => {
    const button = make(
      "button",
      { type: "button", "aria-label": label, class: to === null ? "close" : "" },
      words,
    );
    button.disabled = to === undefined;
    button.addEventListener("click", () => (to === null ? element("viewer").close() : go(to)));
    buttons.append(button);
  };
  add("←", "Previous rollout (k)", list.order[place - 1]);
  add("→", "Next rollout (j)", list.order[place + 1]);
  add("✕", "Close (Escape)", null);
  return make("div", { class: "head" }, make("div", {}, title, facts), buttons, problem);
}

/** @param {number} r */
async function go(r) {
  await openRow(r);
  element("viewer").querySelector(".close").focus();
}

/** @param {KeyboardEvent} event */
function onViewerKey(event) {
  if (
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    /** @type {Element} */ (event.target).tagName === "SELECT"
  )
    return;
  const move = { j: 1, k: -1 }[event.key];
  const to = move && list.order[list.order.indexOf(list.opened) + move];
  if (move && to !== undefined) go(to);
}

/** @param {string[]} names @param {() => void} draw */
function viewerControls(names, draw) {
  const { how } = list;
  const bar = make("div", { class: "controls" });
  /**
   * @param {string} words
   * @param {[string, string][]} options values and titles
   * @param {"left"|"right"|"colour"} what
   */
  const add = (words, options, what) => {
    const select = make(
      "select",
      {},
      ...options.map(([value, title]) => make("option", { value }, title)),
    );
    select.value = String(how[what]);
    if (select.selectedIndex < 0) select.selectedIndex = 0;
    select.addEventListener("change", () => {
      /** @type {any} */ (how)[what] = what === "left" ? Number(select.value) : select.value;
      draw();
    });
    bar.append(make("label", {}, words + " ", select));
  };
  add(
    "Colour by",
    Object.entries(COLOURS).map(([value, { title }]) => [value, title]),
    "colour",
  );
  if (names.length > 1) {
    add(
      "under",
      names.map((name, i) => [String(i), name]),
      "left",
    );
    add(
      "beside",
      [
        ["text", "its text"],
        ...names.map((name, i) => /** @type {[string, string]} */ ([String(i), name])),
      ],
      "right",
    );
  }
  return bar;
}
