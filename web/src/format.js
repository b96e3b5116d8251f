// Numbers as people read them. A value that was not counted is null and shows as a dash.

const UNITS = [
  [1e15, "P"],
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
];
const DASH = "–";

/** Four significant digits and a unit: 4089284608 -> "4.089 G". */
export function short(value) {
  if (value === null || value === undefined) return DASH;
  for (const [scale, unit] of UNITS) {
    if (Math.abs(value) >= scale) return `${digits(value / scale)} ${unit}`;
  }
  return digits(value);
}

/** All digits: 4089284608 -> "4,089,284,608". */
export function exact(value) {
  if (value === null || value === undefined) return DASH;
  return Number.isInteger(value) ? value.toLocaleString("en-US") : String(Number(value.toPrecision(12)));
}

export function bytes(value) {
  return value === null || value === undefined ? DASH : `${short(value)}${Math.abs(value) < 1e3 ? " " : ""}B`;
}

export function seconds(value) {
  if (value === null || value === undefined) return DASH;
  return value < 1e-3 ? `${digits(value * 1e6)} µs` : value < 1 ? `${digits(value * 1e3)} ms` : `${digits(value)} s`;
}

export function percent(share, places = 1) {
  return share === null || share === undefined || !Number.isFinite(share) ? DASH : `${(100 * share).toFixed(places)}%`;
}

export function ratio(old, now) {
  return old > 0 && now > 0 ? `${(old / now).toFixed(2)}×` : DASH;
}

export function shape(dims) {
  return dims === null ? DASH : dims.join("×");
}

export function arrow(old, now) {
  return old === now ? old : `${old} → ${now}`;
}

export function layerName(name) {
  return name === "" ? "(the model)" : name;
}

export function plural(count, what) {
  return `${count.toLocaleString("en-US")} ${what}${count === 1 ? "" : "s"}`;
}

/** How a latency was measured. */
export function how(latency) {
  const { runs, backend, device, threads } = latency;
  const parts = [runs ? `p50 of ${plural(runs, "run")}` : "p50", backend, device, threads ? plural(threads, "thread") : ""];
  return parts.filter(Boolean).join(", ");
}

function digits(value) {
  return String(Number(value.toPrecision(4)));
}
