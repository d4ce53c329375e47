// What is drawn on the picture, above everything: the mask as outline and hatch, arrows, pins, a polygon under way.
const SVG = "http://www.w3.org/2000/svg";
const HATCH = 9; // px from line to line

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  if (text !== undefined) node.textContent = text;
  return node;
}

// One arrow in canvas px. Short arrows are drawn thin, so that what they drag stays visible.
function arrowMarks({ hx, hy, tx, ty, on, number, chosen, colours }) {
  const length = Math.hypot(tx - hx, ty - hy);
  const s = Math.min(1, Math.max(0.45, length / 55));
  const [handle, target, shaft] = on ? [colours.handle, colours.target, colours.arrow] : [colours.off, colours.off, colours.off];
  const parts = [];
  const ring = (x, y, r, fill) => {
    parts.push(shape("circle", { cx: x, cy: y, r: r + 1.6 * s, fill: "#141414", "fill-opacity": 0.75 }));
    parts.push(shape("circle", { cx: x, cy: y, r, fill, stroke: "#fff", "stroke-width": 1.4 * s }));
  };
  const halo = (x, y) => parts.push(shape("circle", { cx: x, cy: y, r: 10, fill: "none", stroke: "#fff", "stroke-width": 1.5, "stroke-dasharray": "3 2.4" }));
  if (length < 1) {
    // a pin: a ring with a cross in it
    parts.push(shape("circle", { cx: hx, cy: hy, r: 7, fill: "none", stroke: "#141414", "stroke-width": 4, "stroke-opacity": 0.6 }));
    parts.push(shape("circle", { cx: hx, cy: hy, r: 7, fill: "none", stroke: on ? "#fff" : colours.off, "stroke-width": 2 }));
    parts.push(shape("circle", { cx: hx, cy: hy, r: 2.2, fill: handle, stroke: "#fff", "stroke-width": 0.8 }));
  } else {
    const [u, v] = [(tx - hx) / length, (ty - hy) / length];
    const head = Math.min(13 * s, length * 0.5);
    const gap = Math.min(6 * s, length * 0.3);
    const [x, y] = [tx - gap * u, ty - gap * v];
    const wing = (side) => `${x - head * u + side * head * 0.48 * v},${y - head * v - side * head * 0.48 * u}`;
    const line = { x1: hx, y1: hy, x2: x - head * 0.8 * u, y2: y - head * 0.8 * v, "stroke-linecap": "round" };
    const tip = `${x},${y} ${wing(1)} ${wing(-1)}`;
    parts.push(shape("line", { ...line, stroke: "#141414", "stroke-opacity": 0.75, "stroke-width": 2.8 * s + 2 }));
    parts.push(shape("polygon", { points: tip, fill: "#141414", "fill-opacity": 0.75, stroke: "#141414", "stroke-width": 2, "stroke-opacity": 0.75, "stroke-linejoin": "round" }));
    parts.push(shape("line", { ...line, stroke: shaft, "stroke-width": 2.8 * s, ...(on ? {} : { "stroke-dasharray": "5 4" }) }));
    parts.push(shape("polygon", { points: tip, fill: shaft }));
    ring(tx, ty, 4.4 * s, target);
    ring(hx, hy, 4.4 * s, handle);
  }
  if (chosen === "handle" || chosen === "both") halo(hx, hy);
  else if (chosen) halo(tx, ty);
  const [u, v] = length < 1 ? [0.7, 0.7] : [(tx - hx) / length, (ty - hy) / length];
  parts.push(shape("text", {
    x: hx - u * 17, y: hy - v * 17, "text-anchor": "middle", "dominant-baseline": "central", "font-size": 12.5, "font-weight": 700,
    "font-family": "system-ui, sans-serif", fill: "#fff", stroke: "#141414", "stroke-width": 3, "paint-order": "stroke",
  }, String(number)));
  return parts;
}

function polygonMarks(points, at) {
  const line = [...points, ...(at ? [at] : [])].map((p) => p.join()).join(" ");
  const parts = [
    shape("polyline", { points: line, fill: "rgb(255 255 255 / 14%)", stroke: "#141414", "stroke-width": 3.5, "stroke-opacity": 0.6 }),
    shape("polyline", { points: line, fill: "none", stroke: "#fff", "stroke-width": 1.5, "stroke-dasharray": "5 4" }),
  ];
  points.forEach(([x, y], n) => parts.push(shape("circle", { cx: x, cy: y, r: n ? 3 : 5.5, fill: "#fff", stroke: "#141414", "stroke-width": 1.2 })));
  return parts;
}

function hatch(colour) {
  const tile = document.createElement("canvas");
  Object.assign(tile, { width: HATCH, height: HATCH });
  const c = tile.getContext("2d");
  const lines = (width, style) => {
    Object.assign(c, { lineWidth: width, strokeStyle: style });
    c.beginPath();
    for (const shift of [-HATCH, 0, HATCH]) {
      c.moveTo(shift, HATCH);
      c.lineTo(shift + HATCH, 0);
    }
    c.stroke();
  };
  c.globalAlpha = 0.1;
  c.fillStyle = colour;
  c.fillRect(0, 0, HATCH, HATCH);
  c.globalAlpha = 0.25;
  lines(2.6, "#000");
  c.globalAlpha = 0.8;
  lines(1.2, colour);
  return tile;
}

// The mask over the picture: dark outside, hatched inside, outlined. `cover` is a canvas, opaque where painted.
class MaskLayer {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.aside = document.createElement("canvas");
    this.colour = "";
  }

  draw(cover, { colour, dim, fill }) {
    const { width, height } = cover;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    Object.assign(this.aside, { width, height });
    if (colour !== this.colour) {
      this.colour = colour;
      this.tile = hatch(colour);
    }
    const c = this.context;
    c.globalCompositeOperation = "source-over";
    c.clearRect(0, 0, width, height);
    if (dim < 1) {
      c.fillStyle = `rgb(0 0 0 / ${1 - dim})`;
      c.fillRect(0, 0, width, height);
      c.globalCompositeOperation = "destination-out";
      c.drawImage(cover, 0, 0);
      c.globalCompositeOperation = "source-over";
    }
    if (fill) this.lay(cover, () => this.aside.getContext("2d").createPattern(this.tile, "repeat"), 0);
    this.lay(cover, () => "rgb(10 10 10 / 65%)", 2.2);
    this.lay(cover, () => colour, 1.1);
  }

  // The cover filled with a style, or, with a width, only the rim that lies outside of it.
  lay(cover, style, width) {
    const a = this.aside.getContext("2d");
    a.globalCompositeOperation = "source-over";
    a.clearRect(0, 0, cover.width, cover.height);
    if (width) {
      for (let n = 0; n < 8; n += 1) a.drawImage(cover, width * Math.cos((n * Math.PI) / 4), width * Math.sin((n * Math.PI) / 4));
      a.globalCompositeOperation = "destination-out";
      a.drawImage(cover, 0, 0);
    } else a.drawImage(cover, 0, 0);
    a.globalCompositeOperation = "source-in";
    a.fillStyle = style();
    a.fillRect(0, 0, cover.width, cover.height);
    this.context.drawImage(this.aside, 0, 0);
  }
}
