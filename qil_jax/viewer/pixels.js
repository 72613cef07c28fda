"use strict";
/* Straight 8-bit RGBA and PNG files of it. A canvas would multiply colour by alpha and lose it where alpha is low. */

const PNG_SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let code = byte;
  for (let bit = 0; bit < 8; bit++) code = code & 1 ? 0xedb88320 ^ (code >>> 1) : code >>> 1;
  return code;
});

function bytesOfBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** The bytes after a CompressionStream or a DecompressionStream. */
async function streamed(stream, bytes) {
  const piped = new Blob([bytes]).stream().pipeThrough(stream);
  return new Uint8Array(await new Response(piped).arrayBuffer());
}

function crc32(bytes) {
  let code = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) code = CRC_TABLE[(code ^ bytes[i]) & 255] ^ (code >>> 8);
  return (code ^ 0xffffffff) >>> 0;
}

/** Width, height and pixels of a PNG of 8-bit RGBA without interlacing, the only kind that this page holds. */
async function decodePng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  const kind = [bytes[24], bytes[25], bytes[28]];
  if (PNG_SIGNATURE.some((byte, i) => bytes[i] !== byte) || kind.join() !== "8,6,0") {
    throw new Error("a picture of this page is no PNG of 8-bit RGBA: write the page again");
  }
  const parts = [];
  for (let at = 8; at < bytes.length; ) {
    const length = view.getUint32(at);
    if (view.getUint32(at + 4) === 0x49444154) parts.push(bytes.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  const filtered = await streamed(new DecompressionStream("deflate"), new Blob(parts));
  return { width, height, pixels: unfiltered(filtered, width, height) };
}

/** Undoes the filters of PNG's rows: each byte was stored as its difference from left, upper and upper left ones. */
function unfiltered(bytes, width, height) {
  const stride = width * 4;
  const pixels = new Uint8Array(stride * height);
  for (let y = 0, from = 0, to = 0; y < height; y++) {
    const filter = bytes[from++];
    for (let x = 0; x < stride; x++, from++, to++) {
      const left = x < 4 ? 0 : pixels[to - 4];
      const up = y === 0 ? 0 : pixels[to - stride];
      let guess = 0;
      if (filter === 1) guess = left;
      else if (filter === 2) guess = up;
      else if (filter === 3) guess = (left + up) >> 1;
      else if (filter === 4) guess = paeth(left, up, x < 4 || y === 0 ? 0 : pixels[to - stride - 4]);
      pixels[to] = bytes[from] + guess;
    }
  }
  return pixels;
}

function paeth(left, up, corner) {
  const toLeft = Math.abs(up - corner);
  const toUp = Math.abs(left - corner);
  const toCorner = Math.abs(left + up - 2 * corner);
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}

/** The bytes of a PNG. Each row is stored as differences from the left or from above, whichever are smaller. */
async function encodePng(pixels, width, height) {
  const stride = width * 4;
  const filtered = new Uint8Array((stride + 1) * height);
  const rows = [new Uint8Array(stride), new Uint8Array(stride)];
  for (let y = 0; y < height; y++) {
    const sums = [0, 0];
    for (let x = 0, at = y * stride; x < stride; x++, at++) {
      rows[0][x] = pixels[at] - (x < 4 ? 0 : pixels[at - 4]);
      rows[1][x] = pixels[at] - (y === 0 ? 0 : pixels[at - stride]);
      for (const i of [0, 1]) sums[i] += rows[i][x] < 128 ? rows[i][x] : 256 - rows[i][x];
    }
    const best = sums[1] < sums[0] ? 1 : 0;
    filtered[y * (stride + 1)] = best + 1;
    filtered.set(rows[best], y * (stride + 1) + 1);
  }
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint16(8, 0x0806); // 8 bits, RGBA
  const data = await streamed(new CompressionStream("deflate"), filtered);
  const chunks = [["IHDR", new Uint8Array(header.buffer)], ["IDAT", data], ["IEND", new Uint8Array()]];
  return joined([Uint8Array.from(PNG_SIGNATURE), ...chunks.map(([type, body]) => pngChunk(type, body))]);
}

function pngChunk(type, body) {
  const chunk = new Uint8Array(body.length + 12);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, body.length);
  for (let i = 0; i < 4; i++) chunk[4 + i] = type.charCodeAt(i);
  chunk.set(body, 8);
  view.setUint32(body.length + 8, crc32(chunk.subarray(4, body.length + 8)));
  return chunk;
}

function joined(parts) {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** A canvas that shows pixels, at most `longest` pixels long; for the eye only. */
function pictureOf({ pixels, width, height }, longest) {
  const full = new OffscreenCanvas(width, height);
  const data = new ImageData(new Uint8ClampedArray(pixels.buffer, pixels.byteOffset, pixels.length), width, height);
  full.getContext("2d").putImageData(data, 0, 0);
  const scale = Math.min(1, longest / Math.max(width, height));
  const small = document.createElement("canvas");
  small.width = Math.max(1, Math.round(width * scale));
  small.height = Math.max(1, Math.round(height * scale));
  const context = small.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(full, 0, 0, small.width, small.height);
  return small;
}
