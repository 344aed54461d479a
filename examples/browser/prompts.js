// Prompts: the classes of a zero-shot classifier, read from a .npz file of "whycam prompts".

const REFUSED = "is no file of prompts; make one with: whycam prompts ... -o prompts.npz";

/** The entries of a zip file that are stored as they are, as NumPy's savez writes them. */
function entries(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end -= 1;
  if (end < 0) throw new Error(REFUSED);
  const found = new Map();
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left -= 1) {
    const [method, size] = [view.getUint16(at + 10, true), view.getUint32(at + 20, true)];
    const lengths = [28, 30, 32].map((place) => view.getUint16(at + place, true));
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + lengths[0]));
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    if (method !== 0) throw new Error("is compressed: write it with numpy.savez");
    found.set(name, bytes.slice(start, start + size));
    at += 46 + lengths[0] + lengths[1] + lengths[2];
  }
  return found;
}

/** One array: its type in NumPy's letters, its shape and its bytes. */
function array(bytes) {
  const view = new DataView(bytes.buffer);
  const isFirst = bytes[6] === 1;
  const begin = isFirst ? 10 : 12;
  const end = begin + (isFirst ? view.getUint16(8, true) : view.getUint32(8, true));
  const header = new TextDecoder().decode(bytes.subarray(begin, end));
  const [, type] = header.match(/'descr': '([^']*)'/);
  const [, sides] = header.match(/'shape': \(([^)]*)\)/);
  if (!header.includes("'fortran_order': False")) throw new Error("is not in C order");
  return { type, shape: sides.split(",").filter((side) => side.trim()).map(Number),
    data: bytes.buffer.slice(end) };
}

/** Reads prompts {names, embeddings: Float32Array, shape: [C, D]} for embeddings of a length. */
export function readPrompts(bytes, length) {
  const found = entries(bytes);
  if (!found.has("names.npy") || !found.has("embeddings.npy")) throw new Error(REFUSED);
  const [names, embeddings] = ["names.npy", "embeddings.npy"].map((name) => array(found.get(name)));
  if (!/^<U\d+$/.test(names.type) || embeddings.type !== "<f4" || embeddings.shape.length !== 2 ||
      names.shape[0] !== embeddings.shape[0]) throw new Error(REFUSED);
  if (embeddings.shape[1] !== length) {
    throw new Error(`holds embeddings of ${embeddings.shape[1]} numbers, and the model takes ${length}`);
  }
  const width = Number(names.type.slice(2));
  const letters = new Uint32Array(names.data);
  const texts = Array.from({ length: names.shape[0] }, (_, i) =>
    String.fromCodePoint(...letters.subarray(i * width, (i + 1) * width)).replace(/\0+$/, ""));
  const numbers = new Float32Array(embeddings.data);
  texts.forEach((text, i) => {
    const norm = Math.hypot(...numbers.subarray(i * length, (i + 1) * length));
    if (!(norm > 0 && norm < Infinity)) throw new Error(`holds no direction for "${text}"`);
    if (texts.indexOf(text) < i) throw new Error(`has the name "${text}" twice`);
  });
  return { names: texts, embeddings: numbers, shape: embeddings.shape };
}
