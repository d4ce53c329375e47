// The stage: all that is seen and done on the picture beyond what the drawing canvas itself can do. The page is one
// document and the canvas lives in an open shadow root, so this stands beside it: it listens on the document and knows
// the canvas by the event's path, which survives every re-mount of the canvas.
//   own tools      arrows, pins, selection and polygons are drawn, grabbed, nudged and sent from here (mouse, pen, touch)
//   live           while an arrow is drawn or an end dragged, the picture bends with it (canvas_warp.js)
//   mask           outline, hatch, darkness outside, from the canvas's own paint (canvas_marks.js)
//   result         what a run sends, at the picture's place; pressing on it shows the original
//   keys           one for each tool, [ and ] for the brush, Enter runs, Esc abandons what is being drawn (never a job)
//   touch          one finger draws with the canvas's own tools, too
//   flush          a click elsewhere within the canvas's 200 ms of patience sends the drawing first
//   said           role, name and a text of what is drawn, for those who do not see it
// Arrows are this component's: it sends the whole list with the generation it was drawn in, so that none is lost when
// the server is busy; what another tab changed comes back as a new generation, and what the server has not seen of
// this one's lists is done to it again. Clicks that the server must answer lie in a log until it has confirmed them.
const seen = new WeakMap();
const SEND = "button[aria-label='Update the app with this drawing']";
const EDIT = "button[aria-label='Edit']";
const PATIENCE = 450; // ms in which a stroke may not have been sent yet
const GRAB = { mouse: 11, pen: 13, touch: 24 }; // px around an end that take hold of it
const JITTER = 3; // px: a shorter arrow is a click
const GROWS = 0.1; // a notch of the wheel changes `grow` so much
const ANSWERED = 1500; // ms after which a run that was refused gives the button back
const SHOWS = 2500; // ms for which the held piece is tinted after a change
const MOVES = ["auto", "shift", "turn", "stretch"];
const OWN = ["arrow", "pin", "select", "polygon"];
const TOOL_KEYS = {
  a: "Arrow", i: "Pin", s: "Select", b: "Brush", e: "Eraser", r: "Rectangle", p: "Polygon", m: "Adjust",
};
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const STYLE = `
  .dc-container .canvas-container > .lower-canvas { opacity: 0; }
  .dc-toolbar { display: none !important; }
  .wb-over { position: absolute; inset: 0; z-index: 30; overflow: hidden; pointer-events: none; outline: none; }
  .wb-over.wb-keys:focus { box-shadow: inset 0 0 0 2px #14705f, inset 0 0 0 4px #fff; }
  .wb-over > canvas:not(.wb-held), .wb-over > svg, .wb-over > .wb-frame { position: absolute; left: 0; top: 0; width: 100%; height: 100%; }
  .wb-frame { overflow: hidden; }
  .wb-frame img, .wb-over > .wb-held { position: absolute; }
  .wb-ring { position: absolute; box-sizing: border-box; border: 1.5px solid #fff; border-radius: 50%;
    box-shadow: 0 0 0 1px rgb(0 0 0 / 60%), inset 0 0 0 1px rgb(0 0 0 / 35%); transform: translate(-50%, -50%); }
  .wb-busy { position: absolute; width: 22px; height: 22px; margin: -11px; box-sizing: border-box; border-radius: 50%;
    border: 3px solid rgb(255 255 255 / 45%); border-top-color: #fff; filter: drop-shadow(0 0 1px #000); animation: wb-turn 0.8s linear infinite; }
  @keyframes wb-turn { to { transform: rotate(360deg); } }
  .wb-chips { position: absolute; left: 10px; bottom: 10px; display: flex; gap: 6px; max-width: calc(100% - 20px); }
  .wb-chips > * { padding: 4px 11px; border: 0; border-radius: 999px; background: rgb(20 20 22 / 82%); color: #fff;
    font: 500 13px/1.4 system-ui, sans-serif; }
  .wb-chips button { cursor: pointer; pointer-events: auto; background: #fff; color: #1b1b1d; }
  .wb-chips button:focus-visible { outline: 2px solid #14705f; outline-offset: 2px; }
  .wb-coach { position: absolute; left: 50%; top: 14px; transform: translateX(-50%); padding: 6px 14px; border-radius: 999px;
    background: rgb(20 20 22 / 82%); color: #fff; font: 500 14px/1.4 system-ui, sans-serif; text-align: center; max-width: 90%; box-sizing: border-box; }
  .wb-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  [hidden] { display: none !important; }
`;
const LAYERS = `
  <canvas class="wb-warp"></canvas><div class="wb-frame wb-draft" hidden><img alt=""></div>
  <canvas class="wb-mask"></canvas><canvas class="wb-held" hidden></canvas><svg class="wb-marks" aria-hidden="true"></svg>
  <div class="wb-frame wb-shown" hidden><img alt=""></div>
  <div class="wb-coach" hidden></div><div class="wb-ring" hidden></div><div class="wb-busy" hidden></div>
  <div class="wb-chips" hidden></div><div class="wb-hidden" id="wb-said"></div><div class="wb-hidden wb-told" aria-live="polite"></div>
`;

