import { dotted, h, section } from "./dom.js";
import { layerName, percent, plural } from "./format.js";
import { colourOf } from "./colour.js";
import { select } from "./state.js";

/** What was cut of each group, and what stays and why. */
export function groupTables(report) {
  const { groups, pins } = report;
  const stay = Object.entries(pins);
  if (!groups.length && !stay.length) return null;
  const cut = groups.filter((group) => group.units[0] !== group.units[1]).length;
  return section(
    "groups",
    "Groups",
    `A group is what has to be cut together. ${plural(cut, "group")} of ${groups.length} lost units.`,
    groups.length ? table(report, groups) : null,
    stay.length ? pinned(stay) : null,
  );
}

function table(report, groups) {
  const number = new Map((report.graph?.groups ?? []).map((group, i) => [group.name, i]));
  const row = (group) => {
    const [before, after] = group.units;
    const left = before ? after / before : 1;
    const layer = report.graph?.layers.find((each) => each.groups[0] === number.get(group.name));
    return h(
      "tr",
      { class: before === after ? "same" : null, onclick: layer ? () => select(layer.name, "groups") : null },
      h("th", { scope: "row", class: "name" }, report.graph ? h("i", { class: "swatch", style: { background: colourOf(report, number.get(group.name)) } }) : null, dotted(layerName(group.name))),
      h("td", { class: "number" }, before.toLocaleString("en-US")),
      h("td", { class: "number" }, after.toLocaleString("en-US")),
      h("td", { class: "number" }, h("span", { class: "bar width", "aria-hidden": "true" }, h("i", { class: "old", style: { width: "100%" } }), h("i", { class: "new", style: { width: percent(left, 2) } })), percent(left)),
      h("td", { class: "number" }, group.layers.length),
    );
  };
  const heads = [["Group"], ["Units"], ["after"], ["Left"], ["Layers"]];
  return h(
    "div",
    { class: `scroll${groups.length > 14 ? " tall" : ""}`, tabindex: 0, role: "region", "aria-label": "Table of groups" },
    h(
      "table",
      { id: "group-table" },
      h("thead", null, h("tr", null, heads.map(([label], i) => h("th", { scope: "col", class: i ? "number" : null }, label)))),
      h("tbody", null, groups.map(row)),
    ),
  );
}

function pinned(stay) {
  const reasons = new Map();
  for (const [name, why] of stay) reasons.set(why, [...(reasons.get(why) ?? []), layerName(name)]);
  return h(
    "details",
    { id: "pins" },
    h("summary", null, `${plural(stay.length, "group")} ${stay.length === 1 ? "stays" : "stay"} whole, and why`),
    h("dl", { class: "pins" }, [...reasons].map(([why, names]) => [h("dt", null, why), h("dd", null, names.join(", "))])),
  );
}
