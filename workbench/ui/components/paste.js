// Ctrl+V with a picture on the clipboard: hand it to the page's file uploader, as if it had been chosen.
const seen = new WeakMap();

function extension(type) {
  return { "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" }[type] ?? "png";
}

export default function ({ parentElement, data }) {
  const state = seen.get(parentElement) ?? {};
  state.target = data.target;
  if (!state.stop) {
    seen.set(parentElement, state);
    const onPaste = (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((f) => f.type.startsWith("image/"));
      const input = document.querySelector(`.st-key-${CSS.escape(state.target)} input[type=file]`);
      if (!file || !input) return;
      event.preventDefault();
      const named = new File([file], `pasted.${extension(file.type)}`, { type: file.type });
      const transfer = new DataTransfer();
      transfer.items.add(named);
      input.files = transfer.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    };
    document.addEventListener("paste", onPaste);
    state.stop = () => {
      document.removeEventListener("paste", onPaste);
      seen.delete(parentElement);
    };
  }
  return state.stop;
}
