import { h, section } from "./dom.js";
import { exact, how, percent, plural, seconds } from "./format.js";

/** Proof, plan and environment: what else one has to know to trust the numbers. */
export function facts(report) {
  return [proof(report), plan(report), environment(report)];
}

function list(rows) {
  const known = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: "facts wide" }, known.map(([term, value]) => [h("dt", null, term), h("dd", null, value)]));
}

function proof(report) {
  const found = report.proof;
  if (!found) return section("proof", "Proof", "The cut was not verified.");
  const rows = [
    ["largest difference", `${found.difference.toExponential(1)} of the output, in ${found.dtype} (allowed ${found.tolerance.toExponential(0)})`],
    ["FLOPs predicted", `${exact(found.flops[0])} → ${exact(found.flops[1])}`],
    ["FLOPs by fvcore", `${exact(found.flops[2])} → ${exact(found.flops[3])}`],
    ["parameters after", `${exact(found.params[0])} predicted, ${exact(found.params[1])} counted`],
    ["note", found.note],
  ];
  return section(
    "proof",
    "Proof",
    "The original with every removed weight at zero, and every statistic over what stays, computes what the small model computes.",
    list(rows),
  );
}

function plan(report) {
  const reach = Object.entries(report.out_of_reach);
  const asked = Object.entries(report.settings ?? {}).filter(([, value]) => value !== null);
  if (!report.plan && !reach.length) return null;
  const total = reach.reduce((sum, [, share]) => sum + share, 0);
  return section(
    "plan",
    "Plan",
    sentence(report.chosen),
    asked.length ? list(asked.map(([name, value]) => [name, h("code", null, typeof value === "string" ? value : JSON.stringify(value))])) : null,
    reach.length
      ? h(
          "details",
          null,
          h("summary", null, `${percent(total)} of the FLOPs are out of reach`),
          h("ul", { class: "plain-list" }, reach.slice(0, 20).map(([why, share]) => h("li", null, `${percent(share)}  ${why}`))),
        )
      : null,
    report.plan
      ? h("p", null, h("button", { type: "button", id: "download", onclick: () => save(report.plan) }, "Download the plan (JSON)"), h("span", { class: "small" }, " It cuts any checkpoint of this architecture: surgeon.Plan.load, surgeon.operate."))
      : null,
  );
}

function sentence(chosen) {
  if (!chosen) return null;
  const { removed, units, gap } = chosen;
  const how = gap === null ? "" : ` What that loses is at most ${percent(gap, 2)} above the least that any choice of widths under the budget loses.`;
  return `${exact(removed)} of ${plural(units, "unit")} go.${how}`;
}

function save(text) {
  const link = h("a", { download: "surgeon-plan.json", href: URL.createObjectURL(new Blob([text], { type: "application/json" })) });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function environment(report) {
  const { environment: made, latency } = report;
  const rows = [
    ["FLOPs", `${report.counter}`],
    ["not counted", report.uncounted.join(", ")],
    ["note", report.note],
    ["latency", latency ? `${seconds(latency.seconds[0])} → ${seconds(latency.seconds[1])}, ${percent(latency.ratio)} of the original's, ${how(latency)}` : null],
    ...(made
      ? [
          ["surgeon", made.surgeon],
          ["torch", made.torch],
          ["Python", made.python],
          ["platform", made.platform],
          ["device", `${made.device}, ${made.threads} ${made.threads === 1 ? "thread" : "threads"}`],
          ["made", made.date],
        ]
      : []),
  ];
  return section("environment", "Environment", null, list(rows));
}

/** Licences of what the page is built with, folded. */
export function licences(text) {
  return h("details", { class: "licences" }, h("summary", null, "Licences of the libraries in this page"), h("pre", { tabindex: 0 }, text));
}
