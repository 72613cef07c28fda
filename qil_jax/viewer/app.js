"use strict";
/* The page: a gallery of results where there are several, and the viewer of one. */

const INDEX = JSON.parse(document.getElementById("index").textContent);
const place = document.getElementById("place");
let opened = null; // the AbortController of the viewer that is open

function say(message) {
  if (message) document.getElementById("status").textContent = message;
}

function page(id) {
  opened?.abort();
  opened = null;
  window.viewer = undefined;
  const root = cloned(id);
  place.replaceChildren(root);
  return root;
}

function openGallery(focused = -1) {
  const root = page("gallery-page");
  document.title = "Layers";
  root.querySelector(".count").textContent = `${INDEX.length} results`;
  const cards = INDEX.map(cardOf);
  root.querySelector(".cards").append(...cards);
  if (focused >= 0) cards[focused].querySelector("button").focus();
}

function cardOf(entry, i) {
  const card = cloned("card");
  card.querySelector(".name").textContent = entry.title;
  const layers = `${entry.layers} ${entry.layers === 1 ? "layer" : "layers"}`;
  card.querySelector(".facts").textContent = [layers, entry.size.join(" × "), ...entry.facts].join(" · ");
  for (const [name, address] of [["input", entry.input], ["layers", entry.composite]]) {
    if (!address) continue;
    const picture = document.createElement("img");
    Object.assign(picture, { src: address, alt: name, loading: "lazy" });
    card.querySelector(".pair").append(picture);
  }
  const button = card.querySelector("button");
  button.addEventListener("click", () => {
    button.setAttribute("aria-busy", "true");
    openResult(i);
  });
  return card;
}

function openResult(i) {
  say("Opening");
  readResult(i).then((result) => showResult(i, result), showError);
}

function showError(error) {
  opened = null;
  const text = document.createElement("p");
  text.className = "opening";
  text.setAttribute("role", "alert");
  text.textContent = `This result cannot be shown: ${error.message}. A current browser is needed.`;
  place.replaceChildren(text);
}

/** The data of a result, which nothing has read before. */
async function readResult(i) {
  const stored = JSON.parse(document.getElementById(`result-${i}`).textContent);
  const decoded = async (box) => ({ ...box, ...(await decodePng(bytesOfBase64(box.png))), png: null });
  const layers = await Promise.all(stored.layers.map(decoded));
  layers.forEach((layer, index) => (layer.number = index + 1));
  const original = stored.original && (await decoded(stored.original));
  return { ...stored, layers, original };
}

function showResult(i, result) {
  const root = page("viewer-page");
  const many = INDEX.length > 1;
  const back = root.querySelector(".back");
  back.hidden = !many;
  back.addEventListener("click", () => openGallery(i));
  document.title = `${result.title} · layers`;
  openViewer(root, result);
  if (many) root.querySelector("h1").focus();
}

function openViewer(root, result) {
  opened = new AbortController();
  const { signal } = opened;
  const find = (selector) => root.querySelector(selector);
  find("h1 bdi").textContent = result.title;
  find(".size").textContent = result.size.join(" × ");
  const editor = new Editor(result);
  const stage = new Stage(root, editor, signal);
  const list = new LayerList(root, editor);
  new Exploded(root, editor);
  for (const [name, value] of result.facts) find(".about dl").append(fact(name, value));
  find(".about").hidden = !result.facts.length;
  const refresh = (message) => {
    find(".undo").disabled = !editor.past.length;
    find(".redo").disabled = !editor.future.length;
    find(".reset").disabled = editor.state === editor.start;
    say(message);
  };
  for (const action of ["undo", "redo", "reset"]) find(`.${action}`).addEventListener("click", () => editor[action]());
  editor.listeners.push(refresh);
  refresh(`${result.title}: ${result.layers.length} layers`);
  addDownloads(find, editor, stage);
  document.addEventListener("keydown", (event) => keyed(event, editor, list), { signal });
  window.viewer = { pixels: () => stage.pixels(), stage, editor, script: () => scriptOf(editor.start, editor.state) };
}

function fact(name, value) {
  const [row, term, detail] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
  [term.textContent, detail.textContent] = [name, value];
  row.append(term, detail);
  return row;
}

function addDownloads(find, editor, stage) {
  const { result } = editor;
  const [width, height] = result.size;
  find(".png").addEventListener("click", async () => {
    save(await encodePng(stage.pixels(), width, height), `${result.file}.png`, "image/png");
  });
  find(".psd").addEventListener("click", async () => {
    say("Saving");
    await new Promise(requestAnimationFrame); // so that it is said before the work begins
    const bytes = psdOf(editor.state, result.groups, width, height, stage.pixels());
    save(bytes, `${result.file}.psd`, "image/vnd.adobe.photoshop");
  });
  find(".script").addEventListener("click", () => {
    const text = JSON.stringify(scriptOf(editor.start, editor.state), null, 2);
    save(new TextEncoder().encode(`${text}\n`), `${result.file}.json`, "application/json");
  });
  find(".script").disabled = Boolean(result.no_script);
  find("#no-script").textContent = result.no_script;
  find("#no-script").hidden = !result.no_script;
}

function save(bytes, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  say(`${name} saved`);
}

function keyed(event, editor, list) {
  const types = event.target.matches("input:not([type=range]):not([type=radio])");
  if (types || event.defaultPrevented) return;
  const command = event.ctrlKey || event.metaKey;
  let action = null;
  if (command && event.key.toLowerCase() === "z") action = event.shiftKey ? () => editor.redo() : () => editor.undo();
  else if (command && event.key.toLowerCase() === "y") action = () => editor.redo();
  else if (event.altKey && event.key === "ArrowUp") action = () => list.raise(1);
  else if (event.altKey && event.key === "ArrowDown") action = () => list.raise(-1);
  else if (["Delete", "Backspace"].includes(event.key) && event.target.matches(".picture, .pick")) action = () => list.remove();
  if (!action) return;
  event.preventDefault();
  action();
}

if (INDEX.length === 1) openResult(0);
else openGallery();
