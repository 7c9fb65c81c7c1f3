"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { rows, slices, marks, arrows } = data.timeline;
const svg = document.getElementById("timeline");
const tip = document.getElementById("tip");

// ---- layout, in pixels ---------------------------------------------------------------------------------------------

const LEFT = 72, RIGHT = 16, TOP = 34, TRACK = 58, BETWEEN = 46, BOTTOM = 26;
const ARROWS_AT_MOST = 120;
const SHORTEST_VIEW_MS = 0.05;
const rowTop = Object.fromEntries(rows.map((row, index) => [row, TOP + 12 + index * (TRACK + BETWEEN)]));
const height = rowTop[rows.at(-1)] + TRACK + BOTTOM;
const end = Math.max(data.timeline.end_ms, 1);
const whole = { from: 0, to: end * 1.01 };
let view = { ...whole };
let width = 0;

const x = (ms) => LEFT + ((ms - view.from) / (view.to - view.from)) * (width - LEFT - RIGHT);
const msAt = (pixel) => view.from + ((pixel - LEFT) / (width - LEFT - RIGHT)) * (view.to - view.from);
const visible = (from, to) => to >= view.from && from <= view.to;

// ---- words ---------------------------------------------------------------------------------------------------------

const STATES = {
  accepted: "drafted, and accepted",
  rejected: "drafted, and rejected",
  corrected: "the target's, in place of a rejected one",
  alone: "the target's own",
  late: "drafted too late: the target wrote it itself",
  unused: "drafted in vain",
};
const KINDS = {
  open: "vision tower", prefill: "prefill", window: "window", stopped: "stopped by a rollback",
  pass: "pass of the target", wait: "waiting",
};

const ms = (value) => (value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(2) : value.toFixed(3)) + " ms";
const quoted = (cells) => cells.map((cell) => JSON.stringify(cell.text)).join(" ");
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const positions = (item) =>
  item.cells.length > 1 ? `tokens ${item.start} to ${item.start + item.cells.length - 1}` : `token ${item.start}`;

/** The cells of a slice or mark, counted: a line for each state. */
function counted(cells) {
  const lines = [];
  for (const state of Object.keys(STATES)) {
    const those = cells.filter((cell) => cell.state === state);
    if (those.length) lines.push(`${those.length} ${STATES[state]}: ${quoted(those)}`);
  }
  return lines;
}

function described(item) {
  if ("at_ms" in item) return [`${item.text}, at ${ms(item.at_ms)}`, ...counted(item.cells)].join("\n");
  const took = item.end_ms - item.begin_ms;
  const lines = [`${KINDS[item.kind]}: ${ms(took)}, from ${ms(item.begin_ms)}`];
  const detail = item.detail;
  if (item.kind === "open") {
    const video = detail.video_tokens ? `, ${detail.video_tokens} of them video` : "";
    lines.push(`${detail.prompt_tokens} prompt tokens${video}`);
  }
  if (item.kind === "prefill") lines.push(`over ${detail.tokens} tokens`);
  if (item.kind === "stopped") lines.push(`${plural(detail.tokens, "token")} from ${item.start} on, never sent`);
  if (item.kind === "window") {
    lines.push(`${positions(item)}, ${ms(took / item.cells.length)} a token, epoch ${detail.epoch}`);
    if (detail.dropped) lines.push("not sent to the target");
  }
  if (item.kind === "pass") {
    const settled = item.cells.length ? `settles ${positions(item)}` : "settles nothing";
    lines.push(`over ${plural(detail.pass_tokens, "token")}, ${settled}, epoch ${detail.epoch}`);
  }
  return [...lines, ...counted(item.cells)].join("\n");
}

// ---- elements ------------------------------------------------------------------------------------------------------

