// Draws the last minutes, which the server remembers, as lines with axes.

const SVG = "http://www.w3.org/2000/svg";
const EDGE = { left: 68, right: 8, top: 8, bottom: 22 };
// Where samples are further apart, the line is broken: the server was not there.
const GAP_SECONDS = 5;

let samples = []; // [time in seconds, frames delivered a second, bytes in use]

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; count >= 1024 && unit < units.length - 1; unit++) count /= 1024;
  return `${unit ? count.toFixed(1) : count} ${units[unit]}`;
}

const GRAPHS = [
  { id: "rate", column: 1, text: (value) => `${Number(value.toFixed(1))}/s`, top: roundTen },
  { id: "held", column: 2, text: bytes, top: (most) => 2 ** Math.ceil(Math.log2(Math.max(most, 1 << 20))) },
];

// Returns 10, 20, 50, 100, ..., whichever is enough.
function roundTen(most) {
  const ten = 10 ** Math.floor(Math.log10(Math.max(most, 10)));
  return [1, 2, 5, 10].map((times) => times * ten).find((top) => top >= most);
}

// Gets what is new, and draws all.
export async function drawGraphs() {
  const after = samples.at(-1)?.[0] ?? 0;
  const answer = await fetch(`/history?after=${after}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(answer.statusText);
  const { now, seconds, samples: later } = await answer.json();
  // A clock that was put back would hide what is new.
  samples = now < after ? [] : [...samples, ...later].filter(([at]) => at > now - seconds);
  for (const graph of GRAPHS) draw(graph, now, seconds);
}

function draw({ id, column, text, top }, now, seconds) {
  const svg = document.getElementById(id);
  const { width, height } = svg.getBoundingClientRect();
  const most = top(Math.max(0, ...samples.map((sample) => sample[column])));
  const x = (age) => width - EDGE.right - (age / seconds) * (width - EDGE.left - EDGE.right);
  const y = (value) => height - EDGE.bottom - (value / most) * (height - EDGE.top - EDGE.bottom);
  const parts = [];
  for (const value of [0, most / 2, most]) {
    parts.push(make("line", { x1: x(seconds), x2: x(0), y1: y(value), y2: y(value) }));
    parts.push(make("text", { x: EDGE.left - 6, y: y(value) + 4, "text-anchor": "end" }, text(value)));
  }
  for (let minutes = 0; minutes * 60 <= seconds; minutes++) {
    const anchor = minutes === 0 ? "end" : minutes * 60 === seconds ? "start" : "middle";
    const label = minutes === 0 ? "now" : `−${minutes} min`;
    parts.push(make("text", { x: x(minutes * 60), y: height - 6, "text-anchor": anchor }, label));
  }
  let points = [];
  samples.forEach((sample, at) => {
    points.push(`${x(now - sample[0]).toFixed(1)},${y(sample[column]).toFixed(1)}`);
    const next = samples[at + 1];
    if (!next || next[0] - sample[0] > GAP_SECONDS) {
      parts.push(make("polyline", { points: points.join(" ") }));
      points = [];
    }
  });
  svg.replaceChildren(...parts);
  const last = samples.at(-1);
  if (last) document.getElementById(`${id}-now`).textContent = text(last[column]);
}

function make(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}
