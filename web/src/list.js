import { h } from "./dom.js";
import { arrow, layerName, plural } from "./format.js";
import { colourOf } from "./colour.js";
import { onSelect, select } from "./state.js";
import { match } from "./table.js";

/** All layers of the graph as a list, for the keyboard and for search: arrow keys move, Enter selects. */
export function layerList(report) {
  const { graph } = report;
  const buttons = graph.layers.map((layer) =>
    h(
      "button",
      { type: "button", tabindex: -1, "data-layer": layer.name, onclick: () => select(layer.name, "list") },
      h("i", { class: "swatch", style: { background: colourOf(report, layer.groups[0]) } }),
      h("span", { class: "name", title: layerName(layer.name) }, h("bdi", null, layerName(layer.name))),
      layer.width ? h("span", { class: "width" }, arrow(String(layer.width[0]), String(layer.width[1]))) : null,
    ),
  );
  buttons[0].tabIndex = 0;
  const items = buttons.map((button) => h("li", null, button));
  const list = h("ul", { class: "layer-list", id: "layer-list", "aria-label": "Layers of the graph" }, items);
  const search = h("input", { type: "search", id: "graph-search", placeholder: "search layers", autocomplete: "off" });
  const count = h("output", { class: "small", for: "graph-search", "aria-live": "polite" });

  const visible = () => buttons.filter((_, i) => !items[i].hidden);
  const hold = (button) => {
    for (const each of buttons) each.tabIndex = -1;
    button.tabIndex = 0;
  };
  const apply = () => {
    const shown = match(search.value);
    buttons.forEach((button, i) => (items[i].hidden = !shown(button.dataset.layer)));
    const left = visible();
    count.textContent = search.value.trim() ? `${left.length} of ${plural(buttons.length, "layer")}` : plural(buttons.length, "layer");
    if (left.length && !left.some((button) => button.tabIndex === 0)) hold(left[0]);
  };
  search.addEventListener("input", apply);
  search.addEventListener("keydown", (event) => {
    const [first] = visible();
    if (!first) return;
    if (event.key === "Enter") select(first.dataset.layer, "list");
    else if (event.key === "ArrowDown") first.focus();
    else return;
    event.preventDefault();
  });
  list.addEventListener("keydown", (event) => {
    const shown = visible();
    const at = shown.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1, PageDown: at + 10, PageUp: at - 10 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    const next = shown[Math.min(shown.length - 1, Math.max(0, to))];
    hold(next);
    next.focus();
  });
  onSelect((name) => {
    for (const button of buttons) {
      const here = button.dataset.layer === name;
      if (here) {
        button.setAttribute("aria-current", "true");
        hold(button);
        list.scrollTop = button.offsetTop - list.clientHeight / 2;
      } else button.removeAttribute("aria-current");
    }
  });
  apply();
  return h("div", { class: "finder" }, h("label", { for: "graph-search", class: "hidden" }, "Search layers"), search, count, list);
}
