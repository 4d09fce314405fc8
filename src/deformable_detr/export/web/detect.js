// The page: an image or the camera in, boxes out, by onnxruntime-web. `load` and `detect` know nothing of the page.

export async function load() {
  const gpu = navigator.gpu && await navigator.gpu.requestAdapter();
  const ort = await import(gpu ? "./onnxruntime/ort.webgpu.bundle.min.mjs" : "./onnxruntime/ort.wasm.bundle.min.mjs");
  ort.env.wasm.wasmPaths = new URL("onnxruntime/", location.href).href;
  // threads share memory, which browsers allow isolated pages alone: see isolate.js
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  const info = await (await fetch("detector.json")).json();
  const session = await ort.InferenceSession.create("detector.onnx", { executionProviders: gpu ? ["webgpu", "wasm"] : ["wasm"] });
  return { ort, session, ...info, where: gpu ? "WebGPU" : ort.env.wasm.numThreads > 1 ? `${ort.env.wasm.numThreads} threads` : "one thread" };
}

// ImageData → detections, best first; boxes in pixels. `threshold` null: that of each class.
export async function detect(detector, image, threshold = null) {
  const { width, height, data } = image;
  const pixels = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    pixels[to++] = data[from]; pixels[to++] = data[from + 1]; pixels[to++] = data[from + 2];
  }
  const images = new detector.ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const { scores, labels, boxes } = await detector.session.run({ images });
  const found = Array.from(scores.data, (score, index) => {
    const label = Number(labels.data[index]), box = boxes.data.subarray(4 * index, 4 * index + 4);
    const inside = (share, size) => Math.min(Math.max(share * size, 0), size);
    return { label, name: detector.names[label], score, box: Array.from(box, (share, side) => inside(share, side % 2 ? height : width)) };
  });
  return withoutDuplicates(found, detector.nms_iou).filter(one => one.score >= (threshold ?? detector.thresholds[one.label]));
}

function withoutDuplicates(found, limit) {
  if (limit === null) return found;
  const kept = [];
  for (const one of found)
    if (!kept.some(other => other.label === one.label && overlap(other.box, one.box) > limit)) kept.push(one);
  return kept;
}

function overlap(one, other) {
  const side = (axis) => Math.max(0, Math.min(one[axis + 2], other[axis + 2]) - Math.max(one[axis], other[axis]));
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  const both = side(0) * side(1);
  return both / (area(one) + area(other) - both);
}

const at = (id) => document.getElementById(id);
const stage = at("stage"), canvas = document.createElement("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
let detector, current, threshold = null, camera = null, busy = false, again = false;

async function show(source, width, height) {
  canvas.width = width; canvas.height = height;
  context.drawImage(source, 0, 0, width, height);
  current = context.getImageData(0, 0, width, height);
  if (canvas.parentNode !== stage) stage.replaceChildren(canvas);
  await update();
}

// One image at a time; what changes meanwhile (another image, the threshold) is examined next.
async function update() {
  again = busy;
  if (!current || busy) return;
  busy = true;
  const began = performance.now();
  try {
    const image = current, found = await detect(detector, image, threshold);
    if (image !== current) return;
    context.putImageData(image, 0, 0);
    found.forEach(draw);
    list(found);
    self.detections = found;
    at("state").textContent = `${found.length} objects in ${Math.round(performance.now() - began)} ms (${detector.where}).`;
  } catch (error) {
    at("state").textContent = `The image could not be examined: ${error.message}`;
  } finally {
    busy = false;
    if (again) await update();
  }
}

function draw({ label, name, score, box: [left, top, right, bottom] }) {
  const line = Math.max(2, canvas.width / 320), text = `${name} ${score.toFixed(2)}`;
  context.lineWidth = line;
  context.strokeStyle = context.fillStyle = `hsl(${label * 137.5 % 360} 85% 45%)`;
  context.strokeRect(left, top, right - left, bottom - top);
  context.font = `600 ${6 * line}px system-ui, sans-serif`;
  context.textBaseline = "top";
  const y = Math.max(0, top - 7.5 * line);
  context.fillRect(left - line / 2, y, context.measureText(text).width + 3 * line, 7.5 * line);
  context.fillStyle = "#fff";
  context.fillText(text, left + line, y + line);
}

function list(found) {
  const rows = found.map(({ name, score, box }) => {
    const row = document.createElement("tr");
    for (const text of [name, score.toFixed(3), ...box.map(side => side.toFixed(1))]) row.insertCell().textContent = text;
    return row;
  });
  const table = document.querySelector("table");
  table.tBodies[0].replaceChildren(...rows);
  table.hidden = !found.length;
}

async function open(file) {
  stopCamera();
  try {
    const image = await createImageBitmap(file);
    await show(image, image.width, image.height);
  } catch { at("state").textContent = `${file.name} is no image that this browser can read.`; }
}

// An image of this server, which the page's address names: ?image=photo.jpg
async function openNamed(name) {
  const address = new URL(name, location.href);
  if (address.origin !== location.origin) return;
  const answer = await fetch(address);
  await open(new File([answer.ok ? await answer.blob() : ""], name));
}

async function startCamera() {
  const video = document.createElement("video");
  try { camera = await navigator.mediaDevices.getUserMedia({ video: true }); }
  catch (error) { at("state").textContent = `No camera: ${error.message}`; return; }
  at("camera").textContent = "Stop";
  video.srcObject = camera;
  await video.play();
  while (camera) {
    await show(video, video.videoWidth, video.videoHeight);
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  camera?.getTracks().forEach(track => track.stop());
  camera = null;
  at("camera").textContent = "Camera";
}

function listen() {
  at("file").addEventListener("change", event => event.target.files[0] && open(event.target.files[0]));
  at("camera").addEventListener("click", () => camera ? stopCamera() : startCamera());
  at("threshold").addEventListener("input", event => {
    threshold = Number(event.target.value);
    at("shown").textContent = threshold.toFixed(2);
    update();
  });
  stage.addEventListener("dragover", event => { event.preventDefault(); stage.classList.add("over"); });
  stage.addEventListener("dragleave", () => stage.classList.remove("over"));
  stage.addEventListener("drop", event => {
    event.preventDefault();
    stage.classList.remove("over");
    if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  });
}

// Without the headers of an isolated page, a service worker adds them, and the page is loaded once more.
async function isolate() {
  if (self.crossOriginIsolated || !self.isSecureContext || !navigator.serviceWorker || sessionStorage.isolated) return;
  sessionStorage.isolated = "tried";
  await navigator.serviceWorker.register("isolate.js");
  await navigator.serviceWorker.ready;
  location.reload();
  await new Promise(() => {});
}

async function main() {
  await isolate().catch(() => {});
  at("threshold").value = 0.5;
  try { detector = await load(); }
  catch (error) { at("state").textContent = `The detector could not be loaded: ${error.message}`; return; }
  at("state").textContent = `Ready (${detector.where}).`;
  listen();
  const named = new URLSearchParams(location.search).get("image");
  if (named) await openNamed(named);
}

main();
