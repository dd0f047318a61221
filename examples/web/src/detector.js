/** A model that `detr-d2 export` wrote, run by onnxruntime-web in this browser. */

import * as ort from "./runtime/ort.wasm.min.mjs";
import { maskBitmap } from "./masks.js";
import { readMetadata } from "./onnx_metadata.js";
import { resizePixels, resizedSize } from "./resize.js";

// A worker computes, so that the page stays responsive.
ort.env.wasm.proxy = true;
// Errors only: it warns of every operation that it can't compute beforehand.
const OPTIONS = { executionProviders: ["wasm"], logSeverityLevel: 3 };
const ARRAYS = { uint8: Uint8Array, float32: Float32Array };

/** A mistake that the reader of the page can fix; its message is shown as it is. */
export class UserError extends Error {}

/** Return what an exported file says of itself: see docs/EXPORT.md. */
export function readInfo(file, name) {
  let metadata;
  try {
    metadata = readMetadata(file);
  } catch {
    throw new UserError(`${name} is not an ONNX file, or is cut off: choose one that detr-d2 export wrote.`);
  }
  if (!metadata.has("detr_d2_info")) {
    throw new UserError(`${name} lacks class names and sizes: make it with detr-d2 export --output model.onnx.`);
  }
  const info = JSON.parse(metadata.get("detr_d2_info"));
  if (info.outputs !== "detections") {
    throw new UserError(`${name} has raw outputs: export the model again with --outputs detections.`);
  }
  return info;
}

export class Detector {
  constructor(info, session) {
    this.info = info;
    this.session = session;
  }

  /**
   * Open a model.
   *
   * @param {Uint8Array} file content of an ONNX file
   * @param {string} name its name, for messages
   */
  static async open(file, name) {
    const info = readInfo(file, name);
    if (typeof WebAssembly !== "object") {
      throw new UserError("This browser has no WebAssembly, which runs the model: use a current one, or allow it.");
    }
    try {
      return new Detector(info, await ort.InferenceSession.create(file, OPTIONS));
    } catch (error) {
      throw new UserError(`${name} can't be opened: ${error.message}`);
    }
  }

  close() {
    return this.session.release();
  }

  /**
   * Detect objects in RGBA pixels, as of a canvas' getImageData.
   *
   * @returns {Promise<object[]>} by score, the highest first: label, name, categoryId, score, box as left, top, right
   *   and bottom in pixels of the image, and mask(color), which returns a bitmap, or undefined if the file has no masks
   */
  async detect(image) {
    const { info } = this;
    const [width, height] = resizedSize(image.width, image.height, info.min_size, info.max_size);
    const feeds = {
      images: this.#tensor(resizePixels(image, width, height), width, height),
      sizes: new ort.Tensor("int64", BigInt64Array.from([height, width], BigInt), [1, 2]),
    };
    const { boxes, scores, labels, masks } = await this.session.run(feeds);
    const detections = Array.from(scores.data, (score, k) => {
      const label = Number(labels.data[k]);
      const box = Array.from(boxes.data.subarray(4 * k, 4 * k + 4), (x, side) =>
        side % 2 ? (x * image.height) / height : (x * image.width) / width,
      );
      const mask = (color) => masks && maskBitmap(masks, k, info, [width, height], color);
      return { label, name: info.class_names[label], categoryId: info.category_ids[label], score, box, mask };
    });
    return detections.sort((a, b) => b.score - a.score);
  }

  /** Return RGB pixels as the (1, 3, H, W) input of the file, padded to a size that it accepts. */
  #tensor(rgb, width, height) {
    const { dtype, image_format, square_size, size_divisibility } = this.info;
    const divisor = Math.max(1, size_divisibility);
    const [columns, rows] = [width, height].map((x) => square_size || Math.ceil(x / divisor) * divisor);
    const planes = new ARRAYS[dtype](3 * rows * columns);
    for (let channel = 0; channel < 3; channel++) {
      const source = image_format === "BGR" ? 2 - channel : channel;
      for (let y = 0; y < height; y++) {
        const [from, to] = [y * width * 3 + source, (channel * rows + y) * columns];
        for (let x = 0; x < width; x++) {
          planes[to + x] = rgb[from + 3 * x];
        }
      }
    }
    return new ort.Tensor(dtype, planes, [1, 3, rows, columns]);
  }
}
