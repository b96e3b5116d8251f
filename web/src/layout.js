// Where the layers of a graph are drawn: dagre puts them in ranks from top to bottom, and the ranks are then broken into
// columns, as a newspaper breaks its text, so that a deep network fills the picture instead of a thread through it.

import { Graph, layout as dagre } from "@dagrejs/dagre";

export const NODE = { width: 196, tall: 40, flat: 22, gap: 2 };
const SPACE = { rank: 20, node: 16, column: 58, pad: 26 };

/** A norm, or another layer that only scales what it is given: drawn flat, and right below the layer that it belongs to. */
export function isFlat(layer) {
  return /norm/.test(layer.op);
}

/**
 * Place the layers of a graph in a picture of about the given proportions, `aspect` = width / height.
 *
 * Returns `{nodes: [{x, y, width, height, column}], columns: [{x, top, bottom, width}], width, height}`, nodes by number,
 * `x` and `y` their upper left corners.
 */
export function place(graph, aspect) {
  const blocks = stack(graph);
  const home = new Map(blocks.flatMap((block, i) => block.map((n) => [n, i])));
  const spots = ranked(graph, blocks, home);
  const ranks = byRank(spots);
  const crossing = crossings(graph, ranks, home);
  const pictures = likely(ranks, aspect).map((columns) => spread(graph, blocks, spots, broken(ranks, crossing, columns)));
  const scale = (picture) => Math.min(aspect / picture.width, 1 / picture.height);
  return pictures.reduce((best, picture) => (scale(picture) > scale(best) ? picture : best));
}

/** Layers that are drawn as one piece: a layer and the norm that alone reads it. */
function stack(graph) {
  const out = new Map();
  const into = new Map();
  for (const [a, b, direct] of graph.edges) {
    if (direct) out.set(a, [...(out.get(a) ?? []), b]);
    into.set(b, (into.get(b) ?? 0) + 1);
  }
  const taken = new Set();
  const blocks = [];
  graph.layers.forEach((layer, n) => {
    if (taken.has(n)) return;
    const next = out.get(n) ?? [];
    const follows = next.length === 1 && next[0] > n && isFlat(graph.layers[next[0]]) && !isFlat(layer);
    const alone = follows && into.get(next[0]) === 1 && !taken.has(next[0]);
    const block = alone && parent(layer.name) === parent(graph.layers[next[0]].name) ? [n, next[0]] : [n];
    for (const each of block) taken.add(each);
    blocks.push(block);
  });
  return blocks;
}

function parent(name) {
  return name.slice(0, Math.max(0, name.lastIndexOf(".")));
}

function heightOf(graph, block) {
  return block.reduce((sum, n) => sum + (isFlat(graph.layers[n]) ? NODE.flat : NODE.tall), NODE.gap * (block.length - 1));
}

function ranked(graph, blocks, home) {
  const drawn = new Graph();
  drawn.setGraph({ rankdir: "TB", nodesep: SPACE.node, ranksep: SPACE.rank, ranker: "longest-path" });
  drawn.setDefaultEdgeLabel(() => ({}));
  blocks.forEach((block, i) => drawn.setNode(String(i), { width: NODE.width, height: heightOf(graph, block) }));
  for (const [a, b, direct] of graph.edges) {
    if (direct && a < b && home.get(a) !== home.get(b)) drawn.setEdge(String(home.get(a)), String(home.get(b)));
  }
  dagre(drawn);
  return blocks.map((block, i) => {
    const { x, y, width, height } = drawn.node(String(i));
    return { x: x - width / 2, y, width, height };
  });
}

/** Blocks of one height of dagre's are a rank. */
function byRank(spots) {
  const order = spots.map((_, i) => i).sort((a, b) => spots[a].y - spots[b].y || spots[a].x - spots[b].x);
  const ranks = [];
  for (const i of order) {
    const last = ranks.at(-1);
    if (last && Math.abs(spots[last.blocks[0]].y - spots[i].y) < 1) last.blocks.push(i);
    else ranks.push({ blocks: [i] });
  }
  for (const rank of ranks) {
    rank.height = Math.max(...rank.blocks.map((i) => spots[i].height));
    rank.left = Math.min(...rank.blocks.map((i) => spots[i].x));
    rank.right = Math.max(...rank.blocks.map((i) => spots[i].x + spots[i].width));
  }
  return ranks;
}

/** How many edges lead over the gap above each rank. */
function crossings(graph, ranks, home) {
  const rankOf = new Map(ranks.flatMap((rank, r) => rank.blocks.map((i) => [i, r])));
  const found = new Array(ranks.length + 1).fill(0);
  for (const [a, b, direct] of graph.edges) {
    if (!direct) continue;
    const [low, high] = [rankOf.get(home.get(a)), rankOf.get(home.get(b))].sort((p, q) => p - q);
    for (let r = low + 1; r <= high; r++) found[r] += 1;
  }
  return found;
}

const tall = (ranks) => ranks.reduce((sum, rank) => sum + rank.height + SPACE.rank, 0);

