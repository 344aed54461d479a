// The graph: pixels in; class probabilities, map, and the map's best threshold out.

import { readPrompts } from "./prompts.js";
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
ort.env.wasm.proxy = true; // in a worker, so that the page stays alive
ort.env.logLevel = "error";

const HINT = "Make it with: whycam export MODEL --outputs tft --embed-preprocess -o model.onnx " +
  "&& whycam info model.onnx --json > model.json";

async function bytes(name) {
  const answer = await fetch(name);
  return answer.ok ? new Uint8Array(await answer.arrayBuffer()) : null;
}

export class Model {
  /** Reads model.onnx and model.json, and live.onnx for the camera if it is there. */
  static async load() {
    const manifest = await fetch("model.json").then((answer) => (answer.ok ? answer.json() : null));
    const graph = await bytes("model.onnx");
    if (!manifest || !graph) {
      const absent = graph ? "model.json" : "model.onnx";
      throw new Error(`There is no ${absent} beside this page. ${HINT}`);
    }
    if (!manifest.outputs?.includes("tft") || !manifest.embedded_preprocess) {
      throw new Error(`model.onnx has no TFT, or wants preprocessed input. ${HINT}`);
    }
    const model = new Model();
    model.manifest = manifest;
    model.still = await ort.InferenceSession.create(graph);
    const live = await bytes("live.onnx");
    model.live = live ? await ort.InferenceSession.create(live) : model.still;
    model.queue = Promise.resolve();
    if (model.takesPrompts) {
      const prompts = await bytes("prompts.npz");
      if (!prompts) throw new Error("There is no prompts.npz beside this page. Make it with: " +
        "whycam prompts NAME ... --model MODEL -o prompts.npz");
      model.usePrompts(prompts, "prompts.npz");
    }
    return model;
  }

  /** Whether the classes are an input of the graph: whycam export --classes input. */
  get takesPrompts() {
    return Boolean(this.manifest.class_embeddings);
  }

  /** Chooses among other prompts from now on: the bytes of a .npz file. */
  usePrompts(file, name) {
    let prompts;
    try {
      prompts = readPrompts(file, this.manifest.class_embeddings);
    } catch (error) {
      throw new Error(`${name} ${error.message}`);
    }
    if (this.manifest.task === "softmax" && prompts.names.length === 1) {
      throw new Error(`${name} holds one prompt, whose probability would always be 1: add others`);
    }
    this.prompts = prompts;
  }

  label(index) {
    const labels = this.prompts?.names ?? this.manifest.labels;
    return labels[index] ?? `class ${index}`;
  }

  /** Explains pixels {data: Uint8Array RGB, height, width}; one call at a time. */
  explain(pixels, target, { live = false } = {}) {
    const answer = this.queue.then(() => this.#run(pixels, target, live));
    this.queue = answer.catch(() => {});
    return answer;
  }

  async #run({ data, height, width }, target, live) {
    const session = live ? this.live : this.still;
    const begin = performance.now();
    const feeds = {
      image: new ort.Tensor("uint8", data, [1, height, width, 3]),
      target: new ort.Tensor("int64", BigInt64Array.of(BigInt(target)), [1, 1]),
    };
    if (this.prompts) {
      const { embeddings, shape } = this.prompts;
      // The worker takes what it is sent, so each run sends a copy.
      feeds.class_embeddings = new ort.Tensor("float32", embeddings.slice(), shape);
    }
    const found = await session.run(feeds);
    const swept = found.thresholds !== undefined;
    const probabilities = found.probabilities.data;
    const top = Array.from(probabilities.keys())
      .sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 5);
    return {
      index: Number(found.targets.data[0]),
      probabilities,
      top,
      map: swept ? found.original_maps.data : found.maps.data,
      cutMap: swept ? found.maps.data : null,
      threshold: swept ? found.thresholds.data[0] : null,
      rpi: swept ? Array.from(found.rpi.data) : null,
      milliseconds: performance.now() - begin,
    };
  }
}
