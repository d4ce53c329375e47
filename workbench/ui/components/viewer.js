// Pictures against each other: a divider to drag, panes with one common zoom, flicker, the last one with the first
// while a button or key is held; or just one that changes. With `stage`, every view takes the same room.
// Pointer events serve mouse, pen and touch alike; two fingers or Ctrl+wheel zoom; arrow keys move the divider.
const seen = new WeakMap();
const MAX_ZOOM = 16;
const GRAB = 26; // CSS px around the divider that still take hold of it

function element(tag, className, attributes = {}, text) {
  const node = document.createElement(tag);
  node.className = className;
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  if (text !== undefined) node.textContent = text;
  return node;
}

const ICONS = {
  minus: "M3 8h10", plus: "M3 8h10M8 3v10", pause: "M5.5 3.5v9M10.5 3.5v9", play: "M5 3.5v9l7-4.5z",
  full: "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10",
  grip: "M6 4.5 2.5 8 6 11.5M10 4.5 13.5 8 10 11.5",
};

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

function button(face, label, act) {
  const node = element("button", "tool", { type: "button", title: label, "aria-label": label });
  node.append(face in ICONS ? icon(face) : face);
  node.addEventListener("click", act);
  return node;
}

class Viewer {
  constructor(box) {
    this.box = box;
    this.zoom = 1;
    this.x = 0; // left edge of what is seen, as a share of the picture
    this.y = 0;
    this.split = 0.5;
    this.shown = 0;
    this.timer = 0;
    this.pointers = new Map();
    this.made = "";
  }

  update(data) {
    this.data = data;
    const about = JSON.stringify(data.focus ?? null);
    if (about !== this.about) {
      this.about = about;
      this.lookAt(data.focus);
    }
    const made = JSON.stringify([data.mode, data.maxHeight, data.columns, data.images.map((i) => i.label)]);
    if (made !== this.made) {
      this.made = made;
      this.build();
    }
    // a new picture replaces the old one in place: no flicker, zoom and divider stay
    for (const { img, at } of this.layers) {
      const src = data.images[at].src;
      if (img.getAttribute("src") !== src) img.src = src;
    }
  }

  // Begin at the part [x0, y0, x1, y1] (shares of the picture): the divider in it, and close if it is small.
  lookAt(part) {
    if (!part) return;
    const [x0, y0, x1, y1] = part;
    this.zoom = Math.min(4, Math.max(1, 0.6 / Math.max(x1 - x0, y1 - y0)));
    if (this.zoom < 1.3) this.zoom = 1;
    this.x = (x0 + x1) / 2 - 0.5 / this.zoom;
    this.y = (y0 + y1) / 2 - 0.5 / this.zoom;
    const seen = Math.min(1 - 1 / this.zoom, Math.max(0, this.x));
    this.split = Math.min(0.95, Math.max(0.05, ((x0 + x1) / 2 - seen) * this.zoom));
  }

  build() {
    clearInterval(this.timer);
    this.held = false;
    const { mode, images } = this.data;
    const bar = element("div", "bar");
    bar.hidden = mode === "single";
    this.percent = element("span", "percent", { "aria-live": "polite" });
    if (mode === "flicker") {
      this.play = button("pause", "Pause", () => this.setPlaying(!this.playing));
      bar.append(this.play);
    }
    if (mode === "hold") {
      const label = this.data.hold;
      const hold = element("button", "tool hold", { type: "button", title: `${label} (Space)` }, label);
      hold.addEventListener("pointerdown", (e) => {
        hold.setPointerCapture(e.pointerId);
        this.hold(true);
      });
      for (const kind of ["pointerup", "pointercancel", "blur"]) hold.addEventListener(kind, () => this.hold(false));
      hold.addEventListener("keydown", (e) => this.holdKey(e));
      hold.addEventListener("keyup", (e) => this.holdKey(e));
      bar.append(hold);
    }
    bar.append(
      button("minus", "Zoom out", () => this.zoomAt(this.zoom / 1.5, 0.5, 0.5)),
      this.percent,
      button("plus", "Zoom in", () => this.zoomAt(this.zoom * 1.5, 0.5, 0.5)),
      button("Fit", "Fit the whole picture", () => this.zoomAt(1, 0.5, 0.5)),
      button("full", "Full screen", () => this.fullScreen()),
    );
    this.panes = element("div", `panes ${mode}`);
    if (this.data.columns) this.panes.style.setProperty("--columns", this.data.columns);
    this.layers = [];
    this.divider = null;
    const every = images.map((_, i) => i);
    const two = [0, 1].filter((i) => i in images);
    const groups = { side: every.map((i) => [i]), single: [[0]], flicker: [every], slider: [two], hold: [every] }[mode];
    for (const group of groups) this.panes.append(this.pane(group, mode));
    this.box.replaceChildren(bar, this.panes);
    this.measure();
    if (mode === "flicker") this.setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    this.place();
  }

