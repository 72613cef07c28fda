"use strict";
/* The layers one behind the other in space. */

const PLANE = 640; // pixels of a plane's longer side at most

class Exploded {
  constructor(root, editor) {
    Object.assign(this, { root, editor, pictures: new Map() });
    const find = (selector) => root.querySelector(selector);
    Object.assign(this, { view: find(".exploded"), scene: find(".scene"), sliders: find(".angles") });
    Object.assign(this, { angle: find(".angle"), spread: find(".spread"), button: find(".explode") });
    editor.listeners.push(() => this.draw());
    this.button.addEventListener("click", () => this.toggle());
    for (const slider of [this.angle, this.spread]) slider.addEventListener("input", () => this.turn());
  }

  toggle() {
    const shows = this.view.hidden;
    this.view.hidden = this.sliders.hidden = !shows;
    this.root.querySelector(".window").hidden = shows;
    for (const other of this.root.querySelectorAll(".compare, .in, .out, .fit")) other.disabled = shows;
    this.button.setAttribute("aria-pressed", String(shows));
    this.draw();
  }

  draw() {
    if (this.view.hidden) return;
    const [width, height] = this.editor.result.size;
    const box = this.view.getBoundingClientRect();
    const zoom = Math.min((box.width * 0.46) / width, (box.height * 0.58) / height);
    this.scene.style.width = `${width * zoom}px`;
    this.scene.style.height = `${height * zoom}px`;
    this.scene.replaceChildren(...shownLayers(this.editor.state).map((layer) => this.plane(layer)));
    this.turn();
  }

  plane(layer) {
    const [width, height] = this.editor.result.size;
    const { source } = layer;
    if (!this.pictures.has(source.number)) this.pictures.set(source.number, pictureOf(source, PLANE));
    const picture = this.pictures.get(source.number);
    const share = (value, side) => `${(100 * value) / side}%`;
    Object.assign(picture.style, {
      left: share(layer.left, width), width: share(source.width, width), opacity: layer.opacity / 100,
      top: share(layer.top, height), height: share(source.height, height),
    });
    const plane = document.createElement("div");
    plane.className = "plane";
    plane.classList.toggle("chosen", source.number === this.editor.selected);
    plane.addEventListener("click", () => this.editor.select(source.number));
    const tag = document.createElement("bdi");
    tag.className = "tag";
    tag.textContent = source.name;
    plane.append(picture, tag);
    return plane;
  }

  /** Places the planes by the two sliders. */
  turn() {
    const planes = [...this.scene.children];
    const depth = (this.view.clientWidth * this.spread.valueAsNumber) / 100;
    const gap = Math.min(depth / Math.max(1, planes.length - 1), depth / 2);
    this.scene.style.transform = `rotateX(-11deg) rotateY(${this.angle.value}deg)`;
    planes.forEach((plane, i) => {
      plane.style.transform = `translateZ(${(i - (planes.length - 1) / 2) * gap}px)`;
    });
  }
}
