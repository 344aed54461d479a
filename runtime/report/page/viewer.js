// One image: its map in large, the other classes explained, thresholds, and two maps compared.

const shown = { image: null, map: null, other: null, parts: [] };

const describeMap = (map) => [labelOf(map.index), ABOUT.sources.length > 1 ? ABOUT.sources[map.source] : "",
  METHODS.length > 1 ? map.method : ""].filter(Boolean).join(", ");

async function openViewer(image) {
  shown.image = image;
  shown.map = mainMap(image);
  shown.other = ABOUT.sources.length > 1 ? counterpart(shown.map) : null;
  shown.parts = await partsOf(image);
  if (shown.image !== image) return;
  if (!$("viewer").open) $("viewer").showModal();
  history.replaceState(null, "", `#image-${image.number}`);
  build();
}

/** The other model's map of the same class by the same method. */
const counterpart = (map) => shown.image.maps.find((one) => one !== map && one.method === map.method
  && one.index === map.index && one.source !== map.source) ?? null;

function closeViewer() {
  $("viewer").close();
}

function selectMap(map) {
  shown.map = map;
  if (shown.other === map) shown.other = null;
  if (ABOUT.sources.length > 1) shown.other = counterpart(map) ?? shown.other;
  build();
}

function step(by) {
  const at = order.indexOf(shown.image);
  const next = order[at + by];
  if (next) openViewer(next);
}

/** Build the dialog for what is shown. */
function build() {
  const { image, map, other } = shown;
  const focused = document.activeElement?.dataset?.control;
  const at = order.indexOf(image);
  const panels = [makePanel(map, other ? "first" : "")];
  if (other) panels.push(makePanel(other, "second"), makeDifference(map, other));
  $("viewer").replaceChildren(
    make("div", { class: "bar" },
      make("button", { type: "button", "data-control": "previous", "aria-label": "Previous image", disabled: at < 1, onclick: () => step(-1) }, "←"),
      make("button", { type: "button", "data-control": "next", "aria-label": "Next image", disabled: at + 1 >= order.length, onclick: () => step(1) }, "→"),
      make("h2", { id: "viewer-title" }, image.name),
      make("span", { class: "note" }, `${at + 1} of ${order.length}`),
      make("button", { type: "button", "data-control": "close", class: "close", "aria-label": "Close", onclick: closeViewer }, "✕")),
    make("div", { class: "body" },
      make("div", { class: "stage" },
        make("div", { class: `panels of-${panels.length}` }, ...panels.map((panel) => panel.figure)),
        other ? differenceLegend(map, other) : heatLegend(),
        makeControls(), makeStrip()),
      make("aside", {}, ...makeRankings(), ...makeThreshold())));
  for (const panel of panels) panel.draw();
  drawStrip();
  if (focused) $("viewer").querySelector(`[data-control="${focused}"]`)?.focus();
}

function makePanel(map, place) {
  const { picture, shown: photo, canvases } = makePicture(shown.image, map.source, ["heat", "outline"]);
  photo.src = `data:image/webp;base64,${shown.parts[0]}`;
  photo.alt = `${shown.image.name} with the ${map.method} map of ${labelOf(map.index)}`;
  const number = !isThresholded(map) || look.mode !== "tft" ? "" : `, τ ${describeThreshold(map)}`;
  const figure = make("figure", { class: place }, picture,
    make("figcaption", {}, make("b", {}, labelOf(map.index)), ` ${score(map.probability)}`,
      make("span", { class: "note" }, ` ${ABOUT.sources.length > 1 ? `${ABOUT.sources[map.source]}, ` : ""}${map.method}${number}`)));
  const draw = () => {
    const grid = gridOf(map, shown.parts);
    for (const canvas of canvases) fit(canvas, 900);
    if (look.mode === "off") return;
    paintHeat(canvases[0], grid, cutOf(map));
    if (cutOf(map) > 0) paintOutline(canvases[1], grid, cutOf(map));
  };
  return { figure, draw };
}

