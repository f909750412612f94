// Previews of pictures, and the viewer.

const $ = (id) => document.getElementById(id);
export const GONE = "This picture is not kept any more";
// Larger pictures are sent with a preview, a JPEG of at most this width and height, in pixels.
export const SMALL_BYTES = 64 << 10;
const PREVIEW_SIDE = 480;

let looked = null; // the picture that is being fetched for the viewer

// Returns nothing, as a blob, for a picture that is small, or that this browser cannot read.
export async function makePreview(file) {
  const none = new Blob();
  if (file.size <= SMALL_BYTES) return none;
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, PREVIEW_SIDE / Math.max(picture.width, picture.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(picture.width * scale));
    canvas.height = Math.max(1, Math.round(picture.height * scale));
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff"; // JPEG has no transparency
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    picture.close();
    for (const quality of [0.8, 0.4]) {
      const preview = await new Promise((done) => canvas.toBlob(done, "image/jpeg", quality));
      if (preview && preview.size <= SMALL_BYTES) return preview;
    }
  } catch {
    // The server says whether it takes it.
  }
  return none;
}

// Shows what is there of a picture while the rest is being fetched.
export async function view(url, name, preview) {
  const viewed = $("viewed");
  viewed.alt = name;
  if (preview) viewed.src = preview;
  $("viewer-note").textContent = "Loading…";
  $("viewer").showModal();
  const whole = (looked = new Image());
  whole.src = url;
  try {
    await whole.decode();
    if (looked !== whole) return;
    viewed.src = url;
    $("viewer-note").textContent = "";
  } catch {
    if (looked === whole) $("viewer-note").textContent = "This picture cannot be shown";
  }
}

$("viewer").addEventListener("click", () => $("viewer").close());
$("viewer").addEventListener("close", () => {
  if ($("viewer").open) return; // opened again before this event came
  $("viewed").removeAttribute("src");
  if (looked) looked.src = ""; // ends what is being fetched
  looked = null;
});

// Sends pictures that are dropped on the page, or pasted.
export function takePictures(isWanted, send) {
  function sendFiles(transfer, event) {
    const files = [...transfer.files].filter((file) => file.type.startsWith("image/"));
    if (files.length === 0) return;
    event.preventDefault();
    files.forEach(send);
  }

  addEventListener("dragover", (event) => {
    if (!isWanted() || ![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    $("drop").hidden = true;
    if (!isWanted()) return;
    event.preventDefault();
    sendFiles(event.dataTransfer, event);
  });
  $("text").addEventListener("paste", (event) => sendFiles(event.clipboardData, event));
}