// Strokes in the eraser's colour are cut out of the paint instead of being laid over it. Fabric draws a path into
// a canvas of its own first and that onto the visible one, so the first step marks and the second one cuts.
// Every touch of the paint also tells the stage that the mask changed.
function teachCanvas(colour) {
  const proto = CanvasRenderingContext2D.prototype;
  if (proto.wbEraser) {
    proto.wbEraser.colour = colour;
    return;
  }
  const known = { colour };
  Object.defineProperty(proto, "wbEraser", { value: known });
  const { stroke, fill, drawImage, clearRect } = proto;
  const isPaint = (canvas) => {
    if (!canvas.classList?.contains("dc-canvas")) return false; // the picture behind is another canvas
    canvas.dispatchEvent(new Event("wb-painted"));
    return true;
  };
  const cut = (context, act) => {
    const was = context.globalCompositeOperation;
    context.globalCompositeOperation = "destination-out";
    act();
    context.globalCompositeOperation = was;
  };
  proto.stroke = function (...args) {
    const paint = isPaint(this.canvas);
    if (this.strokeStyle !== known.colour) return stroke.apply(this, args);
    if (paint && !this.canvas.classList.contains("upper-canvas")) return cut(this, () => stroke.apply(this, args));
    this.canvas.wbErases = true;
    return stroke.apply(this, args);
  };
  proto.fill = function (...args) {
    const paint = isPaint(this.canvas);
    if (this.fillStyle === known.colour) {
      if (paint && !this.canvas.classList.contains("upper-canvas")) return cut(this, () => fill.apply(this, args));
      this.canvas.wbErases = true;
    }
    return fill.apply(this, args);
  };
  proto.drawImage = function (image, ...args) {
    const paint = isPaint(this.canvas);
    if (paint && image?.wbErases) return cut(this, () => drawImage.call(this, image, ...args));
    return drawImage.call(this, image, ...args);
  };
  proto.clearRect = function (...args) {
    isPaint(this.canvas);
    return clearRect.apply(this, args);
  };
}

function typing(event) {
  const node = event.composedPath()[0];
  return node?.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(node?.tagName);
}

function onControl(event) {
  const roles = ["radio", "option", "tab", "dialog"];
  return event.composedPath().some((n) => ["BUTTON", "A", "SUMMARY"].includes(n.tagName) || roles.includes(n.getAttribute?.("role")));
}

