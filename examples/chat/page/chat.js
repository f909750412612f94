// The page of the chat: messages, sending, the connection, and what the user does.

import { colored, make, size, withLinks } from "./elements.js";
import { GONE, makePreview, SMALL_BYTES, takePictures, view } from "./pictures.js";

const $ = (id) => document.getElementById(id);
const RETRY_MS = [500, 1000, 2000, 5000, 10000];
const NAMES_SHOWN = 200;
const MESSAGES_SHOWN = 500;
// A room's name, as the server takes it.
const ROOM = /^[\p{L}\p{N}](?:[\p{L}\p{N}-]*[\p{L}\p{N}])?$/u;
// The page asks this often whether the server is there, and expects an answer within the other time.
const BEAT_MS = 5000;
const SILENCE_MS = 12000;

let socket = null;
let me = { name: "", room: "" };
let token = ""; // with it, pictures are posted
let heard = 0; // when the server has last sent something
let day = ""; // of the message shown last
const mine = new Set(); // the ids that this user has had
let wanted = false; // whether to be connected
let tries = 0;
let limits = { text: 4000, image: 8 << 20 };
const people = new Set();
const shown = new Map(); // id -> element of a message
const sending = new Map(); // nonce -> { element, again }
const answers = new Map(); // id of one of the user's messages -> { nonce, kind }

// --- the list of messages ---

function atBottom() {
  const list = $("messages");
  return list.scrollHeight - list.scrollTop - list.clientHeight < 80;
}

function toBottom() {
  const list = $("messages");
  list.scrollTo({ top: list.scrollHeight, behavior: "instant" });
  $("newest").hidden = true;
}

function add(element) {
  const follow = atBottom();
  const list = $("messages");
  list.append(element);
  while (list.children.length > MESSAGES_SHOWN) forget(list.firstElementChild);
  if (follow) toBottom();
  else $("newest").hidden = false;
}

function forget(element) {
  const id = element.dataset.id;
  if (id) {
    shown.delete(id);
    answers.delete(id);
  }
  element.remove();
}

// --- messages ---