function makeDifference(map, other) {
  const { picture, shown: photo, canvases } = makePicture(shown.image, null, ["heat"]);
  photo.src = `data:image/webp;base64,${shown.parts[0]}`;
  photo.className = "grey";
  photo.alt = "difference of the two maps";
  const figure = make("figure", { class: "difference" }, picture, make("figcaption", {}, make("b", {}, "difference"),
    make("span", { class: "note" }, " of the two whole maps, each scaled to its own 0 to 1")));
  const draw = () => {
    fit(canvases[0], 900);
    const both = [map, other];
    paintDifference(canvases[0], both.map((one) => gridOf(one, shown.parts)), both.map((one) => shown.image.inputs[one.source]));
  };
  return { figure, draw };
}

function differenceLegend(map, other) {
  const [first, second] = [map, other].map((one) => (map.index === other.index && map.method === other.method ? ABOUT.sources[one.source] : describeMap(one)));
  return make("div", { class: "scale" }, make("span", {}, `more for ${second}`), make("i", { class: "both" }), make("span", {}, `more for ${first}`));
}

function heatLegend() {
  return make("div", { class: "scale" }, make("span", {}, "map 0"), make("i", {}), make("span", {}, "1, its largest value"));
}

function makeControls() {
  const opacity = make("input", { type: "range", min: 0, max: 100, value: 100 * look.opacity, "data-opacity": true, "data-control": "opacity",
    oninput: (event) => setOpacity(event.target.value / 100) });
  const modes = [...$("mode").options].map((option) => make("option", { value: option.value, selected: option.value === look.mode }, option.text));
  const mode = make("select", { "data-control": "mode", onchange: (event) => setMode(event.target.value) }, ...modes);
  const others = shown.image.maps.filter((map) => map !== shown.map);
  const compare = make("select", { "data-control": "compare", onchange: (event) => { shown.other = shown.image.maps[event.target.value] ?? null; build(); } },
    make("option", { value: "" }, "nothing"),
    ...others.map((map) => make("option", { value: shown.image.maps.indexOf(map), selected: map === shown.other }, describeMap(map))));
  return make("div", { class: "controls" },
    make("label", { class: "range" }, "Opacity ", opacity), make("label", {}, "Map ", mode),
    others.length ? make("label", {}, "Compare with ", compare) : null);
}

function setMode(mode) {
  look.mode = $("mode").value = mode;
  redraw();
  build();
}

let strip = [];

/** The maps of all classes explained, by the method and model shown. */
function makeStrip() {
  const maps = stripMaps();
  strip = maps.map((map) => ({ map, ...makePicture(shown.image, map.source, ["heat"]) }));
  if (maps.length < 2) return make("div", {});
  return make("ol", { class: "strip", "aria-label": "Maps of this image" }, ...strip.map(({ map, picture, shown: photo }, at) => {
    photo.src = `data:image/webp;base64,${shown.parts[0]}`;
    return make("li", {}, make("button", { type: "button", "data-control": `map-${at}`, "aria-pressed": String(map === shown.map), onclick: () => selectMap(map) },
      make("span", { class: "frame" }, picture), make("span", { class: "caption" }, make("b", {}, labelOf(map.index)), ` ${score(map.probability)}`,
        make("span", { class: "note" }, stripNote(map, maps)))));
  }));
}

const stripNote = (map, maps) => [ABOUT.sources.length > 1 ? ABOUT.sources[map.source] : "",
  maps.some((one) => one.method !== map.method) ? map.method : ""].filter(Boolean).map((text) => ` ${text}`).join("");

function stripMaps() {
  const { image, map } = shown;
  const same = image.maps.filter((one) => one.method === map.method);
  return same.length > 1 && METHODS.length < 2 ? same : [...same, ...image.maps.filter((one) => one.method !== map.method && one.index === map.index && one.source === map.source)];
}

function drawStrip() {
  for (const { map, canvases } of strip) {
    if (!canvases[0].isConnected || look.mode === "off") continue;
    fit(canvases[0], 200);
    paintHeat(canvases[0], gridOf(map, shown.parts), cutOf(map));
  }
}

