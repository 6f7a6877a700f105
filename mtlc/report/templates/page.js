"use strict";
// Paper has nothing to click: what is folded is opened while the page is printed.
const folded = [];
addEventListener("beforeprint", () => {
  folded.push(...document.querySelectorAll("details:not([open])"));
  for (const one of folded) one.open = true;
});
addEventListener("afterprint", () => { for (const one of folded.splice(0)) one.open = false; });

// ---- the graph of the network --------------------------------------------------------------------------------------
// A box is {n: label, p: path, k: kind, s: line, t: all in words, h: shades by measure, l: share left, g: gone}. A module
// has c: boxes in it, r: rows of them (numbers beyond c are bends of edges), e: routes of edges through them, b: edges
// that go up, i and o: which read from outside and are read there, x: open.
const SVG = "http://www.w3.org/2000/svg", PAD = 14, HEAD = 24, GAP = 16, STEP = 26, BEND = 8;

const shape = (name, at, parent) => {
  const made = document.createElementNS(SVG, name);
  for (const key in at) made.setAttribute(key, at[key]);
  return parent.appendChild(made);
};
const written = (parent, x, y, text, kind) => { shape("text", {x, y, class: kind}, parent).textContent = text; };
const cut = (text, most) => text.length <= most ? text : "…" + text.slice(1 - most);

// Sizes from the inside out; then places of what is in a box, relative to it.
function sized(box) {
  if (!box.c || !box.x) {
    [box.w, box.h2] = box.k === "join" ? [22, 22] : box.k === "input" || box.k === "output" ? [Math.max(64, 7.4 * box.n.length + 22), 26] : [168, 46];
    return;
  }
  box.c.forEach(sized);
  const wide = item => item < box.c.length ? box.c[item].w : BEND;
  const widths = box.r.map(row => row.reduce((sum, item) => sum + wide(item) + GAP, -GAP));
  box.w = Math.max(120, 7 * cut(box.n, 30).length + 40, ...widths) + 2 * PAD;
  box.at = {};
  let y = box.p || box.n ? HEAD + PAD : 0;
  box.r.forEach((row, index) => {
    const high = Math.max(0, ...row.map(item => item < box.c.length ? box.c[item].h2 : 0));
    let x = (box.w - widths[index]) / 2;
    for (const item of row) {
      const own = item < box.c.length ? box.c[item].h2 : high;
      box.at[item] = [x, y + (high - own) / 2, wide(item), own];
      x += wide(item) + GAP;
    }
    y += high + STEP;
  });
  box.h2 = y - STEP + PAD;
}

function curve(points, parent, kind) {
  let d = `M${points[0]}`;
  for (let i = 1; i < points.length; i++) {
    const [x0, y0] = points[i - 1], [x1, y1] = points[i], half = (y0 + y1) / 2;
    d += x0 === x1 || y0 === y1 ? `L${x1} ${y1}` : `C${x0} ${half} ${x1} ${half} ${x1} ${y1}`;
  }
  shape("path", {d, class: kind}, parent);
}

function drawn(box, x, y, parent, graph) {
  const plain = ["join", "input", "output"].includes(box.k), root = box === graph.root;
  const g = shape("g", {transform: `translate(${x} ${y})`}, parent);
  if (!root) {
    g.setAttribute("class", `box ${box.k}${box.g ? " gone" : ""}${box.c ? " module" : ""}${box.x ? " open" : ""}`);
    g.setAttribute("tabindex", "0");
    g.setAttribute("role", box.c ? "button" : "img");
    g.setAttribute("aria-label", box.t.replaceAll("\n", ", "));
    if (box.c) g.setAttribute("aria-expanded", String(!!box.x));
    graph.boxes.set(g, box);
    shape("title", {}, g).textContent = box.t;
    const shade = box.h ? box.h[graph.measure] : -1;
    if (box.c && !box.x) shape("rect", {x: 4, y: 4, width: box.w, height: box.h2, rx: 6, class: "under"}, g);
    const rect = shape("rect", {width: box.w, height: box.h2, rx: plain ? box.h2 / 2 : 6}, g);
    if (!box.x && shade > 0) rect.style.fill = `color-mix(in srgb, var(--shade) ${Math.round(78 * shade)}%, var(--raised))`;
    if (shade < 0 && !plain && !box.x) g.classList.add("unknown");
    if (plain) written(g, box.w / 2, box.h2 / 2 + 4, cut(box.n, 24), "middle");
    else {
      written(g, 10, 18, (box.c ? (box.x ? "▾ " : "▸ ") : "") + cut(box.n, box.x ? 60 : 20), "name");
      if (!box.x) {
        written(g, 10, 33, box.s, "figures");
        if (box.l !== undefined) {
          shape("rect", {x: 10, y: 38, width: box.w - 20, height: 3, class: "was"}, g);
          shape("rect", {x: 10, y: 38, width: (box.w - 20) * box.l, height: 3, class: "left"}, g);
        }
      }
    }
  }
  if (!box.c || !box.x) return;
  const top = item => [box.at[item][0] + box.at[item][2] / 2, box.at[item][1]];
  const bottom = item => [top(item)[0], box.at[item][1] + box.at[item][3]];
  for (const route of box.e) {
    const bends = route.slice(1, -1).flatMap(item => [top(item), bottom(item)]);
    curve([bottom(route[0]), ...bends, top(route.at(-1))], g, "edge");
  }
  for (const [from, to] of box.b) curve([top(from), bottom(to)], g, "edge up");
  if (!root) {
    // What comes from outside enters at the top, or at the left where boxes stand above; what leaves, at the bottom or right.
    const side = item => box.at[item][1] + box.at[item][3] / 2;
    for (const item of box.i) curve(box.r[0].includes(item) ? [[top(item)[0], HEAD + 2], top(item)] : [[0, side(item)], [box.at[item][0], side(item)]], g, "edge tap");
    for (const item of box.o) curve(box.r.at(-1).includes(item) ? [bottom(item), [bottom(item)[0], box.h2]] : [[box.at[item][0] + box.at[item][2], side(item)], [box.w, side(item)]], g, "edge tap");
  }
  box.c.forEach((inner, item) => drawn(inner, box.at[item][0], box.at[item][1], g, graph));
}

