// An image of the person's own: dropped, pasted or chosen, it is explained beside the stream.

import { unpack } from "./connection.js";

export class Still {
  /**
   * @param {object} on what to call: shown(numbers, image), closed(), failed(words), busy(file name).
   * @param {() => string} token of the connection.
   */
  constructor(on, token) {
    Object.assign(this, { on, token, most: 0, file: null, wanted: null, asking: false, asked: 0 });
    let over = 0; // elements of the page that the dragged file is over
    const drag = (event, step) => {
      if (!this.most || !event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      over = Math.max(0, over + step);
      document.body.classList.toggle("dragging", over > 0);
    };
    addEventListener("dragenter", (event) => drag(event, 1));
    addEventListener("dragleave", (event) => drag(event, -1));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault(); // the browser would leave the page for the file
      over = 0;
      document.body.classList.remove("dragging");
      this.take(event.dataTransfer?.files, "what was dropped is no file: save the image, and drop its file");
    });
    addEventListener("paste", (event) => {
      if (event.clipboardData?.files.length) this.take(event.clipboardData.files);
    });
  }

  get open() {
    return this.file !== null;
  }

  /** Explain the first of some files. */
  take(files, none = "no file was chosen") {
    if (!this.most) this.on.failed("This stream explains no images of yours: its program did not allow it.");
    else if (!files?.length) this.on.failed(`No image: ${none}.`);
    else if (files.length > 1) this.on.failed(`${files.length} files: drop one image at a time.`);
    else if (files[0].size > this.most) {
      const size = (files[0].size / 2 ** 20).toFixed(0);
      this.on.failed(`${files[0].name} has ${size} MiB, and at most ${this.most / 2 ** 20} can be explained ` +
        "here: scale it down, or use whycam explain.");
    } else this.explain(files[0]);
  }

  /** Explain the same image as the stream is explained now. */
  again() {
    if (this.file) this.explain(this.file);
  }

  /** Ask for one image at a time; of those asked for meanwhile the newest is next. */
  async explain(file) {
    this.wanted = file;
    if (this.asking) return;
    this.asking = true;
    while (this.wanted) await this.ask(this.wanted);
    this.asking = false;
  }

  async ask(file) {
    const turn = ++this.asked;
    const token = this.token();
    this.wanted = null;
    this.on.busy(file.name);
    try {
      const answer = await fetch("explain", { method: "POST", body: file,
        headers: token ? { Authorization: `Bearer ${token}` } : {} });
      if (!answer.ok) throw new Error(await answer.text());
      const { numbers, jpeg } = unpack(await answer.arrayBuffer());
      const image = await createImageBitmap(jpeg);
      if (turn === this.asked) { // else it was closed meanwhile
        this.file = file;
        this.on.shown(numbers, image, file.name);
      }
      image.close();
    } catch (error) {
      const lost = error instanceof TypeError; // of fetch, where no answer came
      if (turn === this.asked) {
        this.on.failed(`${file.name} cannot be explained: ${lost ? "the stream does not answer" : error.message}.`);
      }
    }
  }

  close() {
    this.asked += 1;
    this.wanted = null;
    if (!this.file) return;
    this.file = null;
    this.on.closed();
  }
}
