// The two charts: what each threshold gains, and where the time of a frame goes.

const SPAN = 10; // seconds of history
const LEFT = 52; // pixels for the labels
const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The smallest of 1, 2, 5 times a power of ten that is not below `value`. */
export function niceTop(value, least) {
  const wanted = Math.max(value, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= wanted * 0.999);
}

/** A class's probability as a percentage, or the value that a network without any gives. */
export function amount(value, task) {
  return task === "none" ? String(Number(value.toPrecision(3))) : percent(value);
}

/** `value` of 1 as a percentage, with as many digits as it deserves. */
export function percent(value) {
  const share = 100 * value;
  if (share !== 0 && Math.abs(share) < 1) return `${share.toPrecision(1)} %`;
  return `${share.toFixed(share < 99.95 ? 1 : 0)} %`;
}

/** rpi against threshold: tried now, tried before for the same class, never tried; tau* marked. */
export class Curve {
  constructor(svg, note) {
    Object.assign(this, { svg, note, past: [], of: "" });
  }

  draw(explanation) {
    const { taus, rpi, threshold, improved } = explanation;
    if (!rpi) {
      this.past = [];
      this.svg.replaceChildren();
      this.svg.classList.add("empty");
      this.note.textContent = "With TFT on, this shows how much each threshold raises the class.";
      return;
    }
    const of = `${explanation.index} ${explanation.method} ${taus}`;
    if (of !== this.of) Object.assign(this, { of, past: [] });
    rpi.forEach((value, i) => { if (value !== null) this.past[i] = value; });
    const tried = rpi.filter((value) => value !== null).length;
    const best = Math.max(0, ...rpi.filter((value) => value !== null));
    this.plot(taus, rpi, threshold, improved);
    const which = tried === taus.length ? "all tried" : `${tried} of ${taus.length} tried`;
    const none = "no threshold gains, the map stays whole";
    if (tried === 0) {
      const held = improved ? `τ* ${threshold.toFixed(1)} of an earlier image holds` : none;
      this.note.textContent = `${held}; no time to try any`;
    } else {
      this.note.textContent = improved
        ? `τ* ${threshold.toFixed(1)} gains ${percent(best)}; ${which}` : `${none}; ${which}`;
    }
  }

  plot(taus, rpi, threshold, improved) {
    const width = this.svg.clientWidth || 300;
    const height = this.svg.clientHeight || 120;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const left = LEFT, right = width - 12, top = 18, floor = height - 20;
    const known = this.past.filter((value) => value !== undefined);
    const peak = niceTop(Math.max(...known), 0.001);
    const first = taus[0], last = taus[taus.length - 1];
    const x = (tau) => left + ((right - left) * (tau - first)) / (last - first || 1);
    const y = (value) => floor - ((floor - top) * value) / peak;
    const parts = [0, 0.5, 1].flatMap((share) => [
      element("line", { class: share ? "grid" : "zero", x1: left, x2: right,
        y1: y(peak * share), y2: y(peak * share) }),
      ...(share === 0.5 ? [] : [element("text", { x: left - 6, y: y(peak * share) + 4,
        "text-anchor": "end" }, share ? percent(peak) : "0")]),
    ]);
    taus.forEach((tau, i) => {
      if (i % Math.ceil(taus.length / 6) === 0 || i === taus.length - 1) {
        parts.push(element("text", { x: x(tau), y: height - 4, "text-anchor": "middle" },
          String(Number(tau.toFixed(2)))));
      }
    });
    const path = (values) => values.map((value, i) => [value, i])
      .filter(([value]) => value !== null && value !== undefined)
      .map(([value, i]) => `${x(taus[i])},${y(value)}`).join(" ");
    parts.push(element("polyline", { class: "past", points: path(this.past) }));
    if (rpi.every((value) => value !== null)) {
      parts.push(element("polyline", { class: "now", points: path(rpi) }));
    }
    if (improved) {
      parts.push(element("line", { class: "best", x1: x(threshold), x2: x(threshold), y1: top, y2: floor }));
      const anchor = x(threshold) > right - 30 ? "end" : x(threshold) < left + 30 ? "start" : "middle";
      parts.push(element("text", { class: "best-name", x: x(threshold), y: 12, "text-anchor": anchor },
        `τ* ${threshold.toFixed(1)}`));
    }
    rpi.forEach((value, i) => {
      const known = value ?? this.past[i] ?? 0;
      const kind = value === null ? "untried"
        : improved && Math.abs(taus[i] - threshold) < 1e-6 ? "best-point" : "tried";
      parts.push(element("circle", { class: kind, cx: x(taus[i]), cy: y(known),
        r: kind === "best-point" ? 5 : 3.5 }));
    });
    this.svg.replaceChildren(...parts);
  }
}

/** Explaining and drawing stacked, and over them the latency of a live source, for the last seconds. */
export class History {
  constructor(canvas) {
    Object.assign(this, { canvas, points: [], live: false });
    const style = getComputedStyle(document.documentElement);
    this.colour = (name) => style.getPropertyValue(`--${name}`);
  }

  add({ explain, draw, latency }) {
    const now = performance.now() / 1000;
    this.points.push({ at: now, explain: 1000 * explain, draw: 1000 * draw, latency: 1000 * latency });
    while (this.points[0].at < now - SPAN) this.points.shift();
  }

  draw() {
    const { canvas, points } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !points.length) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const paint = canvas.getContext("2d");
    paint.setTransform(ratio, 0, 0, ratio, 0, 0);
    paint.clearRect(0, 0, width, height);
    const left = LEFT, right = width - 4, top = 10, floor = height - 18;
    const most = niceTop(Math.max(...points.map((p) => Math.max(this.live ? p.latency : 0, p.explain + p.draw))), 5);
    const now = performance.now() / 1000;
    const x = (at) => right - ((right - left) * (now - at)) / SPAN;
    const y = (value) => floor - ((floor - top) * value) / most;
    paint.font = "11px system-ui, sans-serif";
    paint.textBaseline = "middle";
    for (const share of [0, 0.5, 1]) {
      paint.fillStyle = this.colour(share ? "line" : "faint");
      paint.globalAlpha = share ? 1 : 0.5;
      paint.fillRect(left, y(most * share), right - left, 1);
      paint.globalAlpha = 1;
      paint.fillStyle = this.colour("faint");
      paint.textAlign = "right";
      const value = most * share;
      const text = value < 1000 ? `${value} ms` : `${value / 1000} s`;
      paint.fillText(share ? text : "0", left - 6, y(value));
    }
    paint.fillText("now", right, height - 6);
    paint.textAlign = "left";
    paint.fillText(`−${SPAN} s`, left, height - 6);
    this.area(paint, x, y, (p) => p.explain, () => 0, "second");
    this.area(paint, x, y, (p) => p.explain + p.draw, (p) => p.explain, "accent");
    if (!this.live) return; // frames of a file wait to be read, so that their latency says nothing
    paint.strokeStyle = this.colour("ink");
    paint.lineWidth = 1.5;
    paint.beginPath();
    for (const p of points) paint.lineTo(Math.max(left, x(p.at)), y(p.latency));
    paint.stroke();
  }

  area(paint, x, y, upper, lower, colour) {
    paint.fillStyle = this.colour(colour);
    paint.globalAlpha = 0.85;
    paint.beginPath();
    for (const p of this.points) paint.lineTo(Math.max(LEFT, x(p.at)), y(upper(p)));
    for (const p of [...this.points].reverse()) paint.lineTo(Math.max(LEFT, x(p.at)), y(lower(p)));
    paint.fill();
    paint.globalAlpha = 1;
  }
}