for (const frame of document.querySelectorAll("[data-network]")) {
  const graph = {root: JSON.parse(frame.dataset.network), measure: 0, zoom: 0, boxes: new Map()};
  const canvas = frame.querySelector(".canvas"), told = frame.querySelector(".told");
  graph.root.x = 1;
  // Within the frame's padding, which clientWidth counts.
  const room = () => { const style = getComputedStyle(canvas); return canvas.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight); };
  const every = (box, act) => { for (const inner of box.c || []) { act(inner); every(inner, act); } };
  const draw = focus => {
    sized(graph.root);
    graph.boxes.clear();
    const w = graph.root.w + 8, h = graph.root.h2 + 8;
    if (!graph.zoom) graph.zoom = Math.min(1, Math.max(.7, room() / w));
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `-2 -2 ${w} ${h}`);
    svg.setAttribute("role", "group");
    svg.setAttribute("aria-label", "Graph of the network");
    svg.style.width = `${w * graph.zoom}px`;
    drawn(graph.root, 0, 0, svg, graph);
    canvas.replaceChildren(svg);
    for (const [g, box] of graph.boxes) if (box === focus) g.focus({preventScroll: true});
  };
  const toggle = g => {
    const box = graph.boxes.get(g);
    if (!box || !box.c) return;
    box.x = box.x ? 0 : 1;
    draw(box);
  };
  let drag = null;
  canvas.addEventListener("click", event => { if (!drag || !drag.moved) toggle(event.target.closest(".box")); });
  canvas.addEventListener("keydown", event => {
    const g = event.target.closest(".box");
    if (g && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); toggle(g); }
  });
  const tell = event => { const box = graph.boxes.get(event.target.closest && event.target.closest(".box")); if (box) told.textContent = box.t; };
  canvas.addEventListener("pointerover", tell);
  canvas.addEventListener("focusin", tell);
  canvas.addEventListener("pointerdown", event => {
    drag = event.pointerType === "mouse" ? {x: event.clientX + canvas.scrollLeft, y: event.clientY + canvas.scrollTop, moved: false} : null;
  });
  canvas.addEventListener("pointermove", event => {
    if (!drag || !event.buttons) return;
    const x = drag.x - event.clientX, y = drag.y - event.clientY;
    drag.moved = drag.moved || Math.abs(x - canvas.scrollLeft) + Math.abs(y - canvas.scrollTop) > 4;
    if (drag.moved) { canvas.scrollLeft = x; canvas.scrollTop = y; }
  });
  const does = {
    in: () => { graph.zoom = Math.min(3, graph.zoom * 1.25); graph.own = true; },
    out: () => { graph.zoom = Math.max(.15, graph.zoom / 1.25); graph.own = true; },
    fit: () => { graph.zoom = Math.min(1, room() / (graph.root.w + 8)); },
    open: () => { const closed = []; const look = box => { for (const inner of box.c || []) if (inner.c) inner.x ? look(inner) : closed.push(inner); }; look(graph.root); for (const box of closed) box.x = 1; graph.zoom = 0; },
    close: () => { every(graph.root, box => { if (box.c) box.x = 0; }); graph.zoom = 0; },
  };
  frame.addEventListener("click", event => { const what = event.target.dataset.do; if (does[what]) { does[what](); draw(); } });
  frame.querySelector("select").addEventListener("change", event => { graph.measure = event.target.selectedIndex; draw(); });
  draw();
  // A phone that is turned, and a section that is unfolded, have another width; a zoom that was chosen stays.
  let width = canvas.clientWidth;
  new ResizeObserver(() => {
    if (canvas.clientWidth === width || graph.own || !canvas.clientWidth) return;
    width = canvas.clientWidth;
    graph.zoom = 0;
    draw();
  }).observe(canvas);
}
