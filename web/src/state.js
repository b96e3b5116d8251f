// Which layer is looked at: one value that the graph, the lists and the charts share.

const listeners = [];
let current = null;

export function select(name, from) {
  if (name === current) return;
  current = name;
  for (const listener of listeners) listener(name, from);
}

export function selected() {
  return current;
}

export function onSelect(listener) {
  listeners.push(listener);
}
