import { select as d3select } from "d3-selection";
import { zoom as d3zoom, zoomIdentity } from "d3-zoom";
import { colourOf } from "./colour.js";
import { h, s, section } from "./dom.js";
import { arrow, layerName, plural } from "./format.js";
import { isFlat, place, route } from "./layout.js";
import { layerList } from "./list.js";
import { details } from "./panel.js";
import { onSelect, select, selected } from "./state.js";

// Labels are read at this scale and above; below it, the names of parts are shown instead.
const LEGIBLE = 0.5;
// With more edges than this that others imply, they are shown for the selected layer only, unless asked for.
const IMPLIED = 150;

// Width by height of the picture on paper.
const PAPER = 0.8;

/** The dependency graph: pan, zoom, search, and what is known about the layer that is selected. */
export function dependencyGraph(report) {
  const { graph } = report;
  if (!graph || !graph.layers.length) return null;
  const panel = h("div", { id: "details", class: "details", "aria-live": "polite" });
  const list = layerList(report);
  const canvas = h("div", {
    class: "canvas",
    id: "graph-canvas",
    role: "group",
    tabindex: 0,
    "aria-label": `Dependency graph of ${plural(graph.layers.length, "layer")}. Arrow keys move it, plus and minus zoom, 0 shows all. The list of layers beside it selects.`,
  });
  const implied = graph.edges.filter((edge) => !edge[2]).length;
  const all = h("input", { type: "checkbox", id: "all-edges" });
  all.checked = implied <= IMPLIED;
  const button = (text, label) => h("button", { type: "button", class: "plain", "aria-label": label, title: label }, text);
  const buttons = [button("+", "Zoom in"), button("−", "Zoom out"), button("Fit", "Fit the graph into view")];
  canvas.style.setProperty("--height", `${Math.min(780, Math.max(380, 260 + 20 * graph.layers.length))}px`);
  draw(report, canvas, all, buttons);
  onSelect((name) => panel.replaceChildren(...details(report, name).flat(Infinity)));
  panel.replaceChildren(...details(report, null));
  const free = graph.groups.filter((group) => !group.pinned).length;
  return section(
    "graph",
    "Dependency graph",
    `${plural(graph.layers.length, "layer")} with parameters, ${plural(free, "group")} that can be cut, ${plural(graph.groups.length - free, "group")} that must stay. What one group cuts has one colour; colours repeat after eight groups.`,
    h(
      "div",
      { class: "controls" },
      buttons,
      implied ? h("label", { class: "check" }, all, `edges that others imply (${implied.toLocaleString("en-US")})`) : null,
      h("span", { class: "small hint" }, "drag to move · Ctrl + wheel or pinch to zoom · click a layer"),
    ),
    h("div", { class: "graph" }, canvas, h("div", { class: "side" }, list, panel)),
    h(
      "ul",
      { class: "legend" },
      h("li", null, h("i", { class: "swatch strip" }), "colour of the group that the layer's channels belong to"),
      h("li", null, h("i", { class: "swatch share" }), "share of its channels left"),
      h("li", null, h("i", { class: "swatch pinned" }), "stays as it is"),
      h("li", null, h("i", { class: "swatch edge" }), "computes with"),
      implied ? h("li", null, h("i", { class: "swatch skip" }), "implied by a longer path, as past a residual or dense block") : null,
    ),
  );
}

