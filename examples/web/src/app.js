/** The page: connects its controls with the model, the image and the results. */

import { Detector, UserError } from "./detector.js";
import { classColor, draw } from "./drawing.js";
import { Camera, decode, download, onFiles, readPixels } from "./inputs.js";

const element = (id) => document.getElementById(id);
const camera = new Camera();
let detector = null;
// The image that is shown: { name, bitmap }, and with a model { detections, milliseconds }.
let shown = null;

let tasks = Promise.resolve();

/** Run a task after those before it, with a message if it fails, and return whether it did not. */
function run(task) {
  tasks = tasks.then(async () => {
    try {
      await task();
      return true;
    } catch (error) {
      setStatus(error instanceof UserError ? error.message : `This should not happen: ${error}`, "error");
      return false;
    }
  });
  return tasks;
}

function setStatus(text, kind = "") {
  element("status").textContent = text;
  element("status").className = kind;
}

/** Return what can be done next. */
function nextStep() {
  if (!detector) {
    return "Choose a model: an .onnx file that detr-d2 export wrote.";
  }
  return shown ? "Ready." : "The model is open: choose an image, or start the camera.";
}

function openModel(name, getBlob) {
  return run(async () => {
    setStatus(`Opening ${name}`, "busy");
    const blob = await getBlob();
    const opened = await Detector.open(new Uint8Array(await blob.arrayBuffer()), name);
    await detector?.close();
    detector = opened;
    showFacts(name, blob.size);
    if (shown) {
      await detect(shown.name, shown.bitmap);
    }
    setStatus(nextStep());
  });
}

function openImage(name, getBlob) {
  return run(async () => {
    setStatus(`Reading ${name}`, "busy");
    await detect(name, await decode(await getBlob(), name));
    setStatus(nextStep());
  });
}

/** Detect objects in an image and show them; without a model show the image. */
async function detect(name, bitmap) {
  const result = { name, bitmap, detections: [] };
  if (detector) {
    const start = performance.now();
    result.detections = await detector.detect(readPixels(bitmap));
    result.milliseconds = performance.now() - start;
  }
  if (shown?.bitmap !== bitmap) {
    shown?.bitmap.close();
  }
  shown = result;
  showResult();
}

/** Return the detections of the image that are shown. */
function selected() {
  return shown.detections.filter(({ score }) => score >= Number(element("score").value));
}

function showResult() {
  element("score-value").value = Number(element("score").value).toFixed(2);
  if (!shown) {
    return;
  }
  const detections = selected();
  draw(element("canvas"), shown.bitmap, detections);
  element("canvas").hidden = false;
  const names = detections.map(({ name }) => name).join(", ");
  element("canvas").setAttribute("aria-label", `${shown.name}: ${names || "no objects"}`);
  element("results").hidden = shown.milliseconds === undefined;
  element("count").textContent = detections.length;
  element("time").textContent = `${Math.round(shown.milliseconds)} ms`;
  element("size").textContent = `${shown.bitmap.width} × ${shown.bitmap.height}`;
  element("rows").replaceChildren(
    ...detections.map(({ label, name, score, box }) => {
      const row = tableRow(name, score.toFixed(3), ...box.map((x) => x.toFixed(1)));
      const swatch = document.createElement("i");
      swatch.style.background = `rgb(${classColor(label)})`;
      row.firstChild.prepend(swatch);
      return row;
    }),
  );
}

function showFacts(name, bytes) {
  const { info } = detector;
  const rule = `shorter side ${info.min_size}, longer side at most ${info.max_size} pixels`;
  element("fact-rows").replaceChildren(
    tableRow("file", `${name}, ${(bytes / 1e6).toFixed(1)} MB`),
    tableRow("classes", info.class_names.join(", ")),
    tableRow("images", info.min_size ? rule : "not resized"),
    tableRow("masks", info.masks ? "yes" : "no"),
    tableRow("exported by", `detr_d2 ${info.version}`),
  );
  element("facts").hidden = false;
}

function tableRow(...texts) {
  const row = document.createElement("tr");
  for (const text of texts) {
    row.insertCell().textContent = text;
  }
  return row;
}

/** Return the results as JSON; boxes as in COCO's files: left, top, width and height in pixels. */
function resultJson() {
  const detections = selected().map(({ name, categoryId, score, box: [left, top, right, bottom] }) => {
    return { class_name: name, category_id: categoryId, score, bbox: [left, top, right - left, bottom - top] };
  });
  const { width, height } = shown.bitmap;
  return JSON.stringify({ file_name: shown.name, width, height, detections }, null, 1);
}

function receive(files) {
  const model = files.find(({ name }) => name.endsWith(".onnx"));
  const other = files.find((file) => file !== model);
  if (files.length) {
    stopCamera();
  }
  if (model) {
    openModel(model.name, () => model);
  }
  if (other) {
    openImage(other.name, () => other);
  }
}

async function startCamera() {
  const started = await run(async () => {
    setStatus("Starting the camera", "busy");
    await camera.start();
    element("camera").textContent = "Stop the camera";
    element("camera").setAttribute("aria-pressed", "true");
    setStatus(detector ? "The camera is on." : nextStep());
  });
  // Frames do not change the status: it is read aloud.
  while (started && camera.isOn) {
    if (!(await run(async () => camera.isOn && detect("camera", await camera.frame())))) {
      stopCamera();
    }
  }
}

function stopCamera() {
  camera.stop();
  element("camera").textContent = "Start the camera";
  element("camera").setAttribute("aria-pressed", "false");
}

onFiles([element("model"), element("image")], element("drop"), receive);
element("score").addEventListener("input", showResult);
element("camera").addEventListener("click", () => (camera.isOn ? stopCamera() : startCamera()));
element("download").addEventListener("click", (event) => {
  URL.revokeObjectURL(event.target.href);
  event.target.href = URL.createObjectURL(new Blob([resultJson()], { type: "application/json" }));
});
showResult();
setStatus(nextStep());
// ?model=URL&image=URL open both at once.
const addresses = new URLSearchParams(location.search);
for (const [key, open] of Object.entries({ model: openModel, image: openImage })) {
  const address = addresses.get(key);
  if (address) {
    open(address, () => download(address));
  }
}