/** For each model its most probable classes, those explained as buttons. */
function makeRankings() {
  const { image, map } = shown;
  return image.top.map((listed, source) => make("section", {},
    make("h3", {}, ABOUT.sources.length > 1 ? ABOUT.sources[source] : ABOUT.task === "none" ? "Values explained" : "Most probable classes"),
    image.label === undefined ? null : make("p", { class: listed[0][0] === image.label ? "right" : "wrong" },
      listed[0][0] === image.label ? `✓ the data says ${labelOf(image.label)} too` : `✗ the data says ${labelOf(image.label)}`),
    make("ol", { class: "ranking" }, ...listed.map(([index, probability]) => {
      const explained = image.maps.find((one) => one.index === index && one.source === source && one.method === map.method);
      const row = make(explained ? "button" : "span", explained ? { type: "button", "data-control": `class-${source}-${index}`,
        "aria-pressed": String(explained === map), onclick: () => selectMap(explained) } : {},
      make("span", { class: "name" }, labelOf(index)), make("span", {}, score(probability)));
      if (ABOUT.task !== "none") row.style.setProperty("--share", probability);
      return make("li", {}, row);
    }))));
}

/** What thresholding did: the curve, and the region in numbers. */
function makeThreshold() {
  const { image, map, other } = shown;
  const swept = [map, other].filter((one) => one?.rpi);
  if (!isThresholded(map)) {
    return SWEPT ? [make("section", {}, make("h3", {}, "Threshold"), make("p", { class: "note" }, "This class's map was not thresholded."))] : [];
  }
  const facts = [];
  if (map.naive) facts.push(["threshold", `${number(map.threshold, 2)}, customary for ${map.method}`]);
  else facts.push(["best threshold τ*", map.improved ? describeThreshold(map) : "none: no threshold raises the probability, the map stays whole"]);
  if (map.improved) facts.push(["probability of the masked image", `${percent(map.masked)}, +${percent(gain(map))} relative`]);
  if (map.share !== undefined && map.cut > 0) facts.push(["region", `${percent(map.share)} of the image`]);
  if (map.box && map.cut > 0) facts.push(["bounding box", `x ${map.box[0]} – ${map.box[2]}, y ${map.box[1]} – ${map.box[3]} of ${image.size[0]} × ${image.size[1]} pixels`]);
  if (map.drop !== undefined) facts.push(["average increase, drop", `${map.increase ? 1 : 0}, ${number(map.drop)}`]);
  const parts = [make("h3", {}, "Threshold")];
  if (swept.length) {
    parts.push(lineChart("relative probability increase at each threshold", "rpi", ABOUT.taus,
      swept.map((one) => [swept.length > 1 ? describeMap(one) : "", one.rpi, one.improved ? one.threshold : undefined]), 360, 190));
    if (swept.length > 1) parts.push(makeLegend(swept.map(describeMap)));
  }
  parts.push(make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])));
  return [make("section", {}, ...parts)];
}

function startViewer() {
  const viewer = $("viewer");
  viewer.addEventListener("close", () => {
    history.replaceState(null, "", " ");
    const card = cards[shown.image.number];
    card.item.scrollIntoView({ block: "nearest" });
    card.button.focus();
  });
  viewer.addEventListener("click", (event) => { if (event.target === viewer) closeViewer(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const maps = stripMaps();
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "t" && SWEPT) setMode(look.mode === "tft" ? "whole" : "tft");
    else if (/^[1-9]$/.test(event.key) && maps[event.key - 1]) selectMap(maps[event.key - 1]);
    else return;
    event.preventDefault();
  });
  let pending = 0;
  window.addEventListener("resize", () => {
    clearTimeout(pending);
    pending = setTimeout(() => { redraw(); if (viewer.open) build(); }, 150);
  });
  const asked = /^#image-(\d+)$/.exec(location.hash);
  if (asked && IMAGES[asked[1]]) openViewer(IMAGES[asked[1]]);
}
