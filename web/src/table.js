import { dotted, h, section } from "./dom.js";
import { arrow, exact, layerName, percent, plural, shape, short } from "./format.js";
import { onSelect, select } from "./state.js";

const COLUMNS = [
  { key: "order", label: "#", of: (layer) => layer.order, number: true },
  { key: "name", label: "Layer", of: (layer) => layer.name },
  { key: "weight", label: "Weight", of: (layer) => layer.shape[0].reduce((a, b) => a * b, 1), number: true },
  { key: "flops", label: "FLOPs", of: (layer) => layer.flops[0] ?? -1, number: true, wide: 3 },
  { key: "flops-after", label: "after", of: (layer) => layer.flops[1] ?? -1, number: true },
  { key: "params", label: "Parameters", of: (layer) => layer.params[0], number: true, wide: 3 },
  { key: "params-after", label: "after", of: (layer) => layer.params[1], number: true },
  { key: "cut", label: "Cut", of: (layer) => layer.cut, number: true },
];

/** A row per layer, with bars; sortable by every column, and filtered by name. */
export function layerTable(report) {
  const most = {
    flops: Math.max(1, ...report.layers.map((layer) => layer.flops[0] ?? 0)),
    params: Math.max(1, ...report.layers.map((layer) => layer.params[0])),
  };
  const rows = report.layers.map((layer) => ({ layer, element: row(layer, most) }));
  const body = h("tbody", null, rows.map(({ element }) => element));
  const heads = COLUMNS.map((column) => head(column, (key, falling) => sort(rows, body, key, falling)));
  heads[0].setAttribute("aria-sort", "ascending");
  const count = h("output", { class: "small", for: "layer-filter", "aria-live": "polite" });
  const filter = h("input", { type: "search", id: "layer-filter", placeholder: "conv1, layer3.*, …", autocomplete: "off" });
  const changed = h("input", { type: "checkbox", id: "layer-changed" });
  const apply = () => {
    const shown = match(filter.value);
    let visible = 0;
    for (const { layer, element } of rows) {
      element.hidden = !shown(layer.name) || (changed.checked && !layer.changed);
      visible += element.hidden ? 0 : 1;
    }
    count.textContent = `${visible} of ${plural(rows.length, "layer")}`;
  };
  filter.addEventListener("input", apply);
  changed.addEventListener("change", apply);
  apply();
  onSelect((name) => {
    for (const { layer, element } of rows) element.classList.toggle("selected", layer.name === name);
  });
  return section(
    "layers",
    "Layers",
    "Pale bars are the original, full bars what is left; the longest bar is the largest layer. Click a row to find the layer in the graph.",
    h(
      "div",
      { class: "controls" },
      h("label", { for: "layer-filter" }, "Filter"),
      filter,
      h("label", { class: "check" }, changed, "changed only"),
      count,
    ),
    h(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of layers" },
      h(
        "table",
        { id: "layer-table" },
        h("caption", { class: "hidden" }, "FLOPs and parameters of each layer, before and after"),
        h("thead", null, h("tr", null, heads)),
        body,
      ),
    ),
  );
}

/** A test for names: text anywhere in a name, or a pattern with * for anything. */
export function match(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return () => true;
  if (!wanted.includes("*")) return (name) => layerName(name).toLowerCase().includes(wanted);
  const parts = wanted.split("*");
  return (name) => {
    let rest = layerName(name).toLowerCase();
    if (!rest.startsWith(parts[0])) return false;
    rest = rest.slice(parts[0].length);
    for (const part of parts.slice(1, -1)) {
      const at = rest.indexOf(part);
      if (at < 0) return false;
      rest = rest.slice(at + part.length);
    }
    return rest.endsWith(parts.at(-1));
  };
}

function head(column, sort) {
  const button = h("button", { type: "button" }, column.label);
  const cell = h("th", { scope: "col", class: column.number ? "number" : null, "data-key": column.key }, button);
  if (column.label === "after") {
    const what = column.key === "flops-after" ? "FLOPs" : "Parameters";
    button.setAttribute("aria-label", `${what} after`);
  }
  button.addEventListener("click", () => {
    const was = cell.getAttribute("aria-sort");
    const falling = was ? was === "ascending" : Boolean(column.number) && column.key !== "order";
    for (const other of cell.parentElement.children) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", falling ? "descending" : "ascending");
    sort(column, falling);
  });
  return cell;
}

function sort(rows, body, column, falling) {
  const sign = falling ? -1 : 1;
  const collator = new Intl.Collator("en", { numeric: true });
  rows.sort(({ layer: a }, { layer: b }) => {
    const order = column.number ? column.of(a) - column.of(b) : collator.compare(column.of(a), column.of(b));
    return sign * order || a.order - b.order;
  });
  body.append(...rows.map(({ element }) => element));
}

function row(layer, most) {
  return h(
    "tr",
    { "data-layer": layer.name, onclick: () => select(layer.name, "table") },
    h("td", { class: "number muted" }, layer.order + 1),
    h("th", { scope: "row", class: "name" }, dotted(layerName(layer.name)), layer.op ? h("span", { class: "op" }, layer.op) : null),
    h("td", { class: "number shape" }, arrow(shape(layer.shape[0]), shape(layer.shape[1]))),
    pair(layer.flops, most.flops, "flops"),
    pair(layer.params, most.params, "params"),
    h("td", { class: layer.cut > 0 ? "number" : "number muted" }, layer.cut ? percent(layer.cut) : "–"),
  );
}

function pair([old, now], most, kind) {
  const width = (value) => ({ width: percent((value ?? 0) / most, 3) });
  const bar = h(
    "span",
    { class: `bar ${kind}`, "aria-hidden": "true" },
    h("i", { class: "old", style: width(old) }),
    h("i", { class: "new", style: width(now) }),
  );
  return [
    h("td", { class: "number", title: exact(old) }, short(old), bar),
    h("td", { class: "number", title: exact(now) }, short(now)),
  ];
}
