// Elements of the page.  What others write is put into it as text, never as markup.

// Longer texts are folded.
const FOLDED = { characters: 700, lines: 12 };

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function hue(name) {
  let sum = 0;
  for (const character of name) sum = (sum * 31 + character.codePointAt(0)) % 360;
  return sum;
}

export function colored(element, name) {
  element.style.color = `light-dark(hsl(${hue(name)} 60% 26%), hsl(${hue(name)} 60% 75%))`;
  return element;
}

export function withLinks(text) {
  const paragraph = make("p", "text");
  // A right-to-left text keeps its direction, and leaves everything around it in place.
  paragraph.dir = "auto";
  for (const part of text.split(/(https?:\/\/[^\s<>"]+)/)) {
    if (/^https?:\/\//.test(part) && URL.canParse(part)) {
      const link = make("a", "", part);
      link.href = part;
      link.target = "_blank";
      link.rel = "noopener noreferrer";
      paragraph.append(link);
    } else {
      paragraph.append(part);
    }
  }
  return text.length > FOLDED.characters || text.split("\n").length > FOLDED.lines ? folded(paragraph) : paragraph;
}

function folded(paragraph) {
  const whole = make("div");
  paragraph.classList.add("folded");
  const button = make("button", "unfold", "Show all");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    const open = !paragraph.classList.toggle("folded");
    button.textContent = open ? "Show less" : "Show all";
    button.setAttribute("aria-expanded", String(open));
  });
  whole.append(paragraph, button);
  return whole;
}

export function size(bytes) {
  return bytes < 1 << 20 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`;
}