const copy = (arrows) => arrows.map((a) => ({ on: a.on, pair: [...a.pair] }));
// What was made of the arrows known (`old` -> `mine`), done to the present ones: `merge_arrows` on the server.
function merge(old, mine, theirs) {
  const has = (list, arrow) => list.some((a) => same(a, arrow));
  const kept = theirs.flatMap((arrow) => {
    if (has(mine, arrow) || !has(old, arrow)) return [arrow];
    const moved = old.length === mine.length && mine[old.findIndex((a) => same(a, arrow))];
    return moved && !has(old, moved) && !has(theirs, moved) ? [moved] : [];
  });
  return [...kept, ...mine.filter((a) => !has(old, a) && !has(kept, a))];
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const near2 = (value) => Math.round(value * 100) / 100;
// How much an arrow's handle holds (-1..1) and how that moves: the fifth part of a pair, `PointPair` on the server.
const holdOf = (pair) => [pair[4]?.grow ?? 0, pair[4]?.move ?? "auto"];

class Stage {
  constructor() {
    this.id = Math.random().toString(36).slice(2);
    this.number = 0; // of what was sent last
    this.log = [];
    this.sent = []; // { number, arrows }: the list that the server took last, then those it has not confirmed
    this.arrows = [];
    this.chosen = null; // { n, end }
    this.corners = []; // of a polygon under way, image px
    this.maps = new Map();
    this.dim = true;
    this.preview = true;
    this.drawn = 0; // when the last stroke of the canvas itself ended
    this.start = null;
    this.stops = [];
    const loud = { capture: true, passive: false };
    this.on("touchstart", (e) => this.touch(e, "mousedown"), loud);
    this.on("touchmove", (e) => this.touch(e, "mousemove"), loud);
    for (const kind of ["touchend", "touchcancel"]) this.on(kind, (e) => this.touch(e, "mouseup"), loud);
    this.on("pointerdown", (e) => this.press(e), { capture: true });
    this.on("pointermove", (e) => this.hover(e), { capture: true });
    this.on("pointerup", (e) => this.release(e, true), { capture: true });
    this.on("pointercancel", (e) => this.release(e, false), { capture: true });
    this.on("mousedown", (e) => this.down(e), { capture: true });
    this.on("mousemove", (e) => this.quiet(e), { capture: true });
    this.on("mouseup", () => this.up(), { capture: true });
    this.on("dblclick", (e) => this.twice(e), { capture: true });
    this.on("keydown", (e) => this.key(e), { capture: true });
    this.on("keyup", (e) => e.key.toLowerCase() === "o" && this.compare(false), { capture: true });
    this.on("wheel", (e) => this.wheel(e), loud);
    this.on("click", (e) => this.began(e), { capture: true });
    this.on("wb-show", (e) => this.show(e.detail), {});
    const timer = setInterval(() => this.dress(), 200);
    this.stops.push(() => clearInterval(timer));
  }

  on(kind, act, options) {
    document.addEventListener(kind, act, options);
    this.stops.push(() => document.removeEventListener(kind, act, options));
  }

  update(data, setStateValue, setTriggerValue) {
    const before = this.data;
    this.data = data;
    this.state = setStateValue;
    this.trigger = setTriggerValue;
    teachCanvas(data.eraser);
    this.log = this.log.filter((item) => item.number > (data.acked[this.id] ?? 0));
    if (before?.target !== data.target) [this.sent, this.arrows] = [[], []]; // another picture's arrows stay with it
    const [by, taken] = data.taken ?? [];
    if (by === this.id) this.sent = this.sent.filter((s) => s.number >= taken);
    if (before?.generation !== data.generation) this.rebase(copy(data.arrows));
    if (before && before.tool !== data.tool) this.corners = [];
    if (before?.view.join() !== data.view.join() || before?.target !== data.target) {
      this.warp?.clear();
      this.warp = null;
    }
    this.tool = data.tool;
    if (before?.size.join() !== data.size.join() || before?.target !== data.target) this.maps.clear();
    for (const [where, src] of Object.entries(data.held)) this.learn(where, src);
    // keys that are not sent yet win: the server answers the ones before them
    if (this.brush === undefined || (before?.brush !== data.brush && !this.sizing)) this.brush = data.brush;
    if (data.area !== this.areaSource) this.takeArea(data.area);
    this.dress();
    this.refresh();
  }

  // The drawing changed elsewhere: what the server has not seen, and what is being drawn, goes on over it.
  rebase(theirs) {
    const known = this.sent[0]?.arrows ?? [];
    this.sent = this.sent.map((s) => ({ ...s, arrows: merge(known, s.arrows, theirs) }));
    if (!this.sent.length) this.sent = [{ number: 0, arrows: theirs }];
    const { drag } = this;
    const held = this.arrows[drag?.n ?? this.chosen?.n];
    const settled = drag ? this.was : this.arrows;
    this.arrows = copy(merge(known, settled, theirs));
    if (drag) {
      this.was = copy(this.arrows);
      const at = this.arrows.findIndex((a) => same(a, settled[drag.n]));
      drag.n = drag.fresh || at < 0 ? this.arrows.length : at;
      this.arrows[drag.n] = held;
      this.chosen = { ...this.chosen, n: drag.n };
    } else if (this.chosen) {
      const at = this.arrows.findIndex((a) => same(a, held));
      this.chosen.n = at < 0 ? this.chosen.n : at;
      if (!this.arrows[this.chosen.n]) this.chosen = null;
    }
  }

  async learn(where, src) {
    if (this.maps.get(where)?.src === src) return;
    const entry = { src, map: null };
    this.maps.set(where, entry);
    entry.map = await weightMap(src);
    this.paintHeld();
    this.frame();
  }

  async takeArea(src) {
    this.areaSource = src;
    if (!src) this.area = null;
    else {
      const image = new Image();
      image.src = src;
      await image.decode();
      if (this.areaSource === src) this.area = image;
    }
    this.maskSoon();
  }

  root() {
    const home = this.home;
    if (home?.isConnected && home.host.isConnected && home.querySelector(".upper-canvas")) return home;
    this.home = null;
    for (const box of document.querySelectorAll(`[class*="st-key-${CSS.escape(this.data.target)}"]`)) {
      for (const node of box.querySelectorAll("*")) {
        if (node.shadowRoot?.querySelector(".upper-canvas")) this.home = node.shadowRoot;
      }
    }
    return this.home;
  }

  part(name) {
    return this.root()?.querySelector(`.wb-${name}`);
  }

  get top() {
    return this.root()?.querySelector(".upper-canvas");
  }

  // Style and layers are put into each canvas that appears; the edit switch follows the tool.
  dress() {
    const root = this.root();
    if (!root) return;
    if (!root.querySelector(".wb-style")) {
      const style = document.createElement("style");
      style.className = "wb-style";
      style.textContent = STYLE;
      root.append(style);
    }
    let over = root.querySelector(".wb-over");
    if (!over) {
      over = document.createElement("div");
      over.className = "wb-over";
      over.innerHTML = LAYERS;
      over.tabIndex = 0;
      over.setAttribute("role", "application");
      over.setAttribute("aria-roledescription", "drawing canvas");
      over.setAttribute("aria-describedby", "wb-said");
      root.querySelector(".dc-container").append(over);
      this.mask = new MaskLayer(over.querySelector(".wb-mask"));
      this.warp = null;
      this.refresh();
      this.show(document.wbShown ?? null);
    }
    const edit = root.querySelector(EDIT);
    const wanted = String(this.tool === "adjust");
    if (edit && edit.getAttribute("aria-pressed") !== wanted) edit.click();
    // what was done is written on the canvas itself: the component may put a new one in its place
    const canvas = root.querySelector(".upper-canvas");
    if (canvas.dataset.tool !== this.tool) {
      if (!canvas.dataset.tool) {
        canvas.addEventListener("mouseleave", () => this.ring(null));
        for (const c of [canvas, root.querySelector(".canvas-container > .lower-canvas")]) c.addEventListener("wb-painted", () => this.maskSoon());
        this.maskSoon();
      }
      canvas.dataset.tool = this.tool;
      canvas.style.opacity = ["brush", "eraser"].includes(this.tool) ? "0" : "1";
      this.refresh();
    }
  }

  // --- where things are ---------------------------------------------------------------------------------

  get scale() {
    const [, , width, height] = this.data.view;
    const canvas = this.top;
    return [width / canvas.clientWidth, height / canvas.clientHeight];
  }

  // Canvas px of a point of the picture, and back: `Viewport.to_canvas` and `to_image`.
  toCanvas(x, y) {
    const [kx, ky] = this.scale;
    const [x0, y0] = this.data.view;
    return [(x - x0 - (Math.min(kx, 1) - 1) / 2) / kx, (y - y0 - (Math.min(ky, 1) - 1) / 2) / ky];
  }

  toImage(x, y) {
    const [kx, ky] = this.scale;
    const [x0, y0] = this.data.view;
    const [width, height] = this.data.size;
    const u = x0 + x * kx + (Math.min(kx, 1) - 1) / 2;
    const v = y0 + y * ky + (Math.min(ky, 1) - 1) / 2;
    return [near2(Math.min(width - 1, Math.max(0, u))), near2(Math.min(height - 1, Math.max(0, v)))];
  }

  point(event) {
    const box = this.top.getBoundingClientRect();
    return [Math.floor(event.clientX) - box.left, Math.floor(event.clientY) - box.top];
  }

  isCanvas(event) {
    const node = event.composedPath()[0];
    return Boolean(node?.classList?.contains("upper-canvas") && this.root()?.contains(node));
  }

  get own() {
    return OWN.includes(this.tool);
  }

  // The arrow's end under a place of the canvas, the nearest within reach.
  endAt([x, y], reach) {
    let [best, found] = [reach, null];
    this.arrows.forEach(({ pair }, n) => {
      const pin = pair[0] === pair[2] && pair[1] === pair[3];
      for (const [end, i] of [["target", 2], ["handle", 0]]) {
        const [u, v] = this.toCanvas(pair[i], pair[i + 1]);
        const gap = Math.hypot(u - x, v - y);
        if (gap < best) [best, found] = [gap, { n, end: pin ? "both" : end }];
      }
    });
    return found;
  }

  // --- pointer ------------------------------------------------------------------------------------------

  press(event) {
    this.part("over")?.classList.remove("wb-keys");
    this.flush(event);
    if (event.button !== 0 || !event.isPrimary || !this.isCanvas(event)) return;
    this.part("over").focus({ preventScroll: true });
    if (this.shown?.kind === "result") {
      this.compare(true);
      return;
    }
    if (this.shown) this.hideShown(true);
    if (!this.own) return;
    const canvas = this.top;
    canvas.setPointerCapture?.(event.pointerId);
    const at = this.point(event);
    this.from = at;
    if (this.tool === "arrow" || this.tool === "pin") this.begin(at, GRAB[event.pointerType] ?? GRAB.mouse);
    else if (this.tool === "polygon") this.corner(at, event);
    this.refresh();
  }

  begin(at, reach) {
    const found = this.endAt(at, reach);
    this.was = copy(this.arrows);
    this.live();
    if (found) {
      this.chosen = found;
      this.drag = { ...found, pair: [...this.arrows[found.n].pair], start: at };
      return;
    }
    const p = this.toImage(...at);
    this.ask("press", { x: p[0], y: p[1] });
    this.arrows.push({ on: true, pair: [...p, ...p] });
    this.chosen = { n: this.arrows.length - 1, end: this.tool === "pin" ? "both" : "target" };
    this.drag = { ...this.chosen, fresh: true, pair: [...p, ...p], start: at };
  }

  hover(event) {
    if (!this.data || !this.root()) return;
    const inside = this.isCanvas(event);
    if (!inside && !this.drag && !this.start) {
      this.ring(null);
      return;
    }
    const at = this.point(event);
    this.ring(["brush", "eraser"].includes(this.tool) && !this.shown ? at : null);
    if (this.drag) {
      this.pull(at);
      this.frame();
    } else if (inside && this.own) {
      const over = ["arrow", "pin"].includes(this.tool) && this.endAt(at, GRAB.mouse);
      this.top.style.cursor = this.shown ? "pointer" : over ? "grab" : this.tool === "select" ? "cell" : "crosshair";
      if (this.corners.length) {
        this.at = at;
        this.frame();
      }
    }
  }

  pull([x, y]) {
    const { n, end, pair, start } = this.drag;
    const arrow = this.arrows[n];
    if (!arrow) return;
    if (end === "both") {
      const [u, v] = this.toImage(...this.sum(this.toCanvas(pair[0], pair[1]), [x - start[0], y - start[1]]));
      arrow.pair.splice(0, 4, u, v, u, v);
    } else if (this.drag.fresh) arrow.pair.splice(2, 2, ...this.toImage(x, y));
    else {
      const i = end === "handle" ? 0 : 2;
      const [u, v] = this.toCanvas(pair[i], pair[i + 1]);
      arrow.pair.splice(i, 2, ...this.toImage(u + x - start[0], v + y - start[1]));
    }
    this.drag.moved ||= Math.hypot(x - start[0], y - start[1]) >= JITTER;
  }

  sum([a, b], [c, d]) {
    return [a + c, b + d];
  }

  release(event, done) {
    if (this.comparing) this.compare(false);
    if (!this.from) return;
    const at = this.point(event);
    const { from, drag } = this;
    this.from = null;
    if (drag) {
      this.drag = null;
      const arrow = this.arrows[drag.n];
      const [hx, hy, tx, ty] = arrow?.pair ?? [];
      const short = Math.hypot(...this.sum(this.toCanvas(hx, hy), this.toCanvas(tx, ty).map((v) => -v))) < JITTER;
      if (!done || !arrow || (drag.fresh && drag.end !== "both" && short)) {
        this.arrows = this.was;
        this.chosen = null;
      } else if (drag.fresh || drag.moved) {
        this.commit();
      }
    } else if (done && this.tool === "select" && Math.hypot(at[0] - from[0], at[1] - from[1]) < 6) {
      const [x, y] = this.toImage(...at);
      this.ask("select", { x, y, how: event.altKey ? "take" : event.shiftKey ? "add" : "new" });
      this.busy(at);
    }
    this.refresh();
  }

  // --- polygon ------------------------------------------------------------------------------------------

  corner(at, event) {
    const first = this.corners[0] && this.toCanvas(...this.corners[0]);
    const reach = GRAB[event.pointerType] ?? GRAB.mouse;
    if (this.corners.length > 2 && Math.hypot(first[0] - at[0], first[1] - at[1]) < reach) this.close();
    else this.corners.push(this.toImage(...at));
    this.erases = event.altKey;
  }

  twice(event) {
    if (this.tool !== "polygon" || !this.isCanvas(event)) return;
    event.stopImmediatePropagation();
    this.corners.pop(); // the second click of the two
    this.close();
  }

  close() {
    if (this.corners.length > 2) this.ask("polygon", { points: this.corners, erase: Boolean(this.erases) });
    this.corners = [];
    this.at = null;
    this.frame();
  }

  // --- what the server is told --------------------------------------------------------------------------

  ask(kind, more) {
    this.log.push({ number: this.number + 1, kind, ...more });
    this.send();
  }

  send() {
    this.number += 1;
    const { number } = this;
    const arrows = copy(this.arrows);
    this.sent.push({ number, arrows });
    this.state("sent", { id: this.id, number, generation: this.data.generation, arrows, log: [...this.log], brush: this.brush });
  }

  commit() {
    clearTimeout(this.later);
    this.later = 0;
    this.sizing = false;
    this.send();
    this.tell();
  }

  commitSoon() {
    clearTimeout(this.later);
    this.later = setTimeout(() => this.commit(), 250);
  }

  // --- the canvas's own tools -----------------------------------------------------------------------------

  touch(event, kind) {
    if (!this.data || !this.isCanvas(event) || event.touches.length > 1) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (this.own || this.shown) return; // pointer events serve these
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

  down(event) {
    if (!this.data || !this.isCanvas(event)) return;
    event.preventDefault(); // the browser would focus what lies around the canvas
    if (this.own || this.shown) {
      event.stopImmediatePropagation(); // Fabric does not see it
      return;
    }
    if (event.button !== 0) return;
    this.start = this.point(event);
    this.drawn = 0;
    this.frame();
  }

  quiet(event) {
    if (this.data && (this.own || this.shown) && this.isCanvas(event)) event.stopImmediatePropagation();
  }

  up() {
    if (!this.start) return;
    this.start = null;
    this.drawn = performance.now();
    this.maskSoon();
  }

  // The canvas waits 200 ms for more strokes before it sends. Whoever clicks "Run" sooner means the drawing they see.
  flush(event) {
    if (!this.data) return;
    if (this.later && !this.isCanvas(event)) this.commit();
    if (this.drawn && performance.now() - this.drawn < PATIENCE && !this.isCanvas(event)) {
      this.drawn = 0;
      this.root()?.querySelector(SEND)?.click();
    }
  }

  // Run shows that it was pressed at once, in the browser; the server's progress takes its place (draw.css).
  began(event) {
    const pressed = event.composedPath().find((n) => n.matches?.(".st-key-run button"));
    if (!this.data || !pressed || pressed.disabled) return;
    const { dataset, style } = document.documentElement;
    style.setProperty("--wb-starting", JSON.stringify(this.data.words.starting));
    dataset.wbRun = "";
    clearInterval(this.starts);
    const since = performance.now();
    const end = () => {
      clearInterval(this.starts);
      delete dataset.wbRun;
    };
    this.starts = setInterval(() => {
      const idle = document.querySelector("[data-testid=stApp][data-test-script-state=notRunning]");
      if (!document.querySelector(".st-key-run") || (idle && performance.now() - since > ANSWERED)) end();
    }, 100);
    this.stops.push(end);
  }

  ring(at) {
    const ring = this.part("ring");
    if (!ring) return;
    ring.hidden = !at;
    if (!at) return;
    Object.assign(ring.style, { left: `${at[0]}px`, top: `${at[1]}px`, width: `${this.brush}px`, height: `${this.brush}px` });
  }

  busy(at) {
    const wheel = this.part("busy");
    if (!wheel) return;
    wheel.hidden = !at;
    if (at) Object.assign(wheel.style, { left: `${at[0]}px`, top: `${at[1]}px` });
  }

  // --- keys -----------------------------------------------------------------------------------------------

  key(event) {
    if (!this.data) return;
    if (event.key === "Tab") this.part("over")?.classList.add("wb-keys"); // a ring for those who came by keyboard
    if (typing(event)) return;
    if (event.ctrlKey || event.metaKey) {
      this.flush(event);
      return;
    }
    if (event.altKey) return;
    if (this.keyOf(event)) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  }

  keyOf(event) {
    const { key } = event;
    const low = key.toLowerCase();
    const focused = event.composedPath()[0] === this.part("over");
    if (key === "Escape") return this.escape();
    if (key === "[" || key === "]") return this.size(key === "]");
    if (key === "?") return this.click(".st-key-tool_help button");
    if (key === "Enter") return this.enter(event);
    if (focused && STEPS[key] && this.chosen) return this.nudge(STEPS[key], event.shiftKey ? 10 : 1);
    if (focused && key === " " && this.chosen) return this.swap();
    if (focused && low === "n") return this.fresh();
    if (this.chosen && ["+", "=", "-"].includes(key)) return this.hold(this.chosen.n, key === "-" ? -GROWS : GROWS);
    if (this.chosen && low === "t") return this.hold(this.chosen.n, 0, 1);
    if (["Delete", "Backspace"].includes(key)) return this.remove();
    if (low === "d") {
      this.dim = !this.dim;
      return this.refresh();
    }
    if (low === "v") {
      this.preview = !this.preview;
      return this.refresh();
    }
    if (low === "o") return this.compare(true);
    if (TOOL_KEYS[low] && !event.shiftKey) return this.choose(TOOL_KEYS[low]);
    return false;
  }

  click(where) {
    const button = document.querySelector(where);
    if (button && !button.disabled) button.click();
    return Boolean(button);
  }

  choose(name) {
    const radio = [...document.querySelectorAll('[class*="st-key-tool_bar"] [role="radio"]')].find((r) => r.textContent.trim() === name);
    if (!radio) return false;
    if (this.shown?.kind === "result") this.hideShown(true);
    radio.click();
    return true;
  }

  // Esc abandons what is being drawn, then lets go of an arrow, then leaves the result. It never stops a job.
  escape() {
    if (this.drag) {
      this.drag = null;
      this.from = null;
      this.arrows = this.was;
    } else if (this.corners.length) this.corners = [];
    else if (this.chosen) this.chosen = null;
    else if (this.shown && !this.hidden) this.hideShown(true);
    else return false;
    return this.refresh();
  }

  enter(event) {
    if (this.corners.length > 2) {
      this.close();
      return true;
    }
    if (onControl(event) || event.repeat) return false;
    this.flush({ composedPath: () => [] });
    return this.click(".st-key-run button");
  }

  size(larger) {
    const now = this.brush;
    const after = now > 4 ? Math.round(now * (larger ? 1.25 : 0.8)) : now + (larger ? 1 : -1);
    this.brush = Math.max(1, Math.min(160, after));
    const ring = this.part("ring");
    if (ring && !ring.hidden) Object.assign(ring.style, { width: `${this.brush}px`, height: `${this.brush}px` });
    this.sizing = true;
    this.commitSoon();
    return true;
  }

  nudge([dx, dy], by) {
    const { n, end } = this.chosen;
    const [width, height] = this.data.size;
    const { pair } = this.arrows[n];
    for (const i of end === "both" ? [0, 2] : [end === "handle" ? 0 : 2]) {
      pair[i] = near2(Math.min(width - 1, Math.max(0, pair[i] + by * dx)));
      pair[i + 1] = near2(Math.min(height - 1, Math.max(0, pair[i + 1] + by * dy)));
    }
    this.live();
    this.commitSoon();
    return this.refresh();
  }

  swap() {
    const next = { target: "handle", handle: "target", both: "both" };
    this.chosen = { ...this.chosen, end: next[this.chosen.end] };
    this.tell();
    return this.refresh();
  }

  // An arrow by keyboard: from the middle of the view to the right; the arrow keys then move its ends.
  fresh() {
    const canvas = this.top;
    const [w, h] = [canvas.clientWidth, canvas.clientHeight];
    const pin = this.tool === "pin";
    const [a, b] = [this.toImage(w / 2, h / 2), this.toImage(w / 2 + (pin ? 0 : w / 10), h / 2)];
    this.arrows.push({ on: true, pair: [...a, ...b] });
    this.chosen = { n: this.arrows.length - 1, end: pin ? "both" : "target" };
    this.commit();
    return this.refresh();
  }

  remove() {
    if (this.corners.length) {
      this.corners.pop();
      return this.refresh();
    }
    if (this.tool === "adjust") return Boolean(this.root()?.querySelector("button[aria-label='Delete selected']")?.click() ?? true);
    if (!this.chosen) return false;
    this.arrows.splice(this.chosen.n, 1);
    this.chosen = null;
    this.commit();
    return this.refresh();
  }

  // --- what is seen ---------------------------------------------------------------------------------------

  // What a run sends: { kind: "live" | "result", src, label, back } over the picture, or null.
  show(next) {
    const before = this.shown;
    const shown = next?.kind === "result" && next.of === this.left ? null : next;
    this.shown = shown;
    const frame = this.part("shown");
    if (!frame) return;
    if (before?.kind !== shown?.kind || before?.of !== shown?.of) this.hidden = false;
    const image = frame.firstElementChild;
    if (shown && image.getAttribute("src") !== shown.src) image.src = shown.src;
    image.alt = shown?.label ?? "";
    this.hideShown(this.hidden);
  }

  hideShown(hidden) {
    this.hidden = hidden;
    if (hidden && this.shown?.kind === "result") {
      this.left = this.shown.of; // a result that was left stays left until another one comes
      this.shown = null;
    }
    this.refresh();
  }

  compare(on) {
    if (this.comparing === on) return true;
    this.comparing = on;
    this.refresh();
    return true;
  }

  chips() {
    const box = this.part("chips");
    const { shown } = this;
    const said = [];
    if (shown && !this.hidden) {
      said.push(["span", this.comparing ? this.data.words.before : shown.label]);
      if (shown.kind === "result") said.push(["button", this.data.words.back, () => this.hideShown(true)]);
    } else if (this.arrows[this.holding]) {
      const [grow, move] = holdOf(this.arrows[this.holding].pair);
      said.push(["span", `${this.data.words.holds} ${grow > 0 ? "+" : ""}${Math.round(100 * grow)} %, ${this.data.words.moves[move]}`]);
    } else if (shown?.kind === "live") said.push(["button", this.data.words.live, () => this.hideShown(false)]);
    const text = said.map((s) => s[1]).join("|");
    box.hidden = !said.length;
    if (box.dataset.text === text) return;
    box.dataset.text = text;
    box.replaceChildren(...said.map(([tag, words, act]) => {
      const node = document.createElement(tag);
      node.textContent = words;
      if (act) {
        node.type = "button";
        node.addEventListener("click", act);
      }
      return node;
    }));
  }

  // A picture of the whole (or of a box of it) is laid where it belongs in the present view.
  lay(image, box) {
    const [x0, y0, width, height] = this.data.view;
    const [bx, by, bw, bh] = box ?? [0, 0, ...this.data.size];
    const share = (value) => `${100 * value}%`;
    Object.assign(image.style, { left: share((bx - x0) / width), top: share((by - y0) / height), width: share(bw / width), height: share(bh / height) });
  }

  get bends() {
    return this.preview && ["arrow", "pin"].includes(this.tool);
  }

  refresh() {
    if (!this.data || !this.part("over")) return true;
    const { data } = this;
    const frame = this.part("shown");
    frame.hidden = !this.shown || this.hidden || Boolean(this.comparing);
    this.lay(frame.firstElementChild, null);
    const draft = this.part("draft");
    const [image] = draft.children;
    if (data.draft && image.getAttribute("src") !== data.draft.src) {
      image.src = data.draft.src;
      image.decode().then(() => this.refresh(), () => {});
    }
    if (data.draft) this.lay(image, data.draft.box);
    // the server's draft is of the arrows it knows; until it has the last ones, the mesh stays
    const settled = Boolean(data.draft) && image.complete && same(this.arrows, copy(data.arrows));
    draft.hidden = !(settled && this.bends && !this.drag && !this.comparing && !this.covered);
    if (!this.log.some((i) => i.kind === "select")) this.busy(null);
    const coach = this.part("coach");
    coach.textContent = data.coach;
    coach.hidden = !data.coach || this.arrows.length > 0 || Boolean(this.shown);
    this.chips();
    this.paintHeld();
    this.part("over").setAttribute("aria-label", data.label);
    this.root().querySelector("#wb-said").textContent = data.said;
    this.maskSoon();
    this.frame();
    return true;
  }

  get covered() {
    return Boolean(this.shown) && !this.hidden;
  }

  tell() {
    const told = this.part("told");
    const arrow = this.arrows[this.chosen?.n];
    if (!told || !arrow) return;
    const [hx, hy, tx, ty] = arrow.pair.map((v) => Math.round(v));
    const end = this.chosen.end === "handle" ? "handle" : "target";
    const [grow, move] = holdOf(arrow.pair);
    told.textContent = `Arrow ${this.chosen.n + 1}: from ${hx}, ${hy} to ${tx}, ${ty}; ${end} selected; holds ${grow}, moves ${move}`;
  }

  // Pixels of the picture and of the mask, taken when a drag begins.
  live() {
    const root = this.root();
    const back = root?.querySelector(".dc-background-canvas");
    if (!back?.width) return;
    const source = back.getContext("2d").getImageData(0, 0, back.width, back.height);
    this.warp = new Warp(this.part("warp"), source, this.limit());
  }

  limit() {
    const paint = this.root().querySelector(".canvas-container > .lower-canvas");
    const { data } = paint.getContext("2d").getImageData(0, 0, paint.width, paint.height);
    const out = new Uint8Array(paint.width * paint.height);
    let any = 0;
    for (let i = 0; i < out.length; i += 1) any |= out[i] = data[4 * i + 3] > 127 ? 1 : 0;
    return any ? out : null;
  }

  reaches() {
    const canvas = this.top;
    const [width, height] = this.data.size;
    const [kx, ky] = this.scale;
    const [x0, y0] = this.data.view;
    return this.arrows.filter((a) => a.on).map((arrow) => {
      const { pair } = arrow;
      const [hx, hy] = this.toCanvas(pair[0], pair[1]);
      const [tx, ty] = this.toCanvas(pair[2], pair[3]);
      const map = this.mapOf(pair);
      const across = map && map.width / width, down = map && map.height / height;
      const to = map && [x0 * across - 0.5, kx * across, y0 * down - 0.5, ky * down];
      return reachOf({ hx, hy, tx, ty }, map, to, this.warp.mesh, [canvas.clientWidth, canvas.clientHeight]);
    });
  }

  // The weights of what an arrow's handle holds; while those of a new `grow` or `move` are on their way, the last ones.
  mapOf(pair) {
    const at = `${Math.round(pair[0])},${Math.round(pair[1])},`;
    const found = this.maps.get(at + holdOf(pair).join())?.map;
    return found ?? [...this.maps].findLast(([key, entry]) => key.startsWith(at) && entry.map)?.[1].map ?? null;
  }

  // One picture per frame of the screen, however many events came.
  frame() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.paint();
    });
  }

  paint() {
    const over = this.part("over");
    if (!over) return;
    const bent = this.part("warp");
    const wanted = this.bends && !this.covered && !this.comparing && (this.drag || this.part("draft").hidden);
    if (wanted && this.warp) {
      this.warp.draw(this.reaches());
      Object.assign(bent.dataset, { frames: String(this.warp.frames), spent: this.warp.spent.toFixed(2) });
    } else this.warp?.clear();
    const marks = this.part("marks");
    marks.style.display = this.covered || this.comparing ? "none" : "";
    const parts = this.arrows.flatMap((arrow, n) => {
      const [hx, hy] = this.toCanvas(arrow.pair[0], arrow.pair[1]);
      const [tx, ty] = this.toCanvas(arrow.pair[2], arrow.pair[3]);
      const chosen = this.chosen?.n === n ? this.chosen.end : null;
      return arrowMarks({ hx, hy, tx, ty, on: arrow.on, number: n + 1, chosen, colours: this.data.colours });
    });
    const corners = this.corners.map((p) => this.toCanvas(...p));
    marks.replaceChildren(...parts, ...(corners.length ? polygonMarks(corners, this.at) : []));
  }

  maskSoon() {
    if (this.maskAsked) return;
    this.maskAsked = requestAnimationFrame(() => {
      this.maskAsked = 0;
      this.paintMask();
    });
  }

  paintMask() {
    const root = this.root();
    if (!root || !this.mask) return;
    const paint = root.querySelector(".canvas-container > .lower-canvas");
    const { width, height } = paint;
    if (!width) return;
    this.cover ??= document.createElement("canvas");
    Object.assign(this.cover, { width, height });
    const c = this.cover.getContext("2d");
    const [x0, y0, w, h] = this.data.view;
    const [iw, ih] = this.data.size;
    if (this.area) c.drawImage(this.area, (-x0 / w) * width, (-y0 / h) * height, (iw / w) * width, (ih / h) * height);
    else c.drawImage(paint, 0, 0);
    if (this.start && ["brush", "eraser"].includes(this.tool)) {
      c.globalCompositeOperation = this.tool === "eraser" ? "destination-out" : "source-over";
      c.drawImage(this.top, 0, 0);
    }
    const any = this.data.masked || this.area || (this.start && this.tool === "brush");
    const style = { colour: this.data.paint, dim: this.dim && any ? this.data.colours.dim : 1, fill: !this.area };
    this.mask.draw(this.cover, style);
    this.mask.canvas.style.display = this.covered || this.comparing ? "none" : "";
  }

  // Let an arrow's handle hold more (by > 0) or less, or have it move in the next way.
  hold(n, by, turn = 0) {
    const { pair } = this.arrows[n];
    const [grow, move] = holdOf(pair);
    const more = { grow: near2(Math.min(1, Math.max(-1, grow + by))), move: MOVES[(MOVES.indexOf(move) + turn) % MOVES.length] };
    if (more.grow === 0) delete more.grow;
    if (more.move === "auto") delete more.move;
    pair.splice(4, 1, ...(Object.keys(more).length ? [more] : []));
    this.holding = n;
    clearTimeout(this.letGo);
    this.letGo = setTimeout(() => {
      this.holding = null;
      this.refresh();
    }, SHOWS);
    this.live();
    this.commitSoon();
    this.tell();
    return this.refresh();
  }

  // What the handle at hand holds, tinted, for a moment after it was changed.
  paintHeld() {
    const layer = this.part("held");
    if (!layer) return; // the page was left meanwhile
    const map = this.arrows[this.holding] && this.mapOf(this.arrows[this.holding].pair);
    layer.hidden = !map || this.covered;
    if (layer.hidden) return;
    if (layer.wbMap !== map) {
      layer.wbMap = map;
      Object.assign(layer, { width: map.width, height: map.height });
      const picture = new ImageData(map.width, map.height);
      for (let i = 0; i < map.data.length; i += 1) picture.data.set([255, 190, 40, 170 * map.data[i]], 4 * i);
      layer.getContext("2d").putImageData(picture, 0, 0);
    }
    this.lay(layer, null);
  }

  // Over an arrow's end the wheel changes what its handle holds. Elsewhere Ctrl+wheel zooms round the pointer; in a zoomed view the plain wheel moves the view.
  wheel(event) {
    if (!this.data) return;
    const zooms = event.ctrlKey || event.metaKey;
    const over = this.isCanvas(event) && !zooms && ["arrow", "pin"].includes(this.tool) && this.endAt(this.point(event), GRAB.mouse);
    if (over && !this.shown) {
      event.preventDefault();
      this.chosen = over;
      this.hold(over.n, event.deltaY < 0 ? GROWS : -GROWS);
      return;
    }
    if (!this.isCanvas(event) || !(zooms || this.data.zoomed)) return;
    event.preventDefault();
    const now = performance.now();
    if (now - (this.turned ?? 0) < 200) return;
    this.turned = now;
    const box = event.composedPath()[0].getBoundingClientRect();
    const [x, y] = this.point(event);
    const place = { u: x / box.width, v: y / box.height };
    if (zooms) this.trigger("zoom", { by: event.deltaY < 0 ? 1 : -1, ...place });
    else this.trigger("zoom", { by: 0, dx: Math.sign(event.deltaX), dy: Math.sign(event.deltaY) });
  }

  stop() {
    clearTimeout(this.later);
    this.stops.forEach((s) => s());
  }
}

export default function ({ parentElement, data, setStateValue, setTriggerValue }) {
  let stage = seen.get(parentElement);
  if (!stage) {
    stage = new Stage();
    seen.set(parentElement, stage);
  }
  stage.update(data, setStateValue, setTriggerValue);
  return () => {
    stage.stop();
    seen.delete(parentElement);
  };
}
