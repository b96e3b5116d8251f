import { h } from "./dom.js";

/** A button that switches between light and dark; the page starts as the system has it. */
export function themeButton() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const label = () => (now() === "dark" ? "Light" : "Dark");
  const button = h("button", { type: "button", class: "plain", id: "theme" }, label());
  const show = () => {
    button.textContent = label();
    button.setAttribute("aria-label", `Switch to ${label().toLowerCase()} colours`);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    show();
  });
  dark.addEventListener("change", show);
  show();
  return button;
}
