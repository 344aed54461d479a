// What stands above the images: facts, and of evaluations and comparisons their figures.

const SECTIONS = ABOUT.sections;
const VARIANT_NAMES = { original: "whole map", naive: "naive threshold", tft: "TFT" };
const MEASURES = [["average_increase", "average increase", "↑"], ["average_drop", "average drop", "↓"], ["coverage", "coverage", ""],
  ["cross_asked_increase", "cross-asked increase", "↑"], ["cross_asked_drop", "cross-asked drop", "↓"], ["insertion", "insertion", "↑"], ["deletion", "deletion", "↓"], ["pointing_game", "pointing game", "↑"], ["energy_in_box", "energy in box", "↑"],
  ["region_iou", "region IoU", "↑"], ["road_most_relevant", "ROAD, most first", "↓"], ["road_least_relevant", "ROAD, least first", "↑"],
  ["sparsity", "sparsity", ""], ["noise_stability", "stable to noise", "↑"], ["shift_stability", "stable to shifts", "↑"]];

function makeSection(id, title, ...parts) {
  return make("section", { id, class: "card" }, make("h2", {}, title), ...parts);
}

const plusMinus = (value, error) => `${number(value)} ± ${number(error)}`;

/** The paper's table 3: measures down, variants across, and how many times better than whole. */
function paperTable(results) {
  const variants = [...new Set(results.map((result) => result.variant))];
  const rows = [];
  for (const method of new Set(results.map((result) => result.method))) {
    const of = Object.fromEntries(results.filter((result) => result.method === method).map((result) => [result.variant, result]));
    for (const [field, title, direction] of MEASURES) {
      if (variants.every((variant) => of[variant]?.[field] === undefined || of[variant]?.[field] === null)) continue;
      rows.push({ method, title: `${title} ${direction}`, field, of, direction });
    }
  }
  const ratio = (row, variant) => {
    const [before, value] = [row.of.original?.[row.field], row.of[variant]?.[row.field]];
    if (variant === "original" || !row.direction || !before || !value) return "";
    return ` (×${(row.direction === "↓" ? before / value : value / before).toFixed(2)})`;
  };
  return makeTable([["method", (row) => row.method], ["measure", (row) => row.title],
    ...variants.map((variant) => [VARIANT_NAMES[variant], (row) => row.of[variant]?.[row.field],
      (row) => (row.of[variant]?.[row.field] === undefined ? "" : plusMinus(row.of[variant][row.field], row.of[variant][`${row.field}_standard_error`]) + ratio(row, variant))])], rows);
}

function methodCharts({ results, rpi, chosen }) {
  const methods = [...new Set(results.map((result) => result.method))];
  const variants = [...new Set(results.map((result) => result.variant))];
  const values = (field) => variants.map((variant) => {
    const of = methods.map((method) => results.find((result) => result.method === method && result.variant === variant));
    return [VARIANT_NAMES[variant], of.map((result) => result?.[field]), of.map((result) => result?.[`${field}_standard_error`])];
  });
  const chart = (title, drawing, names) => make("figure", { class: "plot" }, make("figcaption", {}, title), drawing, makeLegend(names));
  const charts = [
    chart("Average increase, higher is better", barChart("average increase", "", "", methods, values("average_increase")), variants.map((name) => VARIANT_NAMES[name])),
    chart("Average drop, lower is better", barChart("average drop", "", "", methods, values("average_drop")), variants.map((name) => VARIANT_NAMES[name])),
  ];
  const swept = Object.keys(rpi);
  if (swept.length) {
    charts.push(chart("Mean relative probability increase at each threshold",
      lineChart("mean relative probability increase", "mean rpi", ABOUT.taus, swept.map((method) => [method, rpi[method]])), swept));
    const shares = (counts) => counts.map((count) => count / (counts.reduce((a, b) => a + b, 0) || 1));
    charts.push(chart("How often each threshold was best", barChart("histogram of best thresholds", "best threshold τ*", "share of maps",
      [...ABOUT.taus.map(tauName), "none"], swept.map((method) => [method, shares(chosen[method])])), swept));
  }
  return make("div", { class: "plots" }, ...charts);
}

function classTable(classes) {
  const columns = [["class", (row) => labelOf(row.index)], ["images", (row) => row.images], ["correct", (row) => row.accuracy, (row) => percent(row.accuracy)],
    ["predicted", (row) => row.predicted], ["precision", (row) => row.precision, (row) => number(row.precision)],
    ["mean probability", (row) => row.probability, (row) => number(row.probability)],
    ["increase", (row) => row.increase, (row) => number(row.increase)], ["drop", (row) => row.drop, (row) => number(row.drop)],
    ["rpi", (row) => row.rpi, (row) => number(row.rpi)], ["threshold", (row) => row.threshold, (row) => number(row.threshold, 2)]];
  const used = columns.filter(([, value]) => classes.some((row) => value(row) !== undefined && value(row) !== null));
  return makeTable(used, classes, (row) => showOnly(`data: ${labelOf(row.index)}`, (image) => image.label === row.index));
}

