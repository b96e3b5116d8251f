import { barY, dot, gridY, lineY, plot, pointerX, rectY, ruleX, ruleY, text, tip } from "@observablehq/plot";
import { h, responsive, section } from "./dom.js";
import { layerName, percent, plural, short } from "./format.js";
import { select } from "./state.js";

const STYLE = { fontSize: "12px", fontFamily: "inherit", background: "none", overflow: "visible" };
// Beyond so many layers their names do not fit below a chart, and show when it is pointed at.
const NAMED = 28;

/** FLOPs above, parameters below, by layer in the order of the forward pass. */
export function shares(report) {
  const weights = report.layers.filter((layer) => layer.shape[0].length > 1);
  const { flops, params } = report.totals;
  if (weights.length < 2 || !(flops[0] > 0) || !(params[0] > 0)) return null;
  const lead = h("p", { class: "lead" });
  const note = h("figcaption");
  const chart = h("div", { class: "chart" });
  let layers = weights;
  let redraw = null;
  const choose = (op) => {
    layers = op ? weights.filter((layer) => layer.op === op) : weights;
    const whole = op ? totalsOf(layers) : { flops: flops[0], params: params[0] };
    lead.textContent = `Layers with weights, in the order of the forward pass, as shares of the original. ${centre(layers, whole)}`;
    note.textContent = op ? `Shares of what all layers of kind ${op} have together.` : leftOut(totalsOf(weights), whole);
    redraw = (width) => picture(chart, sharesPlot(layers, whole.flops, whole.params, width));
    if (chart.clientWidth) chart.replaceChildren(redraw(Math.floor(chart.clientWidth)));
  };
  choose("");
  responsive(chart, (width) => redraw(width));
  return section(
    "shares",
    "Where FLOPs and parameters sit",
    null,
    lead,
    h("div", { class: "controls" }, kinds(weights, choose), legend(["flops", "FLOPs, upwards"], ["params", "parameters, downwards"], ["pale", "pale: what was cut"])),
    h("figure", null, chart, note),
  );
}

/** A choice of one kind of layer, where there are several. */
function kinds(layers, choose) {
  const counts = new Map();
  for (const { op } of layers) counts.set(op, (counts.get(op) ?? 0) + 1);
  const several = [...counts].filter(([, count]) => count > 1);
  if (counts.size < 2 || !several.length) return null;
  const options = several.map(([op, count]) => h("option", { value: op }, `${op} (${count})`));
  const control = h("select", { id: "shares-kind" }, h("option", { value: "" }, `all (${layers.length})`), options);
  control.addEventListener("change", () => choose(control.value));
  return [h("label", { for: "shares-kind" }, "Layers"), control];
}

function totalsOf(layers) {
  return { flops: sum(layers.map((layer) => layer.flops[0] ?? 0)), params: sum(layers.map((layer) => layer.params[0])) };
}

function leftOut(shown, whole) {
  const rest = [1 - shown.flops / whole.flops, 1 - shown.params / whole.params];
  if (rest.every((share) => share < 5e-5)) return "";
  return `Layers whose weights have one dimension, such as norms, are left out: ${percent(rest[0], 2)} of the FLOPs, ${percent(rest[1], 2)} of the parameters.`;
}

function sharesPlot(layers, flops, params, width) {
  const data = layers.map((layer, index) => ({
    index,
    layer,
    title: [
      layerName(layer.name),
      `FLOPs ${short(layer.flops[0])} → ${short(layer.flops[1])}, ${percent((layer.flops[0] ?? 0) / flops)} of the original's`,
      `parameters ${short(layer.params[0])} → ${short(layer.params[1])}, ${percent(layer.params[0] / params)}`,
    ].join("\n"),
  }));
  const bars = (key, at, total, sign, colour) =>
    barY(data, {
      x: "index",
      y: (d) => (sign * (d.layer[key][at] ?? 0)) / total,
      fill: colour,
      fillOpacity: at ? 1 : 0.3,
      insetLeft: layers.length > 90 ? 0 : 0.5,
      insetRight: layers.length > 90 ? 0 : 0.5,
    });
  const named = names(data, width);
  return clickable(
    plot({
      width,
      height: 300 + named.space,
      marginLeft: 48,
      marginRight: 8,
      marginBottom: 20 + named.space,
      style: STYLE,
      ariaLabel: "Share of FLOPs and of parameters of each layer",
      x: { type: "band", axis: null, padding: layers.length > 90 ? 0 : 0.1 },
      y: { label: null, tickFormat: (v) => percent(Math.abs(v), 0), nice: true },
      marks: [
        gridY({ strokeOpacity: 0.12 }),
        bars("flops", 0, flops, 1, "var(--flops)"),
        bars("flops", 1, flops, 1, "var(--flops)"),
        bars("params", 0, params, -1, "var(--params)"),
        bars("params", 1, params, -1, "var(--params)"),
        ruleY([0], { strokeOpacity: 0.6 }),
        ...named.marks,
        pointed(data, "index", () => 0),
      ],
    }),
  );
}

