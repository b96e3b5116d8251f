// Where the layers of a graph are drawn: dagre puts them in ranks from top to bottom, and the ranks are then broken into
// columns, as a newspaper breaks its text, so that a deep network fills the picture instead of a thread through it.

import { Graph, layout as dagre } from "@dagrejs/dagre";
import { curveMonotoneY, line } from "d3-shape";

export const NODE = { width: 196, tall: 40, flat: 22, gap: 2 };
const SPACE = { rank: 20, node: 16, column: 58, pad: 26 };

// Blocks between two waists beyond which ranks are found without dagre, which takes a second for five hundred.
const LARGE = 200;

/** A norm, or another layer that only scales what it is given: drawn flat, and right below the layer that it belongs to. */
export function isFlat(layer) {
  return /norm/.test(layer.op);
}

/**
 * Place the layers of a graph in a picture of about the given proportions, `aspect` = width / height.
 *
 * Returns `nodes`, by number `{x, y, width, height, column}` with their upper left corners, `width` and `height` of the
 * picture, `junctions`, where edges meet, and what `route` needs.
 */
export function place(graph, aspect) {
  const layers = stack(graph);
  const { blocks, edges, via, home } = joined(layers, forward(graph, homes(layers)));
  const heights = blocks.map((block) => heightOf(graph, block));
  const { ranks, bends } = ranked(heights, edges);
  const crossing = crossings(edges, ranks);
  const pictures = likely(ranks, aspect).map((columns) => spread(graph, blocks, heights, broken(ranks, crossing, columns)));
  const scale = (picture) => Math.min(aspect / picture.width, 1 / picture.height);
  const best = pictures.reduce((a, b) => (scale(b) > scale(a) ? b : a));
  const junctions = blocks.flatMap((block, i) => (block.length ? [] : [best.boxes[i]]));
  return { ...best, home, via, junctions, bends: bent(bends, ranks, best) };
}

function homes(blocks) {
  return new Map(blocks.flatMap((block, i) => block.map((n) => [n, i])));
}

/**
 * Put a junction, a block without layers, where several blocks read the same several others, as behind a concatenation:
 * a few edges in place of all pairs.
 *
 * Returns the blocks with their junctions, the edges between them, and by pair of blocks the junction in between.
 */
function joined(blocks, edges) {
  const sources = new Map();
  for (const [a, b] of edges) sources.set(b, [...(sources.get(b) ?? []), a]);
  const readers = new Map();
  for (const [b, from] of sources) {
    const key = from.sort((p, q) => p - q).join(" ");
    readers.set(key, [...(readers.get(key) ?? []), b]);
  }
  const bundles = [...readers.values()].map((to) => ({ to, from: sources.get(to[0]) }));
  const found = bundles.filter(({ to, from }) => to.length > 1 && from.length > 1 && Math.max(...from) < Math.min(...to));
  // A junction comes right before the first of its readers.
  const before = new Map();
  for (const bundle of found) {
    const first = Math.min(...bundle.to);
    before.set(first, [...(before.get(first) ?? []), bundle]);
  }
  const all = [];
  const number = [];
  blocks.forEach((block, i) => {
    for (const bundle of before.get(i) ?? []) {
      bundle.number = all.length;
      all.push([]);
    }
    number[i] = all.length;
    all.push(block);
  });
  const via = new Map();
  for (const { from, to, number: junction } of found) {
    for (const a of from) for (const b of to) via.set(`${number[a]} ${number[b]}`, junction);
  }
  const kept = edges.map(([a, b]) => [number[a], number[b]]).filter(([a, b]) => !via.has(`${a} ${b}`));
  for (const bundle of found) {
    kept.push(...bundle.from.map((a) => [number[a], bundle.number]), ...bundle.to.map((b) => [bundle.number, number[b]]));
  }
  return { blocks: all, edges: kept, via, home: homes(all) };
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
  if (!block.length) return 4;
  return block.reduce((sum, n) => sum + (isFlat(graph.layers[n]) ? NODE.flat : NODE.tall), NODE.gap * (block.length - 1));
}

/** The edges between blocks that decide where they are: those that no longer path implies, with the order of layers. */
function forward(graph, home) {
  const found = new Map();
  for (const [a, b, direct] of graph.edges) {
    const [from, to] = [home.get(a), home.get(b)];
    if (direct && from < to) found.set(`${from} ${to}`, [from, to]);
  }
  return [...found.values()];
}

