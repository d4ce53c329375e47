// Reports the width of the column that it stands in. Rounded to 16 px and debounced, so that a
// scroll bar that comes and goes, or the dragging of a window's edge, does not cause a storm.
const seen = new WeakMap();

export default function ({ parentElement, setStateValue }) {
  const state = seen.get(parentElement) ?? {};
  state.set = setStateValue;
  if (!state.observer) {
    seen.set(parentElement, state);
    const box = parentElement.querySelector(".wb-width");
    let timer = 0;
    let last = 0;
    const tell = () => {
      const w = Math.floor(box.getBoundingClientRect().width / 16) * 16;
      if (w > 0 && w !== last) {
        last = w;
        state.set("w", w);
      }
    };
    state.observer = new ResizeObserver(() => {
      clearTimeout(timer);
      timer = setTimeout(tell, last ? 200 : 0);
    });
    state.observer.observe(box);
    state.stop = () => {
      clearTimeout(timer);
      state.observer.disconnect();
      seen.delete(parentElement);
    };
  }
  return state.stop;
}
