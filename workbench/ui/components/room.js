// Reports the width of the column that it stands in, and the height of the window below it. Rounded to 16 px and
// debounced, so that a scroll bar that comes and goes, or the dragging of a window's edge, does not cause a storm.
const seen = new WeakMap();

export default function ({ parentElement, setStateValue }) {
  const state = seen.get(parentElement) ?? {};
  state.set = setStateValue;
  if (!state.observer) {
    seen.set(parentElement, state);
    const box = parentElement.querySelector(".wb-room");
    let timer = 0;
    let last = "";
    const tell = () => {
      const frame = box.getBoundingClientRect();
      // where it stands when nothing is scrolled
      let scrolled = 0;
      for (let node = parentElement.getRootNode().host ?? parentElement; node; node = node.parentElement) scrolled += node.scrollTop;
      const size = [frame.width, innerHeight - frame.top - scrolled].map((v) => Math.floor(v / 16) * 16);
      if (size[0] > 0 && size.join() !== last) {
        last = size.join();
        state.set("size", { w: size[0], h: size[1] });
      }
    };
    const soon = () => {
      clearTimeout(timer);
      timer = setTimeout(tell, last ? 200 : 0);
    };
    state.observer = new ResizeObserver(soon);
    state.observer.observe(box);
    addEventListener("resize", soon);
    // what stands above may still arrive and push it down: looked at until it rests
    let looks = 0;
    const watch = setInterval(() => {
      tell();
      looks += 1;
      if (looks > 8) clearInterval(watch);
    }, 400);
    state.stop = () => {
      clearTimeout(timer);
      clearInterval(watch);
      state.observer.disconnect();
      removeEventListener("resize", soon);
      seen.delete(parentElement);
    };
  }
  return state.stop;
}
