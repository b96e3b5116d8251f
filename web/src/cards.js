import { h } from "./dom.js";
import { bytes, exact, how, percent, ratio, seconds, short } from "./format.js";

/** What was saved, a card for each quantity that was counted or measured. */
export function cards(report) {
  const { totals, latency } = report;
  const found = [
    card("flops", "FLOPs", totals.flops, short, "theoretical speed-up", "multiply-adds per forward pass"),
    card("params", "Parameters", totals.params, short, "compression", "counted once where tied"),
    card("bytes", "Weights", totals.bytes, bytes, "smaller", "bytes of parameters and buffers"),
    card("memory", "Peak memory", totals.memory, bytes, "less", "inputs and activations, predicted"),
  ];
  if (latency) {
    found.push(card("latency", "Latency", latency.seconds, seconds, "measured speed-up", how(latency)));
  }
  return h("ul", { class: "cards", "aria-label": "Summary" }, found);
}

function card(id, title, pair, format, verb, note) {
  if (!pair || pair[0] === null || pair[1] === null) return null;
  const [old, now] = pair;
  const left = old > 0 ? now / old : 1;
  return h(
    "li",
    { class: "card", id: `card-${id}`, "data-before": old, "data-after": now },
    h("p", { class: "title" }, title),
    h("p", { class: "figure", title: exact(now) }, format(now)),
    h("p", { class: "was" }, "from ", h("span", { title: exact(old) }, format(old))),
    h("div", { class: "meter", "aria-hidden": "true" }, h("i", { style: { width: percent(Math.min(left, 1), 2) } })),
    h("p", { class: "saved" }, h("b", null, `${percent(left)} left`), ` · ${ratio(old, now)} ${verb}`),
    h("p", { class: "small" }, note),
  );
}
