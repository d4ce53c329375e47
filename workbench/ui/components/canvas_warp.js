// The picture bent under the mouse: a mesh over what the arrows move, drawn in this browser, no server asked.
//
// Each arrow has a reach: a weight 0..1 for every place of the picture. It is 1 on the thing under the handle, as the
// server found it (`held`), or a smooth bump about the handle until that is known. Every place moves by
//   W(x) * sum_i l_i(x) d_i / sum_i l_i(x),   l_i = w_i / (distance to handle i squared + 1),   W = max_i w_i
// which is exact at each handle, 0 where nothing reaches, and lets arrows on one thing share it.
// All coordinates are canvas pixels.
const CELL = 10; // side of a mesh cell
const REACH = 2.2; // radius of the bump, in lengths of its arrow: below 1.54 the mesh would fold
const LEVELS = 64; // depths in which cells are sorted
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

// The mesh that lies over the whole canvas; vertices are counted row by row. It is the same in every frame of a drag, so
// a weight map is looked up at its vertices once, not once per frame.
class Mesh {
  constructor(width, height) {
    this.columns = Math.max(1, Math.ceil(width / CELL));
    this.rows = Math.max(1, Math.ceil(height / CELL));
    this.across = this.columns + 1; // vertices in a row
    this.kx = width / this.columns;
    this.ky = height / this.rows;
    this.count = this.across * (this.rows + 1);
    for (const name of ["x", "y", "w"]) this[name] = new Float32Array(this.count);
    this.u = Float32Array.from({ length: this.count }, (_, n) => (n % this.across) * this.kx);
    this.v = Float32Array.from({ length: this.count }, (_, n) => Math.floor(n / this.across) * this.ky);
    this.moves = new Uint8Array(this.count);
  }
}

// The map's value at a place of it (column, row), bilinear.
function sample({ data, width, height }, u, v) {
  const i = Math.min(width - 2, Math.max(0, Math.floor(u)));
  const j = Math.min(height - 2, Math.max(0, Math.floor(v)));
  const a = Math.min(1, Math.max(0, u - i)), b = Math.min(1, Math.max(0, v - j));
  const n = j * width + i;
  return (data[n] * (1 - a) + data[n + 1] * a) * (1 - b) + (data[n + width] * (1 - a) + data[n + width + 1] * a) * b;
}

// A map's values at the mesh's vertices. `to` = [ax, bx, ay, by]: column = ax + bx x, row = ay + by y of a canvas pixel.
function sampled(map, mesh, to) {
  const key = [mesh.columns, mesh.rows, ...to].join();
  if (map.key !== key) {
    const [ax, bx, ay, by] = to;
    map.key = key;
    map.values = Float32Array.from({ length: mesh.count }, (_, n) => sample(map, ax + bx * mesh.u[n], ay + by * mesh.v[n]));
  }
  return map.values;
}

