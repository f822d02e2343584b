"use strict";
// Colours and printing.
(() => {
  function startTheme() {
    const root = document.documentElement;
    const button = document.getElementById("theme");
    const system = matchMedia("(prefers-color-scheme: dark)");
    const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
    const name = () => {
      const other = dark() ? "Light" : "Dark";
      button.textContent = other;
      button.setAttribute("aria-label", `${other} colours`);
    };
    const saved = (value) => {
      try { // a file may have no storage
        if (value) localStorage.setItem("castctl-theme", value);
        return localStorage.getItem("castctl-theme");
      } catch { return null; }
    };
    if (saved()) root.dataset.theme = saved() === "dark" ? "dark" : "light";
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      saved(root.dataset.theme);
      name();
    });
    system.addEventListener("change", name);
    name();
  }

  /** On paper nothing can be unfolded. */
  function startPrinting() {
    let folded = [];
    addEventListener("beforeprint", () => {
      folded = [...document.querySelectorAll("details:not([open])")];
      for (const each of folded) each.open = true;
    });
    addEventListener("afterprint", () => { for (const each of folded) each.open = false; });
  }

  startTheme();
  startPrinting();
})();
