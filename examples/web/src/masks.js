/** Masks of detections, from the logits that an exported file returns. */

/**
 * Return whether each pixel of the resized image belongs to the mask of detection k.
 *
 * The logits are resized bilinearly to the image, and compared with the threshold.
 *
 * @param {{data: Float32Array, dims: number[]}} masks (1, K, h, w) logits
 * @param {[number, number]} size width and height of the resized image, without padding
 * @returns {Uint8Array} height × width values, 0 or 1
 */
export function maskPixels(masks, k, info, [width, height]) {
  const [, , rows, columns] = masks.dims;
  const logits = masks.data.subarray(k * rows * columns, (k + 1) * rows * columns);
  const threshold = Math.log(info.mask_threshold / (1 - info.mask_threshold));
  const across = samples(width, columns, info);
  const down = samples(height, rows, info);
  const inside = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const { low, high, weight } = down[y];
    for (let x = 0; x < width; x++) {
      const { low: left, high: right, weight: share } = across[x];
      const upper = mix(logits[low * columns + left], logits[low * columns + right], share);
      const lower = mix(logits[high * columns + left], logits[high * columns + right], share);
      inside[y * width + x] = mix(upper, lower, weight) > threshold;
    }
  }
  return inside;
}

/** Return a bitmap of the mask in a color, [red, green, blue], transparent elsewhere. */
export function maskBitmap(masks, k, info, [width, height], color) {
  const image = new ImageData(width, height);
  maskPixels(masks, k, info, [width, height]).forEach((inside, i) => {
    if (inside) {
      image.data.set([...color, 255], 4 * i);
    }
  });
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Return, for every pixel along an axis, the logits on both sides and the weight of the second. */
function samples(size, available, { mask_stride, square_size, size_divisibility }) {
  const divisor = Math.max(1, size_divisibility);
  const covered = square_size || Math.ceil(size / divisor) * divisor;
  const count = Math.min(available, Math.ceil(covered / mask_stride));
  return Array.from({ length: size }, (_, i) => {
    const position = Math.max(0, (i + 0.5) * (count / covered) - 0.5);
    const low = Math.min(Math.floor(position), count - 1);
    return { low, high: Math.min(low + 1, count - 1), weight: position - low };
  });
}

function mix(a, b, weight) {
  return a + (b - a) * weight;
}
