// The gallery: cards that are drawn when they come near the screen, searched, sorted, filtered.

const look = { method: 0, source: 0, mode: "tft", opacity: 0.7 };
const METHODS = [...new Set(IMAGES.flatMap((image) => image.maps.map((map) => map.method)))];
const SWEPT = IMAGES.some((image) => image.maps.some(isThresholded));
const filters = { text: "", chosen: "", only: null };
let order = [];

/** The map that a card shows: of the first class explained, by the method and model chosen. */
function mainMap(image, source = look.source) {
  const method = METHODS[look.method];
  return image.maps.find((map) => map.source === source && map.method === method)
    ?? image.maps.find((map) => map.method === method) ?? image.maps[0];
}

const cutOf = (map) => (look.mode === "tft" ? map.cut : 0);

const SORTS = {
  order: ["as given", () => true, (a, b) => a.number - b.number],
  unsure: ["least sure first", () => true, (a, b) => a.top[0][0][1] - b.top[0][0][1]],
  sure: ["most sure first", () => true, (a, b) => b.top[0][0][1] - a.top[0][0][1]],
  wrong: [PAIRED ? "wrong after training first" : "wrong first", () => IMAGES.some((image) => image.label !== undefined),
    (a, b) => isWrong(b) - isWrong(a) || b.top[0][0][1] - a.top[0][0][1]],
  changed: [PAIRED ? "most changed first" : "other class first", () => ABOUT.sources.length > 1,
    (a, b) => isChanged(b) - isChanged(a) || likeness(a) - likeness(b)],
  unlike: ["least similar maps first", () => ABOUT.sources.length > 1, (a, b) => likeness(a) - likeness(b)],
  class: ["by class", () => true, (a, b) => labelOf(a.top[0][0][0]).localeCompare(labelOf(b.top[0][0][0]))],
  gain: ["most helped by TFT", () => SWEPT, (a, b) => gain(mainMap(b)) - gain(mainMap(a))],
  drop: ["largest drop first", () => IMAGES.some((image) => image.maps[0].drop !== undefined),
    (a, b) => (mainMap(b).drop ?? 0) - (mainMap(a).drop ?? 0)],
};
const isChanged = (image) => image.top.length > 1 && image.top[0][0][0] !== image.top[1][0][0];
const likeness = (image) => image.similarity?.[METHODS[look.method]] ?? 1;

/** A button with the image, its map and what is said of it. */
function makeCard(image) {
  const pictures = (PAIRED ? [0, 1] : [look.source]).map((source) => makePicture(image, source, ["heat"]));
  const frames = pictures.map(({ picture }, at) => make("span", { class: "frame" }, picture, PAIRED ? make("span", { class: "tag" }, ABOUT.sources[at]) : null));
  const caption = make("span", { class: "caption" });
  const button = make("button", { type: "button", "data-image": image.number, onclick: () => openViewer(image) }, PAIRED ? make("span", { class: "pair" }, ...frames) : frames[0], caption);
  return { image, item: make("li", {}, button), button, pictures, caption, near: false };
}

/** What stands below an image: its class, whether that is wrong, and what thresholding brought. */
function captionOf(image) {
  if (PAIRED) return captionOfPair(image);
  const [index, probability] = image.top[look.source]?.[0] ?? image.top[0][0];
  const map = mainMap(image);
  const lines = [make("span", { class: "name" }, make("b", {}, labelOf(index)), ` ${score(probability)}`)];
  if (image.label !== undefined && index !== image.label) {
    lines.push(make("span", { class: "wrong" }, `✗ is ${labelOf(image.label)}`));
  }
  if (map.index !== index) lines.push(make("span", { class: "note" }, `explained: ${labelOf(map.index)}`));
  if (isChanged(image)) {
    lines.push(make("span", { class: "wrong" }, `${labelOf(image.top[0][0][0])} → ${labelOf(image.top[1][0][0])}`));
  }
  if (image.similarity?.[map.method] !== undefined) {
    lines.push(make("span", { class: "note" }, `maps correlate by ${number(likeness(image), 3)}`));
  } else if (isThresholded(map)) {
    const brought = map.naive ? "" : map.improved ? ` +${percent(gain(map))}` : "";
    lines.push(make("span", { class: "note" }, `τ ${describeThreshold(map)}${brought}`));
  }
  return lines;
}

/** What stands below the maps before and after: the class explained, and what changed. */
function captionOfPair(image) {
  const [before, after] = [0, 1].map((source) => mainMap(image, source));
  const lines = [make("span", { class: "name" }, make("b", {}, labelOf(before.index)), ` ${score(before.probability)} → ${score(after.probability)}`)];
  if (isChanged(image)) {
    const right = image.label !== undefined && !isWrong(image);
    lines.push(make("span", { class: right ? "right" : "wrong" }, `now ${labelOf(image.top[1][0][0])}${right ? ", which is right" : ""}`));
  }
  if (isWrong(image)) lines.push(make("span", { class: "wrong" }, `✗ is ${labelOf(image.label)}`));
  lines.push(make("span", { class: "note" }, `maps correlate by ${number(likeness(image), 3)}`));
  return lines;
}

function refreshCard(card) {
  if (!card.caption.hasChildNodes()) card.caption.replaceChildren(...captionOf(card.image));
  if (card.near) drawCard(card);
}

