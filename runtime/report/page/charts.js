// Charts, drawn as SVG: curves, bars, and the legend of a difference.

const SVG = "http://www.w3.org/2000/svg";
const SERIES = ["var(--series-1)", "var(--series-2)", "var(--series-3)", "var(--series-4)", "var(--series-5)", "var(--series-6)"];

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The smallest of 1, 2, 5 times a power of ten that is not below `value`. */
function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value * 0.999);
}

const FRAME = { left: 66, right: 12, top: 14, bottom: 40 };

/** Axes with names, a grid, and the functions that place values: x from 0 to 1, y of the data. */
function makeAxes(width, height, top, format, across, up) {
  const left = FRAME.left, right = width - FRAME.right, floor = height - FRAME.bottom;
  const x = (share) => left + (right - left) * share;
  const y = (value) => floor - ((floor - FRAME.top) * value) / top;
  const lines = [0, 0.5, 1].flatMap((share) => [
    svg("line", { class: share ? "grid" : "axis", x1: left, x2: right, y1: y(top * share), y2: y(top * share) }),
    svg("text", { x: left - 6, y: y(top * share) + 4, "text-anchor": "end" }, format(top * share)),
  ]);
  const names = [
    svg("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, across),
    svg("text", { x: 12, y: FRAME.top + (floor - FRAME.top) / 2, "text-anchor": "middle",
      transform: `rotate(-90 12 ${FRAME.top + (floor - FRAME.top) / 2})` }, up),
  ];
  return { parts: [...lines, ...names], x, y, floor };
}

function makeChart(width, height, title, parts) {
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, ...parts);
}

function makeLegend(names) {
  const keys = names.map((name, i) => {
    const key = make("span", { class: "key" }, name);
    key.style.setProperty("--key", SERIES[i % SERIES.length]);
    return key;
  });
  return make("div", { class: "legend" }, ...keys);
}

const tauName = (tau) => String(Number(tau.toFixed(2)));
const thresholdAxis = () => (ABOUT.reading.thresholds === "rank" ? "threshold τ (share of the pixels muted)" : "threshold τ (of the map's values)");

/**
 * Lines over the thresholds tried.
 * @param series [[name, values, best threshold or undefined]]; a value may be null.
 */
function lineChart(title, up, taus, series, width = 460, height = 210) {
  const known = series.flatMap(([, values]) => values.filter((value) => value !== null));
  const top = niceTop(Math.max(0, ...known));
  const axes = makeAxes(width, height, top, percent, thresholdAxis(), up);
  const last = taus[taus.length - 1] || 1;
  const x = (tau) => axes.x((tau - taus[0]) / (last - taus[0] || 1));
  const parts = [...axes.parts];
  taus.forEach((tau, i) => {
    if (i % Math.ceil(taus.length / 10) === 0) parts.push(svg("text", { x: x(tau), y: axes.floor + 15, "text-anchor": "middle" }, tauName(tau)));
  });
  series.forEach(([name, values, best], at) => {
    const points = values.map((value, i) => [taus[i], value]).filter(([, value]) => value !== null);
    const style = `--key: ${SERIES[at % SERIES.length]}`;
    parts.push(svg("polyline", { class: "line", style, points: points.map(([tau, value]) => `${x(tau)},${axes.y(value)}`).join(" ") }));
    for (const [tau, value] of points) {
      const chosen = best !== undefined && Math.abs(tau - best) < 1e-6;
      if (chosen) {
        parts.push(svg("line", { class: "best", x1: x(tau), x2: x(tau), y1: FRAME.top, y2: axes.floor }));
      }
      parts.push(svg("circle", { class: chosen ? "point chosen" : "point", style, cx: x(tau), cy: axes.y(value), r: chosen ? 5 : 3 },
        svg("title", {}, `${name ? `${name}, ` : ""}τ ${tauName(tau)}: +${percent(value)}`)));
    }
  });
  return makeChart(width, height, title, parts);
}

/**
 * A loss over the steps of a training.
 * @param steps of the points. @param marks steps at which a dashed line stands.
 */
function curveChart(title, steps, values, marks, width = 360, height = 190) {
  const top = niceTop(Math.max(0, ...values));
  const axes = makeAxes(width, height, top, (value) => String(Number(value.toPrecision(3))), "step", "");
  const last = steps[steps.length - 1] || 1;
  const x = (at) => axes.x(at / last);
  const parts = [...axes.parts, ...marks.map((at) => svg("line", { class: "best", x1: x(at), x2: x(at), y1: FRAME.top, y2: axes.floor }))];
  for (const at of [0, Math.round(last / 2), last]) parts.push(svg("text", { x: x(at), y: axes.floor + 15, "text-anchor": at === last ? "end" : "middle" }, String(at)));
  const points = values.map((value, i) => [x(steps[i]), axes.y(Math.max(0, value))]);
  const style = `--key: ${SERIES[0]}`;
  parts.push(svg("polyline", { class: "line", style, points: points.map((point) => point.join(",")).join(" ") }));
  points.forEach(([left, up], i) => parts.push(svg("circle", { class: points.length > 30 ? "point hidden" : "point", style, cx: left, cy: up, r: 3 },
    svg("title", {}, `step ${steps[i]}: ${Number(values[i].toPrecision(4))}`))));
  return makeChart(width, height, title, parts);
}

/** Bars in groups. @param groups names; @param series [[name, values, errors]] */
function barChart(title, across, up, groups, series, format = percent, width = 460, height = 210) {
  const tops = series.flatMap(([, values, errors]) => values.map((value, i) => (value ?? 0) + (errors?.[i] ?? 0)));
  const top = niceTop(Math.max(0, ...tops));
  const axes = makeAxes(width, height, top, format, across, up);
  const wide = 0.8 / series.length;
  const parts = [...axes.parts];
  groups.forEach((group, g) => {
    const start = (g + 0.1) / groups.length;
    series.forEach(([name, values, errors], s) => {
      const value = values[g];
      if (value === null || value === undefined) return;
      const x0 = axes.x(start + (s * wide) / groups.length), x1 = axes.x(start + ((s + 0.92) * wide) / groups.length);
      parts.push(svg("rect", { class: "bar", style: `--key: ${SERIES[s % SERIES.length]}`, x: x0, width: Math.max(1, x1 - x0),
        y: axes.y(value), height: Math.max(0, axes.floor - axes.y(value)) },
      svg("title", {}, `${name}, ${group}: ${format(value)}`)));
      if (errors?.[g]) {
        const middle = (x0 + x1) / 2;
        parts.push(svg("line", { class: "error", x1: middle, x2: middle, y1: axes.y(Math.max(0, value - errors[g])), y2: axes.y(value + errors[g]) }));
      }
    });
    parts.push(svg("text", { x: axes.x((g + 0.5) / groups.length), y: axes.floor + 15, "text-anchor": "middle" }, group));
  });
  return makeChart(width, height, title, parts);
}
