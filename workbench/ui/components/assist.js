// What the drawing canvas lacks. The page is one document and the canvas lives in an open shadow root, so this
// component can stand beside it: it listens on the document and recognises the canvas by the event's path, which
// survives every re-mount of the canvas.
//   touch          one finger draws with every tool (the canvas itself knows touch for the brush only)
//   ring           a circle of the brush's size follows the pointer
//   arrow          handle, shaft and head are seen while the arrow is being drawn
//   eraser         strokes in the eraser's colour take paint away, at once
//   flush          a click elsewhere within the canvas's 200 ms of patience sends the drawing first
//   keys           [ and ] change the brush, Ctrl+wheel zooms, the wheel moves a zoomed view
const seen = new WeakMap();
const SEND = "button[aria-label='Update the app with this drawing']";
const EDIT = "button[aria-label='Edit']";
const NS = "http://www.w3.org/2000/svg";
const PATIENCE = 450; // ms in which a stroke may not have been sent yet

const STYLE = `
  .lower-canvas:not(.dc-background-canvas) { opacity: 0.38; }
  .dc-toolbar { display: none !important; }
  .wb-over { position: absolute; inset: 0; z-index: 30; overflow: hidden; pointer-events: none; }
  .wb-ring { position: absolute; box-sizing: border-box; border: 1.5px solid #fff; border-radius: 50%;
    box-shadow: 0 0 0 1px rgb(0 0 0 / 60%), inset 0 0 0 1px rgb(0 0 0 / 35%); transform: translate(-50%, -50%); }
  .wb-over svg { position: absolute; inset: 0; width: 100%; height: 100%; }
`;

// Strokes in the eraser's colour are cut out of the paint instead of being laid over it. Fabric draws a path into
// a canvas of its own first and that onto the visible one, so the first step marks and the second one cuts.
function teachEraser(colour) {
  const proto = CanvasRenderingContext2D.prototype;
  if (proto.wbEraser) {
    proto.wbEraser.colour = colour;
    return;
  }
  const known = { colour };
  Object.defineProperty(proto, "wbEraser", { value: known });
  const { stroke, fill, drawImage } = proto;
  const isPaint = (canvas) => canvas.classList?.contains("dc-canvas"); // the picture behind is another canvas
  const cut = (context, act) => {
    const was = context.globalCompositeOperation;
    context.globalCompositeOperation = "destination-out";
    act();
    context.globalCompositeOperation = was;
  };
  proto.stroke = function (...args) {
    if (this.strokeStyle !== known.colour) return stroke.apply(this, args);
    if (isPaint(this.canvas)) return cut(this, () => stroke.apply(this, args));
    this.canvas.wbErases = true;
    return stroke.apply(this, args);
  };
  proto.fill = function (...args) {
    if (this.fillStyle === known.colour) {
      if (isPaint(this.canvas)) return cut(this, () => fill.apply(this, args));
      this.canvas.wbErases = true;
    }
    return fill.apply(this, args);
  };
  proto.drawImage = function (image, ...args) {
    if (image?.wbErases && isPaint(this.canvas)) return cut(this, () => drawImage.call(this, image, ...args));
    return drawImage.call(this, image, ...args);
  };
}

function typing(event) {
  const node = event.composedPath()[0];
  return node?.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(node?.tagName);
}

class Assist {
  constructor() {
    this.drawn = 0; // when the last stroke ended
    this.start = null;
    this.stops = [];
    this.on("touchstart", (e) => this.touch(e, "mousedown"), { capture: true, passive: false });
    this.on("touchmove", (e) => this.touch(e, "mousemove"), { capture: true, passive: false });
    for (const kind of ["touchend", "touchcancel"]) {
      this.on(kind, (e) => this.touch(e, "mouseup"), { capture: true, passive: false });
    }
    this.on("pointerdown", (e) => this.flush(e), { capture: true });
    this.on("mousedown", (e) => this.down(e), { capture: true });
    this.on("mousemove", (e) => this.move(e), { capture: true });
    this.on("mouseup", () => this.up(), { capture: true });
    this.on("keydown", (e) => this.key(e), { capture: true });
    this.on("wheel", (e) => this.wheel(e), { capture: true, passive: false });
    const timer = setInterval(() => this.dress(), 200);
    this.stops.push(() => clearInterval(timer));
  }

