"use strict";
/* The list of layers, topmost first, with headings for groups, and the settings of the selected layer. */

const THUMBNAIL = 84; // pixels, twice what is shown, for dense screens

function cloned(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

function setPressed(button, pressed, label) {
  button.setAttribute("aria-pressed", String(pressed));
  button.setAttribute("aria-label", label);
}

class LayerList {
  constructor(root, editor) {
    Object.assign(this, { root, editor, rows: new Map(), drag: null });
    this.list = root.querySelector(".list");
    editor.listeners.push(() => this.draw());
    this.listen();
    this.draw();
  }

  listen() {
    const find = (selector) => this.root.querySelector(selector);
    find(".up").addEventListener("click", () => this.raise(1));
    find(".down").addEventListener("click", () => this.raise(-1));
    find(".delete").addEventListener("click", () => this.remove());
    const slider = find(".opacity input");
    const next = () => withLayer(this.editor.state, this.editor.selected, { opacity: slider.valueAsNumber });
    slider.addEventListener("input", () => this.editor.preview(next()));
    slider.addEventListener("change", () => {
      this.editor.commit(next(), `${this.editor.layer.source.name} at ${slider.value} percent`);
    });
  }

  /** The row of a layer, made once. */
  row(layer) {
    const { source } = layer;
    if (this.rows.has(source.number)) return this.rows.get(source.number);
    const row = cloned("layer-row");
    const find = (selector) => row.querySelector(selector);
    find(".thumb").append(pictureOf(source, THUMBNAIL));
    find(".name").textContent = source.name;
    row.title = source.name;
    row.style.setProperty("--depth", source.groups.length);
    find(".pick").addEventListener("click", () => this.editor.select(source.number));
    find(".pick").addEventListener("keydown", (event) => this.key(event, row));
    find(".eye").addEventListener("click", () => this.toggle([source.number], source.name));
    find(".solo").addEventListener("click", () => this.solo(source));
    const grip = find(".grip");
    grip.addEventListener("pointerdown", (event) => this.grasp(event, row, source.number));
    grip.addEventListener("pointermove", (event) => this.pull(event));
    grip.addEventListener("pointerup", () => this.drop(true));
    grip.addEventListener("pointercancel", () => this.drop(false));
    this.rows.set(source.number, row);
    return row;
  }

  /** A heading of a group, made once; its button acts on all of the group's layers. A group may be in several parts. */
  heading(group, part, depth) {
    const { state, result } = this.editor;
    const key = `group ${group}, part ${part}`;
    const name = result.groups[group];
    const inside = (of) => of.layers.filter((layer) => layer.source.groups.includes(group));
    if (!this.rows.has(key)) {
      const row = cloned("group-row");
      row.querySelector(".name").textContent = name;
      row.style.setProperty("--depth", depth);
      row.querySelector(".eye").addEventListener("click", () => {
        this.toggle(inside(this.editor.state).map((layer) => layer.source.number), `group ${name}`);
      });
      this.rows.set(key, row);
    }
    const row = this.rows.get(key);
    const shows = inside(state).some((layer) => layer.visible);
    const eye = row.querySelector(".eye");
    setPressed(eye, shows, `Show group ${name}`);
    eye.querySelector("use").setAttribute("href", shows ? "#eye" : "#eye-off");
    return row;
  }

  draw() {
    const { editor } = this;
    const focused = document.activeElement;
    const rows = [];
    const parts = new Map();
    let path = [];
    for (const layer of editor.state.layers.toReversed()) {
      const { groups } = layer.source;
      const common = groups.findIndex((group, i) => group !== path[i]);
      groups.slice(common < 0 ? groups.length : common).forEach((group, i) => {
        parts.set(group, (parts.get(group) ?? 0) + 1);
        rows.push(this.heading(group, parts.get(group), common + i));
      });
      path = groups;
      rows.push(this.refreshed(layer));
    }
    const stays = [...this.list.children].every((row, i) => row === rows[i]) && this.list.children.length === rows.length;
    if (!stays) this.list.replaceChildren(...rows);
    if (document.activeElement !== focused && this.list.contains(focused)) focused.focus({ preventScroll: true });
    this.root.querySelector(".panel .count").textContent = editor.state.layers.length;
    this.drawSelected();
  }

  refreshed(layer) {
    const { state, selected } = this.editor;
    const { number, name } = layer.source;
    const row = this.row(layer);
    row.classList.toggle("chosen", number === selected);
    row.classList.toggle("off", !isShown(state, layer));
    row.querySelector(".pick").setAttribute("aria-pressed", String(number === selected));
    row.querySelector(".share").textContent = layer.opacity === 100 ? "" : `${layer.opacity}%`;
    setPressed(row.querySelector(".eye"), layer.visible, `Show ${name}`);
    setPressed(row.querySelector(".solo"), state.solo === number, `Only ${name}`);
    row.querySelector(".eye use").setAttribute("href", layer.visible ? "#eye" : "#eye-off");
    return row;
  }

  drawSelected() {
    const { state, layer, selected } = this.editor;
    const find = (selector) => this.root.querySelector(`.selected ${selector}`);
    find(".name").textContent = layer.source.name;
    find(".opacity input").value = layer.opacity;
    find(".opacity output").textContent = `${layer.opacity}%`;
    const { width, height } = layer.source;
    find(".where").textContent = `${layer.left}, ${layer.top} · ${width} × ${height}`;
    const index = indexOf(state, selected);
    find(".up").disabled = index === state.layers.length - 1;
    find(".down").disabled = index === 0;
    find(".delete").disabled = state.layers.length === 1;
  }

  toggle(numbers, name) {
    const { state } = this.editor;
    const shows = state.layers.some((layer) => numbers.includes(layer.source.number) && layer.visible);
    const next = numbers.reduce((after, number) => withLayer(after, number, { visible: !shows }), state);
    this.editor.commit(next, `${name} ${shows ? "hidden" : "shown"}`);
  }

  solo({ number, name }) {
    const { state } = this.editor;
    const ends = state.solo === number;
    this.editor.commit({ ...state, solo: ends ? null : number }, ends ? "All layers" : `Only ${name}`);
  }

  raise(steps) {
    const { state, selected, layer } = this.editor;
    const index = indexOf(state, selected);
    const to = Math.min(Math.max(index + steps, 0), state.layers.length - 1);
    if (to !== index) this.place(selected, to, layer.source.name);
  }

  place(number, to, name) {
    const place = `${to + 1} of ${this.editor.state.layers.length} from the bottom`;
    this.editor.commit(reordered(this.editor.state, number, to), `${name} is ${place}`);
  }

  remove() {
    const { state, selected, layer } = this.editor;
    if (state.layers.length > 1) this.editor.commit(without(state, selected), `${layer.source.name} deleted`);
  }

  key(event, row) {
    const steps = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!steps || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const rows = [...this.list.querySelectorAll(".layer")];
    const next = rows[rows.indexOf(row) + steps]?.querySelector(".pick");
    next?.focus();
    next?.click();
  }

  grasp(event, row, number) {
    if (event.button !== 0) return;
    event.preventDefault();
    event.currentTarget.setPointerCapture(event.pointerId);
    this.drag = { row, number, to: -1 };
    row.classList.add("dragged");
  }

  /** Marks the place between two rows that is nearest to the pointer. */
  pull(event) {
    if (!this.drag) return;
    this.unmark();
    const rows = [...this.list.querySelectorAll(".layer")];
    const under = rows.findIndex((row) => {
      const box = row.getBoundingClientRect();
      return event.clientY < box.top + box.height / 2;
    });
    const gap = under < 0 ? rows.length : under; // rows above the place
    if (gap < rows.length) rows[gap].classList.add("drop-over");
    else rows.at(-1).classList.add("drop-under");
    const from = rows.indexOf(this.drag.row);
    this.drag.to = rows.length - 1 - (gap > from ? gap - 1 : gap);
  }

  drop(done) {
    const { drag } = this;
    if (!drag) return;
    this.drag = null;
    this.unmark();
    drag.row.classList.remove("dragged");
    const { state } = this.editor;
    if (!done || drag.to < 0 || drag.to === indexOf(state, drag.number)) return;
    this.place(drag.number, drag.to, state.layers[indexOf(state, drag.number)].source.name);
  }

  unmark() {
    for (const row of this.list.querySelectorAll(".drop-over, .drop-under")) row.classList.remove("drop-over", "drop-under");
  }
}
