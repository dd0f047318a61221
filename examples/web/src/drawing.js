/** Images with the boxes, names and masks of detections. */

// Those of detr_d2's images, distinguishable with every kind of color vision (Okabe and Ito, 2008). For more classes
// there are lighter ones, then darker ones.
const HUES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"].map((hex) =>
  [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)),
);
const PALETTE = [
  ...HUES,
  ...HUES.map((hue) => hue.map((x) => Math.round((x + 255) / 2))),
  ...HUES.map((hue) => hue.map((x) => Math.round(x * 0.55))),
];
// Small images are enlarged and large ones reduced to this, so that lines and letters have one size.
const LONGER_SIDE = 1200;
const [LINE, FONT, PADDING] = [3, 20, 5];

/** Return [red, green, blue] of a class, from 0 to 255. */
export function classColor(label) {
  return PALETTE[label % PALETTE.length];
}

/**
 * Draw an image and its detections on a canvas, which gets the image's shape.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {ImageBitmap} image
 * @param {object[]} detections as of Detector.detect
 */
export function draw(canvas, image, detections) {
  const scale = LONGER_SIDE / Math.max(image.width, image.height);
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  // The best on top, and boxes on top of masks.
  const ordered = [...detections].reverse();
  context.globalAlpha = 0.5;
  for (const { label, mask } of ordered) {
    const bitmap = mask(classColor(label));
    if (bitmap) {
      context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    }
  }
  context.globalAlpha = 1;
  for (const { label, name, score, box } of ordered) {
    drawBox(context, box.map((x) => x * scale), `${name} ${Math.round(score * 100)}%`, classColor(label));
  }
}

function drawBox(context, [left, top, right, bottom], text, color) {
  const { width, height } = context.canvas;
  context.strokeStyle = context.fillStyle = `rgb(${color})`;
  context.lineWidth = LINE;
  context.strokeRect(left, top, right - left, bottom - top);
  context.font = `600 ${FONT}px system-ui, "DejaVu Sans", sans-serif`;
  context.textBaseline = "middle";
  const tag = [context.measureText(text).width + 2 * PADDING, FONT + 2 * PADDING];
  // Above the box, or inside it at the image's edge.
  const x = clamp(left - LINE / 2, width - tag[0]);
  const y = clamp(top >= tag[1] ? top - tag[1] : top, height - tag[1]);
  context.fillRect(x, y, ...tag);
  context.fillStyle = brightness(color) > 140 ? "#000" : "#fff";
  context.fillText(text, x + PADDING, y + tag[1] / 2 + 1);
}

function clamp(x, max) {
  return Math.max(0, Math.min(x, max));
}

function brightness([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue;
}