// What one arrow moves: `values` at the mesh's vertices (null: none), `scale` of them, and a bump of `radius` with
// `height`, which takes the surroundings along, so that a long way crushes nothing. `box`: outside it nothing moves.
function reachOf({ hx, hy, tx, ty }, map, to, mesh, [width, height]) {
  const dx = tx - hx, dy = ty - hy;
  const radius = Math.max((map ? 0.05 : 0.1) * Math.hypot(width, height), (map ? AROUND[0] : REACH) * Math.hypot(dx, dy));
  const box = [hx - radius, hy - radius, hx + radius, hy + radius];
  const reach = { hx, hy, dx, dy, values: null, scale: 0, height: 1, inverse: 1 / (radius * radius), box };
  if (!map) return reach;
  const [ax, bx, ay, by] = to;
  const span = map.box.map((value, i) => (i % 2 ? (value + 0.5 - ay) / by : (value + 0.5 - ax) / bx));
  return {
    ...reach,
    values: sampled(map, mesh, to),
    scale: 1 / Math.max(sample(map, ax + bx * hx, ay + by * hy), 0.2),
    height: AROUND[1],
    box: box.map((value, i) => (i < 2 ? Math.min(value, span[i]) : Math.max(value, span[i]))),
  };
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
    this.mesh = new Mesh(this.width, this.height);
    this.out = new ImageData(this.width, this.height);
    this.pixels = new Uint32Array(this.out.data.buffer);
    this.dirty = null; // what the last frame drew: [x0, y0, x1, y1]
    this.frames = 0;
    this.spent = 0; // ms of script in all frames
  }

  // Draw one frame; false when nothing moves.
  draw(reaches) {
    const begun = performance.now();
    const drawn = this.bend(reaches);
    this.frames += 1;
    this.spent += performance.now() - begun;
    return drawn;
  }

  bend(reaches) {
    const before = this.dirty;
    const found = reaches.some((r) => r.dx || r.dy) ? this.move(reaches) : null;
    if (!found) {
      this.clear();
      return false;
    }
    const [x0, y0, x1, y1] = found.box;
    if (before && (before[0] < x0 || before[1] < y0 || before[2] > x1 || before[3] > y1)) this.clear();
    for (let y = y0; y < y1; y += 1) {
      const row = y * this.width;
      this.pixels.set(this.source.subarray(row + x0, row + x1), row + x0);
    }
    const { across } = this.mesh;
    for (const n of found.cells) {
      this.triangle(this.mesh, n, n + 1, n + across + 1);
      this.triangle(this.mesh, n, n + across + 1, n + across);
    }
    this.context.putImageData(this.out, 0, 0, x0, y0, x1 - x0, y1 - y0);
    this.dirty = found.box;
    return true;
  }

  clear() {
    if (!this.dirty) return;
    const [x0, y0, x1, y1] = this.dirty;
    this.context.clearRect(x0, y0, x1 - x0, y1 - y0);
    this.dirty = null;
  }

  // Move the vertices. Returns the cells that moved, those that are held least first (things lie on top of what they
  // cover), and the box of pixels that they fill; null when there are none.
  move(reaches) {
    const { mesh } = this;
    const { columns, rows, across, kx, ky, x, y, u, v, w, moves } = mesh;
    const around = (i, pick) => pick(...reaches.map((r) => r.box[i]));
    const i0 = Math.max(0, Math.floor(around(0, Math.min) / kx)), i1 = Math.min(columns, Math.ceil(around(2, Math.max) / kx));
    const j0 = Math.max(0, Math.floor(around(1, Math.min) / ky)), j1 = Math.min(rows, Math.ceil(around(3, Math.max) / ky));
    if (i1 <= i0 || j1 <= j0) return null;
    for (let j = j0; j <= j1; j += 1) {
      for (let n = j * across + i0, last = j * across + i1; n <= last; n += 1) {
        let sum = 0, sx = 0, sy = 0, most = 0;
        for (const r of reaches) {
          const gx = u[n] - r.hx, gy = v[n] - r.hy;
          const gap = gx * gx + gy * gy;
          const far = gap * r.inverse;
          let at = far < 1 ? r.height * (1 - far) * (1 - far) : 0;
          if (r.values !== null) at = Math.min(1, Math.max(at, r.values[n] * r.scale));
          if (at <= 0.002) continue;
          const l = at / (gap + 1);
          sum += l;
          sx += l * r.dx;
          sy += l * r.dy;
          if (at > most) most = at;
        }
        const by = sum > 0 ? most / sum : 0;
        x[n] = u[n] + by * sx;
        y[n] = v[n] + by * sy;
        w[n] = most;
        moves[n] = Math.abs(by * sx) + Math.abs(by * sy) > 0.02 ? 1 : 0;
      }
    }
    const levels = Array.from({ length: LEVELS }, () => []);
    let x0 = this.width, y0 = this.height, x1 = 0, y1 = 0;
    for (let j = j0; j < j1; j += 1) {
      for (let n = j * across + i0, last = j * across + i1; n < last; n += 1) {
        const m = n + across;
        if (!(moves[n] | moves[n + 1] | moves[m] | moves[m + 1])) continue;
        levels[Math.min(LEVELS - 1, ((w[n] + w[n + 1] + w[m] + w[m + 1]) * LEVELS * 0.25) | 0)].push(n);
        x0 = Math.min(x0, u[n], x[n], x[n + 1], x[m], x[m + 1]);
        x1 = Math.max(x1, u[n + 1], x[n], x[n + 1], x[m], x[m + 1]);
        y0 = Math.min(y0, v[n], y[n], y[n + 1], y[m], y[m + 1]);
        y1 = Math.max(y1, v[m], y[n], y[n + 1], y[m], y[m + 1]);
      }
    }
    x0 = Math.max(0, Math.floor(x0));
    y0 = Math.max(0, Math.floor(y0));
    x1 = Math.min(this.width, Math.ceil(x1) + 1);
    y1 = Math.min(this.height, Math.ceil(y1) + 1);
    return x1 > x0 && y1 > y0 ? { cells: levels.flat(), box: [x0, y0, x1, y1] } : null;
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
