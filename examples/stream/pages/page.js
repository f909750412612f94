// Plays files, pauses the live picture, and shows /metrics.

import { bytes, drawGraphs } from "./graphs.js";

const byId = (id) => document.getElementById(id);

// --- live ---

const picture = byId("picture");
const pause = byId("pause");
const liveNote = byId("live-note");
const RETRY_MS = 2000;
// A viewer who takes no frame for this long is dropped by the server, and asks again.
const FROZEN_MS = 10000;
const LOOK_MS = 1000;
let still = null;
let seen = "";
let movedAt = 0;

function watch() {
  picture.src = `/live?${Date.now()}`;
  movedAt = performance.now();
  liveNote.textContent = "One buffer is sent to all viewers.";
}

// The browser does not tell when a picture that has begun gets no more frames, so the squares at its
// bottom are looked at, which are the frame's number.
function look() {
  const code = document.createElement("canvas");
  code.width = 48;
  code.height = 1;
  const context = code.getContext("2d");
  if (picture.naturalWidth) {
    const height = picture.naturalHeight;
    context.drawImage(picture, 0, height * 0.92, picture.naturalWidth, height * 0.06, 0, 0, 48, 1);
  }
  const now = context.getImageData(0, 0, 48, 1).data.join();
  if (now !== seen || document.hidden || still !== null) movedAt = performance.now();
  seen = now;
  if (performance.now() - movedAt > FROZEN_MS) {
    watch();
    liveNote.textContent = "No frames come; trying again.";
  }
}
setInterval(look, LOOK_MS);

pause.addEventListener("click", () => {
  if (still === null) {
    const canvas = document.createElement("canvas");
    canvas.width = picture.naturalWidth;
    canvas.height = picture.naturalHeight;
    if (canvas.width) canvas.getContext("2d").drawImage(picture, 0, 0);
    still = canvas.toDataURL("image/jpeg");
    picture.src = still; // ends the connection
    liveNote.textContent = "Paused.";
  } else {
    still = null;
    watch();
  }
  pause.textContent = still === null ? "Pause" : "Go on";
  pause.setAttribute("aria-pressed", String(still !== null));
});

picture.addEventListener("error", () => {
  if (still !== null) return;
  liveNote.textContent = "Not connected; trying again.";
  setTimeout(() => still === null && watch(), RETRY_MS);
});

// --- videos ---

const player = byId("player");
const playing = byId("playing");

document.querySelector(".files").addEventListener("click", (event) => {
  const link = event.target.closest("a[data-play]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  document.querySelector(".files [aria-current]")?.removeAttribute("aria-current");
  link.setAttribute("aria-current", "true");
  byId("stage").hidden = false;
  player.src = link.href;
  playing.textContent = link.textContent;
  player.focus();
  player.play().catch(() => {}); // the browser may want the user to press play
});

player.addEventListener("error", () => {
  playing.textContent = `This browser cannot play it: ${player.error?.message || "unknown format"}`;
});

// --- status ---

const EVERY_MS = 1000;

function parse(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    const match = /^([a-z_]\w*)(\{.*\})? (\S+)$/i.exec(line);
    if (match) values.set(match[1] + (match[1] === "serving_info" ? match[2] : ""), Number(match[3]));
  }
  return values;
}

async function refresh() {
  try {
    const answer = await fetch("/metrics", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    show(parse(await answer.text()));
    await drawGraphs();
  } catch {
    byId("serving").textContent = "The server does not answer.";
  }
  setTimeout(refresh, EVERY_MS);
}

function show(values) {
  for (const tile of document.querySelectorAll("[data-metric]")) {
    const value = values.get(tile.dataset.metric);
    if (value === undefined) tile.textContent = "–";
    else tile.textContent = tile.dataset.unit ? bytes(value) : value.toLocaleString("en");
  }
  for (const name of values.keys()) {
    const match = /^serving_info\{backend="(.*)",driver="(.*)"\}/.exec(name);
    if (match) byId("serving").textContent = `Event loop: ${match[1]}. Driver: ${match[2]}.`;
  }
}

refresh();
