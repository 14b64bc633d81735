// The page can be read without this file. It shows tooltips without delay, copies commands, says what can be scrolled, and opens folded tables for printing.
const readout = document.getElementById("readout");
document.addEventListener("pointermove", (event) => {
  const area = event.target.closest?.(".hover, .edge");
  readout.hidden = !area;
  if (!area) return;
  const title = area.querySelector("title");
  if (title) {
    area.dataset.text = title.textContent;
    title.remove();
  }
  readout.textContent = area.dataset.text;
  readout.style.left = `${Math.min(event.clientX + 14, innerWidth - readout.offsetWidth - 8)}px`;
  readout.style.top = `${Math.min(event.clientY + 16, innerHeight - readout.offsetHeight - 8)}px`;
});
// Browsers break lines after hyphens: a flag of a command stays whole, and the copied text is the same.
for (const code of document.querySelectorAll("pre.wrap code")) {
  const words = code.textContent.split(/( +)/).map((text) => Object.assign(document.createElement("span"), { textContent: text }));
  for (const word of words) word.className = word.textContent.trim() && "word";
  code.replaceChildren(...words);
}
for (const block of document.querySelectorAll(".copy")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const text = block.querySelector("code");
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      // Browsers refuse the clipboard to some local files: select the text, so that one key press copies it.
      getSelection().selectAllChildren(text);
      button.textContent = "Press Ctrl+C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  block.append(button);
}
// Boxes that are wider than the page say so, and can be reached and scrolled by the keyboard.
const wide = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const more = target.scrollWidth > target.clientWidth + 1;
    target.toggleAttribute("tabindex", more);
    if (more) target.tabIndex = 0;
    const cue = target.previousElementSibling?.matches(".cue") ? target.previousElementSibling : null;
    if (more && !cue) target.insertAdjacentHTML("beforebegin", '<p class="cue" aria-hidden="true">scroll sideways →</p>');
    if (!more && cue) cue.remove();
  }
});
for (const box of document.querySelectorAll(".scroll")) wide.observe(box);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));
