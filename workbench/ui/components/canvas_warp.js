// The picture bent under the mouse: a mesh over what the arrows move, drawn in this browser, no server asked.
//
// Each arrow has a reach: a weight 0..1 for every place of the picture. It is 1 on the thing under the handle, as the
// server found it (`held`), or a smooth bump about the handle until that is known. Every place moves by
//   W(x) * sum_i l_i(x) d_i / sum_i l_i(x),   l_i = w_i / (distance to handle i squared + 1),   W = max_i w_i
// which is exact at each handle, 0 where nothing reaches, and lets arrows on one thing share it.
// All coordinates are canvas pixels.
const CELL = 10; // side of a mesh cell
const REACH = 2.2; // radius of the bump, in lengths of its arrow: below 1.54 the mesh would fold
const AROUND = [1.5, 0.7]; // the same round a thing that is known, and how far the surroundings follow at most

// A weight map from the server, grey picture of the whole image -> {data, width, height, box of what is not 0}.
async function weightMap(src) {
  const image = new Image();
  image.src = src;
  await image.decode();
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const data = new Float32Array(canvas.width * canvas.height);
  const { width, height } = canvas;
  const box = [width, height, 0, 0];
  for (let i = 0; i < data.length; i += 1) {
    data[i] = rgba[4 * i] / 255;
    if (!data[i]) continue;
    const [x, y] = [i % width, Math.floor(i / width)];
    box[0] = Math.min(box[0], x - 1);
    box[1] = Math.min(box[1], y - 1);
    box[2] = Math.max(box[2], x + 2);
    box[3] = Math.max(box[3], y + 2);
  }
  return { data, width, height, box };
}

// What one arrow moves. `place(x, y)` gives the map's column and row under a canvas pixel, `span` the box in which the
// map is not 0, in canvas px; the last is the canvas's size.
function reachOf(arrow, map, place, span, [width, height]) {
  const { hx, hy, tx, ty } = arrow;
  const [dx, dy] = [tx - hx, ty - hy];
  const radius = Math.max((map ? 0.05 : 0.1) * Math.hypot(width, height), (map ? AROUND[0] : REACH) * Math.hypot(dx, dy));
  const bump = (x, y) => {
    const r = ((x - hx) ** 2 + (y - hy) ** 2) / radius ** 2;
    return r < 1 ? (1 - r) ** 2 : 0;
  };
  const box = [hx - radius, hy - radius, hx + radius, hy + radius];
  if (map) {
    const at = (x, y) => {
      const [u, v] = place(x, y);
      const i = Math.min(map.width - 2, Math.max(0, Math.floor(u)));
      const j = Math.min(map.height - 2, Math.max(0, Math.floor(v)));
      const [a, b] = [Math.min(1, Math.max(0, u - i)), Math.min(1, Math.max(0, v - j))];
      const n = j * map.width + i;
      const { data } = map;
      return (data[n] * (1 - a) + data[n + 1] * a) * (1 - b) + (data[n + map.width] * (1 - a) + data[n + map.width + 1] * a) * b;
    };
    const top = Math.max(at(hx, hy), 0.2);
    // what is held moves as a whole; the bump takes the surroundings along, so that a long way crushes nothing
    const weight = (x, y) => Math.min(1, Math.max(at(x, y) / top, AROUND[1] * bump(x, y)));
    return { hx, hy, dx, dy, weight, box: [0, 1, 2, 3].map((i) => (i < 2 ? Math.min : Math.max)(box[i], span[i])) };
  }
  return { hx, hy, dx, dy, weight: bump, box };
}

// How far the place (x, y) moves: [dx, dy, W].
function moved(reaches, x, y) {
  let [sum, sx, sy, most] = [0, 0, 0, 0];
  for (const r of reaches) {
    const w = r.weight(x, y);
    if (w <= 0.002) continue;
    const l = w / ((x - r.hx) ** 2 + (y - r.hy) ** 2 + 1);
    sum += l;
    sx += l * r.dx;
    sy += l * r.dy;
    if (w > most) most = w;
  }
  return sum ? [(most * sx) / sum, (most * sy) / sum, most] : [0, 0, 0];
}

