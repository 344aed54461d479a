// Tables whose columns sort, and the confusion matrix.

/**
 * A table; a click on a heading sorts by it.
 * @param columns [[title, value of a row, text of a row (optional)]]
 * @param open what a click on a row's first cell does, or undefined.
 */
function makeTable(columns, rows, open) {
  const body = make("tbody");
  let by = -1, up = true;
  const isNumber = columns.map(([, value]) => rows.some((row) => typeof value(row) === "number"));
  const cell = (row, [, value, text], at) => {
    const shown = text ? text(row) : value(row) ?? "–";
    if (at || !open) return make("td", { class: isNumber[at] ? "number" : "" }, String(shown));
    return make("td", {}, make("button", { type: "button", class: "link", onclick: () => open(row) }, String(shown)));
  };
  const show = () => {
    const sorted = by < 0 ? rows : [...rows].sort((a, b) => {
      const [x, y] = [a, b].map(columns[by][1]);
      if (x === y) return 0;
      if (x === null || x === undefined) return 1;
      if (y === null || y === undefined) return -1;
      const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
      return up ? order : -order;
    });
    body.replaceChildren(...sorted.map((row) => make("tr", {}, ...columns.map((column, at) => cell(row, column, at)))));
  };
  const heads = columns.map(([title], at) => make("th", { scope: "col", class: isNumber[at] ? "number" : "" },
    make("button", { type: "button", onclick: () => {
      up = by === at ? !up : !isNumber[at];
      by = at;
      heads.forEach((head, i) => (i === at ? head.setAttribute("aria-sort", up ? "ascending" : "descending") : head.removeAttribute("aria-sort")));
      show();
    } }, title)));
  show();
  return make("div", { class: "scroll", tabindex: 0 }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body));
}

/**
 * The confusion matrix: a row for each class of the data, a column for each predicted one.
 * @param classes indices, in order. @param counts [[label, predicted, count]]
 */
function makeConfusion(classes, counts, open) {
  const place = new Map(classes.map((index, at) => [index, at]));
  const sums = classes.map(() => 0), others = classes.map(() => 0);
  const cells = classes.map(() => classes.map(() => 0));
  for (const [label, predicted, count] of counts) {
    const row = place.get(label);
    if (row === undefined) continue;
    sums[row] += count;
    if (place.has(predicted)) cells[row][place.get(predicted)] += count;
    else others[row] += count;
  }
  const elsewhere = others.some((count) => count > 0);
  const cell = (row, count, title, right, act) => {
    const share = sums[row] ? count / sums[row] : 0;
    const made = make("td", { class: right ? "hit" : "miss", title }, count ? make("button", { type: "button", onclick: act, "aria-label": title }, String(count)) : "");
    made.style.setProperty("--share", count ? Math.max(0.08, share) : 0);
    return made;
  };
  const head = make("tr", {}, make("th", { scope: "col" }, "data ↓  predicted →"),
    ...classes.map((index) => make("th", { scope: "col", class: "turned" }, make("span", {}, labelOf(index)))),
    elsewhere ? make("th", { scope: "col", class: "turned" }, make("span", {}, "another class")) : null);
  const rows = classes.map((label, row) => make("tr", {}, make("th", { scope: "row" }, labelOf(label)),
    ...classes.map((predicted, column) => cell(row, cells[row][column], `${labelOf(label)} predicted as ${labelOf(predicted)}: ${cells[row][column]} of ${sums[row]}`,
      label === predicted, () => open(label, predicted))),
    elsewhere ? cell(row, others[row], `${labelOf(label)} predicted as another class: ${others[row]} of ${sums[row]}`, false, () => open(label, null)) : null));
  return make("div", { class: "scroll", tabindex: 0 }, make("table", { class: "confusion" }, make("thead", {}, head), make("tbody", {}, ...rows)));
}
