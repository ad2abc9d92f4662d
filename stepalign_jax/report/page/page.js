// Copyright 2026 The stepalign_jax authors.
// SPDX-License-Identifier: Apache-2.0
// Starts the page.

document.documentElement.classList.add("scripted");

function startTheme() {
  const select = element("theme");
  const use = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  /** @type {string|null} */
  let kept = null;
  try {
    kept = localStorage.getItem("stepalign-theme");
  } catch {} // some browsers keep nothing for files
  if (["light", "dark"].includes(kept ?? "")) select.value = kept;
  use(select.value);
  select.addEventListener("change", () => {
    use(select.value);
    try {
      localStorage.setItem("stepalign-theme", select.value);
    } catch {}
  });
}

startTheme();
document.addEventListener("DOMContentLoaded", () => startExplorer());
