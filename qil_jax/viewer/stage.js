"use strict";
/* The canvas: its zoom, dragging of layers, the outline of the selected one, and the comparison with the input. */

const CLICK = 3; // pixels of the screen that a pointer may slip during a click
const GRASPED = 8; // alpha of 255 from which a pointer takes hold of a layer
const STEPS = [0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16];

class Stage {
  constructor(root, editor, signal) {
    Object.assign(this, { root, editor, drag: null, frame: 0, zoom: 1, isFitted: true });
    const find = (selector) => root.querySelector(selector);
    Object.assign(this, { window: find(".window"), sheet: find(".sheet"), picture: find(".picture") });
    Object.assign(this, { outline: find(".outline"), comparison: find(".comparison"), share: find(".zoom") });
    [this.width, this.height] = editor.result.size;
    Object.assign(this.picture, { width: this.width, height: this.height });
    this.context = this.picture.getContext("2d");
    this.compositor = new Compositor(this.width, this.height, (box) => this.paint(box));
    this.data = new ImageData(this.compositor.pixels, this.width, this.height);
    this.listen(find, signal);
    const observer = new ResizeObserver(() => this.isFitted && !this.window.hidden && this.fit());
    observer.observe(this.window);
    signal.addEventListener("abort", () => observer.disconnect());
    editor.listeners.push(() => this.schedule());
    this.draw();
    this.fit();
  }

  listen(find, signal) {
    const { picture } = this;
    picture.addEventListener("pointerdown", (event) => this.grasp(event));
    picture.addEventListener("pointermove", (event) => this.pull(event));
    picture.addEventListener("pointerup", () => this.release());
    picture.addEventListener("pointercancel", () => this.release());
    picture.addEventListener("keydown", (event) => this.key(event));
    find(".in").addEventListener("click", () => this.step(1));
    find(".out").addEventListener("click", () => this.step(-1));
    find(".fit").addEventListener("click", () => this.fit());
    for (const radio of this.root.querySelectorAll("[name=ground]")) {
      radio.addEventListener("change", () => (this.root.dataset.ground = radio.value));
    }
    const { original } = this.editor.result;
    const button = find(".compare");
    button.hidden = !original;
    if (!original) return;
    const input = find(".input");
    Object.assign(input, { width: original.width, height: original.height });
    input.getContext("2d").drawImage(pictureOf(original, Infinity), 0, 0);
    const range = find(".comparison input");
    const line = () => {
      const share = range.value / 10;
      find(".line").style.left = `${share}%`;
      input.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
    };
    range.addEventListener("input", line);
    line();
    button.addEventListener("click", () => {
      this.comparison.hidden = !this.comparison.hidden;
      button.setAttribute("aria-pressed", String(!this.comparison.hidden));
      if (!this.comparison.hidden) range.focus();
      this.schedule();
    });
  }

  /** Draws once before the screen is refreshed next, however many changes there are until then. */
  schedule() {
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.compositor.show(shownLayers(this.editor.state));
    const { layer } = this.editor;
    const [left, top, right, bottom] = boxOf(layer);
    const share = (value, side) => `${(100 * value) / side}%`;
    this.outline.hidden = !isShown(this.editor.state, layer) || !this.comparison.hidden;
    Object.assign(this.outline.style, {
      left: share(left, this.width), width: share(right - left, this.width),
      top: share(top, this.height), height: share(bottom - top, this.height),
    });
  }

  paint([left, top, right, bottom]) {
    this.context.putImageData(this.data, 0, 0, left, top, right - left, bottom - top);
  }

  /** The exact straight RGBA that the canvas stands for. */
  pixels() {
    this.draw();
    this.compositor.settle();
    return this.compositor.pixels;
  }

  fit() {
    const style = getComputedStyle(this.window);
    const space = (side) => Math.max(40, this.window[`client${side}`] - 2 * parseFloat(style.paddingTop));
    const zoom = Math.min(space("Width") / this.width, space("Height") / this.height);
    this.zoomTo(zoom > 1 ? Math.min(Math.floor(zoom), 8) : zoom);
    this.isFitted = true;
  }

  step(direction) {
    const steps = direction > 0 ? STEPS : STEPS.toReversed();
    this.zoomTo(steps.find((step) => (step - this.zoom) * direction > 1e-6) ?? this.zoom);
  }

  zoomTo(zoom) {
    this.zoom = zoom;
    this.isFitted = false;
    this.sheet.style.width = `${this.width * zoom}px`;
    this.sheet.style.height = `${this.height * zoom}px`;
    this.sheet.classList.toggle("enlarged", zoom >= 2);
    this.share.textContent = `${Math.round(zoom * 100)}%`;
  }

  /** The point of the canvas, in pixels, under a pointer. */
  point(event) {
    const box = this.picture.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.width,
      ((event.clientY - box.top) / box.height) * this.height,
    ];
  }

  /** The topmost layer that shows at a point. */
  layerAt([x, y]) {
    return shownLayers(this.editor.state).findLast((layer) => {
      const [left, top, right, bottom] = boxOf(layer);
      if (x < left || x >= right || y < top || y >= bottom) return false;
      const { pixels, width } = layer.source;
      const alpha = pixels[(Math.floor(y - top) * width + Math.floor(x - left)) * 4 + 3];
      return alpha * layer.opacity >= GRASPED * 100;
    });
  }

  grasp(event) {
    if (event.button !== 0) return;
    const point = this.point(event);
    const layer = event.ctrlKey || event.metaKey ? this.editor.layer : this.layerAt(point);
    this.picture.focus({ preventScroll: true });
    if (!layer) return;
    event.preventDefault();
    const { number } = layer.source;
    if (number !== this.editor.selected) this.editor.select(number);
    this.picture.setPointerCapture(event.pointerId);
    this.drag = { number, point, left: layer.left, top: layer.top, began: [event.clientX, event.clientY], moves: false };
  }

  pull(event) {
    const { drag } = this;
    if (!drag) return;
    const slip = Math.hypot(event.clientX - drag.began[0], event.clientY - drag.began[1]);
    if (!drag.moves && slip < CLICK) return;
    drag.moves = true;
    this.picture.classList.add("dragging");
    const [x, y] = this.point(event);
    const { state } = this.editor;
    this.editor.preview(placed(state, drag.number, drag.left + x - drag.point[0], drag.top + y - drag.point[1]));
  }

  release() {
    const { drag } = this;
    this.drag = null;
    this.picture.classList.remove("dragging");
    if (drag?.moves) this.editor.commit(this.editor.state, movedText(this.editor.layer));
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const zooms = { "+": () => this.step(1), "=": () => this.step(1), "-": () => this.step(-1), 0: () => this.fit() };
    const step = event.shiftKey ? 10 : 1;
    const ways = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const way = ways[event.key];
    if (!way && !zooms[event.key]) return;
    event.preventDefault();
    if (!way) return zooms[event.key]();
    const { editor } = this;
    const { left, top } = editor.layer;
    const state = placed(editor.state, editor.selected, left + way[0], top + way[1]);
    editor.commit(state, movedText(state.layers[indexOf(state, editor.selected)]), "move");
  }
}

function movedText({ source, left, top }) {
  return `${source.name} moved to ${left}, ${top}`;
}