  on(kind, act, options) {
    document.addEventListener(kind, act, options);
    this.stops.push(() => document.removeEventListener(kind, act, options));
  }

  update(data, setTriggerValue) {
    const revised = this.data && data.revision !== this.data.revision;
    this.data = data;
    this.trigger = setTriggerValue;
    teachEraser(data.eraser);
    this.dress();
    // the arrow is now in the picture below; let the picture arrive before the sketch of it goes
    if (revised && !this.start) setTimeout(() => this.start || this.sketch(null), 150);
  }

  root() {
    for (const box of document.querySelectorAll(`[class*="st-key-${CSS.escape(this.data.target)}"]`)) {
      for (const node of box.querySelectorAll("*")) {
        if (node.shadowRoot?.querySelector(".upper-canvas")) return node.shadowRoot;
      }
    }
    return null;
  }

  // Style and overlay are put into each canvas that appears; the edit switch follows the tool.
  dress() {
    const root = this.root();
    if (!root) return;
    if (!root.querySelector(".wb-style")) {
      const style = document.createElement("style");
      style.className = "wb-style";
      style.textContent = STYLE;
      root.append(style);
    }
    if (!root.querySelector(".wb-over")) {
      const over = document.createElement("div");
      over.className = "wb-over";
      over.innerHTML = '<div class="wb-ring" hidden></div>';
      root.querySelector(".dc-container").append(over);
    }
    const edit = root.querySelector(EDIT);
    const wanted = String(this.data.tool === "adjust");
    if (edit && edit.getAttribute("aria-pressed") !== wanted) edit.click();
    // what was done is written on the canvas itself: the component may put a new one in its place
    const canvas = root.querySelector(".upper-canvas");
    if (canvas.dataset.tool !== this.data.tool) {
      if (!canvas.dataset.tool) canvas.addEventListener("mouseleave", () => this.ring(null));
      canvas.dataset.tool = this.data.tool;
      canvas.style.opacity = ["brush", "eraser"].includes(this.data.tool) ? "0.38" : "1";
    }
  }

  isCanvas(event) {
    const node = event.composedPath()[0];
    return Boolean(node?.classList?.contains("upper-canvas") && this.root()?.contains(node));
  }

  touch(event, kind) {
    if (!this.isCanvas(event) || event.touches.length > 1) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const finger = event.changedTouches[0];
    const canvas = event.composedPath()[0];
    const send = (name, where) =>
      where.dispatchEvent(new MouseEvent(name, {
        bubbles: true, cancelable: true, composed: true, view: window, button: 0, buttons: name === "mouseup" ? 0 : 1,
        clientX: finger.clientX, clientY: finger.clientY,
      }));
    if (kind === "mousedown") {
      send("mousemove", canvas);
      send("mousedown", canvas);
      this.finger = true;
    } else if (this.finger) {
      send(kind, document);
      if (kind === "mouseup") {
        this.finger = false;
        this.ring(null);
      }
    }
  }