/** Numbers of columns that may fill the proportions best. */
function likely(ranks, aspect) {
  const mean = ranks.reduce((sum, rank) => sum + rank.right - rank.left + SPACE.column, 0) / ranks.length;
  const about = Math.max(1, Math.round(Math.sqrt((tall(ranks) * aspect) / mean)));
  return [about - 1, about, about + 1].filter((columns) => columns === 1 || (columns > 1 && columns <= ranks.length));
}

/** Break ranks into columns where the fewest edges cross, near where the columns would be of one height. */
function broken(ranks, crossing, wanted) {
  const columns = [];
  let from = 0;
  let rest = tall(ranks);
  for (let left = wanted; left > 0 && from < ranks.length; left--) {
    const to = left === 1 ? ranks.length : breakAfter(ranks, crossing, from, rest / left);
    columns.push(ranks.slice(from, to));
    rest -= tall(ranks.slice(from, to));
    from = to;
  }
  return columns;
}

/** The rank to start the next column with: of those near the goal, the one that the fewest edges lead over. */
function breakAfter(ranks, crossing, from, goal) {
  let height = 0;
  let best = ranks.length;
  let worth = Infinity;
  for (let r = from + 1; r < ranks.length; r++) {
    height += ranks[r - 1].height + SPACE.rank;
    const away = Math.abs(height - goal) / goal;
    if (height > 1.2 * goal && best < ranks.length) break;
    const here = away > 0.2 ? 1e6 * away : crossing[r] + away;
    if (here < worth) [best, worth] = [r, here];
  }
  return best;
}

function spread(graph, blocks, spots, columns) {
  const nodes = new Array(graph.layers.length);
  const found = [];
  let x = SPACE.pad;
  let bottom = 0;
  columns.forEach((ranks, c) => {
    const left = Math.min(...ranks.map((rank) => rank.left));
    const right = Math.max(...ranks.map((rank) => rank.right));
    let y = SPACE.pad;
    for (const rank of ranks) {
      for (const i of rank.blocks) {
        let top = y + (rank.height - spots[i].height) / 2;
        for (const n of blocks[i]) {
          const height = isFlat(graph.layers[n]) ? NODE.flat : NODE.tall;
          nodes[n] = { x: x + spots[i].x - left, y: top, width: NODE.width, height, column: c };
          top += height + NODE.gap;
        }
      }
      y += rank.height + SPACE.rank;
    }
    found.push({ x, width: right - left, top: SPACE.pad, bottom: y - SPACE.rank });
    bottom = Math.max(bottom, y - SPACE.rank);
    x += right - left + SPACE.column;
  });
  for (const column of found) column.end = bottom;
  return { nodes, columns: found, width: x - SPACE.column + SPACE.pad + 10, height: bottom + SPACE.pad };
}

/** The path of an edge: straight down, around to the next column, or, where a longer path implies it, beside the column. */
export function route(picture, a, b, direct) {
  const [p, q] = [picture.nodes[a], picture.nodes[b]];
  const [px, qx] = [p.x + p.width / 2, q.x + q.width / 2];
  if (!direct || (p.column === q.column && q.y <= p.y)) return bow(picture, p, q);
  if (p.column === q.column) {
    const [y0, y1] = [p.y + p.height, q.y];
    if (Math.abs(px - qx) < 1) return `M${px},${y0}V${y1}`;
    const middle = (y0 + y1) / 2;
    return `M${px},${y0}C${px},${middle} ${qx},${middle} ${qx},${y1}`;
  }
  return around(picture, p, q, px, qx);
}

function bow(picture, p, q) {
  if (p.column !== q.column) {
    const [x0, y0, x1, y1] = [p.x + p.width, p.y + p.height / 2, q.x, q.y + q.height / 2];
    const reach = Math.max(30, Math.abs(x1 - x0) / 2);
    return `M${x0},${y0}C${x0 + reach},${y0} ${x1 - reach},${y1} ${x1},${y1}`;
  }
  const [x0, x1] = [p.x + p.width, q.x + q.width];
  const [y0, y1] = [p.y + p.height / 2, q.y + q.height / 2];
  const out = Math.max(x0, x1) + Math.min(46, 12 + Math.abs(y1 - y0) / 14);
  return `M${x0},${y0}C${out},${y0} ${out},${y1} ${x1},${y1}`;
}

function around(picture, p, q, px, qx) {
  const from = picture.columns[p.column];
  const gutter = picture.columns[q.column].x - SPACE.column / 2;
  const [low, high] = [from.bottom + 11, SPACE.pad - 12];
  if (q.column !== p.column + 1) return bow(picture, p, q);
  const r = 8;
  return (
    `M${px},${p.y + p.height}V${low - r}Q${px},${low} ${px + r},${low}H${gutter - r}Q${gutter},${low} ${gutter},${low - r}` +
    `V${high + r}Q${gutter},${high} ${gutter + r},${high}H${qx - r}Q${qx},${high} ${qx},${high + r}V${q.y}`
  );
}