function html(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function shape(parent, name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// ---- the answer ----------------------------------------------------------------------------------------------------

/** Answer position -> the slice or mark that settled it. */
const settledBy = new Map();
for (const item of [...slices, ...marks])
  if (item.kind === "pass" || item.kind === "verdict")
    item.cells.forEach((_, index) => settledBy.set(item.start + index, item));

const pieceAt = new Map();

function fillAnswer() {
  document.getElementById("question").textContent = data.question;
  document.getElementById("models").textContent = Object.entries(data.models)
    .map(([role, name]) => `${role}: ${name}`)
    .join("  ·  ");
  document.getElementById("about").textContent = data.about.filter(Boolean).join("  ·  ");
  const answer = document.getElementById("answer");
  if (data.ended) answer.append(html("span", { className: "unfinished", textContent: data.ended + "\n" }));
  for (const piece of data.pieces) {
    // A character of several tokens has the colour of the one that completed it.
    const state = piece.cells.at(-1).state;
    const textless = piece.text === "";
    const span = html("span", {
      className: `piece ${state}${piece.cut ? " cut" : ""}${textless ? " textless" : ""}`,
      textContent: textless ? piece.cells[0].text : piece.text,
    });
    span.dataset.start = piece.start;
    const item = settledBy.get(piece.start + piece.cells.length - 1);
    const lines = piece.cells.map(
      (cell, index) => `token ${piece.start + index}, id ${cell.token}, ${JSON.stringify(cell.text)}: ${STATES[cell.state]}`
    );
    lines.push(`settled at ${ms(item.at_ms ?? item.end_ms)}`);
    if (piece.cut) lines.push("after the stop string: no part of the answer's text");
    span.addEventListener("pointerenter", (event) => show(event, lines.join("\n"), item));
    span.addEventListener("pointerleave", hide);
    span.addEventListener("click", () => goTo(item));
    piece.cells.forEach((_, index) => pieceAt.set(piece.start + index, span));
    answer.append(span);
  }
  const cells = data.pieces.flatMap((piece) => piece.cells);
  legend(
    "writers",
    ["accepted", "corrected", "alone"]
      .map((state) => [state, cells.filter((cell) => cell.state === state).length])
      .filter(([, count]) => count)
      .map(([state, count]) => [state, `${STATES[state]}: ${plural(count, "token")}`])
  );
  const figures = document.getElementById("figures");
  for (const [name, value] of data.figures)
    figures.append(html("div", {}, html("dt", { textContent: name }), html("dd", { textContent: value })));
  if (!data.figures.length) figures.parentElement.hidden = true;
}

function legend(place, entries) {
  const line = document.getElementById(place);
  for (const [colour, words, isMoment] of entries) {
    const swatch = html("i", { className: isMoment ? "moment" : "" });
    swatch.style.background =
      place === "kinds" && colour === "stopped"
        ? "repeating-linear-gradient(45deg, var(--stopped) 0 2px, transparent 2px 5px)"
        : `var(--${colour === "rejected" ? "corrected" : colour})`;
    line.append(html("span", {}, swatch, words));
  }
}

// ---- the timeline --------------------------------------------------------------------------------------------------

function draw() {
  width = svg.clientWidth;
  svg.setAttribute("height", height);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const definitions = shape(svg, "defs", {});
  const clip = shape(definitions, "clipPath", { id: "plot" });
  shape(clip, "rect", { x: LEFT, y: 0, width: Math.max(0, width - LEFT - RIGHT), height });
  const hatch = shape(definitions, "pattern", {
    id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)",
  });
  shape(hatch, "line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "hatching" });
  for (const row of rows) {
    shape(svg, "text", { x: 14, y: rowTop[row] + TRACK / 2 + 5, class: "row" }, row);
    shape(svg, "rect", { x: LEFT, y: rowTop[row], width: width - LEFT - RIGHT, height: TRACK, class: "track" });
  }
  const plot = shape(svg, "g", { "clip-path": "url(#plot)" });
  drawRuler(plot);
  slices.forEach((piece, number) => visible(piece.begin_ms, piece.end_ms) && drawSlice(plot, piece, number));
  const seen = arrows.filter((arrow) => visible(arrow.begin_ms, arrow.end_ms));
  if (seen.length <= ARROWS_AT_MOST) seen.forEach((arrow) => drawArrow(plot, arrow));
  marks.forEach((mark, number) => visible(mark.at_ms, mark.at_ms) && drawMark(plot, mark, number));
  drawOverview();
}

function drawRuler(plot) {
  const span = view.to - view.from;
  const rough = (span / (width - LEFT - RIGHT)) * 90;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((value) => value >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  for (let number = Math.ceil(view.from / step); number * step <= view.to; number++) {
    const at = x(number * step);
    shape(plot, "line", { x1: at, x2: at, y1: TOP - 8, y2: height - BOTTOM + 8, class: "grid" });
    const long = view.to >= 10000 && step >= 100;
    const words = long ? `${((number * step) / 1000).toFixed(step < 1000 ? 1 : 0)} s` : `${(number * step).toFixed(digits)} ms`;
    const anchor = at < LEFT + 20 ? "start" : at > width - RIGHT - 24 ? "end" : "middle";
    shape(plot, "text", { x: at, y: TOP - 14, "text-anchor": anchor, class: "tick" }, words);
  }
}

function drawSlice(plot, piece, number) {
  const left = x(piece.begin_ms);
  const wide = Math.max(0.6, x(piece.end_ms) - left);
  const top = rowTop[piece.row];
  const group = shape(plot, "g", { class: `slice ${piece.kind}`, "data-number": number });
  if (piece.cells.length) drawCells(group, piece.cells, left, top, wide);
  else shape(group, "rect", { x: left, y: top, width: wide, height: TRACK, class: piece.kind === "pass" ? "bare" : piece.kind });
  if (piece.kind === "open" || piece.kind === "prefill") {
    const from = Math.max(left, LEFT), to = Math.min(left + wide, width - RIGHT);
    if (to - from > KINDS[piece.kind].length * 7 + 8)
      shape(group, "text", { x: (from + to) / 2, y: top + TRACK / 2 + 4, "text-anchor": "middle", class: "on-work" }, KINDS[piece.kind]);
  }
  if (wide > 3 && piece.kind !== "wait")
    shape(group, "rect", { x: left, y: top, width: wide, height: TRACK, class: "edge" });
  watch(group, piece);
}

/** Tokens side by side, in equal parts of the slice; neighbours of one state are one shape where they are narrow. */
function drawCells(group, cells, left, top, wide) {
  const each = wide / cells.length;
  for (let index = 0; index < cells.length; ) {
    let next = index + 1;
    while (next < cells.length && cells[next].state === cells[index].state) next++;
    shape(group, "rect", { x: left + index * each, y: top, width: (next - index) * each, height: TRACK, class: cells[index].state });
    index = next;
  }
  if (each < 3) return;
  cells.forEach((cell, index) => {
    const at = left + index * each;
    if (index) shape(group, "line", { x1: at, x2: at, y1: top, y2: top + TRACK, class: "seam" });
    const words = cell.text.trim() || "␣";
    if (each > words.length * 7.5 + 6)
      shape(group, "text", { x: at + each / 2, y: top + TRACK / 2 + 4, "text-anchor": "middle", class: "on-cell" }, words);
    else if (each >= 15 && words.length <= 14) {
      const turned = `translate(${at + each / 2 + 4} ${top + TRACK - 5}) rotate(-90)`;
      if (words.length * 7.4 <= TRACK - 8)
        shape(group, "text", { transform: turned, class: "on-cell" }, words);
    }
  });
}

function drawArrow(plot, arrow) {
  const draftSide = rowTop.draft + TRACK, targetSide = rowTop.target;
  const [y1, y2] = arrow.kind === "window" ? [draftSide, targetSide] : [targetSide, draftSide];
  const x1 = x(arrow.begin_ms), x2 = x(arrow.end_ms);
  const bend = (y2 - y1) / 2;
  shape(plot, "path", { d: `M${x1} ${y1} C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`, class: `arrow ${arrow.kind}` });
  const tipY = y2 - Math.sign(bend) * 5;
  shape(plot, "path", { d: `M${x2 - 2.5} ${tipY} L${x2} ${y2} L${x2 + 2.5} ${tipY}`, class: `arrow ${arrow.kind}` });
}

/** Verdicts without a pass are below the target's track, all other marks above the track of their row. */
function drawMark(plot, mark, number) {
  const at = x(mark.at_ms);
  const group = shape(plot, "g", { class: "slice", "data-mark": number });
  if (mark.kind === "verdict") {
    const y = rowTop.target + TRACK;
    mark.cells.forEach((cell, index) =>
      shape(group, "rect", { x: at - 2.5, y: y + 2 + 8 * index, width: 5, height: 7, class: `mark ${cell.state}` })
    );
  } else {
    const y = rowTop[mark.row] - 1;
    shape(group, "path", { d: `M${at} ${y} l-5 -9 h10 z`, class: `mark ${mark.kind}` });
  }
  watch(group, mark);
}

function drawOverview() {
  const y = height - 7, room = width - LEFT - RIGHT;
  shape(svg, "rect", { x: LEFT, y, width: Math.max(0, room), height: 3, rx: 1.5, class: "all" });
  const from = LEFT + (view.from / whole.to) * room, to = LEFT + (view.to / whole.to) * room;
  shape(svg, "rect", { x: from, y, width: Math.max(4, to - from), height: 3, rx: 1.5, class: "view" });
}

// ---- looking around ------------------------------------------------------------------------------------------------

/** Change the view, within the whole; the address has it. */
function look(from, to) {
  const span = Math.min(Math.max(to - from, SHORTEST_VIEW_MS), whole.to);
  from = Math.min(Math.max(from, 0), whole.to - span);
  view = { from, to: from + span };
  history.replaceState(null, "", span >= whole.to ? "#" : `#${view.from.toFixed(3)}-${view.to.toFixed(3)}`);
  draw();
}

function zoom(factor, around = (view.from + view.to) / 2) {
  look(around - (around - view.from) * factor, around + (view.to - around) * factor);
}

function goTo(item) {
  const at = item.at_ms ?? (item.begin_ms + item.end_ms) / 2;
  const span = Math.min((view.to - view.from), (end - data.timeline.decoding_ms) / 5);
  look(at - span / 2, at + span / 2);
  light(item);
}

function fromAddress() {
  const found = location.hash.match(/^#([\d.]+)-([\d.]+)$/);
  if (found && +found[2] > +found[1]) look(+found[1], +found[2]);
  else draw();
}

let dragged = null;
svg.addEventListener("wheel", (event) => {
  event.preventDefault();
  const span = view.to - view.from;
  if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    const step = (event.deltaX / width) * span;
    look(view.from + step, view.to + step);
  } else zoom(Math.exp(Math.max(-200, Math.min(200, event.deltaY)) / 400), msAt(event.offsetX));
}, { passive: false });
svg.addEventListener("pointerdown", (event) => {
  dragged = { at: event.clientX, ...view };
  svg.setPointerCapture(event.pointerId);
});
svg.addEventListener("pointermove", (event) => {
  if (dragged === null) return;
  const moved = ((event.clientX - dragged.at) / (width - LEFT - RIGHT)) * (dragged.to - dragged.from);
  look(dragged.from - moved, dragged.to - moved);
});
for (const over of ["pointerup", "pointercancel"]) svg.addEventListener(over, () => (dragged = null));
svg.addEventListener("dblclick", () => look(whole.from, whole.to));
svg.addEventListener("keydown", (event) => {
  const step = (view.to - view.from) / 5;
  const act = {
    ArrowLeft: () => look(view.from - step, view.to - step), ArrowRight: () => look(view.from + step, view.to + step),
    "+": () => zoom(0.5), "-": () => zoom(2), 0: () => look(whole.from, whole.to),
  }[event.key];
  if (act) { event.preventDefault(); act(); }
});
document.getElementById("whole").addEventListener("click", () => look(whole.from, whole.to));
document.getElementById("decoding").addEventListener("click", () => look(data.timeline.decoding_ms - (end - data.timeline.decoding_ms) * 0.02, whole.to));
document.getElementById("closer").addEventListener("click", () => zoom(0.5));
document.getElementById("wider").addEventListener("click", () => zoom(2));
window.addEventListener("resize", draw);
window.addEventListener("hashchange", fromAddress);

// ---- what the pointer is on ----------------------------------------------------------------------------------------

function watch(group, item) {
  group.addEventListener("pointerenter", (event) => show(event, described(item), item));
  group.addEventListener("pointerleave", hide);
}

function show(event, words, item) {
  if (dragged !== null) return;
  tip.textContent = words;
  tip.hidden = false;
  const { width: wide, height: high } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - wide - 8))}px`;
  tip.style.top = `${event.clientY + 18 + high > innerHeight ? Math.max(4, event.clientY - high - 12) : event.clientY + 18}px`;
  light(item);
}

/** Highlight a slice or mark, and its tokens in the answer. */
function light(item) {
  unlight();
  const slice = slices.indexOf(item);
  const selector = slice < 0 ? `[data-mark="${marks.indexOf(item)}"]` : `[data-number="${slice}"]`;
  svg.querySelector(selector)?.classList.add("lit");
  item.cells.forEach((_, index) => pieceAt.get(item.start + index)?.classList.add("lit"));
}

function unlight() {
  document.querySelectorAll(".lit").forEach((element) => element.classList.remove("lit"));
}

function hide() {
  tip.hidden = true;
  unlight();
}

// ---- begin ---------------------------------------------------------------------------------------------------------

/** Explain the kinds that this timeline has. */
function fillLegend() {
  const kinds = new Set(slices.map((piece) => (piece.kind === "pass" && !piece.cells.length ? "bare" : piece.kind)));
  const states = new Set([...slices, ...marks].flatMap((item) => item.cells.map((cell) => cell.state)));
  const moments = new Set(marks.map((mark) => mark.kind));
  legend("kinds", [
    ...[["open", KINDS.open], ["prefill", KINDS.prefill]].filter(([kind]) => kinds.has(kind)),
    ...[
      ["accepted", "accepted"], ["rejected", "rejected, and its correction"], ["alone", "the target's own"],
      ["late", "drafted too late"], ["unused", "drafted in vain"],
    ].filter(([state]) => states.has(state)),
    ...[["bare", "a pass that settles nothing"], ["stopped", KINDS.stopped], ["wait", KINDS.wait]].filter(([kind]) => kinds.has(kind)),
    ...[
      ["prefill", "prune mask", "mask"], ["corrected", "rollback", "rollback"], ["alone", "the target continues alone", "alone"],
      ["accepted", "together again", "together"], ["accepted", "continues with a prepared window", "hit"], ["ink", "draft lost", "lost"], ["ink", "failed", "failed"],
    ].filter(([, , kind]) => moments.has(kind)),
  ]);
}

fillAnswer();
fillSurroundings();
fillLegend();
fromAddress();
