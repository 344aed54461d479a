// Recording: what the page shows becomes a video file, made and saved by this browser alone.

const TYPES = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];
const RATE = 30; // frames a second, at most
const MOST = 1e9; // bytes, after which a recording is saved by itself
const PART = 1000; // ms between the parts that the browser hands over

export class Recorder {
  /**
   * @param {object} on what to call: change(whether it records, seconds so far);
   *   saved(blob, ending of the file's name, why it ended by itself or ""); failed(words).
   */
  constructor(on) {
    Object.assign(this, { on, recorder: null });
    this.type = window.MediaRecorder && HTMLCanvasElement.prototype.captureStream
      ? TYPES.find((type) => MediaRecorder.isTypeSupported(type)) : undefined;
  }

  get able() {
    return this.type !== undefined;
  }

  get on_air() {
    return this.recorder !== null;
  }

  /** Begin with the size of `source`; later images are fitted into it. */
  start(source) {
    // A canvas of its own: a video has one size, and the page's canvas follows the stream's.
    this.canvas = document.createElement("canvas");
    this.canvas.width = source.width - (source.width % 2);
    this.canvas.height = source.height - (source.height % 2);
    const parts = [];
    let bytes = 0;
    try {
      const recorder = new MediaRecorder(this.canvas.captureStream(RATE), { mimeType: this.type });
      recorder.ondataavailable = ({ data }) => {
        parts.push(data);
        bytes += data.size;
        if (bytes > MOST) this.stop("The recording reached 1 GB and was saved.");
      };
      recorder.onerror = ({ error }) => this.stop(`The browser ended the recording: ${error?.message ?? "no reason"}.`);
      recorder.onstop = () => {
        const ending = this.type.startsWith("video/mp4") ? "mp4" : "webm";
        if (bytes) this.on.saved(new Blob(parts, { type: this.type }), ending, this.why);
        else this.on.failed("Nothing was recorded: the browser made no video.");
      };
      recorder.start(PART);
      this.recorder = recorder;
    } catch (error) {
      this.on.failed(`This browser cannot record: ${error.message}.`);
      return;
    }
    this.why = "";
    this.begun = performance.now();
    this.add(source);
    this.on.change(true, 0);
    this.timer = setInterval(() => this.on.change(true, (performance.now() - this.begun) / 1000), 500);
  }

  /** Add what is shown now. */
  add(source) {
    if (!this.recorder) return;
    const { width, height } = this.canvas;
    const paint = this.canvas.getContext("2d");
    const scale = Math.min(width / source.width, height / source.height);
    const shown = [source.width * scale, source.height * scale];
    paint.fillStyle = "#000";
    paint.fillRect(0, 0, width, height);
    paint.drawImage(source, (width - shown[0]) / 2, (height - shown[1]) / 2, ...shown);
  }

  /** End and save. */
  stop(why = "") {
    if (!this.recorder) return;
    const recorder = this.recorder;
    this.recorder = null;
    this.why = why;
    clearInterval(this.timer);
    if (recorder.state !== "inactive") recorder.stop();
    this.on.change(false, 0);
  }
}

/** Save a blob as a file of the person's. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
