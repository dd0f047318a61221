/** Ways in which models and images come into the page. */

import { UserError } from "./detector.js";

/** Call `receive(files)` with the files that are picked with `inputs`, dropped anywhere, or pasted. */
export function onFiles(inputs, dropZone, receive) {
  for (const input of inputs) {
    input.addEventListener("change", () => {
      receive([...input.files]);
      // Picking the same file again is a change too.
      input.value = "";
    });
  }
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    dropZone.classList.add("over");
  });
  for (const end of ["dragleave", "drop"]) {
    document.addEventListener(end, () => dropZone.classList.remove("over"));
  }
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    receive([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => receive([...event.clipboardData.files]));
}

/** Return the file at an address, as a Blob. */
export async function download(address) {
  let response;
  try {
    response = await fetch(address);
  } catch {
    throw new UserError(`${address} can't be reached: its server is off, or does not allow other pages to read it.`);
  }
  if (!response.ok) {
    throw new UserError(`${address} is not there (status ${response.status}): check the address after ?`);
  }
  return response.blob();
}

/** Return an image file upright, as an ImageBitmap of the colors in the file. */
export async function decode(blob, name) {
  try {
    return await createImageBitmap(blob, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new UserError(`${name} is not an image that this browser can show: choose a JPEG, PNG or WebP file.`);
  }
}

/** Return the RGBA pixels of an image. */
export function readPixels(bitmap) {
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

/** A camera. It is on from `start` to `stop`. */
export class Camera {
  #video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });

  get isOn() {
    return this.#video.srcObject !== null;
  }

  async start() {
    if (!navigator.mediaDevices) {
      throw new UserError("Browsers give a camera to pages on https or localhost only: open this page there.");
    }
    try {
      // Of a phone's, the one at the back.
      this.#video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      await this.#video.play();
    } catch (error) {
      this.stop();
      throw new UserError(`The camera does not start (${error.message}): connect one, and allow this page to use it.`);
    }
  }

  /** Return the current image. */
  frame() {
    return createImageBitmap(this.#video);
  }

  stop() {
    for (const track of this.#video.srcObject?.getTracks() ?? []) {
      track.stop();
    }
    this.#video.srcObject = null;
  }
}
