// Copyright 2026 The stepalign_jax authors.
// SPDX-License-Identifier: Apache-2.0
// Elements from values. What a model wrote goes through appendText, and only ever becomes text.
"use strict";

/** Characters that are shown by name; html.py has the same list. */
const SIGNS =
  /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]/gu;

/**
 * @param {string} id
 * @returns {any} the element, which the page has
 */
const element = (id) => document.getElementById(id);

/**
 * @param {string} name of the element
 * @param {Object<string, any>} properties attributes; false and null are left out
 * @param {...(Node|string)} children strings become text
 * @returns {any}
 */
function make(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value !== false && value !== null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/**
 * Appends a text; characters that could hide or turn around others are named.
 * @param {Element} parent
 * @param {string} text
 */
function appendText(parent, text) {
  let place = 0;
  for (const sign of text.matchAll(SIGNS)) {
    if (sign.index > place) parent.append(text.slice(place, sign.index));
    parent.append(make("span", { class: "sign" }, signName(sign[0])));
    place = sign.index + sign[0].length;
  }
  if (place < text.length) parent.append(text.slice(place));
}

/** @param {string} sign */
function signName(sign) {
  return "U+" + sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
}

/**
 * @param {number|null|undefined} thousandths of a nat
 * @param {boolean} signed
 */
function nats(thousandths, signed = false) {
  if (thousandths === null || thousandths === undefined) return "–";
  const digits = (Math.abs(thousandths) / 1000).toFixed(3);
  return (thousandths < 0 ? "−" : signed ? "+" : "") + digits;
}

/** @param {number} number */
const grouped = (number) => number.toLocaleString("en-US");
