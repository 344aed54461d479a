// The page: what the stream says is shown, what the person does is asked for.

import { Curve, History, amount } from "./charts.js";
import { ClassSearch, Ranking } from "./classes.js";
import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { Recorder, download } from "./recorder.js";
import { Still } from "./still.js";

const CHARTS = 100; // ms between drawings of the charts
const FIGURES = 250; // ms between changes of the figures, which are to be read
const NOTICE = 12_000; // ms that a notice stays
// What of an earlier image was used, for want of time or because nothing has changed.
const REUSED = { threshold: "τ held", explanation: "map held", unchanged: "unchanged" };
const $ = (id) => document.getElementById(id);

const change = (look) => connection.send({ kind: "change", look });
const choose = (target) => change({ target });
const curve = new Curve($("curve"), $("curve-text"));
const history = new History($("history"));
const ranking = new Ranking($("ranking"), choose);
const search = new ClassSearch($("class"), $("class-list"), choose);
const controls = new Controls(change);
const shown = { frames: 0, numbers: null, live: true, state: { state: "live", text: "" }, open: false };
window.whycam = shown; // for tests, and for the curious
let target = -1;
let refusal, noticed;
const next = { charts: 0, figures: 0 };
const behind = { numbers: null, canvas: document.createElement("canvas") };

/** The pill in the corner, and the words over an image that is no longer live. */
function say(kind, pill, veil = "") {
  $("state").dataset.state = kind;
  if ($("state").textContent !== pill) $("state").textContent = pill;
  $("frame").classList.toggle("off", veil !== "" && !still.open);
  if ($("veil-text").textContent !== veil) $("veil-text").textContent = veil;
}

function sayState() {
  const { state, text } = shown.state;
  if (state === "ended") say("ended", "ended", sentence(text || "the stream has ended"));
  else if (state === "lost") say("wait", "source lost", sentence(text || "the source is lost"));
  else if (!shown.frames) say("wait", "waiting", "Waiting for the first image …");
  else say("live", shown.live ? "live" : "playing");
}

function sentence(text) {
  const begun = /^[a-z]+\b[^=]/.test(text) ? text[0].toUpperCase() + text.slice(1) : text;
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

function figure(id, value, unit = "") {
  const small = document.createElement("small");
  small.textContent = unit && ` ${unit}`;
  $(id).replaceChildren(value, small);
}

function milliseconds(seconds) {
  const value = 1000 * seconds;
  return value < 10 ? value.toFixed(1) : value.toFixed(0);
}

/** A sentence below the image, for a while. */
function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = text === "";
  clearTimeout(noticed);
  if (text) noticed = setTimeout(() => notice(""), NOTICE);
}

/** Image, classes and figures of a frame, or of an image of the person's own. */
function present(numbers, image) {
  const { explanation, timing } = numbers;
  drawOn($("image"), image);
  recorder.add($("image"));
  shown.numbers = numbers;
  ranking.show(numbers.ranking, explanation.index, target, explanation.task);
  const now = performance.now();
  if (now >= next.figures) {
    next.figures = now + FIGURES;
    showFigures(numbers);
    controls.follow(explanation.cut);
  }
  if (now >= next.charts) {
    next.charts = now + CHARTS;
    curve.draw(explanation);
    history.draw();
  }
}

/** Keep what the stream shows, for when an image in front of it is closed. */
function hold(numbers, image) {
  behind.numbers = numbers;
  drawOn(behind.canvas, image);
}

function drawOn(canvas, image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
  }
  canvas.getContext("2d").drawImage(image, 0, 0);
}

function showFigures({ timing, dropped, reused, index, seconds, explanation, size, live }) {
  for (const each of document.querySelectorAll("#numbers .of-live")) each.hidden = !live;
  for (const each of document.querySelectorAll(".of-stream")) each.hidden = still.open;
  figure("fps", timing.fps.toFixed(timing.fps < 100 ? 1 : 0), "/s");
  figure("latency", milliseconds(timing.latency), "ms");
  figure("explain", milliseconds(timing.explain), "ms");
  figure("evaluations", timing.evaluations, REUSED[reused] ?? "");
  figure("dropped", dropped);
  figure("index", index, clock(seconds));
  $("image").setAttribute("aria-label", `Image of ${size[1]} by ${size[0]} pixels; ` +
    `${explanation.label}, ${amount(explanation.probability, explanation.task)}, is explained`);
}

function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

const still = new Still({
  busy: (name) => {
    notice("");
    $("still-name").textContent = `Explaining ${name} …`;
    $("still").hidden = false;
    $("back").hidden = !still.open;
    if (!still.open) hold(shown.numbers, $("image"));
  },
  shown: (numbers, image, name) => {
    $("still-name").textContent = `${name}: an image of yours; the stream goes on.`;
    $("back").hidden = false;
    Object.assign(next, { figures: 0, charts: 0 });
    present(numbers, image);
    sayState();
  },
  failed: (text) => {
    if (still.open) $("still-name").textContent = `${still.file.name}: an image of yours; the stream goes on.`;
    else $("still").hidden = true;
    notice(text);
  },
  closed: () => {
    $("still").hidden = true;
    Object.assign(next, { figures: 0, charts: 0 });
    if (behind.numbers) present(behind.numbers, behind.canvas);
    sayState();
  },
}, () => connection.token);

