/** The colour of a group: one of eight, or the one of what stays. */
export function colourOf(report, number) {
  if (number === undefined || number === null) return "var(--faint)";
  return report.graph.groups[number].pinned ? "var(--faint)" : `var(--group-${report.colours[number]})`;
}
