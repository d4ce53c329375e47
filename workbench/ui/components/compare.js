// Thumbnails to choose from, in groups or as a table of rows and columns: each is a switch, so that
// mouse, touch, Tab and Space work and a screen reader says what is chosen.
const seen = new WeakMap();

function element(tag, className, attributes = {}, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  if (text !== undefined) node.textContent = text;
  return node;
}

class Board {
  constructor(box, tell) {
    this.box = box;
    this.tell = tell;
    this.buttons = new Map();
    this.drawn = "";
    this.chosen = [];
    this.sent = null; // what was told and not yet confirmed
    this.at = 0; // and when
  }

  update(data) {
    this.data = data;
    if (data.shape) this.box.style.setProperty("--shape", data.shape);
    const drawn = JSON.stringify([data.groups, data.table]);
    if (drawn !== this.drawn) {
      this.drawn = drawn;
      this.build();
    }
    // an answer to an older click must not undo a newer one
    if (this.sent === null || this.sent === data.chosen.join() || Date.now() - this.at > 3000) {
      this.sent = null;
      this.chosen = [...data.chosen];
    }
    this.mark();
  }

  build() {
    const had = this.box.getRootNode().activeElement?.dataset?.id;
    this.buttons.clear();
    const parts = this.data.table ? [this.table(this.data.table)] : this.data.groups.map((g) => this.group(g));
    this.box.replaceChildren(...parts);
    if (had) this.buttons.get(had)?.focus({ preventScroll: true });
  }

  group({ title, cells }) {
    const part = element("section", "group", { "aria-label": title });
    const list = element("div", "tiles");
    list.append(...cells.map((c) => this.cell(c)));
    part.append(element("div", "title", {}, title), list);
    return part;
  }

  table({ columns, rows, corner }) {
    const frame = element("div", "frame");
    const table = element("table");
    table.style.setProperty("--cell", `${[320, 320, 320, 280, 236][columns.length] ?? 200}px`);
    const head = element("tr");
    head.append(element("td", "corner", {}, corner));
    for (const name of columns) head.append(element("th", "", { scope: "col" }, name));
    const top = element("thead");
    top.append(head);
    const body = element("tbody");
    for (const { label, cells } of rows) {
      const line = element("tr");
      line.append(element("th", "", { scope: "row" }, label));
      for (const cell of cells) {
        const place = element("td");
        place.append(this.cell(cell));
        line.append(place);
      }
      body.append(line);
    }
    table.append(top, body);
    frame.append(table);
    return frame;
  }

  cell({ id, src, title, note, state, reason }) {
    if (state !== "done") {
      const blank = element("div", `cell blank ${state}`, { title: reason || title });
      const face = element("div", "face");
      if (state === "running") face.append(element("span", "wheel", { "aria-hidden": "true" }));
      face.append(element("span", "word", {}, note));
      if (reason) face.append(element("span", "reason", {}, reason));
      blank.append(face);
      return blank;
    }
    const node = element("button", "cell", { type: "button", "aria-pressed": "false", "aria-label": title, title });
    node.dataset.id = id;
    node.append(element("img", "", { src, alt: "", draggable: "false", loading: "lazy" }));
    if (note) node.append(element("span", "note", {}, note));
    node.append(element("span", "number", { "aria-hidden": "true" }));
    node.addEventListener("click", () => this.toggle(id));
    this.buttons.set(id, node);
    return node;
  }

  toggle(id) {
    if (this.chosen.includes(id)) this.chosen = this.chosen.filter((c) => c !== id);
    else if (this.chosen.length < this.data.most) this.chosen = [...this.chosen, id];
    else return;
    this.mark();
    this.sent = this.chosen.join();
    this.at = Date.now();
    this.tell(this.chosen);
  }

  mark() {
    const full = this.chosen.length >= this.data.most;
    for (const [id, node] of this.buttons) {
      const at = this.chosen.indexOf(id);
      node.setAttribute("aria-pressed", String(at >= 0));
      node.setAttribute("aria-disabled", String(full && at < 0));
      node.lastChild.textContent = at >= 0 ? String(at + 1) : "";
    }
  }
}

export default function ({ parentElement, data, setTriggerValue }) {
  let board = seen.get(parentElement);
  if (!board) {
    board = new Board(parentElement.querySelector(".wb-board"), (ids) => setTriggerValue("chosen", ids));
    seen.set(parentElement, board);
  }
  board.tell = (ids) => setTriggerValue("chosen", ids);
  board.update(data);
  return () => seen.delete(parentElement);
}
