// Hands a picture of a run to the stage (canvas.js), which lays it over the canvas; takes it back when it goes.
const seen = new WeakMap();

function tell(detail) {
  document.wbShown = detail;
  document.dispatchEvent(new CustomEvent("wb-show", { detail }));
}

export default function ({ parentElement, data }) {
  const mine = data.kind ? data : null;
  const text = JSON.stringify(mine);
  if (seen.get(parentElement)?.text !== text || document.wbShown === undefined) {
    seen.set(parentElement, { text, mine });
    tell(mine);
  }
  return () => {
    const told = seen.get(parentElement)?.mine;
    seen.delete(parentElement);
    // the result's element may come before that of the run's last picture goes
    if (document.wbShown === told) tell(null);
  };
}