/** Channels of each layer, before and after. */
export function widths(report) {
  const layers = report.layers.filter((layer) => layer.width && layer.shape[0].length > 1);
  if (layers.length < 2) return null;
  const data = layers.map((layer, index) => ({
    index,
    layer,
    title: `${layerName(layer.name)}\n${layer.width[0]} → ${layer.width[1]} channels, ${percent(layer.width[1] / layer.width[0])} left`,
  }));
  const draw = (width) => {
    const named = names(data, width);
    const inset = layers.length > 90 ? 0 : 0.5;
    return clickable(
      plot({
        width,
        height: 220 + named.space,
        marginLeft: 48,
        marginRight: 8,
        marginBottom: 20 + named.space,
        style: STYLE,
        ariaLabel: "Width of each layer",
        x: { type: "band", axis: null, padding: layers.length > 90 ? 0 : 0.1 },
        y: { label: null, tickFormat: (v) => short(v), nice: true },
        marks: [
          gridY({ strokeOpacity: 0.12 }),
          barY(data, { x: "index", y: (d) => d.layer.width[0], fill: "var(--width)", fillOpacity: 0.3, insetLeft: inset, insetRight: inset }),
          barY(data, { x: "index", y: (d) => d.layer.width[1], fill: "var(--width)", insetLeft: inset, insetRight: inset }),
          ruleY([0], { strokeOpacity: 0.6 }),
          ...named.marks,
          pointed(data, "index", (d) => d.layer.width[0] / 2),
        ],
      }),
    );
  };
  const kept = layers.filter((layer) => layer.width[0] === layer.width[1]).length;
  const lead = `Channels, features or columns that each layer makes. ${plural(layers.length - kept, "layer")} became narrower, ${kept} ${kept === 1 ? "is" : "are"} as wide as before.`;
  return section("widths", "Width of each layer", lead, legend(["width", "left"], ["pale", "pale: what was cut"]), figure(draw));
}

/** The trade between a cost and the predicted loss, where plans along it were made. */
export function pareto(report) {
  const curve = report.pareto;
  if (!curve) return null;
  const data = curve.left.map((left, at) => ({ left, loss: curve.losses[at] }));
  const draw = (width) =>
    plot({
      width,
      height: 280,
      marginLeft: 56,
      marginTop: 34,
      marginBottom: 44,
      style: STYLE,
      ariaLabel: `Predicted loss over the share of ${curve.resource} left`,
      x: { label: `${{ flops: "FLOPs", params: "parameters" }[curve.resource] ?? curve.resource} left`, ticks: width / 90, tickFormat: (v) => percent(v, 0), labelAnchor: "center", labelArrow: "none" },
      y: { label: "predicted loss", labelArrow: "none", nice: true, zero: true },
      marks: [
        gridY({ strokeOpacity: 0.12 }),
        lineY(data, { x: "left", y: "loss", stroke: "var(--flops)" }),
        dot(data, { x: "left", y: "loss", fill: "var(--flops)", r: 3.5 }),
        tip(data, pointerX({ x: "left", y: "loss", title: (d) => `${percent(d.left)} left\nloss ${Number(d.loss.toPrecision(4))}`, ...TIP })),
      ],
    });
  const lead = `${plural(data.length, "nested plan")}: each removes all that the one before it does, with the least loss found for its budget.`;
  return section("pareto", "What each budget costs", lead, figure(draw));
}

/** What each group costs when it is cut alone, where that was measured. */
export function sensitivity(report) {
  const found = report.sensitivity;
  if (!found) return null;
  const curves = found.curves
    .map((curve) => {
      const points = [{ share: 0, drop: 0 }, ...curve.removed.map((n, i) => ({ share: n / curve.size, drop: found.base - curve.value[i] }))];
      return { group: curve.group, points, mean: sum(points.map((p) => p.drop)) / points.length };
    })
    .sort((a, b) => b.mean - a.mean);
  const named = new Map(curves.slice(0, 6).map((curve, i) => [curve.group, `var(--group-${i})`]));
  const data = curves.flatMap((curve) => curve.points.map((point) => ({ group: curve.group, ...point })));
  const draw = (width) =>
    plot({
      width,
      height: 320,
      marginLeft: 56,
      marginTop: 34,
      marginBottom: 44,
      style: STYLE,
      ariaLabel: "Drop over the share of each group that is cut alone",
      x: { label: "share of the group that is cut", ticks: width / 90, tickFormat: (v) => percent(v, 0), labelAnchor: "center", labelArrow: "none" },
      y: { label: `drop from ${Number(found.base.toPrecision(6))}`, labelArrow: "none", nice: true },
      marks: [
        gridY({ strokeOpacity: 0.12 }),
        lineY(data, { x: "share", y: "drop", z: "group", stroke: (d) => named.get(d.group) ?? "var(--faint)", strokeWidth: (d) => (named.has(d.group) ? 2 : 1) }),
        dot(data.filter((d) => named.has(d.group)), { x: "share", y: "drop", fill: (d) => named.get(d.group), r: 3 }),
        tip(data, pointerX({ x: "share", y: "drop", title: (d) => `${d.group}\n${percent(d.share)} cut: drop ${Number(d.drop.toPrecision(4))}`, ...TIP })),
      ],
    });
  const entries = [...named].map(([group, colour]) => [colour, layerName(group)]);
  if (curves.length > named.size) entries.push(["var(--faint)", plural(curves.length - named.size, "other group")]);
  const lead = "Each group is cut alone, by several shares, and the model is evaluated. Steep lines are the groups to leave alone.";
  return section("sensitivity", "What each group costs alone", lead, legend(...entries), figure(draw));
}

