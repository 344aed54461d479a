// The controls: they show the look in force, and ask for changes.

const NAMES = { cam: "CAM", gradcam: "Grad-CAM", "gradcam++": "Grad-CAM++", layercam: "Layer-CAM",
  ablation: "Ablation-CAM", scorecam: "Score-CAM (slow)", hirescam: "HiRes-CAM", xgradcam: "XGrad-CAM",
  legrad: "LeGrad" };
const SLIDERS = ["threshold", "opacity", "smoothing"];
const OFTEN = 60; // ms between changes while a slider moves
const MINE = 600; // ms for which a control that was just moved is not moved by others

export class Controls {
  /** @param {(look: object) => void} change asks for some attributes of the look. */
  constructor(change) {
    this.$ = (id) => document.getElementById(id);
    this.touched = {};
    this.waiting = {};
    this.ask = change;
    this.sweeps = {};
    const { $ } = this;
    for (const name of SLIDERS) {
      $(name).addEventListener("input", () => {
        if (name === "threshold") $("automatic").checked = false;
        this.paint(name);
        this.want(name, Number($(name).value));
      });
    }
    $("automatic").addEventListener("change", (event) => {
      this.want("threshold", event.target.checked ? null : Number($("threshold").value));
      this.paint("threshold");
    });
    $("contour").addEventListener("change", (event) => this.want("contour", event.target.checked));
    $("method").addEventListener("change", (event) => this.want("method", event.target.value));
    $("sweep").addEventListener("change", (event) => this.want("tft", event.target.value));
    $("view").addEventListener("change", (event) => this.want("view", event.target.value));
    $("colormap").addEventListener("change", (event) => this.want("colormap", event.target.value));
  }

  /** What the file supports. */
  setup({ methods, own_method: own, colormaps, views }) {
    this.own = own;
    this.colormaps = colormaps;
    this.views = views;
    this.$("colormap").replaceChildren(...Object.keys(colormaps).map((name) => new Option(name, name)));
    this.sweeps = Object.fromEntries(methods.map((each) => [each.name, each.sweeps]));
    this.$("method").replaceChildren(...methods.map(({ name }) => new Option(NAMES[name] ?? name, name)));
  }

  /** Ask for a change; while a slider moves, of its values only the newest. */
  want(name, value) {
    this.touched[name] = performance.now();
    this.waiting[name] = value;
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.touched[name] = performance.now();
      this.ask(this.waiting);
      this.waiting = {};
    }, OFTEN);
  }

  /** Ask for the view after the one shown. */
  nextView() {
    const shown = this.$("view").querySelector(":checked")?.value;
    const next = this.views[(this.views.indexOf(shown) + 1) % this.views.length];
    for (const radio of this.$("view").querySelectorAll("input")) radio.checked = radio.value === next;
    this.want("view", next);
  }

  /** Show a look; `all` moves even what was just touched. */
  show(look, all = false) {
    const { $ } = this;
    const free = (name) => all || performance.now() - (this.touched[name] ?? -MINE) > MINE;
    const method = look.method ?? this.own;
    if (free("method")) $("method").value = method;
    for (const radio of $("sweep").querySelectorAll("input")) {
      if (free("tft")) radio.checked = radio.value === look.tft;
      radio.disabled = !(this.sweeps[method] ?? [look.tft]).includes(radio.value);
    }
    if (free("contour")) $("contour").checked = look.contour;
    for (const radio of $("view").querySelectorAll("input")) {
      if (free("view")) radio.checked = radio.value === look.view;
    }
    if (free("colormap")) $("colormap").value = look.colormap;
    $("scale").style.background = `linear-gradient(to right, ${this.colormaps[look.colormap]})`;
    $("opacity").disabled = look.view === "map";
    if (free("threshold")) {
      $("automatic").checked = look.threshold === null;
      if (look.threshold !== null) $("threshold").value = look.threshold;
    }
    for (const name of ["opacity", "smoothing"]) if (free(name)) $(name).value = look[name];
    SLIDERS.forEach((name) => this.paint(name));
  }

  /** Where nothing is fixed, the slider shows the threshold in use. */
  follow(cut) {
    const slider = this.$("threshold");
    if (!this.$("automatic").checked || document.activeElement === slider) return;
    slider.value = cut;
    this.paint("threshold");
  }

  paint(name) {
    const slider = this.$(name);
    const value = Number(slider.value);
    slider.style.setProperty("--part", `${(100 * value) / Number(slider.max)}%`);
    this.$(`${name}-value`).textContent = value.toFixed(2);
    if (name !== "threshold") return;
    const automatic = this.$("automatic").checked;
    slider.classList.toggle("idle", automatic);
    slider.setAttribute("aria-valuetext", automatic ? `automatic, ${value.toFixed(2)} now` : value.toFixed(2));
  }
}