function labelTable(labels) {
  const maps = (row, field) => row.maps[0]?.[field];
  return makeTable([["label", (row) => row.label], ["present", (row) => row.present],
    ["average precision", (row) => row.average_precision, (row) => number(row.average_precision)], ["accuracy", (row) => row.accuracy, (row) => number(row.accuracy)],
    ["precision", (row) => row.precision, (row) => number(row.precision)], ["recall", (row) => row.recall, (row) => number(row.recall)],
    ["average increase", (row) => maps(row, "average_increase"), (row) => number(maps(row, "average_increase"))],
    ["average drop", (row) => maps(row, "average_drop"), (row) => number(maps(row, "average_drop"))]], labels);
}

function confusion({ classes, counts, total }) {
  const open = (label, predicted) => showOnly(`${labelOf(label)} predicted as ${predicted === null ? "another class" : labelOf(predicted)}`,
    (image) => image.label === label && (predicted === null ? !classes.includes(image.top[0][0][0]) : image.top[0][0][0] === predicted));
  const mistakes = counts.filter(([label, predicted]) => label !== predicted).sort((a, b) => b[2] - a[2]).slice(0, 50);
  const beside = make("div", { class: "beside" }, makeConfusion(classes, counts, open));
  if (mistakes.length) {
    beside.append(make("div", {}, make("h3", {}, "Most frequent mistakes"),
      makeTable([["data", (row) => labelOf(row[0])], ["predicted", (row) => labelOf(row[1])], ["images", (row) => row[2]]],
        mistakes, (row) => open(row[0], classes.includes(row[1]) ? row[1] : null))));
  }
  return [total > classes.length ? make("p", { class: "note" }, `The ${classes.length} classes with most mistakes, of ${total}.`) : "", beside];
}

/** A row of images, worst first; they are the gallery's own, drawn small. */
function worstCases(cases) {
  return cases.map(({ title, text, images }) => make("div", { class: "worst" }, make("h3", {}, title), make("p", { class: "note" }, text),
    make("ol", { class: "row" }, ...images.map((at) => {
      const card = makeCard(IMAGES[at]);
      cardOf.set(card.item, card);
      cards.push(card);
      near.observe(card.item);
      return card.item;
    }))));
}

function similarityTable(maps) {
  const columns = [["method", (row) => row.method], ["correlation, median", (row) => row.pearson, (row) => number(row.pearson, 4)],
    ["5th percentile", (row) => row.pearson_low, (row) => number(row.pearson_low, 4)], ["IoU of top 20 %, median", (row) => row.iou, (row) => number(row.iou)],
    ["5th percentile", (row) => row.iou_low, (row) => number(row.iou_low)],
    ["same threshold", (row) => row.same_threshold, (row) => percent(row.same_threshold)],
    ["average increase", (row) => row.increase_before, (row) => `${number(row.increase_before)} → ${number(row.increase_after)}`],
    ["average drop", (row) => row.drop_before, (row) => `${number(row.drop_before)} → ${number(row.drop_after)}`]];
  const rows = Object.entries(maps).map(([method, values]) => ({ method, ...values }));
  return makeTable(columns.filter(([, value]) => rows.some((row) => value(row) !== undefined && value(row) !== null)), rows);
}

function histogramOfSimilarity() {
  const edges = [0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0001];
  const names = edges.slice(0, -1).map((edge, i) => (i ? `≥ ${edge}` : "< 0.5"));
  const series = METHODS.map((method) => {
    const values = IMAGES.map((image) => image.similarity?.[method]).filter((value) => value !== undefined);
    return [method, names.map((_, i) => values.filter((value) => value < edges[i + 1] && (i === 0 || value >= edges[i])).length)];
  });
  return make("figure", { class: "plot" }, make("figcaption", {}, "Correlation of the two maps, images"),
    barChart("images by correlation", "correlation", "images", names, series, (value) => String(Math.round(value)), 640), makeLegend(METHODS));
}

function startOverview() {
  const facts = ABOUT.facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  $("about").append(make("dl", { class: "facts" }, ...facts), ...ABOUT.notes.map((note) => make("p", { class: "note" }, note)));
  const parts = [];
  const { evaluation, classes, matrix, worst, fidelity } = SECTIONS;
  if (worst?.length) parts.push(makeSection("worst", "Worst cases", ...worstCases(worst)));
  if (evaluation) {
    parts.push(makeSection("figures", "Quality of the maps", paperTable(evaluation.results), make("p", { class: "note" },
      "Mean over the maps ± its standard error; × is how many times better than the whole map. ↑ higher is better, ↓ lower is better."), methodCharts(evaluation)));
    if (evaluation.labels.length) parts.push(makeSection("labels", "Labels", labelTable(evaluation.labels)));
  }
  if (fidelity) parts.push(makeSection("similarity", "How well the maps agree", similarityTable(fidelity.maps), histogramOfSimilarity()));
  if (classes?.length) parts.push(makeSection("classes", "Classes", classTable(classes)));
  if (matrix) parts.push(makeSection("confusion", "Confusion matrix", ...confusion(matrix)));
  $("overview").append(...parts);
  const sections = [...parts.map((part) => [part.id, part.querySelector("h2").textContent]), ["images", "Images"]];
  if (sections.length > 1) $("nav").append(...sections.map(([id, name]) => make("a", { href: `#${id}` }, name)));
}
