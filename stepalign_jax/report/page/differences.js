// Copyright 2026 The stepalign_jax authors.
// SPDX-License-Identifier: Apache-2.0
// Where a rollout and a critique differ: reasoning step by reasoning step, then piece by piece.

/** @typedef {{start: number, end: number, step: number}} Part step: -1 outside of any */

const MOST_PIECES = 1_500; // of one side; beyond, the middle counts as changed

/**
 * Cuts a text at its reasoning steps: what stands before, each of them, what stands behind.
 * @param {string} text
 * @param {number[]} steps starts and ends, in turn
 * @returns {Part[]} without parts that are empty
 */
function partsOf(text, steps) {
  /** @type {Part[]} */
  const parts = [];
  let place = 0;
  for (let i = 0; i < steps.length; i += 2) {
    if (steps[i] > place) parts.push({ start: place, end: steps[i], step: -1 });
    parts.push({ start: steps[i], end: steps[i + 1], step: i / 2 });
    place = steps[i + 1];
  }
  if (place < text.length) parts.push({ start: place, end: text.length, step: -1 });
  return parts;
}

/**
 * Lays parts of two texts side by side: reasoning steps by their index, what is behind them last.
 * @param {Part[]} left
 * @param {Part[]} right
 * @returns {[Part|null, Part|null][]}
 */
function pairsOf(left, right) {
  const [mine, theirs] = [left, right].map((parts) => {
    const first = parts.findIndex((part) => part.step >= 0);
    const before = first > 0 ? parts[0] : null;
    const inside = parts.filter((part) => part.step >= 0);
    const rest = parts.filter((part, i) => part.step < 0 && (first < 0 || i > 0 || !before));
    return { before, inside, rest };
  });
  /** @type {[Part|null, Part|null][]} */
  const pairs = [];
  if (mine.before || theirs.before) pairs.push([mine.before, theirs.before]);
  const count = Math.max(mine.inside.length, theirs.inside.length);
  for (let i = 0; i < count; i++)
    pairs.push([mine.inside[i] ?? null, theirs.inside[i] ?? null]);
  const more = Math.max(mine.rest.length, theirs.rest.length);
  for (let i = 0; i < more; i++) pairs.push([mine.rest[i] ?? null, theirs.rest[i] ?? null]);
  return pairs;
}

/** @param {string} text */
const withoutSpaces = (text) => text.replace(/\s+/gu, "");

/**
 * Words, single digits, runs of space, and single signs.
 * @param {string} text
 */
const piecesOf = (text) => text.match(/[\p{L}\p{M}]+|\p{N}|\s+|[^]/gu) ?? [];

/**
 * @param {string} left
 * @param {string} right
 * @returns {[number, number][][]} [start, end) of what only the left has, and only the right
 */
function changes(left, right) {
  const a = piecesOf(left),
    b = piecesOf(right);
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0;
  while (tail < Math.min(a.length, b.length) - head && a.at(-1 - tail) === b.at(-1 - tail))
    tail++;
  const middle = [a.slice(head, a.length - tail), b.slice(head, b.length - tail)];
  const alike =
    Math.max(...middle.map((side) => side.length)) > MOST_PIECES
      ? [new Set(), new Set()]
      : longestCommon(middle[0], middle[1]);
  const offset = a.slice(0, head).join("").length;
  return middle.map((pieces, side) => {
    /** @type {[number, number][]} */
    const found = [];
    let place = offset;
    pieces.forEach((piece, i) => {
      if (!alike[side].has(i)) {
        const last = found.at(-1);
        if (last && last[1] === place) last[1] += piece.length;
        else found.push([place, place + piece.length]);
      }
      place += piece.length;
    });
    return found;
  });
}

/**
 * @param {string[]} a
 * @param {string[]} b
 * @returns {Set<number>[]} places of a longest common subsequence, in each of both
 */
function longestCommon(a, b) {
  const width = b.length + 1;
  const table = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      table[i * width + j] =
        a[i] === b[j]
          ? table[(i + 1) * width + j + 1] + 1
          : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    }
  }
  const found = [new Set(), new Set()];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) (found[0].add(i++), found[1].add(j++));
    else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++;
    else j++;
  }
  return found;
}
