// The table of arrows: switch, four numbers, delete; below them what the handle holds, how it moves, length. Plain form fields, so Tab, Enter and screen readers work.
const seen = new WeakMap();
const NAMES = ["Handle x", "Handle y", "Target x", "Target y"];

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function row(state, arrow, n) {
  const { data } = state;
  const line = element("tr", arrow.on ? "" : "off");
  const number = element("th", "", String(n + 1));
  number.scope = "row";
  const on = element("input");
  Object.assign(on, { type: "checkbox", checked: arrow.on });
  on.setAttribute("aria-label", `Use arrow ${n + 1}`);
  on.addEventListener("change", () => state.tell("switch", { n, on: on.checked, revision: data.revision }));
  const first = element("td");
  first.append(on);
  line.append(number, first);
  arrow.pair.slice(0, 4).forEach((value, i) => {
    const field = element("input", i < 2 ? "handle" : "target");
    Object.assign(field, {
      type: "number", step: "0.5", min: "0", max: String(i % 2 ? data.height - 1 : data.width - 1),
      value: String(Math.round(value * 100) / 100),
    });
    field.setAttribute("aria-label", `${NAMES[i]} of arrow ${n + 1}`);
    field.addEventListener("change", () => {
      const typed = Number(field.value);
      if (field.value === "" || !Number.isFinite(typed)) {
        field.value = String(Math.round(value * 100) / 100);
        return;
      }
      const pair = arrow.pair.slice(0, 4);
      pair[i] = typed;
      state.tell("edit", { n, pair, revision: data.revision });
    });
    const cell = element("td");
    cell.append(field);
    line.append(cell);
  });
  const remove = element("button", "remove", "×");
  remove.type = "button";
  remove.title = `Delete arrow ${n + 1}`;
  remove.setAttribute("aria-label", remove.title);
  remove.addEventListener("click", () => state.tell("remove", { n, revision: data.revision }));
  const last = element("td");
  last.append(remove);
  line.append(last);
  return [line, held(state, arrow, n)];
}

// The second line of an arrow: how much its handle holds, and how that moves.
function held(state, arrow, n) {
  const { data } = state;
  const more = arrow.pair[4] ?? {};
  const line = element("tr", arrow.on ? "held" : "held off");
  const cell = element("td");
  const grow = element("input");
  Object.assign(grow, { type: "range", min: "-1", max: "1", step: "0.1", value: String(more.grow ?? 0) });
  grow.setAttribute("aria-label", `How much arrow ${n + 1} holds`);
  const move = element("select");
  for (const [name, words] of Object.entries(data.moves)) move.append(new Option(words, name, false, name === (more.move ?? "auto")));
  move.setAttribute("aria-label", `How arrow ${n + 1} moves`);
  const tell = () => state.tell("hold", { n, grow: Number(grow.value), move: move.value, revision: data.revision });
  for (const field of [grow, move]) field.addEventListener("change", tell);
  const [hx, hy, tx, ty] = arrow.pair;
  const length = element("span", "length", `${Math.hypot(tx - hx, ty - hy).toFixed(0)} px`);
  cell.append(element("span", "", data.holds), grow, move, length);
  line.append(element("td"), cell);
  cell.colSpan = 6;
  return line;
}

function draw(state) {
  const table = element("table");
  const head = element("tr");
  const columns = [["Arrow", "said"], ["On", ""], ["x", "handle"], ["y", "handle"], ["x", "target"], ["y", "target"], ["Delete", "said"]];
  for (const [name, kind] of columns) {
    const cell = element("th", kind === "said" ? "" : kind);
    cell.append(element("span", kind === "said" ? "said" : "", name));
    cell.scope = "col";
    head.append(cell);
  }
  const groups = element("tr", "groups");
  for (const [name, span, kind] of [["", 2, ""], ["Handle", 2, "handle"], ["Target", 2, "target"], ["", 1, ""]]) {
    const cell = element("th", kind, name);
    cell.colSpan = span;
    groups.append(cell);
  }
  const top = element("thead");
  top.append(groups, head);
  const body = element("tbody");
  state.data.arrows.forEach((arrow, n) => body.append(...row(state, arrow, n)));
  table.append(top, body);
  table.setAttribute("aria-label", "Arrows");
  table.hidden = !state.data.arrows.length;
  const add = element("button", "add", `+ ${state.data.add}`);
  add.type = "button";
  add.setAttribute("aria-label", state.data.add);
  add.addEventListener("click", () => state.tell("add", { revision: state.data.revision }));
  state.box.replaceChildren(table, add);
}

export default function ({ parentElement, data, setTriggerValue }) {
  const state = seen.get(parentElement) ?? {};
  seen.set(parentElement, state);
  state.tell = (kind, value) => setTriggerValue("change", { kind, ...value });
  const text = JSON.stringify(data);
  if (text !== state.text) {
    state.text = text;
    state.data = data;
    state.box = parentElement.querySelector(".wb-pairs");
    const focused = state.box.getRootNode().activeElement?.getAttribute("aria-label");
    draw(state);
    if (focused) state.box.querySelector(`[aria-label="${focused}"]`)?.focus();
  }
  return () => seen.delete(parentElement);
}