class Warp {
  // `source`: ImageData of the picture on the canvas. `limit`: Uint8Array, 0 where nothing may change, or null.
  constructor(canvas, source, limit) {
    this.canvas = canvas;
    this.width = source.width;
    this.height = source.height;
    Object.assign(canvas, { width: this.width, height: this.height });
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.source = new Uint32Array(source.data.buffer);
    this.limit = limit;
    this.out = new ImageData(this.width, this.height);
    this.pixels = new Uint32Array(this.out.data.buffer);
    this.dirty = null; // what the last frame drew: [x0, y0, x1, y1]
    this.frames = 0;
  }

  // Draw one frame; false when nothing moves.
  draw(reaches) {
    const active = reaches.filter((r) => r.dx || r.dy);
    this.clear();
    this.frames += 1;
    if (!active.length) return false;
    const mesh = this.mesh(reaches, active);
    if (!mesh) return false;
    const { x0, y0, x1, y1 } = mesh;
    for (let y = y0; y < y1; y += 1) {
      const row = y * this.width;
      this.pixels.set(this.source.subarray(row + x0, row + x1), row + x0);
    }
    for (const n of mesh.cells) {
      this.triangle(mesh, n, n + 1, n + mesh.columns + 2);
      this.triangle(mesh, n, n + mesh.columns + 2, n + mesh.columns + 1);
    }
    this.context.putImageData(this.out, 0, 0, x0, y0, x1 - x0, y1 - y0);
    this.dirty = [x0, y0, x1, y1];
    return true;
  }

  clear() {
    if (!this.dirty) return;
    const [x0, y0, x1, y1] = this.dirty;
    this.context.clearRect(x0, y0, x1 - x0, y1 - y0);
    this.dirty = null;
  }

  // The cells that moved, those that are held least first (things lie on top of what they cover), and the box they fill.
  mesh(reaches, active) {
    const box = [
      Math.max(0, Math.min(...active.map((r) => r.box[0]))), Math.max(0, Math.min(...active.map((r) => r.box[1]))),
      Math.min(this.width, Math.max(...active.map((r) => r.box[2]))), Math.min(this.height, Math.max(...active.map((r) => r.box[3]))),
    ];
    const columns = Math.max(1, Math.ceil((box[2] - box[0]) / CELL));
    const rows = Math.max(1, Math.ceil((box[3] - box[1]) / CELL));
    if (box[2] <= box[0] || box[3] <= box[1]) return null;
    const [kx, ky] = [(box[2] - box[0]) / columns, (box[3] - box[1]) / rows];
    const count = (columns + 1) * (rows + 1);
    const [x, y, u, v, w] = Array.from({ length: 5 }, () => new Float32Array(count));
    const moves = new Uint8Array(count);
    for (let n = 0; n < count; n += 1) {
      u[n] = box[0] + (n % (columns + 1)) * kx;
      v[n] = box[1] + Math.floor(n / (columns + 1)) * ky;
      const by = moved(reaches, u[n], v[n]);
      x[n] = u[n] + by[0];
      y[n] = v[n] + by[1];
      w[n] = by[2];
      moves[n] = Math.abs(by[0]) + Math.abs(by[1]) > 0.02 ? 1 : 0;
    }
    const cells = [];
    const held = new Float32Array(count);
    let [x0, y0, x1, y1] = [this.width, this.height, 0, 0];
    for (let j = 0; j < rows; j += 1) {
      for (let i = 0; i < columns; i += 1) {
        const n = j * (columns + 1) + i;
        const corners = [n, n + 1, n + columns + 1, n + columns + 2];
        if (!(moves[n] || moves[n + 1] || moves[n + columns + 1] || moves[n + columns + 2])) continue;
        cells.push(n);
        held[n] = w[n] + w[n + 1] + w[n + columns + 1] + w[n + columns + 2];
        for (const c of corners) {
          x0 = Math.min(x0, x[c], u[c]);
          x1 = Math.max(x1, x[c], u[c]);
          y0 = Math.min(y0, y[c], v[c]);
          y1 = Math.max(y1, y[c], v[c]);
        }
      }
    }
    cells.sort((a, b) => held[a] - held[b]);
    x0 = Math.max(0, Math.floor(x0));
    y0 = Math.max(0, Math.floor(y0));
    x1 = Math.min(this.width, Math.ceil(x1) + 1);
    y1 = Math.min(this.height, Math.ceil(y1) + 1);
    return cells.length && x1 > x0 && y1 > y0 ? { cells, columns, x, y, u, v, x0, y0, x1, y1 } : null;
  }

