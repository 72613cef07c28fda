"use strict";
/* Alpha blending of layers as LayeredImage.composite_8bit does it: in double precision, rounded once, half to even.
   A layer is { source: { pixels, width, height }, left, top, opacity }, opacity in percent; lists are bottom to top. */

const UNIT = Float64Array.from({ length: 256 }, (_, byte) => byte / 255);
const SMALL_WORK = 3e6; // pixels of layers that are blended exactly in one frame
const MOST_CACHED = 2 ** 23; // pixels of a canvas for which blends are kept while one layer changes
const SETTLE_AFTER = 150; // milliseconds without a change after which the exact blend replaces the quick one

/** Alpha after opacity, by alpha: rounded half to even, as clamped arrays do on assignment. */
function alphaTable(opacity) {
  return Uint8ClampedArray.from({ length: 256 }, (_, alpha) => alpha * (opacity / 100));
}

function boxOf(layer) {
  return [layer.left, layer.top, layer.left + layer.source.width, layer.top + layer.source.height];
}

function union(a, b) {
  if (!a || !b) return a || b;
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])];
}

function intersection(a, b) {
  if (!a || !b) return null;
  const box = [Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])];
  return box[0] < box[2] && box[1] < box[3] ? box : null;
}

function area(box) {
  return box ? (box[2] - box[0]) * (box[3] - box[1]) : 0;
}

/** The exact blend of the layers within a box, written to straight RGBA of `width`. */
function blendExactly(layers, width, [left, top, right, bottom], out) {
  const row = new Float64Array((right - left) * 4);
  const inside = layers.map((layer) => ({ layer, box: boxOf(layer), alphas: alphaTable(layer.opacity) }));
  for (let y = top; y < bottom; y++) {
    row.fill(0);
    for (const { layer, box, alphas } of inside) {
      if (y < box[1] || y >= box[3]) continue;
      const { pixels, width: stride } = layer.source;
      const [from, to] = [Math.max(left, box[0]), Math.min(right, box[2])];
      let p = ((y - box[1]) * stride + from - box[0]) * 4;
      for (let q = (from - left) * 4; q < (to - left) * 4; q += 4, p += 4) {
        const over = UNIT[alphas[pixels[p + 3]]];
        if (over === 0) continue;
        const through = 1 - over;
        row[q] = over * UNIT[pixels[p]] + through * row[q];
        row[q + 1] = over * UNIT[pixels[p + 1]] + through * row[q + 1];
        row[q + 2] = over * UNIT[pixels[p + 2]] + through * row[q + 2];
        row[q + 3] = over + through * row[q + 3];
      }
    }
    writeRow(row, out, (y * width + left) * 4);
  }
}

/** Divides a row by its alpha and rounds it. */
function writeRow(row, out, at) {
  for (let q = 0; q < row.length; q += 4, at += 4) {
    const alpha = row[q + 3];
    if (alpha === 0) {
      out[at] = out[at + 1] = out[at + 2] = out[at + 3] = 0;
      continue;
    }
    out[at] = (row[q] / alpha) * 255;
    out[at + 1] = (row[q + 1] / alpha) * 255;
    out[at + 2] = (row[q + 2] / alpha) * 255;
    out[at + 3] = alpha * 255;
  }
}

/** Premultiplied blend of layers on the whole canvas: colour in [0, 255], alpha in [0, 1]. */
function premultiplied(layers, width, height) {
  const blend = new Float32Array(width * height * 4);
  for (const layer of layers) {
    const box = boxOf(layer);
    const part = intersection(box, [0, 0, width, height]);
    if (!part) continue;
    const { pixels, width: stride } = layer.source;
    const alphas = alphaTable(layer.opacity);
    for (let y = part[1]; y < part[3]; y++) {
      let p = ((y - box[1]) * stride + part[0] - box[0]) * 4;
      let q = (y * width + part[0]) * 4;
      for (let x = part[0]; x < part[2]; x++, p += 4, q += 4) {
        const over = UNIT[alphas[pixels[p + 3]]];
        if (over === 0) continue;
        const through = 1 - over;
        blend[q] = over * pixels[p] + through * blend[q];
        blend[q + 1] = over * pixels[p + 1] + through * blend[q + 1];
        blend[q + 2] = over * pixels[p + 2] + through * blend[q + 2];
        blend[q + 3] = over + through * blend[q + 3];
      }
    }
  }
  return blend;
}

