"use strict";
/* The state that is edited: { layers, solo }, never changed, so that undoing is keeping. Layers are bottom to top:
   { source, left, top, opacity, visible }; a source has the number, name, groups and pixels that a layer keeps. */

const FARTHEST = 16384; // pixels by which a script may move a layer
const LONGEST_HISTORY = 500;

function startState(sources) {
  const layers = sources.map((source) => ({
    source, left: source.left, top: source.top, opacity: 100, visible: true,
  }));
  return { layers, solo: null };
}

function indexOf(state, number) {
  return state.layers.findIndex((layer) => layer.source.number === number);
}

function withLayer(state, number, change) {
  const layers = state.layers.map((layer) => (layer.source.number === number ? { ...layer, ...change } : layer));
  return { ...state, layers };
}

/** The state with a layer put at a place on the canvas, no farther from its own than a script can say. */
function placed(state, number, left, top) {
  const { source } = state.layers[indexOf(state, number)];
  const near = (value, home) => Math.min(Math.max(Math.round(value), home - FARTHEST), home + FARTHEST);
  return withLayer(state, number, { left: near(left, source.left), top: near(top, source.top) });
}

function reordered(state, number, to) {
  const layers = [...state.layers];
  const [layer] = layers.splice(indexOf(state, number), 1);
  layers.splice(Math.min(Math.max(to, 0), layers.length), 0, layer);
  return { ...state, layers };
}

function without(state, number) {
  const layers = state.layers.filter((layer) => layer.source.number !== number);
  return { layers, solo: state.solo === number ? null : state.solo };
}

/** Whether a layer is on the canvas: solo hides all others. */
function isShown(state, layer) {
  return state.solo === null ? layer.visible : state.solo === layer.source.number;
}

function shownLayers(state) {
  return state.layers.filter((layer) => isShown(state, layer));
}

/** The operations of qil edit that make this state of the first one. */
function scriptOf(start, state) {
  const operations = [];
  const kept = new Set(state.layers.map((layer) => layer.source.number));
  for (const { source } of start.layers) {
    if (!kept.has(source.number)) operations.push({ op: "delete", layer: source.number });
  }
  for (const layer of state.layers) {
    const { number, left, top } = layer.source;
    const [dx, dy] = [layer.left - left, layer.top - top];
    if (dx || dy) operations.push({ op: "move", layer: number, dx, dy });
    const opacity = isShown(state, layer) ? layer.opacity / 100 : 0;
    if (opacity !== 1) operations.push({ op: "opacity", layer: number, opacity });
  }
  const order = state.layers.map((layer) => layer.source.number);
  const staying = new Set(longestAscending(order));
  order.forEach((number, i) => {
    if (staying.has(number)) return;
    operations.push({ op: "reorder", layer: number, ...(i ? { above: order[i - 1] } : { to: 1 }) });
  });
  return operations;
}

/** The longest ascending part of a list of numbers: the layers that need not move. */
function longestAscending(numbers) {
  const best = [];
  numbers.forEach((number, i) => {
    const before = best.slice(0, i).filter((run) => run.at(-1) < number);
    best.push([...before.reduce((a, b) => (b.length > a.length ? b : a), []), number]);
  });
  return best.reduce((a, b) => (b.length > a.length ? b : a), []);
}

/** A state with its past and future, and the selected layer. Listeners hear of every change. */
class Editor {
  constructor(result) {
    this.result = result;
    this.start = startState(result.layers);
    this.state = this.start;
    this.before = undefined; // the state before a preview
    this.past = [];
    this.future = [];
    this.selected = result.layers.at(-1).number;
    this.listeners = [];
    this.lastKey = "";
  }

  get layer() {
    return this.state.layers[indexOf(this.state, this.selected)];
  }

  /** Shows a state on the way to another one, until `commit`. */
  preview(state) {
    this.before ??= this.state;
    this.state = state;
    this.notify();
  }

  /** Makes a state the present one, says so, and makes it undoable. A repeated key continues the step before. */
  commit(state, message, key = "") {
    const before = this.before ?? this.state;
    if (!key || key !== this.lastKey) {
      this.past = [...this.past.slice(-LONGEST_HISTORY), before];
      this.future = [];
    }
    this.lastKey = key;
    this.become(state, message);
  }

  undo() {
    if (!this.past.length) return;
    this.future.push(this.state);
    this.become(this.past.pop(), "Undone");
    this.lastKey = "";
  }

  redo() {
    if (!this.future.length) return;
    this.past.push(this.state);
    this.become(this.future.pop(), "Redone");
    this.lastKey = "";
  }

  reset() {
    if (this.state !== this.start) this.commit(this.start, "Reset to the result");
  }

  select(number) {
    this.selected = number;
    this.lastKey = "";
    this.notify(`${this.layer.source.name} selected`);
  }

  become(state, message) {
    this.before = undefined;
    this.state = state;
    if (!this.layer) this.selected = state.layers.at(-1).source.number;
    this.notify(message);
  }

  notify(message = "") {
    for (const listener of this.listeners) listener(message);
  }
}
