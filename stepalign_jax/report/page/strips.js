// Copyright 2026 The stepalign_jax authors.
// SPDX-License-Identifier: Apache-2.0
// The advantage of each token as a bar, with the borders of reasoning steps: the paper's figure.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 72,
  WIDTH = 1000;

/**
 * @param {string} name
 * @param {Object<string, any>} attributes
 */
function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/**
 * @param {string} title the context's name
 * @param {number[]} values thousandths, one per token
 * @param {number} limit thousandths at the upper border
 * @param {{at: number, first: boolean}[]} borders tokens where reasoning steps begin
 * @returns {HTMLElement}
 */
function strip(title, values, limit, borders) {
  const svg = drawn("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    preserveAspectRatio: "none",
    role: "img",
    class: "strip",
    "aria-label": stripWords(title, values),
  });
  const middle = HEIGHT / 2,
    wide = WIDTH / Math.max(values.length, 1);
  const gap = Math.min(wide * 0.2, 2);
  borders.forEach(({ at, first }, i) => {
    const end = borders[i + 1]?.at ?? values.length;
    if (first)
      svg.append(
        drawn("rect", {
          x: at * wide,
          y: 0,
          width: (end - at) * wide,
          height: HEIGHT,
          class: "first",
        }),
      );
    svg.append(
      drawn("line", { x1: at * wide, x2: at * wide, y1: 0, y2: HEIGHT, class: "border" }),
    );
  });
  for (const [sign, name] of /** @type {[number, string][]} */ ([
    [1, "more"],
    [-1, "less"],
  ])) {
    let path = "";
    values.forEach((value, i) => {
      if (value * sign <= 0) return;
      const top = middle - (Math.max(-limit, Math.min(limit, value)) / limit) * (middle - 2);
      const start = (i * wide + gap / 2).toFixed(2);
      path += `M${start} ${middle}V${top.toFixed(2)}h${(wide - gap).toFixed(2)}V${middle}Z`;
    });
    svg.append(drawn("path", { d: path, class: name }));
  }
  svg.append(drawn("line", { x1: 0, x2: WIDTH, y1: middle, y2: middle, class: "zero" }));
  svg.append(
    drawn("rect", {
      x: 0,
      y: 0,
      width: wide,
      height: HEIGHT,
      class: "here",
      visibility: "hidden",
    }),
  );
  const figure = make("figure", { class: "strip" });
  const scale = make("span", { class: "scale-of" }, "±" + (limit / 1000).toFixed(1) + " nats");
  figure.append(make("figcaption", {}, "Advantage under ", make("b", {}, title), scale), svg);
  return figure;
}

/**
 * @param {string} title
 * @param {number[]} values
 */
function stripWords(title, values) {
  if (!values.length) return "No tokens under " + title;
  const low = values.indexOf(Math.min(...values.slice(0, 100_000)));
  const high = values.indexOf(Math.max(...values.slice(0, 100_000)));
  return (
    `Advantage of ${grouped(values.length)} tokens under ${title}: lowest ` +
    `${nats(values[low], true)} at token ${low + 1}, highest ` +
    `${nats(values[high], true)} at token ${high + 1}`
  );
}

/**
 * Marks a token in all strips of a place.
 * @param {Element} place
 * @param {number} token
 */
function markInStrips(place, token) {
  for (const here of place.querySelectorAll("svg.strip .here")) {
    here.setAttribute("x", String(token * Number(here.getAttribute("width"))));
    here.setAttribute("visibility", token < 0 ? "hidden" : "visible");
  }
}