/** Scores of a group's units: what stays, what goes, and the line between. */
export function histogram(scores, width) {
  const bins = scores.stay.flatMap((stay, i) => [
    { from: scores.edges[i], to: scores.edges[i + 1], count: scores.go[i], kind: "go" },
    { from: scores.edges[i], to: scores.edges[i + 1], count: stay, kind: "stay" },
  ]);
  const colours = { go: "var(--gone)", stay: "var(--flops)" };
  return plot({
    width,
    height: 150,
    marginLeft: 36,
    marginRight: 10,
    marginTop: 22,
    marginBottom: 34,
    style: { ...STYLE, fontSize: "11px" },
    ariaLabel: "Scores of the units of this group",
    x: { label: "importance", ticks: 4, labelAnchor: "center", labelArrow: "none", tickFormat: (v) => short(v) },
    y: { label: null, ticks: 4, nice: true, tickFormat: (v) => (Number.isInteger(v) ? String(v) : "") },
    marks: [
      gridY({ ticks: 4, strokeOpacity: 0.12 }),
      rectY(bins, { x1: "from", x2: "to", y: "count", fill: (d) => colours[d.kind], insetLeft: 0.5, insetRight: 0.5 }),
      ruleY([0], { strokeOpacity: 0.6 }),
      ...(scores.cut === null
        ? []
        : [
            ruleX([scores.cut], { stroke: "var(--ink)", strokeWidth: 1.5, strokeDasharray: "4 3" }),
            text([scores.cut], { x: (d) => d, frameAnchor: "top", dy: -14, text: () => "cut", fill: "var(--ink)" }),
          ]),
    ],
  });
}

export function legend(...entries) {
  const swatch = (colour) => h("i", { class: `swatch ${colour.startsWith("var") ? "" : colour}`, style: colour.startsWith("var") ? { background: colour } : {} });
  return h("ul", { class: "legend" }, entries.map(([colour, label]) => h("li", null, swatch(colour), label)));
}

const TIP = { fill: "var(--surface)", stroke: "var(--line-strong)", fontSize: 12, lineHeight: 1.3, textPadding: 9, lineWidth: 40 };

function pointed(data, x, y) {
  return tip(data, pointerX({ x, y, title: "title", ...TIP }));
}

function names(data, width) {
  const room = (width - 56) / data.length;
  if (data.length > NAMED || room < 18) return { space: 0, marks: [] };
  const longest = Math.max(...data.map((d) => layerName(d.layer.name).length));
  const flat = longest * 7 < room;
  const short = (name) => (name.length > 16 && !flat ? `…${name.slice(-15)}` : name);
  const placed = flat ? { dy: 10 } : { dy: 14, rotate: -90, textAnchor: "end" };
  const name = text(data, { x: "index", text: (d) => short(layerName(d.layer.name)), frameAnchor: "bottom", fontSize: 11, fill: "var(--muted)", ...placed });
  return { space: flat ? 4 : 84, marks: [name] };
}

function clickable(chart) {
  chart.addEventListener("click", () => {
    if (chart.value) select(chart.value.layer.name, "chart");
  });
  return chart;
}

function figure(draw) {
  const frame = h("div", { class: "chart" });
  return h("figure", null, responsive(frame, (width) => picture(frame, draw(width))));
}

/** To readers of the screen a chart is one picture, named by what it shows. */
export function picture(frame, chart) {
  const svg = chart.tagName === "svg" ? chart : chart.querySelector("svg");
  frame.setAttribute("role", "img");
  frame.setAttribute("aria-label", svg.getAttribute("aria-label"));
  svg.removeAttribute("aria-label");
  svg.setAttribute("aria-hidden", "true");
  return chart;
}

/** Say by which layer half of each is reached, and what the last fifth of the layers holds. */
function centre(layers, whole) {
  const half = (key) => {
    const values = layers.map((layer) => layer[key][0] ?? 0);
    const total = sum(values);
    let so = 0;
    return values.findIndex((value) => (so += value) >= total / 2);
  };
  const at = (index) => `layer ${index + 1} of ${layers.length} (${layerName(layers[index].name)})`;
  const last = layers.slice(-Math.max(1, Math.round(layers.length / 5)));
  const held = totalsOf(last);
  const tail = last.length === 1 ? "The last layer holds" : `The last ${last.length} layers hold`;
  return (
    `Half of the FLOPs are spent by ${at(half("flops"))}, half of the parameters are reached at ${at(half("params"))}. ` +
    `${tail} ${percent(held.params / whole.params)} of the parameters and ${percent(held.flops / whole.flops)} of the FLOPs.`
  );
}

function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}
