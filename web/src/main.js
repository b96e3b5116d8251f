import { cards } from "./cards.js";
import { pareto, sensitivity, shares, widths } from "./charts.js";
import { h } from "./dom.js";
import { facts, licences } from "./facts.js";
import { percent } from "./format.js";
import { dependencyGraph } from "./graph.js";
import { groupTables } from "./groups.js";
import { layerTable } from "./table.js";
import { themeButton } from "./theme.js";

/** What the page is made of, from what Python wrote. */
function read(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

function arranged(data) {
  const { report, graph } = data;
  const nodeOf = new Map((graph?.layers ?? []).map((layer, n) => [layer.name, n]));
  let last = -1;
  const rows = report.layers.map((row, i) => {
    // Layers that the graph does not have come after the one that was registered before them.
    last = nodeOf.get(row.name) ?? last;
    const part = graph?.layers[nodeOf.get(row.name)];
    const [old, now] = row.params;
    const changed = row.flops[0] !== row.flops[1] || old !== now || row.shape[0].join() !== row.shape[1].join();
    return { ...row, changed, cut: old ? 1 - now / old : 0, op: part?.op ?? row.kind, width: part?.width ?? null, rank: last, i };
  });
  rows.sort((a, b) => a.rank - b.rank || a.i - b.i);
  rows.forEach((row, order) => (row.order = order));
  const pair = (name) => [report.before[name], report.after[name]];
  return {
    ...report,
    proof: report.proof,
    chosen: data.chosen,
    settings: data.settings,
    plan: data.plan,
    pareto: data.pareto,
    sensitivity: data.sensitivity,
    graph,
    nodeOf,
    layers: rows,
    byName: new Map(rows.map((row) => [row.name, row])),
    colours: graph ? colours(graph) : [],
    totals: Object.fromEntries(["flops", "params", "bytes", "memory", "nonzero_flops", "nonzero_params"].map((name) => [name, pair(name)])),
  };
}

/** Give groups one of eight colours in the order in which layers make them, so that neighbours differ. */
function colours(graph) {
  const found = new Array(graph.groups.length).fill(0);
  const seen = new Set();
  for (const layer of graph.layers) {
    for (const number of layer.groups) {
      if (seen.has(number) || graph.groups[number].pinned) continue;
      found[number] = seen.size % 8;
      seen.add(number);
    }
  }
  return found;
}

function header(report) {
  const { flops, params } = report.totals;
  const left = (pair, what) => (pair[0] > 0 && pair[1] !== null ? `${percent(pair[1] / pair[0])} of its ${what}` : null);
  const saved = [left(flops, "FLOPs"), left(params, "parameters")].filter(Boolean).join(" and ");
  const proof = report.proof
    ? h("span", { class: "badge proved" }, "✓ proved equal to the masked original")
    : h("span", { class: "badge" }, "not verified");
  return h(
    "header",
    { class: "top" },
    h("div", null, h("p", { class: "kind" }, "surgeon report"), h("h1", null, report.model || "Model"), h("p", { class: "lead" }, saved ? `Left: ${saved}.` : "", " ", proof)),
    h("div", { class: "actions" }, h("button", { type: "button", class: "plain", onclick: () => print() }, "Print"), themeButton()),
  );
}

const report = arranged(read("payload"));
document.body.append(
  h("a", { class: "skip-link", href: "#layers" }, "Skip to the layers"),
  header(report),
  h(
    "main",
    null,
    cards(report),
    h("p", { class: "small unit" }, "One FLOP is one multiply-add, as fvcore counts."),
    shares(report),
    dependencyGraph(report),
    widths(report),
    layerTable(report),
    groupTables(report),
    pareto(report),
    sensitivity(report),
    facts(report),
  ),
  h("footer", null, licences(read("licences"))),
);