  pane(group, mode) {
    const pane = element("div", "pane", { tabindex: "0", role: "group", "aria-label": group.map((i) => this.data.images[i].label).join(", ") });
    group.forEach((at, n) => {
      const { label } = this.data.images[at];
      const layer = element("div", "layer");
      const img = element("img", "", { alt: label, draggable: "false" });
      img.addEventListener("load", () => {
        pane.style.setProperty("--ratio", img.naturalWidth / img.naturalHeight);
        pane.style.setProperty("--cap", `${this.cap()}px`);
        this.ratio = img.naturalWidth / img.naturalHeight;
        this.measure();
        this.place();
      });
      layer.append(img);
      pane.append(layer);
      this.layers.push({ layer, img, at, n, mode });
      if (mode !== "single") layer.append(element("span", mode === "slider" && n === 1 ? "chip right" : "chip", {}, label));
    });
    if (mode === "slider" && group.length > 1) {
      this.divider = element("div", "divider", {
        role: "slider", tabindex: "0", "aria-valuemin": "0", "aria-valuemax": "100",
        "aria-label": `Divider between ${group.map((i) => this.data.images[i].label).join(" and ")}`,
      });
      const grip = element("span", "grip");
      grip.append(icon("grip"));
      this.divider.append(grip);
      this.divider.addEventListener("keydown", (e) => this.dividerKey(e));
      pane.append(this.divider);
    }
    pane.addEventListener("pointerdown", (e) => this.down(e, pane));
    pane.addEventListener("pointermove", (e) => this.move(e, pane));
    if (mode === "side") this.follow(pane);
    for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) {
      pane.addEventListener(kind, (e) => {
        this.pointers.delete(e.pointerId);
        this.hold(false);
      });
    }
    pane.addEventListener("wheel", (e) => {
      if (!e.ctrlKey && !e.metaKey) return;
      e.preventDefault();
      const [u, v] = this.at(e, pane);
      this.zoomAt(this.zoom * Math.exp(-e.deltaY / 250), u, v);
    }, { passive: false });
    pane.addEventListener("dblclick", (e) => {
      const [u, v] = this.at(e, pane);
      this.zoomAt(this.zoom > 1 ? 1 : 3, u, v);
    });
    pane.addEventListener("keydown", (e) => this.paneKey(e));
    pane.addEventListener("keyup", (e) => this.data.mode === "hold" && this.holdKey(e));
    return pane;
  }

  // How tall a pane may be: a stage is to be seen whole below the page's head and the view's tools.
  cap() {
    const { stage, maxHeight } = this.data;
    return stage ? Math.min(maxHeight, Math.max(320, window.innerHeight - 300)) : maxHeight;
  }

  // The stage keeps the room of one whole picture, whatever is shown on it.
  measure() {
    if (!this.data.stage || !this.ratio) return;
    const height = Math.min(this.cap(), this.box.clientWidth / this.ratio);
    this.panes.classList.add("stage");
    this.panes.style.setProperty("--stage", `${Math.round(height)}px`);
    if (!this.resized) {
      this.resized = new ResizeObserver(() => this.measure());
      this.resized.observe(this.box);
    }
  }

  hold(on) {
    if (this.held === on) return;
    this.held = on;
    this.place();
  }

  holdKey(event) {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    event.stopPropagation();
    this.hold(event.type === "keydown");
  }

  // A cross in the other panes stands where the pointer is in this one.
  follow(pane) {
    const cross = element("div", "cross", { "aria-hidden": "true" });
    pane.append(cross);
    const others = () => [...this.panes.querySelectorAll(".cross")].filter((c) => c !== cross);
    pane.addEventListener("pointermove", (e) => {
      if (e.pointerType === "touch") return;
      const [u, v] = this.at(e, pane);
      cross.hidden = true;
      for (const one of others()) {
        one.hidden = false;
        one.style.left = `${100 * u}%`;
        one.style.top = `${100 * v}%`;
      }
    });
    pane.addEventListener("pointerleave", () => others().forEach((c) => (c.hidden = true)));
    cross.hidden = true;
  }

  at(event, pane) {
    const r = pane.getBoundingClientRect();
    return [(event.clientX - r.left) / r.width, (event.clientY - r.top) / r.height];
  }

  down(event, pane) {
    if (event.button !== 0) return;
    pane.setPointerCapture(event.pointerId);
    const [u, v] = this.at(event, pane);
    this.pointers.set(event.pointerId, { u, v });
    const near = Math.abs(u - this.split) * pane.clientWidth < GRAB;
    this.dragging = this.data.mode === "slider" && (near || this.zoom === 1) ? "split" : "pan";
    if (this.data.mode === "hold" && this.zoom === 1) {
      this.dragging = "hold";
      this.hold(true);
    }
    if (this.pointers.size === 2) this.dragging = "pinch";
    if (this.dragging === "split") {
      this.setSplit(u);
      this.divider?.focus({ preventScroll: true });
      event.preventDefault();
    }
  }

  move(event, pane) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const [u, v] = this.at(event, pane);
    if (this.dragging === "pinch") {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        const gap = (p) => Math.hypot(p.u - other.u, p.v - other.v) || 1e-3;
        this.zoomAt((this.zoom * gap({ u, v })) / gap(before), (u + other.u) / 2, (v + other.v) / 2);
      }
    } else if (this.dragging === "split") {
      this.setSplit(u);
    } else if (this.dragging === "pan") {
      this.x -= (u - before.u) / this.zoom;
      this.y -= (v - before.v) / this.zoom;
      this.place();
    }
    this.pointers.set(event.pointerId, { u, v });
  }

  dividerKey(event) {
    const step = event.shiftKey ? 0.1 : 0.01;
    const to = {
      ArrowLeft: this.split - step, ArrowRight: this.split + step, ArrowDown: this.split - step, ArrowUp: this.split + step,
      PageDown: this.split - 0.1, PageUp: this.split + 0.1, Home: 0, End: 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.setSplit(to);
  }

  paneKey(event) {
    const pan = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "+" || event.key === "=") this.zoomAt(this.zoom * 1.5, 0.5, 0.5);
    else if (event.key === "-") this.zoomAt(this.zoom / 1.5, 0.5, 0.5);
    else if (event.key === "0") this.zoomAt(1, 0.5, 0.5);
    else if (event.key === " " && this.data.mode === "flicker") this.setPlaying(!this.playing);
    else if (event.key === " " && this.data.mode === "hold") this.hold(true);
    else if (pan && this.zoom > 1) {
      this.x += (0.1 * pan[0]) / this.zoom;
      this.y += (0.1 * pan[1]) / this.zoom;
      this.place();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  setSplit(to) {
    this.split = Math.min(1, Math.max(0, to));
    this.place();
  }

  setPlaying(on) {
    this.playing = on;
    clearInterval(this.timer);
    this.play.replaceChildren(icon(on ? "pause" : "play"));
    this.play.setAttribute("aria-label", on ? "Pause" : "Play");
    const next = () => {
      this.shown += 1;
      this.place();
    };
    if (on) this.timer = setInterval(next, 600);
    else next();
  }

  // Zoom so that the picture's point under (u, v) of the pane stays where it is.
  zoomAt(zoom, u, v) {
    const next = Math.min(MAX_ZOOM, Math.max(1, zoom));
    this.x += u / this.zoom - u / next;
    this.y += v / this.zoom - v / next;
    this.zoom = next;
    this.place();
  }

  place() {
    const room = 1 - 1 / this.zoom;
    this.x = Math.min(room, Math.max(0, this.x));
    this.y = Math.min(room, Math.max(0, this.y));
    const transform = `scale(${this.zoom}) translate(${-100 * this.x}%, ${-100 * this.y}%)`;
    const count = Math.max(...this.layers.map((l) => l.n)) + 1;
    for (const { layer, img, n, mode } of this.layers) {
      img.style.transform = transform;
      img.style.imageRendering = this.zoom >= 4 ? "pixelated" : "auto";
      if (mode === "slider") {
        const cut = 100 * this.split;
        layer.style.clipPath = n === 0 ? `inset(0 ${100 - cut}% 0 0)` : `inset(0 0 0 ${cut}%)`;
      }
      if (mode === "hold") layer.style.visibility = (this.held ? n === 0 : n === count - 1) ? "visible" : "hidden";
      if (mode === "flicker") layer.style.visibility = this.shown % count === n ? "visible" : "hidden";
    }
    if (this.divider) {
      this.divider.style.left = `${100 * this.split}%`;
      this.divider.setAttribute("aria-valuenow", String(Math.round(100 * this.split)));
    }
    this.panes.classList.toggle("zoomed", this.zoom > 1);
    this.percent.textContent = `${Math.round(100 * this.zoom)} %`;
  }

  fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.box.requestFullscreen?.();
  }

  stop() {
    clearInterval(this.timer);
    this.resized?.disconnect();
  }
}

export default function ({ parentElement, data }) {
  let viewer = seen.get(parentElement);
  if (!viewer) {
    viewer = new Viewer(parentElement.querySelector(".wb-viewer"));
    seen.set(parentElement, viewer);
  }
  viewer.update(data);
  return () => {
    viewer.stop();
    seen.delete(parentElement);
  };
}
