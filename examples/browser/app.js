// The page: what is shown, what was asked for, and what the person does.

import { curve, drawMap } from "./draw.js";
import { Model } from "./model.js";

const LARGEST = 1600; // pixels along the longer side; larger images are scaled down first
const $ = (id) => document.getElementById(id);
const state = { model: null, image: null, answer: null, camera: null, wanted: -1 };
window.whycam = state; // for tests, and for the curious

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

/** RGB bytes of a canvas. */
function pixelsOf(canvas) {
  const { data, width, height } = canvas.getContext("2d").getImageData(
    0, 0, canvas.width, canvas.height);
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0, j = 0; i < data.length; i += 4) {
    rgb[j++] = data[i];
    rgb[j++] = data[i + 1];
    rgb[j++] = data[i + 2];
  }
  return { data: rgb, width, height };
}

function canvasOf(source, width, height) {
  const scale = Math.min(1, LARGEST / Math.max(width, height));
  const canvas = new OffscreenCanvas(
    Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function render() {
  const { model, image, answer } = state;
  if (!image || !answer) return;
  $("empty").hidden = true;
  const cut = $("cut").checked && answer.cutMap;
  drawMap($("view"), image, cut ? answer.cutMap : answer.map, model.manifest.preprocess,
    Number($("opacity").value));
  $("classes").replaceChildren(...answer.top.map((index) => {
    const button = document.createElement("button");
    button.dataset.index = index;
    button.setAttribute("aria-pressed", index === answer.index);
    const percent = (100 * answer.probabilities[index]).toFixed(1);
    button.style.setProperty("--share", `${percent}%`);
    const name = document.createElement("span");
    name.textContent = model.label(index);
    const share = document.createElement("span");
    share.textContent = `${percent} %`;
    button.append(name, share);
    return button;
  }));
  $("sweep").hidden = !answer.rpi;
  $("cut").disabled = !answer.cutMap;
  if (answer.rpi) {
    curve($("curve"), model.manifest.tft.taus, answer.rpi, answer.threshold);
    const gain = Math.max(...answer.rpi);
    $("chosen").textContent = gain > 1e-5
      ? `Cut at ${answer.threshold.toFixed(1)}, what is left raises ` +
        `“${model.label(answer.index)}” from ${answer.probabilities[answer.index].toFixed(3)} by ${(100 * gain).toFixed(1)} %.`
      : "No threshold raises this class's probability: the map stays whole.";
  }
}

async function explainImage() {
  const { model, image } = state;
  say("looking ...");
  try {
    const answer = await model.explain(pixelsOf(image), state.wanted);
    if (image !== state.image) return; // another one has come meanwhile
    state.answer = answer;
    say(`${image.width} x ${image.height} pixels, ${answer.milliseconds.toFixed(0)} ms`);
    render();
  } catch (error) {
    say(`The engine failed: ${error.message}`, true);
  }
}

async function take(file) {
  if (!file || !state.model) return;
  stopCamera();
  try {
    const bitmap = await createImageBitmap(file, {
      colorSpaceConversion: "none", premultiplyAlpha: "none" });
    state.image = canvasOf(bitmap, bitmap.width, bitmap.height);
    bitmap.close();
  } catch {
    say(`${file.name} is no image that this browser can read.`, true);
    return;
  }
  state.wanted = -1;
  await explainImage();
}

function stopCamera() {
  if (!state.camera) return;
  state.camera.getTracks().forEach((track) => track.stop());
  state.camera = null;
  $("camera").textContent = "Use the camera";
  say("camera off");
}

async function startCamera() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
  } catch (error) {
    say(`No camera: ${error.message}`, true);
    return;
  }
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  video.srcObject = stream;
  await video.play();
  state.camera = stream;
  state.wanted = -1;
  $("camera").textContent = "Stop the camera";
  stream.getVideoTracks()[0].addEventListener("ended", stopCamera);
  let last = performance.now();
  let rate = 0;
  while (state.camera === stream) {
    const frame = canvasOf(video, video.videoWidth, video.videoHeight);
    try {
      const answer = await state.model.explain(pixelsOf(frame), state.wanted, { live: true });
      if (state.camera !== stream) break;
      Object.assign(state, { image: frame, answer });
    } catch (error) {
      stopCamera();
      say(`The engine failed: ${error.message}`, true);
      break;
    }
    render();
    const now = performance.now();
    rate = rate ? 0.9 * rate + 100 / (now - last) : 1000 / (now - last);
    last = now;
    say(`live, ${rate.toFixed(1)} frames a second`);
    await new Promise(requestAnimationFrame);
  }
  video.srcObject = null;
}

$("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
$("prompts").addEventListener("change", async (event) => {
  const file = event.target.files[0];
  event.target.value = "";
  try {
    state.model.usePrompts(new Uint8Array(await file.arrayBuffer()), file.name);
  } catch (error) {
    say(error.message, true);
    return;
  }
  state.wanted = -1;
  say(`${state.model.prompts.names.length} prompts of ${file.name}`);
  if (state.image && !state.camera) await explainImage();
});
$("camera").addEventListener("click", () => (state.camera ? stopCamera() : startCamera()));
$("opacity").addEventListener("input", render);
$("cut").addEventListener("change", render);
$("classes").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  state.wanted = Number(button.dataset.index);
  if (!state.camera) explainImage();
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});

try {
  say("loading the model ...");
  state.model = await Model.load();
  $("file").disabled = $("camera").disabled = false;
  $("ask").hidden = !state.model.takesPrompts;
  const threads = self.crossOriginIsolated ? "with threads" : "with one thread";
  say(`ready, ${threads}: ${state.model.manifest.model}`);
} catch (error) {
  say(error.message, true);
}
