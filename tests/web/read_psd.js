// Prints a PSD as ag-psd reads it: names, boxes, groups and pixels, as JSON.
const fs = require("node:fs");
const { initializeCanvas, readPsd } = require("ag-psd");

const createImageData = (width, height) => ({ width, height, data: new Uint8ClampedArray(width * height * 4) });
initializeCanvas(() => { throw new Error("no canvas is needed"); }, createImageData);

const picture = ({ imageData: image }) =>
  image && { width: image.width, height: image.height, data: Buffer.from(image.data).toString("base64") };
const read = (layer) => ({
  name: layer.name, left: layer.left, top: layer.top, opacity: layer.opacity, hidden: layer.hidden,
  picture: picture(layer), children: layer.children?.map(read),
});
const psd = readPsd(fs.readFileSync(process.argv[2]), { useImageData: true, skipThumbnail: true });
process.stdout.write(JSON.stringify({ picture: picture(psd), children: psd.children.map(read) }));