function showMessage(message, body) {
  if (shown.has(message.id)) return;
  const own = mine.has(message.by);
  const item = make("li", own ? "own" : "");
  item.dataset.id = message.id;
  const line = make("div");
  // Isolated, so that a right-to-left name does not move the time.
  line.append(colored(make("bdi", "who", message.from), message.from));
  const when = new Date(message.at);
  showDay(when);
  const time = make("time", "when", when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = when.toISOString();
  line.append(time, make("span", "mark"));
  item.append(line, body);
  shown.set(message.id, item);
  add(item);
  settle(message.id);
  if (document.hidden && !own) document.title = `• #${me.room}`;
}

function showDay(when) {
  const name = when.toLocaleDateString([], { weekday: "long", year: "numeric", month: "long", day: "numeric" });
  if (name !== day) add(make("li", "day", name));
  day = name;
}

// Shows the preview, fetched when it is scrolled to, of a picture that is fetched when it is looked at.
function showPicture(message) {
  const name = message.name || "picture";
  const url = `/pictures/${encodeURIComponent(me.room)}/${encodeURIComponent(message.id)}`;
  const button = make("button", "picture");
  button.type = "button";
  button.setAttribute("aria-label", `Show ${name}, ${size(message.size)}, from ${message.from}`);
  const image = make("img");
  if (message.preview || message.size <= SMALL_BYTES) {
    image.alt = name;
    image.loading = "lazy";
    image.addEventListener("load", () => atBottom() && toBottom());
    image.addEventListener("error", () => button.replaceChildren(GONE));
    image.src = message.preview ? `${url}/preview` : url;
    button.append(image);
  } else {
    button.append(`${name}, ${size(message.size)}`);
  }
  button.addEventListener("click", () => view(url, name, image.src));
  showMessage(message, button);
}

function note(text) {
  add(make("li", "note", text));
}

// --- sending ---

// What is given to a connection that has become silent would go out much later, without being asked for.
function isHeard() {
  return socket?.readyState === WebSocket.OPEN && performance.now() - heard < SILENCE_MS;
}

function transmit(data) {
  if (!isHeard()) return false;
  socket.send(data);
  return true;
}

function send(text, give) {
  const nonce = crypto.getRandomValues(new Uint32Array(4)).join("-");
  const element = make("li", "sending");
  element.append(make("p", "text", text));
  const again = () => {
    element.remove();
    sending.delete(nonce);
    send(text, give);
  };
  sending.set(nonce, { element, again });
  add(element);
  toBottom();
  if (!isHeard() || give(nonce) === false) fail(nonce, "not connected");
}

function sendText(text) {
  send(text, (nonce) => transmit(JSON.stringify({ type: "say", nonce, text })));
}

function sendPicture(file) {
  if (file.size > limits.image) {
    note(`${file.name} is larger than ${size(limits.image)}`);
    return;
  }
  send(`${file.name}, ${size(file.size)}`, (nonce) => postPicture(nonce, file));
}

async function postPicture(nonce, file) {
  try {
    const preview = await makePreview(file);
    const query = new URLSearchParams({ token, nonce, name: file.name.slice(0, 100), preview: preview.size });
    const answer = await fetch(`/pictures?${query}`, { method: "POST", body: new Blob([preview, file]) });
    if (!answer.ok) fail(nonce, await answer.text());
  } catch {
    fail(nonce, "the picture could not be sent");
  }
}

function fail(nonce, reason) {
  const entry = sending.get(nonce);
  if (!entry || entry.element.classList.contains("failed")) return;
  entry.element.classList.add("failed");
  const button = make("button", "", "Send again");
  button.type = "button";
  button.addEventListener("click", entry.again);
  entry.element.append(make("p", "mark", reason), button);
}

// The user's own message is shown as sent until it is delivered; then only as delivered.
function settle(id) {
  const answer = answers.get(id);
  const element = shown.get(id);
  if (!answer || !element) return;
  sending.get(answer.nonce)?.element.remove();
  sending.delete(answer.nonce);
  const mark = element.querySelector(".mark");
  mark.textContent = answer.kind === "ack" ? "✓" : "…";
  mark.title = answer.kind === "ack" ? "kept" : "delivered here; other servers will follow";
}

// --- what comes ---

const handlers = {
  welcome(message) {
    tries = 0;
    me.name = message.name;
    token = message.token;
    mine.add(message.id);
    limits = message.limits;
    people.clear();
    message.members.forEach((name) => people.add(name));
    showPeople();
    $("server").textContent = `${message.server.backend}, ${message.server.driver}`;
    handlers.status(message);
    setState("open", "connected");
  },
  message(message) {
    showMessage(message, withLinks(message.text));
  },
  image(message) {
    if (!shown.has(message.id)) showPicture(message);
  },
  presence(message) {
    message.joined.forEach((name) => people.add(name));
    message.left.forEach((name) => people.delete(name));
    showPeople();
  },
  ack: answered,
  pending: answered,
  refused(message) {
    fail(message.nonce, message.reason);
  },
  status(message) {
    $("banner").hidden = message.shared !== false;
    $("banner").textContent =
      "Other servers cannot be reached.  Members on this server can go on; the others get it later.";
  },
};

function answered(message) {
  answers.set(message.id, { nonce: message.nonce, kind: message.type });
  settle(message.id);
}

function received(event) {
  heard = performance.now();
  const message = JSON.parse(event.data);
  handlers[message.type]?.(message);
}

function item(name) {
  const element = make("li");
  element.append(make("bdi", "", name));
  return element;
}

function showPeople() {
  $("count").textContent = people.size;
  const names = [...people].sort((a, b) => a.localeCompare(b));
  const items = names.slice(0, NAMES_SHOWN).map((name) => colored(item(name), name));
  if (names.length > NAMES_SHOWN) items.push(make("li", "", `and ${names.length - NAMES_SHOWN} more`));
  $("names").replaceChildren(...items);
}

// --- the connection ---

function setState(className, text) {
  $("state").className = `state ${className}`;
  $("state").textContent = text;
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const query = new URLSearchParams({ room: me.room, name: me.wantedName });
  const current = new WebSocket(`${scheme}//${location.host}/chat?${query}`);
  socket = current;
  heard = performance.now();
  current.addEventListener("message", (event) => socket === current && received(event));
  current.addEventListener("close", (event) => socket === current && lost(event.reason));
}

function lost(reason) {
  const last = socket;
  for (const nonce of sending.keys()) fail(nonce, "the connection was lost");
  if (!wanted) return;
  const wait = RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)];
  setState("", "reconnecting");
  if (reason) note(reason);
  setTimeout(() => wanted && socket === last && connect(), wait);
}

