/** Resizing of images as the model was trained with: to the same size and the same pixels as in Python. */

// Of Pillow's Resample.c: weights are integers with this many bits behind the point.
const PRECISION_BITS = 22;

/**
 * Return [width, height] after resizing the shorter side to `minSize` pixels, or less if the longer side would exceed
 * `maxSize`. A `minSize` of 0 leaves images as they are.
 */
export function resizedSize(width, height, minSize, maxSize) {
  if (minSize === 0) {
    return [width, height];
  }
  const [shorter, longer] = [Math.min(width, height), Math.max(width, height)];
  let size = minSize;
  if ((longer / shorter) * size > maxSize) {
    size = roundHalfToEven((maxSize * shorter) / longer);
  }
  const other = size === 0 ? maxSize : Math.floor((size * longer) / shorter);
  size = Math.max(size, 1);
  return width < height ? [size, other] : [other, size];
}

/** Round as Python does. */
function roundHalfToEven(x) {
  return x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
}

/**
 * Resize RGBA pixels to RGB, with Pillow's bilinear filter, which averages over all pixels when it reduces.
 *
 * @param {{data: Uint8ClampedArray, width: number, height: number}} image as of a canvas' getImageData
 * @returns {Uint8Array} height × width × 3 values
 */
export function resizePixels(image, width, height) {
  const rgb = new Uint8Array(image.width * image.height * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4) {
    rgb[to++] = image.data[from];
    rgb[to++] = image.data[from + 1];
    rgb[to++] = image.data[from + 2];
  }
  // Rows first. Each pass rounds to 8 bits: the other order, which Pillow 13 takes for some shapes, changes some values
  // by one.
  const rows = resample(rgb, image.width, width, { lines: image.height, step: 3, lineStep: 3 * image.width }, 3);
  return resample(rows, image.height, height, { lines: 1, step: 3 * width, lineStep: 0 }, 3 * width);
}

/**
 * Resize along one axis. The image has `lines` lines; positions along one are `step` values apart, lines are `lineStep`
 * apart, and every position has `channels` values.
 */
function resample(values, size, newSize, { lines, step, lineStep }, channels) {
  if (size === newSize) {
    return values;
  }
  const windows = filterWindows(size, newSize);
  const result = new Uint8Array(lines * newSize * channels);
  let to = 0;
  for (let line = 0; line < lines; line++) {
    for (const { start, weights } of windows) {
      const from = line * lineStep + start * step;
      for (let channel = 0; channel < channels; channel++) {
        let sum = 1 << (PRECISION_BITS - 1);
        for (let k = 0; k < weights.length; k++) {
          sum += values[from + k * step + channel] * weights[k];
        }
        result[to++] = sum >> PRECISION_BITS;
      }
    }
  }
  return result;
}

/** Return the first position and the weights of the positions that every new position is computed from. */
function filterWindows(size, newSize) {
  const scale = size / newSize;
  const support = Math.max(scale, 1);
  return Array.from({ length: newSize }, (_, i) => {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(size, Math.trunc(center + support + 0.5));
    const triangle = Array.from({ length: end - start }, (_, k) =>
      Math.max(0, 1 - Math.abs((start + k - center + 0.5) * (1 / support))),
    );
    const total = triangle.reduce((a, b) => a + b, 0);
    const weights = triangle.map((x) => Math.trunc(0.5 + (x / total) * (1 << PRECISION_BITS)));
    return { start, weights: Int32Array.from(weights) };
  });
}