/**
 * Ranks from top to bottom, `[{blocks: [{i, x}], height, left, right}]`, `x` the middle of a block.
 *
 * Blocks that no edge leads past are waists: what lies between two of them is laid out alone, so that a deep network
 * costs no more than its parts.
 */
function ranked(heights, edges) {
  const past = new Array(heights.length + 1).fill(0);
  for (const [a, b] of edges) {
    past[a + 1] += 1;
    past[b] -= 1;
  }
  let over = 0;
  const waist = heights.map((_, i) => (over += past[i]) === 0);
  const found = { ranks: [], bends: new Map(), placed: new Set() };
  for (let i = 0; i < heights.length; i++) {
    if (waist[i]) {
      if (!found.placed.has(i)) add(found, [{ i, x: 0 }], heights);
      continue;
    }
    // Nothing leads past the first block or past the last one: there is a waist on both sides.
    const end = waist.indexOf(true, i);
    part(i - 1, end, heights, edges, found);
    i = end - 1;
  }
  return found;
}

function add(found, blocks, heights) {
  for (const { i } of blocks) found.placed.add(i);
  const middles = blocks.map(({ x }) => x);
  const [left, right] = [Math.min(...middles) - NODE.width / 2, Math.max(...middles) + NODE.width / 2];
  found.ranks.push({ blocks, left, right, height: Math.max(...blocks.map(({ i }) => heights[i])) });
}

/** Where dagre puts the blocks from one waist to the next: their middles, and the points of the edges between them. */
function drawnByDagre(first, last, heights, edges) {
  const drawn = new Graph();
  drawn.setGraph({ rankdir: "TB", nodesep: SPACE.node, ranksep: SPACE.rank, ranker: "longest-path" });
  drawn.setDefaultEdgeLabel(() => ({}));
  for (let i = first; i <= last; i++) drawn.setNode(String(i), { width: NODE.width, height: heights[i] });
  for (const [a, b] of edges) drawn.setEdge(String(a), String(b));
  dagre(drawn);
  return { at: (i) => drawn.node(String(i)), points: (a, b) => drawn.edge(String(a), String(b)).points };
}

/** The same for parts that dagre would take seconds for: ranks by longest path, blocks in their order. */
function drawnByOrder(first, last, edges) {
  const depth = new Map();
  const row = new Map();
  const sources = new Map();
  for (const [a, b] of edges) sources.set(b, [...(sources.get(b) ?? []), a]);
  for (let i = first; i <= last; i++) {
    const y = 1 + Math.max(-1, ...(sources.get(i) ?? []).map((a) => depth.get(a)));
    depth.set(i, y);
    row.set(y, [...(row.get(y) ?? []), i]);
  }
  const x = (i) => {
    const beside = row.get(depth.get(i));
    return (beside.indexOf(i) - (beside.length - 1) / 2) * (NODE.width + SPACE.node);
  };
  return { at: (i) => ({ x: x(i), y: depth.get(i) }), points: () => [] };
}

/** Add the ranks from one waist to the next. */
function part(first, last, heights, edges, found) {
  const inside = edges.filter(([a, b]) => a >= first && b <= last);
  const drawn = last - first > LARGE ? drawnByOrder(first, last, inside) : drawnByDagre(first, last, heights, inside);
  const rowOf = (point) => Math.round(point.y);
  const rows = new Map();
  for (let i = first; i <= last; i++) {
    const node = drawn.at(i);
    rows.set(rowOf(node), [...(rows.get(rowOf(node)) ?? []), { i, x: node.x }]);
  }
  const levels = [...rows.keys()].sort((a, b) => a - b);
  // A waist that shares its rank, such as one of two inputs, is of the part; the one above stands there already.
  if (rows.get(levels[0]).length > 1 && found.ranks.at(-1)?.blocks.every(({ i }) => i === first)) {
    found.ranks.pop();
    found.placed.delete(first);
  }
  const below = rows.get(levels.at(-1)).length === 1;
  const mine = ({ i }) => !found.placed.has(i) && !(i === last && below);
  const middles = [...rows.values()].flat().filter(mine).map(({ x }) => x);
  const middle = (Math.min(...middles) + Math.max(...middles)) / 2;
  const number = new Map();
  for (const level of levels) {
    const row = rows.get(level).filter(mine);
    if (!row.length) continue;
    number.set(level, found.ranks.length);
    add(found, row.map(({ i, x }) => ({ i, x: x - middle })).sort((p, q) => p.x - q.x), heights);
  }
  for (const [a, b] of inside) {
    const ends = [a, b].map((i) => rowOf(drawn.at(i)));
    const passed = drawn.points(a, b).filter((p) => number.has(rowOf(p)) && !ends.includes(rowOf(p)));
    if (passed.length) found.bends.set(`${a} ${b}`, passed.map((p) => ({ rank: number.get(rowOf(p)), x: p.x - middle })));
  }
}

