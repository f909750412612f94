// The page of the chat.  What others write is put into the page as text, never as markup.

const $ = (id) => document.getElementById(id);
const RETRY_MS = [500, 1000, 2000, 5000, 10000];
const NAMES_SHOWN = 200;
const MESSAGES_SHOWN = 500;

let socket = null;
let me = { name: "", room: "" };
let wanted = false; // whether to be connected
let tries = 0;
let limits = { text: 4000, image: 8 << 20 };
const people = new Set();
const shown = new Map(); // id -> element of a message
const sending = new Map(); // nonce -> { element, again }
const answers = new Map(); // id of one of the user's messages -> { nonce, kind }
const pictures = new Map(); // id -> blob URL

// --- elements ---

function make(tag, className, text) {
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

function colored(element, name) {
  element.style.color = `light-dark(hsl(${hue(name)} 60% 32%), hsl(${hue(name)} 60% 72%))`;
  return element;
}

function withLinks(text) {
  const paragraph = make("p", "text");
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
  return paragraph;
}

function size(bytes) {
  return bytes < 1 << 20 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`;
}

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
    if (pictures.has(id)) URL.revokeObjectURL(pictures.get(id));
    pictures.delete(id);
  }
  element.remove();
}

// --- messages ---

function showMessage(message, body) {
  if (shown.has(message.id)) return;
  const own = message.from === me.name;
  const item = make("li", own ? "own" : "");
  item.dataset.id = message.id;
  const line = make("div");
  line.append(colored(make("span", "who", message.from), message.from));
  const when = new Date(message.at);
  const time = make("time", "when", when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = when.toISOString();
  line.append(time, make("span", "mark"));
  item.append(line, body);
  shown.set(message.id, item);
  add(item);
  settle(message.id);
  if (document.hidden && !own) document.title = `• #${me.room}`;
}

function showPicture(message, content) {
  if (content && !pictures.has(message.id)) {
    const blob = new Blob([content], { type: message.media_type });
    pictures.set(message.id, URL.createObjectURL(blob));
  }
  if (!shown.has(message.id)) {
    const button = make("button", "picture", `${message.name || "picture"}, ${size(message.size)}`);
    button.type = "button";
    button.addEventListener("click", () => (pictures.has(message.id) ? view(message.id) : fetchPicture(message.id)));
    showMessage(message, button);
    if (!content) seen.observe(shown.get(message.id));
  }
  const url = pictures.get(message.id);
  const button = shown.get(message.id)?.querySelector(".picture");
  if (url && button && !button.querySelector("img")) {
    const follow = atBottom();
    const image = make("img");
    image.alt = message.name || "picture";
    image.addEventListener("load", () => follow && toBottom());
    image.src = url;
    button.replaceChildren(image);
  }
}

// Pictures of the history are fetched when they are scrolled to.
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      seen.unobserve(entry.target);
      fetchPicture(entry.target.dataset.id);
    }
  }
});

function fetchPicture(id) {
  if (!pictures.has(id)) transmit(JSON.stringify({ type: "fetch", id }));
}

function view(id) {
  $("viewed").src = pictures.get(id);
  $("viewer").showModal();
}

function note(text) {
  add(make("li", "note", text));
}

// --- sending ---

function transmit(data) {
  if (socket?.readyState !== WebSocket.OPEN) return false;
  socket.send(data);
  return true;
}

function send(text, build) {
  const nonce = crypto.getRandomValues(new Uint32Array(4)).join("-");
  const element = make("li", "sending");
  element.append(make("p", "text", text));
  const again = () => {
    element.remove();
    sending.delete(nonce);
    send(text, build);
  };
  sending.set(nonce, { element, again });
  add(element);
  toBottom();
  if (!transmit(build(nonce))) fail(nonce, "not connected");
}

function sendText(text) {
  send(text, (nonce) => JSON.stringify({ type: "say", nonce, text }));
}

async function sendPicture(file) {
  if (file.size > limits.image) {
    note(`${file.name} is larger than ${size(limits.image)}`);
    return;
  }
  const content = await file.arrayBuffer();
  send(`${file.name}, ${size(file.size)}`, (nonce) => {
    const header = new TextEncoder().encode(JSON.stringify({ nonce, name: file.name.slice(0, 100) }));
    const length = new DataView(new ArrayBuffer(2));
    length.setUint16(0, header.length);
    return new Blob([length.buffer, header, content]);
  });
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
    limits = message.limits;
    $("text").maxLength = limits.text;
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
    showPicture(message, null);
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
  gone(message) {
    const button = shown.get(message.id)?.querySelector(".picture");
    if (button) button.textContent = "This picture is not kept any more";
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
  if (typeof event.data === "string") {
    const message = JSON.parse(event.data);
    handlers[message.type]?.(message);
    return;
  }
  const length = new DataView(event.data).getUint16(0);
  const header = new TextDecoder().decode(new Uint8Array(event.data, 2, length));
  showPicture(JSON.parse(header), new Uint8Array(event.data, 2 + length));
}

function showPeople() {
  $("count").textContent = people.size;
  const names = [...people].sort((a, b) => a.localeCompare(b));
  const items = names.slice(0, NAMES_SHOWN).map((name) => colored(make("li", "", name), name));
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
  const query = new URLSearchParams({ room: me.room, name: me.name });
  const current = new WebSocket(`${scheme}//${location.host}/chat?${query}`);
  socket = current;
  current.binaryType = "arraybuffer";
  current.addEventListener("message", received);
  current.addEventListener("close", (event) => {
    if (socket !== current) return;
    for (const nonce of sending.keys()) fail(nonce, "the connection was lost");
    if (!wanted) return;
    const wait = RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)];
    setState("", "reconnecting");
    if (event.reason) note(event.reason);
    setTimeout(() => wanted && socket === current && connect(), wait);
  });
}

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
  localStorage.setItem("name", me.name);
  history.replaceState(null, "", `#${encodeURIComponent(me.room)}`);
  join();
});

$("leave").addEventListener("click", leave);

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
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
$("text").addEventListener("paste", (event) => sendFiles(event.clipboardData, event));

$("attach").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  [...$("file").files].forEach(sendPicture);
  $("file").value = "";
});

function sendFiles(transfer, event) {
  const files = [...transfer.files].filter((file) => file.type.startsWith("image/"));
  if (files.length === 0) return;
  event.preventDefault();
  files.forEach(sendPicture);
}

addEventListener("dragover", (event) => {
  if (!wanted || ![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  $("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
addEventListener("drop", (event) => {
  $("drop").hidden = true;
  if (!wanted) return;
  event.preventDefault();
  sendFiles(event.dataTransfer, event);
});

$("newest").addEventListener("click", toBottom);
$("messages").addEventListener("scroll", () => {
  if (atBottom()) $("newest").hidden = true;
});
$("people-button").addEventListener("click", () => {
  const open = $("people").classList.toggle("open");
  $("people-button").setAttribute("aria-expanded", String(open));
});
$("viewer").addEventListener("click", () => $("viewer").close());

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
