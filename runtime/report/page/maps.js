// Drawing of maps: enlarged, coloured and outlined here, so that a file holds few numbers of each.

// A pixel in one number, red in its lowest byte, as canvases hold them on all common machines.
const pixelOf = ([red, green, blue, opacity]) => ((opacity << 24) | (blue << 16) | (green << 8) | red) >>> 0;
const HEAT = Uint32Array.from(DATA.colours.heat, pixelOf);
const [MORE, LESS] = DATA.colours.difference;

/**
 * For one axis: the two grid values that a pixel lies between, and how far from the first.
 * The grid covers the pixels from `start` to `end`, in shares of all.
 */
function neighbours(few, full, start = 0, end = 1) {
  const first = new Int32Array(full), second = new Int32Array(full), part = new Float32Array(full);
  for (let i = 0; i < full; i += 1) {
    const share = ((i + 0.5) / full - start) / (end - start);
    const place = Math.min(Math.max(share * few - 0.5, 0), few - 1);
    first[i] = Math.floor(place);
    second[i] = Math.min(first[i] + 1, few - 1);
    part[i] = place - first[i];
  }
  return { first, second, part };
}

/**
 * Enlarge a grid: bilinear, half-pixel centres, edges repeated; values in [0, 1].
 * @param box where the grid lies in the pixels, in shares of width and height.
 */
function enlarge({ rows, columns, values }, width, height, [left, top, right, bottom] = [0, 0, 1, 1]) {
  const down = neighbours(rows, height, top, bottom), across = neighbours(columns, width, left, right);
  const enlarged = new Float32Array(width * height);
  const line = new Float32Array(columns);
  for (let y = 0, at = 0; y < height; y += 1) {
    const top = down.first[y] * columns, bottom = down.second[y] * columns, share = down.part[y];
    for (let c = 0; c < columns; c += 1) {
      line[c] = values[top + c] + (values[bottom + c] - values[top + c]) * share;
    }
    for (let x = 0; x < width; x += 1, at += 1) {
      const low = line[across.first[x]];
      const value = low + (line[across.second[x]] - low) * across.part[x];
      enlarged[at] = value < 0 ? 0 : value > 1 ? 1 : value;
    }
  }
  return enlarged;
}

/** Colour a map; what lies below `cut` stays clear. */
function paintHeat(canvas, grid, cut) {
  const { width, height } = canvas;
  const paint = canvas.getContext("2d");
  const image = paint.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const values = enlarge(grid, width, height);
  for (let i = 0; i < values.length; i += 1) {
    if (values[i] >= cut) pixels[i] = HEAT[(255 * values[i] + 0.5) | 0];
  }
  paint.putImageData(image, 0, 0);
}

/**
 * Colour the difference of two maps: orange where the first is larger, blue where the second.
 * @param boxes where each map's input lies in the image; only what both networks saw is coloured.
 */
function paintDifference(canvas, grids, boxes) {
  const { width, height } = canvas;
  const paint = canvas.getContext("2d");
  const image = paint.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const [a, b] = grids.map((grid, at) => enlarge(grid, width, height, boxes[at]));
  const [left, top, right, bottom] = boxes[0].map((edge, side) => (side < 2 ? Math.max : Math.min)(edge, boxes[1][side]));
  for (let y = 0, i = 0; y < height; y += 1) {
    const down = (y + 0.5) / height;
    for (let x = 0; x < width; x += 1, i += 1) {
      const across = (x + 0.5) / width;
      if (down < top || down > bottom || across < left || across > right) continue;
      const difference = a[i] - b[i];
      const opacity = 255 * Math.min(1, Math.abs(difference) ** 0.7);
      pixels[i] = pixelOf([...(difference > 0 ? MORE : LESS), opacity]);
    }
  }
  paint.putImageData(image, 0, 0);
}

const STEP = 3; // pixels between the points at which an outline is looked for

/** Outline where a map reaches `cut`: white on black, open along the map's own edge. */
function paintOutline(canvas, grid, cut) {
  const { width, height } = canvas;
  const columns = Math.max(2, Math.round(width / STEP)), rows = Math.max(2, Math.round(height / STEP));
  const values = enlarge(grid, columns, rows);
  const path = new Path2D();
  // Between two neighbouring points, where the line from one value to the other crosses the cut.
  const between = (x, y, u, v) => {
    const a = values[y * columns + x], b = values[v * columns + u];
    const share = (cut - a) / (b - a);
    return [(x + (u - x) * share + 0.5) * width / columns, (y + (v - y) * share + 0.5) * height / rows];
  };
  for (let y = 0; y + 1 < rows; y += 1) {
    for (let x = 0; x + 1 < columns; x += 1) {
      const corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]];
      const inside = corners.map(([u, v]) => values[v * columns + u] >= cut);
      const crossed = [];
      for (let side = 0; side < 4; side += 1) {
        const next = (side + 1) % 4;
        if (inside[side] !== inside[next]) crossed.push(between(...corners[side], ...corners[next]));
      }
      for (let i = 0; i + 1 < crossed.length; i += 2) {
        path.moveTo(...crossed[i]);
        path.lineTo(...crossed[i + 1]);
      }
    }
  }
  const paint = canvas.getContext("2d");
  paint.lineCap = "round";
  const scale = canvas.width / (canvas.clientWidth || canvas.width);
  for (const [colour, thickness] of [["#000a", 4], ["#fff", 1.8]]) {
    paint.strokeStyle = colour;
    paint.lineWidth = thickness * scale;
    paint.stroke(path);
  }
}

/**
 * An image with what lies over it: the network's input, in which `layers` canvases are drawn.
 * What the network did not see is dimmed.
 * @param source which model's input; null: the canvases cover the whole image.
 */
function makePicture(image, source, layers) {
  const [left, top, right, bottom] = source === null ? [0, 0, 1, 1] : image.inputs[source];
  const canvases = layers.map((name) => make("canvas", { class: name, width: 1, height: 1 }));
  const input = make("span", { class: "input" }, ...canvases);
  Object.assign(input.style, {
    left: `${100 * left}%`, top: `${100 * top}%`,
    width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
  });
  const whole = left <= 0.001 && top <= 0.001 && right >= 0.999 && bottom >= 0.999;
  if (!whole) input.classList.add("cropped");
  const shown = make("img", { alt: "", decoding: "async", draggable: "false" });
  const picture = make("span", { class: "picture" }, shown, input);
  picture.style.aspectRatio = `${image.size[0]} / ${image.size[1]}`;
  picture.style.setProperty("--ratio", image.size[0] / image.size[1]);
  return { picture, shown, input, canvases };
}

/** Give a canvas as many pixels as it covers, so many along its longer side at most. */
function fit(canvas, most) {
  const box = canvas.parentElement.getBoundingClientRect();
  const scale = Math.min(window.devicePixelRatio || 1, most / Math.max(box.width, box.height, 1));
  canvas.width = Math.max(1, Math.round(box.width * scale));
  canvas.height = Math.max(1, Math.round(box.height * scale));
}