/** How many edges lead over the gap above each rank. */
function crossings(edges, ranks) {
  const rankOf = new Map(ranks.flatMap((rank, r) => rank.blocks.map(({ i }) => [i, r])));
  const steps = new Array(ranks.length + 2).fill(0);
  for (const [a, b] of edges) {
    const [low, high] = [rankOf.get(a), rankOf.get(b)].sort((p, q) => p - q);
    steps[low + 1] += 1;
    steps[high + 1] -= 1;
  }
  let over = 0;
  return steps.map((step) => (over += step));
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

function spread(graph, blocks, heights, columns) {
  const nodes = new Array(graph.layers.length);
  const boxes = new Array(blocks.length);
  const found = [];
  let x = SPACE.pad;
  let bottom = 0;
  columns.forEach((ranks, c) => {
    const left = Math.min(...ranks.map((rank) => rank.left));
    const right = Math.max(...ranks.map((rank) => rank.right));
    const middles = new Map();
    let y = SPACE.pad;
    for (const rank of ranks) {
      middles.set(rank, y + rank.height / 2);
      for (const { i, x: middle } of rank.blocks) {
        let top = y + (rank.height - heights[i]) / 2;
        boxes[i] = { x: x + middle - left, y: top, width: 0, height: heights[i], column: c };
        for (const n of blocks[i]) {
          const height = isFlat(graph.layers[n]) ? NODE.flat : NODE.tall;
          nodes[n] = { x: x + middle - NODE.width / 2 - left, y: top, width: NODE.width, height, column: c };
          top += height + NODE.gap;
        }
      }
      y += rank.height + SPACE.rank;
    }
    found.push({ x, left, middles, width: right - left, bottom: y - SPACE.rank });
    bottom = Math.max(bottom, y - SPACE.rank);
    x += right - left + SPACE.column;
  });
  return { nodes, boxes, columns: found, width: x - SPACE.column + SPACE.pad + 10, height: bottom + SPACE.pad };
}

/** Where edges bend in the picture, by pair of blocks: only those that stay in one column. */
function bent(bends, ranks, picture) {
  const found = new Map();
  for (const [pair, points] of bends) {
    const [a, b] = pair.split(" ").map((i) => picture.boxes[i]);
    const column = picture.columns[a.column];
    if (b.column !== a.column || !points.every((p) => column.middles.has(ranks[p.rank]))) continue;
    found.set(pair, points.map((p) => [column.x + p.x - column.left, column.middles.get(ranks[p.rank])]));
  }
  return found;
}

const curve = line().curve(curveMonotoneY);

/** The path of an edge: straight down, around to the next column, or, where a longer path implies it, beside the column. */
export function route(picture, a, b, direct) {
  const [p, q] = [picture.nodes[a], picture.nodes[b]];
  const [from, to] = [picture.home.get(a), picture.home.get(b)];
  if (!direct || (p.column === q.column && q.y <= p.y)) return bow(picture, p, q);
  const junction = picture.via.get(`${from} ${to}`);
  if (junction === undefined) return link(picture, p, q, `${from} ${to}`);
  const box = picture.boxes[junction];
  return link(picture, p, box, `${from} ${junction}`) + link(picture, box, q, `${junction} ${to}`);
}

function link(picture, p, q, pair) {
  const [px, qx] = [p.x + p.width / 2, q.x + q.width / 2];
  if (p.column !== q.column) return around(picture, p, q, px, qx);
  const [y0, y1] = [p.y + p.height, q.y];
  const points = picture.bends.get(pair);
  if (points) return curve([[px, y0], ...points, [qx, y1]]);
  if (Math.abs(px - qx) < 1) return `M${px},${y0}V${y1}`;
  const middle = (y0 + y1) / 2;
  return `M${px},${y0}C${px},${middle} ${qx},${middle} ${qx},${y1}`;
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