function draw(report, canvas, all, [closer, farther, fit]) {
  const { graph } = report;
  const svg = s("svg", { "aria-hidden": "true", focusable: "false" });
  const scene = s("g");
  svg.append(scene);
  canvas.append(svg);
  let picture;
  let nodes = [];
  let edges = [];
  const skip = s("g", { class: "edges skip" });
  const lit = s("g", { class: "edges lit" });

  // Implied edges into another column cross everything in between: they are shown for the selected layer.
  const beside = (e) => !e.direct && picture.nodes[e.a].column === picture.nodes[e.b].column;

  const drawn = (some) => some.map((e) => route(picture, e.a, e.b, e.direct)).join("");
  const showImplied = () => skip.replaceChildren(s("path", { d: drawn(edges.filter(beside)) }));

  const build = (aspect = null) => {
    const box = canvas.getBoundingClientRect();
    if (aspect === null && (box.width < 40 || box.height < 40)) return false;
    picture = place(graph, aspect ?? box.width / box.height);
    nodes = graph.layers.map((layer, n) => node(report, layer, picture.nodes[n]));
    edges = graph.edges.map(([a, b, direct]) => ({ a, b, direct }));
    const plain = s("path", { class: "edges", d: drawn(edges.filter((e) => e.direct)) });
    if (all.checked) showImplied();
    const [regions, names] = parts(graph, picture);
    const meet = picture.junctions.map(({ x, y, height }) => s("circle", { class: "junction", cx: x, cy: y + height / 2, r: 3 }));
    scene.replaceChildren(regions, skip, plain, s("g", null, meet), s("g", { class: "nodes" }, nodes), lit, names);
    return true;
  };
  svg.addEventListener("click", (event) => {
    const hit = event.target.closest("[data-layer]");
    if (hit) select(hit.dataset.layer, "graph");
  });

  const behaviour = d3zoom()
    .scaleExtent([0.03, 3])
    .filter((event) => (event.type === "wheel" ? event.ctrlKey || event.metaKey : event.type.startsWith("touch") ? event.touches.length > 1 : !event.button))
    .on("zoom", ({ transform }) => {
      scene.setAttribute("transform", transform.toString());
      svg.classList.toggle("far", transform.k < LEGIBLE);
      svg.style.setProperty("--k", transform.k);
    });
  const view = d3select(svg);
  view.call(behaviour).on("dblclick.zoom", null);

  const showAll = () => {
    const box = canvas.getBoundingClientRect();
    const k = Math.min(box.width / picture.width, box.height / picture.height, 1.25);
    view.call(behaviour.transform, zoomIdentity.translate((box.width - k * picture.width) / 2, Math.max(0, (box.height - k * picture.height) / 2)).scale(k));
  };
  const bring = (number) => {
    const box = canvas.getBoundingClientRect();
    const at = picture.nodes[number];
    const now = svg.__zoom;
    const k = Math.max(now.k, 0.8);
    const [x, y] = now.apply([at.x + at.width / 2, at.y + at.height / 2]);
    const inside = x > 90 && y > 30 && x < box.width - 90 && y < box.height - 30;
    if (inside && now.k >= LEGIBLE) return;
    view.call(behaviour.transform, zoomIdentity.translate(box.width / 2 - k * (at.x + at.width / 2), box.height / 2 - k * (at.y + at.height / 2)).scale(k));
  };
  const mark = (name, from) => {
    const number = report.nodeOf.get(name) ?? -1;
    const [makes, ...reads] = number < 0 ? [] : graph.layers[number].groups.filter((g) => !graph.groups[g].pinned);
    svg.classList.toggle("chosen", number >= 0);
    nodes.forEach((element, n) => {
      element.classList.toggle("selected", n === number);
      element.classList.toggle("together", graph.layers[n].groups.includes(makes));
      element.classList.toggle("near", reads.some((g) => graph.layers[n].groups[0] === g));
    });
    const near = edges.filter((e) => e.a === number || e.b === number);
    lit.replaceChildren(s("path", { d: drawn(near) }));
    if (number >= 0 && from !== "graph") bring(number);
  };

  closer.addEventListener("click", () => view.call(behaviour.scaleBy, 1.3));
  farther.addEventListener("click", () => view.call(behaviour.scaleBy, 1 / 1.3));
  fit.addEventListener("click", () => showAll());
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (step) view.call(behaviour.translateBy, step[0] / svg.__zoom.k, step[1] / svg.__zoom.k);
    else if (event.key === "+" || event.key === "=") view.call(behaviour.scaleBy, 1.3);
    else if (event.key === "-") view.call(behaviour.scaleBy, 1 / 1.3);
    else if (event.key === "0") showAll();
    else return;
    event.preventDefault();
  });
  all.addEventListener("change", () => (all.checked ? showImplied() : skip.replaceChildren()));

  let before = null;
  // Layouts take a moment for a thousand layers: the page is shown first.
  let width = 0;
  const observer = new ResizeObserver(() => {
    const now = Math.round(canvas.clientWidth);
    if (before !== null || now === width || !build()) return;
    width = now;
    showAll();
    if (selected() !== null) mark(selected(), "graph");
    canvas.dataset.ready = "true";
  });
  observer.observe(canvas);
  onSelect(mark);
  // On paper the whole picture is drawn for a page, whatever part of it was looked at.
  const paper = (printing) => {
    if (printing === (before !== null) || !picture) return;
    if (printing) {
      before = svg.__zoom;
      build(PAPER);
      view.call(behaviour.transform, zoomIdentity);
      svg.setAttribute("viewBox", `0 0 ${picture.width} ${picture.height}`);
    } else {
      svg.removeAttribute("viewBox");
      build();
      view.call(behaviour.transform, before);
      before = null;
    }
    mark(selected(), "graph");
  };
  matchMedia("print").addEventListener("change", ({ matches }) => paper(matches));
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));
}

