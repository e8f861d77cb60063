// Where a walk starts: the gallery, or a picture of one's own.
import { $, button } from "./dom.js";

const LARGEST = 1280; // pixels a side of what is sent: the server crops and shrinks it to the world's size anyway

export class Places {
  /** start(fields): begin a walk; upload(blob): the id of an uploaded picture. */
  constructor({ start, upload, complain }) {
    Object.assign(this, { start, upload, complain });
    $("file").addEventListener("change", (event) => {
      this.own(event.target.files[0]);
      event.target.value = "";
    });
  }

  world(starts, uploads) {
    for (const old of $("gallery").querySelectorAll("button")) old.remove();
    for (const { name, caption, thumbnail } of starts) {
      const image = Object.assign(document.createElement("img"), { src: thumbnail, alt: "", loading: "lazy" });
      const made = button(image, `Start from: ${caption || name}`, () => this.start({ start: name }));
      made.dataset.start = name;
      made.setAttribute("aria-pressed", "false");
      $("gallery").insertBefore(made, $("own"));
    }
    $("own").hidden = !uploads;
  }

  /** Mark the start of the present walk; null where it is not of the gallery. */
  mark(name) {
    for (const made of $("gallery").querySelectorAll("button")) {
      made.setAttribute("aria-pressed", String(made.dataset.start === name));
    }
  }

  async own(file) {
    if (!file) return;
    try {
      this.start({ image: await this.upload(await smaller(file)), prompt: $("prompt").value || null });
    } catch (error) {
      this.complain(error);
    }
  }
}

async function smaller(file) {
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "That file"} is no picture this browser can read; take a JPEG or PNG.`);
  }
  const scale = Math.min(1, LARGEST / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const brush = canvas.getContext("2d");
  brush.imageSmoothingQuality = "high";
  brush.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.94));
}