  // Fill the triangle of the vertices a, b, c from the source, bilinear, line by line.
  triangle({ x: X, y: Y, u: U, v: V }, a, b, c) {
    const ax = X[a], ay = Y[a], bx = X[b] - ax, by = Y[b] - ay, cx = X[c] - ax, cy = Y[c] - ay;
    const area = bx * cy - cx * by;
    if (Math.abs(area) < 1e-3) return;
    const { width, height, source, pixels, limit } = this;
    const bu = U[b] - U[a], cu = U[c] - U[a], bv = V[b] - V[a], cv = V[c] - V[a];
    const ux = (bu * cy - cu * by) / area, uy = (cu * bx - bu * cx) / area;
    const vx = (bv * cy - cv * by) / area, vy = (cv * bx - bv * cx) / area;
    const right = width - 1.01, low = height - 1.01;
    const first = Math.max(0, Math.ceil(ay + Math.min(0, by, cy) - 0.001));
    const last = Math.min(height - 1, Math.floor(ay + Math.max(0, by, cy) + 0.001));
    for (let y = first; y <= last; y += 1) {
      // the line meets two of the three sides
      const t = y - ay;
      let from = Infinity, to = -Infinity;
      if (by !== 0 && t / by >= -1e-4 && t / by <= 1.0001) {
        const x = (t / by) * bx;
        from = x;
        to = x;
      }
      if (cy !== 0 && t / cy >= -1e-4 && t / cy <= 1.0001) {
        const x = (t / cy) * cx;
        if (x < from) from = x;
        if (x > to) to = x;
      }
      const ey = cy - by;
      if (ey !== 0 && (t - by) / ey >= -1e-4 && (t - by) / ey <= 1.0001) {
        const x = bx + ((t - by) / ey) * (cx - bx);
        if (x < from) from = x;
        if (x > to) to = x;
      }
      const begin = Math.max(0, Math.ceil(ax + from - 0.001));
      const end = Math.min(width - 1, Math.floor(ax + to + 0.001));
      let u = U[a] + (begin - ax) * ux + t * uy;
      let v = V[a] + (begin - ax) * vx + t * vy;
      let at = y * width + begin;
      for (let x = begin; x <= end; x += 1, at += 1, u += ux, v += vx) {
        if (limit !== null && limit[at] === 0) continue;
        const su = u < 0 ? 0 : u > right ? right : u;
        const sv = v < 0 ? 0 : v > low ? low : v;
        const i = su | 0, j = sv | 0;
        const fu = ((su - i) * 16) | 0, fv = ((sv - j) * 16) | 0;
        const n = j * width + i;
        const d = fu * fv, e = 16 * fu - d, f = 16 * fv - d, g = 256 - 16 * fu - f;
        const p = source[n], q = source[n + 1], r = source[n + width], s = source[n + width + 1];
        const even = (Math.imul(p & 0xff00ff, g) + Math.imul(q & 0xff00ff, e) + Math.imul(r & 0xff00ff, f) + Math.imul(s & 0xff00ff, d)) >>> 8;
        const odd = ((p >>> 8) & 0xff) * g + ((q >>> 8) & 0xff) * e + ((r >>> 8) & 0xff) * f + ((s >>> 8) & 0xff) * d;
        pixels[at] = 0xff000000 | (even & 0xff00ff) | (odd & 0xff00);
      }
    }
  }
}
