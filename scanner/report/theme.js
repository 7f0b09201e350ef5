"use strict";
// Light or dark, before anything is drawn: what the reader chose on this page, or else what the system says. Runs in the head.
(() => {
  const root = document.documentElement, system = window.matchMedia("(prefers-color-scheme: dark)");
  const saved = () => { try { return localStorage.getItem("rmtscan-theme"); } catch { return null; } };
  const apply = () => {
    const chosen = saved(), dark = chosen ? chosen === "dark" : system.matches;
    root.classList.toggle("dark", dark);
    root.classList.toggle("light", !dark);
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.textContent = dark ? "Light" : "Dark";
      button.setAttribute("aria-label", "Switch to " + (dark ? "light" : "dark") + " colors");
    }
  };
  const changed = () => { apply(); document.dispatchEvent(new Event("themechange")); };
  apply();
  system.addEventListener("change", changed);
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    const message = document.getElementById("message");
    if (message && location.protocol === "file:") {
      message.hidden = false;
      message.textContent = "Browsers do not let a page that was opened as a file read others. Serve this folder: rmtscan serve STORE, or python -m http.server in it.";
    }
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.hidden = false;
      button.addEventListener("click", () => {
        try { localStorage.setItem("rmtscan-theme", root.classList.contains("dark") ? "light" : "dark"); } catch { /* not kept */ }
        changed();
      });
    }
  });
})();
