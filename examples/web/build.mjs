/** Copy the page and the runtime that it needs to dist/, a folder for any static server. */

import { cpSync, existsSync, mkdirSync, rmSync } from "node:fs";

// The part of onnxruntime-web that runs on the processor, without WebGPU.
const RUNTIME = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];

const here = (path) => new URL(path, import.meta.url);
const packaged = here("node_modules/onnxruntime-web/dist/");

if (!existsSync(packaged)) {
  console.error("onnxruntime-web is not installed: run npm install first");
  process.exit(1);
}
rmSync(here("dist/"), { recursive: true, force: true });
mkdirSync(here("dist/runtime/"), { recursive: true });
cpSync(here("src/"), here("dist/"), { recursive: true });
for (const name of RUNTIME) {
  cpSync(new URL(name, packaged), here(`dist/runtime/${name}`));
}
console.log("built: python3 -m http.server --directory dist --bind 127.0.0.1 8000");
