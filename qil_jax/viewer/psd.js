"use strict";
/* A Photoshop document of the state: tight boxes, groups, opacity, hidden layers, names as Unicode, merged preview.
   "Adobe Photoshop File Formats Specification", November 2019. */

const LONGEST_NAME = 255;

/** Bytes that grow; numbers are big-endian. */
class Writer {
  constructor() {
    this.parts = [];
    this.length = 0;
  }

  bytes(bytes) {
    this.parts.push(bytes);
    this.length += bytes.length;
    return this;
  }

  text(ascii) {
    return this.bytes(Uint8Array.from(ascii, (letter) => letter.charCodeAt(0)));
  }

  number(size, ...values) {
    const view = new DataView(new ArrayBuffer(size * values.length));
    values.forEach((value, i) => {
      if (size === 1) view.setUint8(i, value);
      else if (size === 2) view.setInt16(i * 2, value);
      else view.setInt32(i * 4, value);
    });
    return this.bytes(new Uint8Array(view.buffer));
  }

  /** A section with its length before it, filled up to a multiple of `multiple` bytes. */
  section(inner, multiple = 1) {
    const fill = (multiple - (inner.length % multiple)) % multiple;
    this.number(4, inner.length + fill);
    for (const part of inner.parts) this.bytes(part);
    return this.bytes(new Uint8Array(fill));
  }

  done() {
    return joined(this.parts);
  }
}

/** The bytes of the document; `composite` is the straight RGBA that the canvas shows. */
function psdOf(state, groups, width, height, composite) {
  const layers = psdRecords(state, groups);
  const info = new Writer().number(2, -layers.length); // negative: the preview's fourth channel is its transparency
  for (const layer of layers) psdRecord(info, layer);
  for (const layer of layers) for (const channel of layer.channels) info.bytes(channel);
  const all = new Writer().section(info, 4).number(4, 0);
  const file = new Writer().text("8BPS").number(2, 1).bytes(new Uint8Array(6));
  file.number(2, 4).number(4, height, width).number(2, 8, 3).number(4, 0, 0).section(all);
  const { counts, rows } = packed(overWhite(composite), width, height, [0, 1, 2, 3]);
  file.number(2, 1);
  for (const channel of counts) file.number(2, ...channel);
  return file.bytes(joined(rows.flat())).done();
}

/** Layers bottom to top, with the records that begin and end groups around them. */
function psdRecords(state, groups) {
  const records = [];
  let path = [];
  const leaveTo = (depth) => {
    for (; path.length > depth; path.pop()) records.push({ ...emptyRecord, name: groups[path.at(-1)], divider: 1 });
  };
  for (const layer of state.layers) {
    const wanted = layer.source.groups;
    const common = path.findIndex((group, i) => group !== wanted[i]);
    leaveTo(common < 0 ? path.length : common);
    for (const group of wanted.slice(path.length)) {
      records.push({ ...emptyRecord, name: "</Layer group>", divider: 3 });
      path.push(group);
    }
    const { source, left, top } = layer;
    const box = [top, left, top + source.height, left + source.width];
    const hidden = !isShown(state, layer);
    const opacity = new Uint8ClampedArray([layer.opacity * 2.55])[0];
    records.push({ name: source.name, box, opacity, hidden, channels: psdChannels(source), divider: 0 });
  }
  leaveTo(0);
  return records;
}

const emptyRecord = { box: [0, 0, 0, 0], opacity: 255, hidden: false, channels: Array(4).fill(new Uint8Array(2)) };

function psdRecord(out, { name, box, opacity, hidden, channels, divider }) {
  out.number(4, ...box).number(2, 4);
  [-1, 0, 1, 2].forEach((id, i) => out.number(2, id).number(4, channels[i].length));
  out.text("8BIMnorm").number(1, opacity, 0, hidden ? 10 : 8, 0);
  const cut = wellFormed(name.slice(0, LONGEST_NAME));
  const plain = cut.replace(/[^\x20-\x7e]/g, "_");
  const extra = new Writer().number(4, 0, 0).number(1, plain.length).text(plain);
  extra.bytes(new Uint8Array((4 - (extra.length % 4)) % 4));
  const units = Array.from({ length: cut.length }, (_, i) => cut.charCodeAt(i));
  extra.text("8BIMluni").section(new Writer().number(4, units.length).number(2, ...units), 4);
  if (divider) extra.text("8BIMlsct").section(new Writer().number(4, divider).text("8BIMnorm"));
  out.section(extra);
}

/** A name without halves of surrogate pairs. */
function wellFormed(name) {
  return name.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
}

/** The four channels of a layer, alpha first. */
function psdChannels({ pixels, width, height }) {
  const { counts, rows } = packed(pixels, width, height, [3, 0, 1, 2]);
  return rows.map((channel, i) => joined([new Writer().number(2, 1, ...counts[i]).done(), ...channel]));
}

/** Rows of channels, each packed by itself, and their lengths. */
function packed(pixels, width, height, channels) {
  const row = new Uint8Array(width);
  const rows = channels.map((channel) =>
    Array.from({ length: height }, (_, y) => {
      for (let x = 0; x < width; x++) row[x] = pixels[(y * width + x) * 4 + channel];
      return packBits(row);
    }),
  );
  return { counts: rows.map((channel) => channel.map((bytes) => bytes.length)), rows };
}

/** Run lengths: 257 - n and a byte for n equal ones, n - 1 and the bytes for others. */
function packBits(row) {
  const out = new Uint8Array(row.length + Math.ceil(row.length / 128) + 2);
  let length = 0;
  for (let at = 0; at < row.length; ) {
    let end = at + 1;
    while (end < row.length && end - at < 128 && row[end] === row[at]) end++;
    if (end - at > 1) {
      out[length++] = 257 - (end - at);
      out[length++] = row[at];
    } else {
      while (end < row.length && end - at < 128 && !(row[end] === row[end + 1] && row[end] === row[end + 2])) end++;
      out[length++] = end - at - 1;
      out.set(row.subarray(at, end), length);
      length += end - at;
    }
    at = end;
  }
  return out.slice(0, length);
}

/** Colour over white, alpha beside it: how the format stores a merged picture. */
function overWhite(pixels) {
  const out = new Uint8ClampedArray(pixels);
  for (let at = 0; at < out.length; at += 4) {
    const alpha = UNIT[pixels[at + 3]];
    for (let c = at; c < at + 3; c++) out[c] = pixels[c] * alpha + 255 * (1 - alpha);
  }
  return out;
}