async function drawCard(card) {
  const parts = await partsOf(card.image);
  if (!card.near) return;
  card.pictures.forEach(({ shown, canvases: [canvas] }, at) => {
    if (!shown.getAttribute("src")) shown.src = `data:image/webp;base64,${parts[0]}`;
    if (look.mode === "off") {
      canvas.width = canvas.height = 1;
      return;
    }
    const map = mainMap(card.image, PAIRED ? at : look.source);
    fit(canvas, 200);
    paintHeat(canvas, gridOf(map, parts), cutOf(map));
  });
}

function releaseCard(card) {
  for (const { shown, canvases: [canvas] } of card.pictures) {
    shown.removeAttribute("src");
    canvas.width = canvas.height = 1;
  }
}

const cards = IMAGES.map(makeCard);
const cardOf = new Map(cards.map((card) => [card.item, card]));
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const card = cardOf.get(target);
    card.near = isIntersecting;
    if (isIntersecting) refreshCard(card);
    else releaseCard(card);
  }
}, { rootMargin: "600px" });

function matches(image) {
  if (filters.only && !filters.only.test(image)) return false;
  if (filters.chosen !== "" && ![image.label, ...image.top.map((listed) => listed[0][0])].includes(Number(filters.chosen))) return false;
  const words = filters.text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const text = [image.name, ...image.top.map((listed) => labelOf(listed[0][0])),
    image.label === undefined ? "" : labelOf(image.label)].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

/** Show the images that match, in the order chosen. */
function arrange() {
  order = IMAGES.filter(matches).sort((a, b) => SORTS[$("sort").value][2](a, b) || a.number - b.number);
  $("gallery").replaceChildren(...order.map((image) => cards[image.number].item));
  const all = IMAGES.length;
  $("count").textContent = order.length === all ? `${all}` : `${order.length} of ${all}`;
  $("nothing").hidden = order.length > 0;
  $("chip").hidden = !filters.only;
  if (filters.only) $("chip").textContent = `${filters.only.text}  ✕`;
}

/** Draw again what is on the screen, after another method, model or map was chosen. */
function redraw() {
  for (const card of cards) {
    card.caption.replaceChildren();
    if (card.near) refreshCard(card);
  }
}

/** Show only images for which `test` holds, and say so. */
function showOnly(text, test) {
  filters.only = { text, test };
  arrange();
  $("images").scrollIntoView();
}

function clearFilters() {
  Object.assign(filters, { text: "", chosen: "", only: null });
  $("search").value = $("class").value = "";
  arrange();
}

function fill(select, options, value) {
  $(select).replaceChildren(...options.map(([key, text]) => make("option", { value: key, selected: key === value }, text)));
  $(select).closest("label").hidden = options.length < 2;
}

function startGallery() {
  fill("sort", Object.entries(SORTS).filter(([, sort]) => sort[1]()).map(([key, sort]) => [key, sort[0]]), "order");
  $("sort").value = ABOUT.sources.length > 1 ? "changed" : IMAGES.some(isWrong) ? "wrong" : "order";
  const present = [...new Set(IMAGES.flatMap((image) => [image.label ?? image.top[0][0][0], ...image.top.map((listed) => listed[0][0])]))];
  fill("class", [["", "all"], ...present.map((index) => [String(index), labelOf(index)]).sort((a, b) => a[1].localeCompare(b[1]))], "");
  fill("method", METHODS.map((name, at) => [String(at), name]), "0");
  fill("source", PAIRED ? [] : ABOUT.sources.map((name, at) => [String(at), name]), "0");
  $("gallery").classList.toggle("paired", PAIRED);
  fill("mode", [...(SWEPT ? [["tft", "thresholded"]] : []), ["whole", "whole"], ["off", "none"]], "tft");
  look.mode = $("mode").value;
  $("search").addEventListener("input", () => { filters.text = $("search").value; arrange(); });
  $("sort").addEventListener("change", arrange);
  $("class").addEventListener("change", () => { filters.chosen = $("class").value; arrange(); });
  $("method").addEventListener("change", () => { look.method = Number($("method").value); arrange(); redraw(); });
  $("source").addEventListener("change", () => { look.source = Number($("source").value); arrange(); redraw(); });
  $("mode").addEventListener("change", () => { look.mode = $("mode").value; redraw(); });
  $("opacity").addEventListener("input", () => setOpacity($("opacity").value / 100));
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  $("chip").addEventListener("click", clearFilters);
  $("clear").addEventListener("click", clearFilters);
  $("gallery").addEventListener("keydown", moveInGallery);
  setOpacity(look.opacity);
  arrange();
  for (const card of cards) near.observe(card.item);
}

function setOpacity(value) {
  look.opacity = value;
  document.documentElement.style.setProperty("--heat", value);
  for (const slider of document.querySelectorAll("input[data-opacity], #opacity")) slider.value = 100 * value;
}

/** Arrow keys go from card to card, up and down by rows. */
function moveInGallery(event) {
  const card = event.target.closest("li");
  const items = [...$("gallery").children];
  const at = items.indexOf(card);
  if (at < 0) return;
  const columns = items.findIndex((item) => item.offsetTop > items[0].offsetTop);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -(columns < 1 ? items.length : columns), ArrowDown: columns < 1 ? items.length : columns,
    Home: -at, End: items.length - 1 - at }[event.key];
  if (step === undefined || !items[at + step]) return;
  event.preventDefault();
  items[at + step].querySelector("button").focus();
}
