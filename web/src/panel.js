import { dotted, h, responsive } from "./dom.js";
import { arrow, exact, layerName, percent, plural, shape, short } from "./format.js";
import { histogram, legend, picture } from "./charts.js";
import { colourOf } from "./colour.js";
import { select } from "./state.js";

// Lists longer than this are folded.
const SHOWN = 8;

/** What is known about a layer: its shape and cost, its groups, why they are tied, and what was cut of them. */
export function details(report, name) {
  if (name === null) {
    return [h("p", { class: "muted choose" }, "Choose a layer, in the graph or in the list, to see what is cut together with it and why.")];
  }
  const layer = report.byName.get(name);
  const part = report.graph.layers[report.nodeOf.get(name)];
  const facts = [
    part ? ["op", part.op] : null,
    part ? ["called at", h("code", null, part.source)] : null,
    layer ? ["weight", arrow(shape(layer.shape[0]), shape(layer.shape[1]))] : null,
    layer ? ["FLOPs", arrow(short(layer.flops[0]), short(layer.flops[1]))] : null,
    layer ? ["parameters", arrow(exact(layer.params[0]), exact(layer.params[1]))] : null,
  ].filter(Boolean);
  const groups = part ? part.groups : [];
  return [
    h("h3", { class: "layer-name" }, dotted(layerName(name))),
    h("dl", { class: "facts" }, facts.map(([term, value]) => [h("dt", null, term), h("dd", null, value)])),
    groups.length
      ? groups.map((number, i) => group(report, number, name, i))
      : h("p", { class: "muted" }, part ? "No dimension of its parameters can shrink." : "Its parameters are read by another layer's call, and belong to that layer's groups."),
  ];
}

function group(report, number, name, position) {
  const found = report.graph.groups[number];
  const role = roleOf(report, found, name);
  return h(
    "section",
    { class: "group", "data-group": found.name, "aria-label": `Group ${layerName(found.name)}` },
    h("h4", null, h("i", { class: "swatch", style: { background: colourOf(report, number) } }), h("span", null, "Group ", dotted(layerName(found.name))), h("span", { class: "small" }, role)),
    found.pinned ? pinned(found) : cut(found),
    found.scores && !found.pinned ? scores(found) : null,
    h("h5", null, "Cut together"),
    members(report, found),
    found.pinned ? null : ties(found),
  );
}

function roleOf(report, found, name) {
  const sides = new Set(found.members.filter((m) => ownerOf(report, m) === name).map((m) => m[2]));
  if (sides.has("both") || (sides.has("out") && sides.has("in"))) return "of what it reads and makes";
  return sides.has("out") ? "of what it makes" : sides.has("in") ? "of what it reads" : "";
}

function pinned(found) {
  return h("p", { class: "why" }, h("b", null, "Stays"), `, all ${plural(found.units[0], "position")}: ${found.pinned}.`);
}

function cut(found) {
  const [before, after] = found.steps;
  const rows = found.rows > 1 ? ` in ${found.rows} rows that lose equally many` : "";
  const units = found.units[0] === before ? "" : `, ${found.units[1].toLocaleString("en-US")} of ${plural(found.units[0], "unit")}${rows}`;
  if (before === after) return h("p", { class: "why" }, h("b", null, before), `, all stay${units ? ` (${units.slice(2)})` : ""}`);
  return h("p", { class: "why" }, h("b", null, `${before} → ${after}`), ` (${percent(after / before)} left${units})`);
}

function scores(found) {
  const { go, cut } = found.scores;
  const gone = go.some((count) => count > 0);
  const line = cut !== null ? `; the line is at ${Number(cut.toPrecision(4))}` : gone ? "; each row loses its own weakest, so there is no single line" : "; nothing goes";
  const frame = h("div", { class: "chart" });
  return h(
    "figure",
    { class: "scores" },
    responsive(frame, (width) => picture(frame, histogram(found.scores, width))),
    legend(["var(--flops)", "stays"], ["var(--gone)", "goes"]),
    h("figcaption", null, `Importance of each unit${line}.`),
  );
}

function ownerOf(report, member) {
  const name = report.graph.parameters[member[0]];
  return name.slice(0, Math.max(0, name.lastIndexOf(".")));
}

function members(report, found) {
  const side = { out: "its outputs", in: "its inputs", both: "inputs and outputs" };
  const item = (member) => {
    const owner = ownerOf(report, member);
    const name = report.graph.parameters[member[0]];
    const known = report.nodeOf.has(owner);
    const label = `${name} dim ${member[1].join(", ")}`;
    return h(
      "li",
      null,
      known ? h("button", { type: "button", class: "link", onclick: () => select(owner, "panel") }, dotted(label)) : dotted(label),
      side[member[2]] ? h("span", { class: "small" }, ` ${side[member[2]]}`) : null,
    );
  };
  return folded(found.members.map(item), "place");
}

function ties(found) {
  if (!found.ties.length) {
    const why = found.members.length > 1 ? "No call had to tie them: the layers read what another one makes, and norms carry it." : "It is cut from one place only.";
    return [h("h5", null, "Why"), h("p", { class: "small" }, why)];
  }
  return [h("h5", null, "Tied by"), folded(found.ties.map((tie) => h("li", null, h("code", null, tie))), "call")];
}

function folded(items, what) {
  if (items.length <= SHOWN + 2) return h("ul", { class: "plain-list" }, items);
  return [
    h("ul", { class: "plain-list" }, items.slice(0, SHOWN)),
    h("details", null, h("summary", null, `${plural(items.length - SHOWN, `more ${what}`)}`), h("ul", { class: "plain-list" }, items.slice(SHOWN))),
  ];
}
