// Copyright 2026 The stepalign_jax authors.
// SPDX-License-Identifier: Apache-2.0
// Data blocks of the page: JSON, deflated, in base64; page.py writes them, rollouts.py says what
// is in them.

/**
 * @param {string} id of a block
 * @returns {Promise<any>}
 */
async function openBlock(id) {
  const binary = atob(element(id).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const inflated = new Blob([bytes])
    .stream()
    .pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(inflated).text());
}

/**
 * @typedef {Object} Rollout one rollout, with names for what its two records hold
 * @property {string} problem
 * @property {string} answer the expected one
 * @property {string} text
 * @property {string[]} contexts
 * @property {(string|null)[]} failures
 * @property {number[]} steps starts and ends of its reasoning steps, in turn
 * @property {number[][]} contextSteps
 * @property {number|null} firstError index of a reasoning step; below 0: none, or unknown
 * @property {number[]} tokens ids
 * @property {number[]|null} ends one past the last character of each token
 * @property {number[]|null} logprobs of the solver
 * @property {(number[]|null)[]} advantages by context
 * @property {(number[]|null)[]} losses by context
 * @property {number[]|null} entropy of the solver
 * @property {(number[]|null)[]} entropies of the teacher, by context
 */

/**
 * @param {number} chunk
 * @param {number} at its place there
 * @returns {Promise<Rollout>}
 */
async function openRollout(chunk, at) {
  const [texts, numbers] = await Promise.all([openBlock("t" + chunk), openBlock("n" + chunk)]);
  const [problem, answer, text, contexts, failures, steps, contextSteps, firstError] =
    texts[at];
  const [tokens, lengths, logprobs, advantages, losses, entropy, entropies] = numbers[at];
  let end = 0;
  const ends = lengths && lengths.map((/** @type {number} */ length) => (end += length));
  return {
    problem,
    answer,
    text,
    contexts,
    failures,
    steps,
    contextSteps,
    firstError,
    tokens,
    ends,
    logprobs,
    advantages,
    losses,
    entropy,
    entropies,
  };
}
