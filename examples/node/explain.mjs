// From an image to a class, the map of where it was seen, and the map's best threshold: one call.
//
//   node explain.mjs model.onnx cat.jpg -o why.png
//
// The graph is made by: whycam export MODEL --outputs tft --embed-preprocess -o model.onnx
// What it says of itself, by: whycam info model.onnx --json > model.json

import { access, readFile, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import * as ort from "onnxruntime-node";
import sharp from "sharp";

const USAGE =
  "usage: node explain.mjs MODEL.onnx IMAGE [-o OVERLAY.png] [--class=N] [--json FILE]";
const OUTPUTS = ["probabilities", "targets", "original_maps", "maps", "thresholds", "rpi"];

class UserError extends Error {}

/** Runs something; what goes wrong is told in one line of ours. */
async function or(what, action) {
  try {
    return await action();
  } catch (error) {
    throw new UserError(`${what}: ${String(error.message ?? error).split("\n")[0]}`);
  }
}

function options() {
  let given;
  try {
    given = parseArgs({
      allowPositionals: true,
      options: {
        output: { type: "string", short: "o" },
        class: { type: "string", default: "-1" },
        json: { type: "string" },
      },
    });
  } catch (error) {
    throw new UserError(`${error.message.split(".")[0]}; ${USAGE}`);
  }
  if (given.positionals.length !== 2) throw new UserError(USAGE);
  if (!/^-?\d+$/.test(given.values.class)) throw new UserError("--class takes a number");
  return { model: given.positionals[0], image: given.positionals[1], ...given.values };
}

/** Upright RGB pixels, as whycam reads them. */
async function readImage(path) {
  const { data, info } = await or(`cannot read the image ${path}`, () =>
    sharp(path).rotate().removeAlpha().toColourspace("srgb").raw()
      .toBuffer({ resolveWithObject: true }));
  if (info.channels !== 3) throw new UserError(`${path} has ${info.channels} channels, not 3`);
  return { data, height: info.height, width: info.width };
}

async function open(path) {
  await or(`cannot read the model ${path}`, () => access(path));
  const session = await or(`cannot load the model ${path}`, () =>
    ort.InferenceSession.create(path));
  const missing = OUTPUTS.filter((name) => !session.outputNames.includes(name));
  const pixels = session.inputMetadata?.find((input) => input.name === "image")?.type === "uint8";
  if (missing.length || !pixels) {
    throw new UserError(
      `${path} cannot be used here: whycam export it with --outputs tft --embed-preprocess`);
  }
  if (session.inputNames.includes("class_embeddings")) {
    throw new UserError(`${path} takes its classes as an input: whycam export it with --classes FILE`);
  }
  return session;
}

/** The manifest beside the model, MODEL.json; without it there are no names and no overlay. */
async function manifestOf(model) {
  const path = model.replace(/\.onnx$/, "") + ".json";
  try {
    return JSON.parse(await readFile(path, "utf8"));
  } catch {
    return null;
  }
}

/** Where the network's view lies in the image: its size there, and its corner. */
function place(image, { size, resize }) {
  let [height, width] = [image.height, image.width];
  if (resize.length === 2) [height, width] = resize;
  if (resize.length === 1) {
    const shorter = Math.min(height, width);
    [height, width] = [height, width].map((side) => Math.floor((resize[0] * side) / shorter));
  }
  const scale = [image.height / height, image.width / width];
  const [top, left] = [(height - size[0]) / 2, (width - size[1]) / 2];
  return { top: top * scale[0], left: left * scale[1],
    height: size[0] * scale[0], width: size[1] * scale[1] };
}

const COLOURS = [[66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 200, 40]];

/** The map as RGBA: from violet to yellow, as opaque as it is high. */
function heat(map) {
  const rgba = Buffer.alloc(map.length * 4);
  map.forEach((value, i) => {
    const step = Math.min(Math.floor(value * 3), 2);
    COLOURS[step].forEach((low, c) => {
      rgba[4 * i + c] = low + (value * 3 - step) * (COLOURS[step + 1][c] - low);
    });
    rgba[4 * i + 3] = 255 * 0.75 * Math.min(1, 2 * value);
  });
  return rgba;
}

async function draw(image, map, spec, path) {
  const where = place(image, spec);
  const [height, width] = [Math.round(where.height), Math.round(where.width)];
  const [top, left] = [Math.round(where.top), Math.round(where.left)];
  // What lies over the image's edge (a crop larger than the image) is cut off.
  const cut = { top: Math.max(0, -top), left: Math.max(0, -left) };
  cut.height = Math.min(height - cut.top, image.height - Math.max(0, top));
  cut.width = Math.min(width - cut.left, image.width - Math.max(0, left));
  const [rows, columns] = spec.size;
  const layer = await sharp(heat(map), { raw: { width: columns, height: rows, channels: 4 } })
    .resize(width, height, { fit: "fill" }).extract(cut).png().toBuffer();
  const raw = { width: image.width, height: image.height, channels: 3 };
  await or(`cannot write ${path}`, () =>
    sharp(image.data, { raw })
      .composite([{ input: layer, top: Math.max(0, top), left: Math.max(0, left) }])
      .png().toFile(path));
}

async function main() {
  const wanted = options();
  const [image, session] = [await readImage(wanted.image), await open(wanted.model)];
  const manifest = await manifestOf(wanted.model);
  if (manifest && !manifest.embedded_preprocess) {
    throw new UserError(
      `${wanted.model} takes prepared images: whycam export it with --embed-preprocess`);
  }
  const feeds = {
    image: new ort.Tensor("uint8", image.data, [1, image.height, image.width, 3]),
    target: new ort.Tensor("int64", BigInt64Array.of(BigInt(wanted.class)), [1, 1]),
  };
  const classes = session.outputMetadata.find((output) => output.name === "probabilities").shape[1];
  if (Number(wanted.class) >= classes || Number(wanted.class) < -5) {
    throw new UserError(`class ${wanted.class} is none of 0 to ${classes - 1} or -1 to -5`);
  }
  const found = await or("the engine failed", () => session.run(feeds, OUTPUTS));
  const index = Number(found.targets.data[0]);
  const probability = found.probabilities.data[index];
  const label = manifest?.labels?.[index] ?? `class ${index}`;
  const threshold = found.thresholds.data[0];
  const rpi = [...found.rpi.data];
  console.log(`${label} (${index}), probability ${probability.toFixed(4)}, tau* ` +
    `${threshold.toFixed(1)}, largest rpi ${Math.max(...rpi).toFixed(3)}`);
  if (wanted.json) {
    const answer = { index, label, probability, threshold, rpi, shape: found.maps.dims.slice(2),
      map: [...found.maps.data], original_map: [...found.original_maps.data] };
    await or(`cannot write ${wanted.json}`, () => writeFile(wanted.json, JSON.stringify(answer)));
  }
  if (wanted.output) {
    if (!manifest) {
      throw new UserError("the overlay needs the manifest beside the model: " +
        `whycam info ${wanted.model} --json > ${wanted.model.replace(/\.onnx$/, "")}.json`);
    }
    await draw(image, found.maps.data, manifest.preprocess, wanted.output);
  }
}

try {
  await main();
} catch (error) {
  if (!(error instanceof UserError)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = 2;
}
