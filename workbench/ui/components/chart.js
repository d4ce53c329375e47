// Lines over steps, as SVG. A series is a list of [step, value]. Small on purpose: it is redrawn twice a second while a run goes on.
const seen = new WeakMap();
const NS = "http://www.w3.org/2000/svg";
const LEFT = 44;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 30;

function make(tag, attributes, text) {
  const node = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  if (text !== undefined) node.textContent = text;
  return node;
}

// Steps of 1, 2 or 5 times a power of ten, at most `count` of them.
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const first = Math.ceil(low / step) * step;
  const out = [];
  for (let v = first; v <= high + step * 1e-6; v += step) out.push(v);
  return out;
}

function short(v) {
  if (v === 0) return "0";
  const size = Math.abs(v);
  if (size >= 1000 || size < 0.01) return v.toExponential(0).replace("e+", "e");
  return String(Number(v.toPrecision(3)));
}

function draw(state) {
  const { box, data } = state;
  const width = Math.max(160, box.clientWidth || 320);
  const height = data.height;
  const rows = data.series.filter((s) => s.points.length);
  const all = rows.flatMap((s) => s.points.map((p) => p[1]));
  if (data.goal !== null) all.push(data.goal);
  const steps = Math.max(data.total, ...rows.map((s) => s.points[s.points.length - 1][0]), 2);
  const first = Math.min(1, ...rows.map((s) => s.points[0][0]));
  const low = Math.min(0, ...all);
  let high = all.length ? Math.max(...all) : 1;
  if (high - low < 1e-9) high = low + 1;
  const x = (step) => LEFT + ((width - LEFT - RIGHT) * (step - first)) / Math.max(1, steps - first);
  const y = (v) => TOP + ((height - TOP - BOTTOM) * (high - v)) / (high - low);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  svg.setAttribute("aria-label", data.label);
  for (const t of ticks(low, high, 4)) {
    const at = y(t);
    svg.append(make("line", { x1: LEFT, x2: width - RIGHT, y1: at, y2: at, class: "grid" }));
    svg.append(make("text", { x: LEFT - 6, y: at + 4, class: "tick end" }, short(t)));
  }
  for (const t of ticks(first, steps, Math.min(6, width / 90))) {
    if (!Number.isInteger(t)) continue;
    svg.append(make("text", { x: x(t), y: height - 14, class: "tick mid" }, String(t)));
  }
  svg.append(make("text", { x: width - RIGHT, y: height - 2, class: "axis end" }, "step"));
  if (data.goal !== null) {
    svg.append(make("line", { x1: LEFT, x2: width - RIGHT, y1: y(data.goal), y2: y(data.goal), class: "goal" }));
  }
  rows.forEach((s, n) => {
    const points = s.points.map(([at, v]) => `${x(at).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
    svg.append(make("polyline", { points, class: `line c${n % 8}` }));
    const [at, v] = s.points[s.points.length - 1];
    svg.append(make("circle", { cx: x(at), cy: y(v), r: 3, class: `dot c${n % 8}` }));
  });
  const cursor = make("line", { y1: TOP, y2: height - BOTTOM, class: "cursor", visibility: "hidden" });
  svg.append(cursor);
  const legend = document.createElement("div");
  legend.className = "legend";
  const spans = rows.map((s, n) => {
    const item = document.createElement("span");
    item.className = `item c${n % 8}`;
    legend.append(item);
    return item;
  });
  const tell = (step) => {
    rows.forEach((s, n) => {
      const known = s.points.filter((p) => p[0] <= step);
      const value = (known.length ? known[known.length - 1] : s.points[0])[1];
      spans[n].textContent = `${s.name} ${short(value)}${data.yLabel ? ` ${data.yLabel}` : ""}`;
    });
  };
  tell(Infinity);
  svg.addEventListener("pointermove", (event) => {
    const left = svg.getBoundingClientRect().left;
    const share = (event.clientX - left - LEFT) / (width - LEFT - RIGHT);
    const step = Math.round(first + Math.max(0, Math.min(1, share)) * (steps - first));
    cursor.setAttribute("x1", x(step));
    cursor.setAttribute("x2", x(step));
    cursor.setAttribute("visibility", "visible");
    tell(step);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    tell(Infinity);
  });
  box.replaceChildren(legend, svg);
}

export default function ({ parentElement, data }) {
  const state = seen.get(parentElement) ?? {};
  state.data = data;
  if (!state.stop) {
    seen.set(parentElement, state);
    state.box = parentElement.querySelector(".wb-chart");
    let width = 0;
    const observer = new ResizeObserver(() => {
      if (state.box.clientWidth !== width) {
        width = state.box.clientWidth;
        draw(state);
      }
    });
    observer.observe(state.box);
    state.stop = () => {
      observer.disconnect();
      seen.delete(parentElement);
    };
  }
  draw(state);
  return state.stop;
}