/** One layer between the blends of those below and above it, within a box; within one level of the exact blend. */
function blendQuickly(layer, below, above, width, [left, top, right, bottom], out) {
  const box = boxOf(layer);
  const { pixels, width: stride } = layer.source;
  const alphas = alphaTable(layer.opacity);
  for (let y = top; y < bottom; y++) {
    const [from, to] = y >= box[1] && y < box[3] ? [box[0], box[2]] : [0, 0];
    let q = (y * width + left) * 4;
    let p = ((y - box[1]) * stride + left - box[0]) * 4;
    for (let x = left; x < right; x++, p += 4, q += 4) {
      let red = below[q];
      let green = below[q + 1];
      let blue = below[q + 2];
      let alpha = below[q + 3];
      const over = x >= from && x < to ? UNIT[alphas[pixels[p + 3]]] : 0;
      if (over !== 0) {
        const through = 1 - over;
        red = over * pixels[p] + through * red;
        green = over * pixels[p + 1] + through * green;
        blue = over * pixels[p + 2] + through * blue;
        alpha = over + through * alpha;
      }
      const covers = above[q + 3];
      if (covers !== 0) {
        const through = 1 - covers;
        red = above[q] + through * red;
        green = above[q + 1] + through * green;
        blue = above[q + 2] + through * blue;
        alpha = covers + through * alpha;
      }
      const scale = alpha === 0 || alpha === 1 ? 1 : 1 / alpha;
      out[q] = red * scale;
      out[q + 1] = green * scale;
      out[q + 2] = blue * scale;
      out[q + 3] = alpha * 255;
    }
  }
}

/** Keeps the blend of a list of layers up to date: exactly, or quickly first where that would not fit a frame. */
class Compositor {
  constructor(width, height, onPaint) {
    Object.assign(this, { width, height, onPaint, layers: [], unsettled: null, timer: 0, cache: null });
    this.pixels = new Uint8ClampedArray(width * height * 4);
  }

  get canvas() {
    return [0, 0, this.width, this.height];
  }

  /** Shows these layers. Layers are never changed: one that is the same object looks the same. */
  show(layers) {
    const before = this.layers;
    this.layers = layers;
    const dirty = intersection(changedBox(before, layers), this.canvas);
    if (!dirty) return;
    const active = this.width * this.height > MOST_CACHED ? -1 : onlyChange(before, layers);
    const all = union(dirty, this.unsettled);
    const work = layers.reduce((sum, layer) => sum + area(intersection(boxOf(layer), all)), area(all));
    if (active < 0 || work < SMALL_WORK) {
      this.unsettled = all;
      this.settle();
      return;
    }
    const { below, above } = this.around(active);
    blendQuickly(layers[active], below, above, this.width, dirty, this.pixels);
    this.unsettled = all;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.settle(), SETTLE_AFTER);
    this.onPaint(dirty);
  }

  /** Makes all pixels exact. */
  settle() {
    clearTimeout(this.timer);
    if (!this.unsettled) return;
    const box = this.unsettled;
    this.unsettled = null;
    blendExactly(this.layers, this.width, box, this.pixels);
    this.onPaint(box);
  }

  /** The blends of what lies below and above a layer, kept while nothing else changes. */
  around(active) {
    const [lower, upper] = [this.layers.slice(0, active), this.layers.slice(active + 1)];
    if (!this.cache || !same(this.cache.lower, lower) || !same(this.cache.upper, upper)) {
      const [below, above] = [lower, upper].map((layers) => premultiplied(layers, this.width, this.height));
      this.cache = { lower, upper, below, above };
    }
    return this.cache;
  }
}

function same(a, b) {
  return a.length === b.length && a.every((layer, i) => layer === b[i]);
}

/** The index of the only layer in which two lists differ; -1 if they differ in more. */
function onlyChange(before, after) {
  const found = after.flatMap((layer, i) => (layer === before[i] ? [] : [i]));
  const one = before.length === after.length && found.length === 1;
  return one && before[found[0]].source === after[found[0]].source ? found[0] : -1;
}

/** The box of all layers that are not in both lists at the same place. */
function changedBox(before, after) {
  let box = null;
  for (let i = 0; i < Math.max(before.length, after.length); i++) {
    if (before[i] === after[i]) continue;
    for (const layer of [before[i], after[i]]) if (layer) box = union(box, boxOf(layer));
  }
  return box;
}
