// What the file holds: numbers of all images at once, images and maps when they are drawn.

const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const { about: ABOUT, labels: LABELS, images: IMAGES } = DATA;
IMAGES.forEach((image, number) => {
  image.number = number;
  image.maps.forEach((map, part) => { map.part = part + 1; map.source ??= 0; map.cut ??= 0; });
});
// A training: each image is shown with the maps before and after it.
const PAIRED = ABOUT.kind === "train" && ABOUT.sources.length > 1;
const SCORES = ABOUT.task === "none" ? "value" : "probability";

/** An element with attributes, properties (from `on...`) and children; text is never markup. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== undefined && value !== null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const labelOf = (index) => LABELS[index] ?? String(index);

/** A share of 1 as a percentage, with as many digits as it deserves. */
function percent(value) {
  const share = 100 * value;
  if (share > 0 && share < 0.1) return "< 0.1 %";
  return `${share.toFixed(share < 99.95 && share !== 0 ? 1 : 0)} %`;
}

/** A class's probability, or the value that a network without any gives. */
const score = (value) => (ABOUT.task === "none" ? String(Number(value.toPrecision(4))) : percent(value));

const gain = (map) => (map.improved ? Math.max(...map.rpi.filter((value) => value !== null && value !== undefined)) : 0);
const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const isThresholded = (map) => map.share !== undefined;

const describeThreshold = (map) => (map.improved === false ? "none" : number(map.threshold, 2).replace(/0$/, ""));
const isWrong = (image, source = PAIRED ? 1 : 0) => image.label !== undefined && image.top[source][0][0] !== image.label;

/** The encoded parts of an image, once the browser has read that far. */
function partsOf(image) {
  const ready = () => {
    const tag = $(`i${image.number}`);
    return tag && (tag.nextElementSibling || document.readyState !== "loading") ? tag.textContent.split(" ") : null;
  };
  return new Promise((resolve) => {
    const look = () => {
      const parts = ready();
      if (parts) resolve(parts);
      else setTimeout(look, 30);
    };
    look();
  });
}

/** A map's values at the resolution of the network: { rows, columns, values }. */
function gridOf(map, parts) {
  const bytes = atob(parts[map.part]);
  const values = new Float32Array(bytes.length);
  const step = (map.high - map.low) / 255;
  for (let i = 0; i < bytes.length; i += 1) values[i] = map.low + step * bytes.charCodeAt(i);
  return { rows: map.shape[0], columns: map.shape[1], values };
}
