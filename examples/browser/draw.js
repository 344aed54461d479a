// The map over the image, and the curve of rpi.

const COLOURS = [[66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 200, 40]];

/** Where the network's view lies in an image, in the image's pixels. */
export function place({ height, width }, { size, resize }) {
  let [h, w] = [height, width];
  if (resize.length === 2) [h, w] = resize;
  if (resize.length === 1) {
    const shorter = Math.min(height, width);
    [h, w] = [height, width].map((side) => Math.floor((resize[0] * side) / shorter));
  }
  const [y, x] = [height / h, width / w];
  return { top: ((h - size[0]) / 2) * y, left: ((w - size[1]) / 2) * x,
    height: size[0] * y, width: size[1] * x };
}

/** A map [H, W] in [0, 1] as an image: from violet to yellow, as opaque as it is high. */
function heat(map, [height, width]) {
  const image = new ImageData(width, height);
  map.forEach((value, i) => {
    const step = Math.min(Math.floor(value * 3), 2);
    for (let c = 0; c < 3; c++) {
      const [low, high] = [COLOURS[step][c], COLOURS[step + 1][c]];
      image.data[4 * i + c] = low + (value * 3 - step) * (high - low);
    }
    image.data[4 * i + 3] = 255 * Math.min(1, 2 * value);
  });
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Draws the image and, over its crop, the map. */
export function drawMap(canvas, image, map, preprocess, opacity) {
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  if (!map) return;
  const where = place(image, preprocess);
  context.globalAlpha = opacity;
  context.drawImage(heat(map, preprocess.size), where.left, where.top, where.width, where.height);
}

/** The relative probability increase at each threshold, as SVG; the chosen one is marked. */
export function curve(svg, taus, rpi, chosen) {
  const [width, height, left, bottom, top] = [320, 150, 40, 34, 12];
  const highest = Math.max(...rpi, 1e-3);
  const x = (tau) => left + (width - left - 12) * (tau / Math.max(...taus, 0.1));
  const y = (value) => height - bottom - (height - bottom - top) * (value / highest);
  const points = taus.map((tau, i) => [x(tau), y(rpi[i])]);
  const marks = taus.map((tau, i) => {
    const here = Math.abs(tau - chosen) < 1e-6 && Math.max(...rpi) > 1e-5;
    return `<circle cx="${points[i][0]}" cy="${points[i][1]}" r="${here ? 6 : 3}"
      class="${here ? "chosen" : ""}"><title>tau ${tau}: rpi ${rpi[i].toFixed(3)}</title></circle>`;
  });
  const ticks = taus.filter((_, i) => i % 3 === 0).map((tau) =>
    `<text x="${x(tau)}" y="${height - bottom + 16}" text-anchor="middle">${tau}</text>`);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.innerHTML = `
    <line x1="${left}" y1="${y(0)}" x2="${width - 12}" y2="${y(0)}" />
    <line x1="${left}" y1="${y(0)}" x2="${left}" y2="${top}" />
    <polyline points="${points.map((point) => point.join(",")).join(" ")}" />
    ${marks.join("")}${ticks.join("")}
    <text x="${left - 6}" y="${y(0) + 4}" text-anchor="end">0</text>
    <text x="${left - 6}" y="${top + 6}" text-anchor="end">${highest.toPrecision(2)}</text>
    <text x="${(width + left) / 2}" y="${height - 3}" text-anchor="middle">threshold tau</text>`;
}
