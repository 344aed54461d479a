// What stands above the images: facts, and of evaluations and comparisons their figures.

const SECTIONS = ABOUT.sections;
const TRAINING_NAMES = { original: "before", tft: "before, with TFT", aft: "after" };
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
function paperTable(results, names = VARIANT_NAMES) {
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
  const several = new Set(results.map((result) => result.method)).size > 1;
  return makeTable([...(several ? [["method", (row) => row.method]] : []), ["measure", (row) => row.title],
    ...variants.map((variant) => [names[variant], (row) => row.of[variant]?.[row.field],
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
  const open = !IMAGES.length ? () => {} : (label, predicted) => showOnly(`${labelOf(label)} predicted as ${predicted === null ? "another class" : labelOf(predicted)}`,
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

/** The learning curve: the whole loss, and each term before it is weighted. */
function learningCurves({ steps, terms, epochs, span }, weights) {
  const caption = (name, at) => (at === 0 ? (weights ? "loss, the weighted sum" : "loss") : `${name}${weights?.[name] === undefined ? "" : `, weight ${weights[name]}`}`);
  const charts = Object.entries(terms).map(([name, values], at) => make("figure", { class: "plot" }, make("figcaption", {}, caption(name, at)),
    curveChart(`${name} over the steps`, steps, values, epochs.length < 25 ? epochs : [])));
  const note = `${span > 1 ? `Each point is the mean over ${span} steps. ` : ""}Dashed lines: a new pass over the images.${charts.length > 1 ? " Terms are shown before they are weighted." : ""}`;
  return [make("div", { class: "plots small" }, ...charts), make("p", { class: "note" }, note)];
}

/** Accuracy before and after, of all images and of each class. */
function accuracyTable(classes) {
  const name = (row) => (row.index === undefined || row.index === null ? "all classes" : labelOf(row.index));
  const share = (value, error) => (value === undefined ? "–" : `${percent(value)} ± ${percent(error)}`);
  const signed = (row) => (row.change === undefined ? "–" : `${row.change > 0 ? "+" : row.change < 0 ? "−" : ""}${percent(Math.abs(row.change))} ± ${percent(row.change_error)}`);
  const columns = [["class", name], ["images", (row) => row.images], ["before", (row) => row.before, (row) => share(row.before, row.before_error)],
    [classes[0].before === undefined ? "accuracy" : "after", (row) => row.after, (row) => share(row.after, row.after_error)], ["change", (row) => row.change, signed]];
  const used = columns.filter(([, value]) => classes.some((row) => value(row) !== undefined));
  const open = (row) => (row.index === undefined || row.index === null ? clearFilters() : showOnly(`data: ${labelOf(row.index)}`, (image) => image.label === row.index));
  return makeTable(used, classes, IMAGES.length ? open : undefined);
}

function labelChangeTable(labels) {
  const both = (row, field) => `${number(row[`${field}_before`])} → ${number(row[`${field}_after`])}`;
  return makeTable([["label", (row) => row.label], ["present", (row) => row.present], ["images", (row) => row.images],
    ["average precision", (row) => row.precision_after, (row) => both(row, "precision")],
    ["accuracy", (row) => row.accuracy_after, (row) => both(row, "accuracy")]], labels);
}

function trainingSections({ curve, weights, rows, classes, labels }) {
  const parts = [];
  if (rows) {
    parts.push(makeSection("figures", "Measures before and after", paperTable(Object.entries(rows).map(([variant, row]) => ({ ...row, variant })), TRAINING_NAMES),
      make("p", { class: "note" }, "On the images held out: mean over the maps ± its standard error; × is how many times better than before. ↑ higher is better, ↓ lower is better. "
        + "Cross-asked: the network before training is asked about the maps of both.")));
  }
  if (classes?.length) {
    const paired = classes[0].before !== undefined;
    parts.push(makeSection("accuracy", "Accuracy", accuracyTable(classes), make("p", { class: "note" },
      `Share of the images held out ± its standard error${paired ? "; the change's is of the differences image by image" : ""}.`)));
  }
  if (labels?.length) parts.push(makeSection("labels", "Labels before and after", labelChangeTable(labels)));
  parts.push(makeSection("curve", "Learning curve", ...learningCurves(curve, weights)));
  return parts;
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
  const { evaluation, classes, matrix, worst, fidelity, training } = SECTIONS;
  if (worst?.length) parts.push(makeSection("worst", "Worst cases", ...worstCases(worst)));
  if (training) parts.push(...trainingSections(training));
  if (evaluation) {
    parts.push(makeSection("figures", "Quality of the maps", paperTable(evaluation.results), make("p", { class: "note" },
      "Mean over the maps ± its standard error; × is how many times better than the whole map. ↑ higher is better, ↓ lower is better."), methodCharts(evaluation)));
    if (evaluation.labels.length) parts.push(makeSection("labels", "Labels", labelTable(evaluation.labels)));
  }
  if (fidelity) parts.push(makeSection("similarity", "How well the maps agree", similarityTable(fidelity.maps), histogramOfSimilarity()));
  if (classes?.length) parts.push(makeSection("classes", "Classes", classTable(classes)));
  if (matrix) parts.push(makeSection("confusion", "Confusion matrix", ...confusion(matrix)));
  $("overview").append(...parts);
  const sections = [...parts.map((part) => [part.id, part.querySelector("h2").textContent]), ...(IMAGES.length ? [["images", "Images"]] : [])];
  for (const part of [$("images"), document.querySelector("footer"), document.querySelector(".skip")]) part.hidden = !IMAGES.length;
  if (sections.length > 1) $("nav").append(...sections.map(([id, name]) => make("a", { href: `#${id}` }, name)));
}