function node(report, layer, at) {
  const { graph } = report;
  const flat = isFlat(layer);
  const main = graph.groups[layer.groups[0]];
  const colour = colourOf(report, layer.groups[0]);
  const stays = !main || Boolean(main.pinned);
  const width = layer.width ? arrow(String(layer.width[0]), String(layer.width[1])) : "";
  const left = layer.width && layer.width[0] ? layer.width[1] / layer.width[0] : 1;
  const inner = at.width - 20;
  const title = `${layerName(layer.name)}\n${layer.op}${width ? `, ${width}` : ""}`;
  const second = flat ? "" : [layer.op, width].filter(Boolean).join(" · ");
  const room = flat ? inner - (width ? measure(width) + 12 : 0) : inner;
  return s(
    "g",
    { class: `node${flat ? " flat" : ""}${stays ? " pinned" : ""}`, "data-layer": layer.name, transform: `translate(${at.x},${at.y})`, style: { "--colour": colour } },
    s("title", null, title),
    s("rect", { class: "box", width: at.width, height: at.height, rx: 5 }),
    s("rect", { class: "strip", width: 6, height: at.height, rx: 2 }),
    s("text", { class: "label", x: 14, y: flat ? 15 : 17 }, fitted(layerName(layer.name), room)),
    flat
      ? s("text", { class: "what", x: at.width - 8, y: 15, "text-anchor": "end" }, width)
      : s("text", { class: "what", x: 14, y: 31 }, fitted(second, inner)),
    flat ? null : s("rect", { class: "share", x: 6, y: at.height - 3, width: Math.max(0, (at.width - 8) * left), height: 2 }),
  );
}

const pen = document.createElement("canvas").getContext("2d");
const lengths = new Map();

/** The width of a text in a label, in pixels. */
function measure(text) {
  if (!lengths.size) pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  if (!lengths.has(text)) lengths.set(text, pen.measureText(text).width);
  return lengths.get(text);
}

/** Names differ at their ends: what does not fit is left out in front, whole steps where much is left then. */
function fitted(text, room) {
  if (measure(text) <= room) return text;
  const steps = text.split(".");
  for (let from = 1; from < steps.length; from++) {
    const rest = `…${steps.slice(from).join(".")}`;
    if (measure(rest) <= room && measure(rest) > room / 2) return rest;
  }
  let from = Math.max(1, text.length - Math.floor((text.length * room) / measure(text)));
  while (from < text.length && measure(`…${text.slice(from)}`) > room) from++;
  return `…${text.slice(from)}`;
}

/** The parts of the model, such as its stages, as regions behind the layers, with names to be read from afar. */
function parts(graph, picture) {
  const depth = partDepth(graph.layers.map((layer) => layer.name));
  if (!depth) return [s("g"), s("g")];
  const regions = new Map();
  graph.layers.forEach((layer, n) => {
    const steps = layer.name.split(".");
    if (steps.length <= depth) return;
    const name = steps.slice(0, depth).join(".");
    const at = picture.nodes[n];
    const key = `${at.column} ${name}`;
    const box = regions.get(key) ?? { name, left: Infinity, top: Infinity, right: 0, bottom: 0 };
    box.left = Math.min(box.left, at.x - 9);
    box.top = Math.min(box.top, at.y - 8);
    box.right = Math.max(box.right, at.x + at.width + 9);
    box.bottom = Math.max(box.bottom, at.y + at.height + 8);
    regions.set(key, box);
  });
  // Where a part runs over several columns, its largest region has the name.
  const largest = new Map();
  for (const box of regions.values()) {
    const other = largest.get(box.name);
    if (!other || box.bottom - box.top > other.bottom - other.top) largest.set(box.name, box);
  }
  const title = (box) => {
    const text = box.name.split(".").at(-1);
    const most = (box.right - box.left) / (0.62 * Math.max(4, text.length));
    const tight = box.bottom - box.top < 120;
    return s("text", { class: tight ? "tight" : null, x: (box.left + box.right) / 2, y: (box.top + box.bottom) / 2, style: { "--most": `${most}px` } }, text);
  };
  const frame = (box) => s("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top, rx: 9 });
  return [s("g", { class: "parts" }, [...regions.values()].map(frame)), s("g", { class: "parts names" }, [...largest.values()].map(title))];
}

/** How many steps of a name tell the parts apart: the first at which no part is most of the model. */
function partDepth(names) {
  for (let depth = 1; depth < 6; depth++) {
    const sizes = new Map();
    for (const name of names) {
      const steps = name.split(".");
      const part = steps.slice(0, depth).join(".");
      if (steps.length > depth) sizes.set(part, (sizes.get(part) ?? 0) + 1);
    }
    if (!sizes.size || sizes.size > names.length / 2.5) return 0;
    if (sizes.size > 1 && Math.max(...sizes.values()) < 0.6 * names.length) return depth;
  }
  return 0;
}
