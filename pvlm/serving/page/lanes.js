"use strict";

// The lanes of draft and target, and the frames with the video tokens that the draft sees. Both are drawn on canvases.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Two rows of work over time. The window of time follows the newest work. */
class Lanes {
  constructor(canvas) {
    this.canvas = canvas;
    this.clear();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  clear() {
    this.work = [];
    this.draw();
  }

  add(pieces) {
    this.work.push(...pieces);
    const last = this.work[this.work.length - 1];
    const count = (row) => this.work.filter((one) => one.row === row).length;
    this.canvas.setAttribute(
      "aria-label",
      `${count("draft")} windows of the draft and ${count("target")} passes of the target in ${Math.round(last.end_ms)} ms`,
    );
    this.draw();
  }

  draw() {
    const { canvas, work } = this;
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = width * scale;
    canvas.height = height * scale;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.font = "13px system-ui, sans-serif";
    const left = 64;
    const begin = work.length ? Math.min(...work.map((one) => one.begin_ms)) : 0;
    const end = work.length ? Math.max(...work.map((one) => one.end_ms)) : 1;
    const x = (ms) => left + ((ms - begin) / Math.max(1, end - begin)) * (width - left - 10);
    ["draft", "target"].forEach((row, index) => {
      const top = 12 + index * 38;
      context.fillStyle = colour("--ink");
      context.fillText(row, 10, top + 19);
      context.fillStyle = colour("--paper");
      context.fillRect(left, top, width - left - 10, 28);
      for (const one of work.filter((piece) => piece.row === row)) {
        const wide = Math.max(1.5, x(one.end_ms) - x(one.begin_ms) - 0.5);
        context.fillStyle = colour(row === "draft" ? "--d" : one.rejected ? "--c" : "--t");
        context.fillRect(x(one.begin_ms), top, wide, 28);
      }
    });
    context.fillStyle = colour("--faint");
    context.fillText(work.length ? `${Math.round(end - begin)} ms` : "", left, height - 4);
  }
}

/** Frames; tokens that the draft does not see are dimmed, and the others framed. */
class Frames {
  constructor(place, caption) {
    this.place = place;
    this.caption = caption;
    this.clear();
  }

  clear() {
    this.video = null;
    this.mask = null;
    this.place.replaceChildren();
    this.caption.textContent = "";
  }

  take({ video, mask }) {
    this.video = video || this.video;
    this.mask = mask || this.mask;
    if (this.video && (video || mask)) this.draw();
  }

  draw() {
    if (this.mask) {
      const { kept, tokens } = this.mask;
      this.caption.textContent = `The draft sees ${tokens ? `${kept} of ${tokens} video tokens` : "the whole video"}.`;
    }
    this.place.replaceChildren(
      ...this.video.frames.map((frame, number) => {
        const canvas = document.createElement("canvas");
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `frame ${number + 1} of ${this.video.frames.length}`);
        const image = new Image();
        image.onload = () => this.paint(canvas, image, frame.moment);
        image.src = frame.picture;
        return canvas;
      }),
    );
  }

  paint(canvas, image, moment) {
    canvas.width = image.width;
    canvas.height = image.height;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const [t, h, w] = this.video.grid;
    if (!this.mask || t * h * w !== this.mask.tokens) return;
    const bits = atob(this.mask.bits);
    const [wide, high] = [image.width / w, image.height / h];
    for (let place = 0; place < h * w; place += 1) {
      const token = moment * h * w + place;
      const kept = (bits.charCodeAt(token >> 3) >> (7 - (token & 7))) & 1;
      const [left, top] = [(place % w) * wide, Math.floor(place / w) * high];
      if (kept) {
        context.strokeStyle = colour("--kept");
        context.strokeRect(left + 0.5, top + 0.5, wide - 1, high - 1);
      } else {
        context.fillStyle = colour("--dimmed");
        context.fillRect(left, top, wide, high);
      }
    }
  }
}