// Notices a server, or a network, that has become silent: the browser would not for a long time.
setInterval(() => {
  if (!wanted || socket?.readyState !== WebSocket.OPEN) return;
  if (isHeard()) {
    transmit('{"type":"beat"}');
  } else {
    const silent = socket;
    socket = null;
    silent.close();
    lost("The server does not answer.");
  }
}, BEAT_MS);

function join() {
  wanted = true;
  me.wantedName = me.name;
  $("room").textContent = me.room;
  document.title = `#${me.room}`;
  $("join").hidden = true;
  $("chat").hidden = false;
  setState("", "connecting");
  connect();
  $("text").focus();
}

function leave() {
  wanted = false;
  socket?.close(1000);
  socket = null;
  for (const element of [...$("messages").children]) forget(element);
  sending.clear();
  people.clear();
  day = "";
  $("chat").hidden = true;
  $("join").hidden = false;
  $("join-name").value = me.wantedName;
  $("join-name").focus();
}

// --- what the user does ---

$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  me = { name: $("join-name").value.trim(), room: $("join-room").value.trim().toLowerCase() || "lobby" };
  if (!me.name) return;
  const wrong = ROOM.test(me.room) ? "" : "The names of rooms have letters, digits and hyphens.";
  $("join-room").setCustomValidity(wrong);
  if (!$("join").reportValidity()) return;
  localStorage.setItem("name", me.name);
  history.replaceState(null, "", `#${encodeURIComponent(me.room)}`);
  join();
});

$("join-room").addEventListener("input", () => $("join-room").setCustomValidity(""));
$("leave").addEventListener("click", leave);

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  const count = [...text].length;
  if (count > limits.text) {
    note(`This message has ${count} characters; ${limits.text} are the most.`);
    return;
  }
  if (text) sendText(text);
  $("text").value = "";
  fit();
  $("text").focus();
});

function fit() {
  const area = $("text");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

$("text").addEventListener("input", fit);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});

$("attach").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  [...$("file").files].forEach(sendPicture);
  $("file").value = "";
});

takePictures(() => wanted, sendPicture);

$("newest").addEventListener("click", toBottom);
$("messages").addEventListener("scroll", () => {
  if (atBottom()) $("newest").hidden = true;
});
$("people-button").addEventListener("click", () => {
  const open = $("people").classList.toggle("open");
  $("people-button").setAttribute("aria-expanded", String(open));
});
addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, textarea");
  if (event.key === "/" && !typing && wanted) {
    event.preventDefault();
    $("text").focus();
  } else if (event.key === "Escape" && $("people").classList.contains("open")) {
    $("people-button").click();
  }
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && wanted) document.title = `#${me.room}`;
});

$("join-name").value = localStorage.getItem("name") || "";
$("join-room").value = decodeURIComponent(location.hash.slice(1)) || "lobby";