const recorder = new Recorder({
  change(on, seconds) {
    $("record").setAttribute("aria-pressed", on);
    $("record").textContent = on ? `Stop ${clock(seconds)}` : "Record";
  },
  saved(blob, ending, why) {
    const at = new Date().toISOString().slice(0, 19).replaceAll(":", "");
    download(blob, `whycam-${at}.${ending}`);
    notice(why);
  },
  failed: notice,
});

const connection = new Connection({
  hello(message) {
    $("about").textContent = [message.model, message.engine, message.source].filter(Boolean).join(" · ");
    $("about").title = $("about").textContent;
    document.title = `${message.model} · whycam`;
    controls.setup(message);
    search.setup(message.labels, message.classes, message.top);
    ranking.top = message.top;
    still.most = message.image_bytes;
    $("open").hidden = !still.most;
    shown.frames = 0;
  },
  look({ look }) {
    target = look.target;
    shown.look = look;
    controls.show(look);
    search.show(target);
    $("refused").hidden = true;
    still.again();
  },
  refused({ text, look }) {
    $("refused").textContent = sentence(text);
    $("refused").hidden = false;
    clearTimeout(refusal);
    refusal = setTimeout(() => { $("refused").hidden = true; }, 10_000);
    target = look.target;
    controls.show(look, true);
    search.show(target);
  },
  state(message) {
    shown.state = message;
    if (message.state === "ended") recorder.stop("The stream has ended, and the recording was saved.");
    sayState();
  },
  frame(numbers, image) {
    shown.frames += 1;
    shown.live = numbers.live;
    if (shown.frames === 1 && shown.open) sayState();
    history.live = numbers.live;
    history.add(numbers.timing);
    document.querySelector(".key.latency").hidden = !numbers.live;
    if (still.open) hold(numbers, image); // the stream goes on behind it
    else present(numbers, image);
  },
  link(name, seconds) {
    shown.open = name === "open";
    document.querySelector(".side").inert = !shown.open;
    $("ask").hidden = name !== "token";
    if (name === "open") sayState();
    if (name === "token") {
      still.close();
      say("bad", "locked", "This page opens with the token that whycam stream printed.");
      $("token").focus();
    }
    if (name === "full") say("wait", "full", "As many pages as allowed are open. Trying again …");
    if (name === "waiting") {
      const ended = shown.state.state === "ended";
      say(ended ? "ended" : "wait", ended ? "ended" : "connecting", ended
        ? `${sentence(shown.state.text || "the stream has ended")} This page goes on when it starts again.`
        : seconds > 1 ? "The stream does not answer. Trying again …" : "Connecting …");
    }
  },
  stale(still) {
    if (still && shown.frames) say("wait", "stands still");
    else sayState();
  },
});

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  connection.open($("token").value.trim().replace(/^.*#token=/, ""));
  $("token").value = "";
});
$("pause").addEventListener("click", () => {
  const held = $("pause").getAttribute("aria-pressed") !== "true";
  $("pause").setAttribute("aria-pressed", held);
  $("pause").textContent = held ? "Go on" : "Pause";
  connection.pause(held);
});
$("save").addEventListener("click", () => {
  const name = still.open ? still.file.name.replace(/\.\w+$/, "") : shown.numbers?.index ?? 0;
  $("image").toBlob((blob) => download(blob, `whycam-${name}.png`), "image/png");
});
$("record").addEventListener("click", () => {
  if (recorder.on_air) recorder.stop();
  else recorder.start($("image"));
});
if (!recorder.able) {
  $("record").disabled = true;
  $("record").title = "This browser cannot record a canvas: use whycam stream --output FILE.mp4";
}
addEventListener("beforeunload", (event) => {
  if (recorder.on_air) event.preventDefault(); // asks, for the recording would be lost
});
$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  still.take($("file").files);
  $("file").value = "";
});
$("back").addEventListener("click", () => still.close());

const KEYS = { " ": "pause", s: "save", r: "record", o: "open", Escape: "back" };
addEventListener("keydown", (event) => {
  const free = event.target === document.body || event.target === $("frame");
  if (!free || event.ctrlKey || event.metaKey || event.altKey || event.repeat || !shown.open) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "v") controls.nextView();
  else if (KEYS[key] && $(KEYS[key]).offsetParent) $(KEYS[key]).click();
  else return;
  event.preventDefault();
});
new ResizeObserver(() => {
  history.draw();
  if (shown.numbers) curve.draw(shown.numbers.explanation);
}).observe($("history"));
