// The WebSocket to the stream: the token, frames in order, and connecting again.

const PROTOCOL = "whycam.1";
const WRONG_TOKEN = 4401;
const FULL = 4429;
const STALE = 3000; // ms without a frame, after which a live stream is said to have stopped
const STORE = "whycam-token";

export class Connection {
  /**
   * @param {object} on what to call: hello, look, refused, frame, state (all with the message),
   *   link(name, seconds): "open", "waiting", "token", "full"; stale(whether a live stream stands still).
   */
  constructor(on) {
    this.on = on;
    this.paused = false;
    this.chain = Promise.resolve();
    this.tries = 0;
    this.token = tokenOf(location.hash) || stored();
    addEventListener("hashchange", () => {
      const token = tokenOf(location.hash);
      if (token) this.open(token);
    });
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => {
      this.lastFrame = performance.now(); // nothing was asked for while hidden
      this.hurry();
    });
    setInterval(() => this.watch(), 500);
    this.open(this.token);
  }

  /** Connect, with a token where one is given. */
  open(token) {
    this.token = token;
    if (location.hash) history.replaceState(null, "", location.pathname); // not for passers-by
    clearTimeout(this.timer);
    this.close();
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const offered = token ? [PROTOCOL, `token.${token}`] : [PROTOCOL];
    let socket;
    try {
      socket = new WebSocket(`${scheme}://${location.host}/stream`, offered);
    } catch {
      this.on.link("token"); // a token with characters that none has
      return;
    }
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => {
      if (socket === this.socket) this.receive(data);
    };
    socket.onclose = ({ code }) => {
      if (socket === this.socket) this.closed(code);
    };
    this.socket = socket;
  }

  close() {
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  /** Send a message; what cannot be sent now is told again by the server at the next connection. */
  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  /** Hold the image; the server goes on and sends none. */
  pause(held) {
    this.paused = held;
    this.lastFrame = performance.now();
    if (!held) this.resume?.();
  }

  receive(data) {
    if (typeof data !== "string") {
      const socket = this.socket;
      this.lastFrame = performance.now();
      this.chain = this.chain.then(() => this.show(data, socket)).catch(console.error);
      return;
    }
    const message = JSON.parse(data);
    if (message.kind === "hello") {
      this.tries = 0;
      this.lastFrame = performance.now();
      store(this.token);
      this.on.link("open");
    }
    if (message.kind === "state") this.live = message.state === "live";
    this.on[message.kind]?.(message);
  }

  async show(data, socket) {
    const { numbers, jpeg } = unpack(data);
    try {
      const image = await createImageBitmap(jpeg);
      if (this.paused) await new Promise((resolve) => { this.resume = resolve; });
      // A hidden page is given no animation frames, so it asks for no more images either.
      await new Promise(requestAnimationFrame);
      if (socket === this.socket || !this.socket) this.on.frame(numbers, image);
      image.close();
    } finally {
      if (socket === this.socket) this.send({ kind: "seen", sequence: numbers.sequence });
    }
  }

  closed(code) {
    this.socket = null;
    if (code === WRONG_TOKEN) {
      store("");
      this.on.link("token");
      return;
    }
    const wait = Math.min(5, 0.5 * 2 ** this.tries++);
    this.on.link(code === FULL ? "full" : "waiting", wait);
    this.timer = setTimeout(() => this.open(this.token), 1000 * wait);
  }

  hurry() {
    if (!document.hidden && !this.socket && this.timer && this.tries > 0) {
      this.tries = 0;
      this.open(this.token);
    }
  }

  watch() {
    const still = performance.now() - this.lastFrame;
    const open = this.socket?.readyState === WebSocket.OPEN;
    if (open && this.live && !this.paused && !document.hidden) {
      this.on.stale(still > STALE);
    }
  }
}

/** Split a message with an image into its numbers and its JPEG. */
export function unpack(data) {
  const size = new DataView(data).getUint32(0);
  return {
    numbers: JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size))),
    jpeg: new Blob([new Uint8Array(data, 4 + size)], { type: "image/jpeg" }),
  };
}

function tokenOf(hash) {
  return new URLSearchParams(hash.slice(1)).get("token") || "";
}

// Kept for reloads of this tab; where the browser forbids that, reloading asks again.
function stored() {
  try {
    return sessionStorage.getItem(STORE) || "";
  } catch {
    return "";
  }
}

function store(token) {
  try {
    sessionStorage.setItem(STORE, token);
  } catch { /* see stored */ }
}