  point(event) {
    const box = this.root().querySelector(".upper-canvas").getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  down(event) {
    if (event.button !== 0 || !this.isCanvas(event)) return;
    this.start = this.point(event);
    this.drawn = 0;
  }

  move(event) {
    const root = this.root();
    if (!root) return;
    if (this.isCanvas(event) || this.start) {
      const at = this.point(event);
      this.ring(["brush", "eraser"].includes(this.data.tool) ? at : null);
      if (this.start && this.data.tool === "arrow") this.sketch(this.start, at);
    } else {
      this.ring(null);
    }
  }

  up() {
    if (!this.start) return;
    this.start = null;
    this.drawn = performance.now();
    setTimeout(() => this.start || this.sketch(null), 2500);
  }

  // The canvas waits 200 ms for more strokes before it sends. Whoever clicks "Run" sooner means the drawing they see.
  flush(event) {
    if (this.drawn && performance.now() - this.drawn < PATIENCE && !this.isCanvas(event)) {
      this.drawn = 0;
      if (this.data.tool !== "polygon") this.root()?.querySelector(SEND)?.click();
    }
  }

  ring(at) {
    const ring = this.root()?.querySelector(".wb-ring");
    if (!ring) return;
    ring.hidden = !at;
    if (!at) return;
    Object.assign(ring.style, {
      left: `${at.x}px`, top: `${at.y}px`, width: `${this.data.brush}px`, height: `${this.data.brush}px`,
    });
  }

  sketch(from, to) {
    const over = this.root()?.querySelector(".wb-over");
    if (!over) return;
    over.querySelector("svg")?.remove();
    if (!from) return;
    const length = Math.hypot(to.x - from.x, to.y - from.y);
    if (length < 3) return;
    const svg = document.createElementNS(NS, "svg");
    const [u, v] = [(to.x - from.x) / length, (to.y - from.y) / length];
    const head = Math.min(14, length * 0.5);
    const corner = (side) => `${to.x - head * u + side * head * 0.55 * v},${to.y - head * v - side * head * 0.55 * u}`;
    const parts = [
      ["line", { x1: from.x, y1: from.y, x2: to.x, y2: to.y, stroke: "#000", "stroke-opacity": 0.55, "stroke-width": 5 }],
      ["line", { x1: from.x, y1: from.y, x2: to.x, y2: to.y, stroke: "#fff", "stroke-width": 2.5 }],
      ["circle", { cx: to.x, cy: to.y, r: 5, fill: "#1e64e6", stroke: "#fff", "stroke-width": 1.5 }],
      ["polygon", { points: `${to.x},${to.y} ${corner(1)} ${corner(-1)}`, fill: "#fff", stroke: "#000", "stroke-opacity": 0.5 }],
      ["circle", { cx: from.x, cy: from.y, r: 5, fill: "#e53935", stroke: "#fff", "stroke-width": 1.5 }],
    ];
    for (const [tag, attributes] of parts) {
      const node = document.createElementNS(NS, tag);
      for (const [k, value] of Object.entries(attributes)) node.setAttribute(k, value);
      svg.append(node);
    }
    over.append(svg);
  }

  key(event) {
    if (typing(event)) return;
    if (event.ctrlKey || event.metaKey) this.flush(event);
    else if (event.key === "[" || event.key === "]") {
      event.preventDefault();
      this.trigger("brush", event.key === "]" ? 1 : -1);
    } else if (event.key === "Delete" && this.data.tool === "adjust") {
      this.root()?.querySelector("button[aria-label='Delete selected']")?.click();
    }
  }

  // Ctrl+wheel zooms round the pointer; in a zoomed view the plain wheel moves the view.
  wheel(event) {
    const zooms = event.ctrlKey || event.metaKey;
    if (!this.isCanvas(event) || !(zooms || this.data.zoomed)) return;
    event.preventDefault();
    const now = performance.now();
    if (now - (this.turned ?? 0) < 200) return;
    this.turned = now;
    const box = event.composedPath()[0].getBoundingClientRect();
    const at = this.point(event);
    const place = { u: at.x / box.width, v: at.y / box.height };
    if (zooms) this.trigger("zoom", { by: event.deltaY < 0 ? 1 : -1, ...place });
    else this.trigger("zoom", { by: 0, dx: Math.sign(event.deltaX), dy: Math.sign(event.deltaY) });
  }

  stop() {
    this.stops.forEach((s) => s());
  }
}

export default function ({ parentElement, data, setTriggerValue }) {
  let assist = seen.get(parentElement);
  if (!assist) {
    assist = new Assist();
    seen.set(parentElement, assist);
  }
  assist.update(data, setTriggerValue);
  return () => {
    assist.stop();
    seen.delete(parentElement);
  };
}
