// The most probable classes as bars, and the search for the class that is explained.

import { amount } from "./charts.js";

const SHOWN = 60; // of the classes that match
const RANKS = ["", "the most probable", "second most probable", "third most probable",
  "fourth most probable", "fifth most probable"];

/** Bars that stay where they are while their contents change; a press keeps that class. */
export class Ranking {
  constructor(list, choose) {
    Object.assign(this, { list, choose, rows: [], top: null });
  }

  row() {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const name = document.createElement("span");
    const share = document.createElement("span");
    const row = { item, button, name, share, index: 0, kept: false };
    button.type = "button";
    name.className = "name";
    button.append(name, share);
    // The class that was there when the finger came down, whatever has taken its place since.
    button.addEventListener("pointerdown", () => { row.held = row.kept ? -1 : row.index; });
    button.addEventListener("click", () => {
      this.choose(row.held ?? (row.kept ? -1 : row.index));
      row.held = undefined;
    });
    item.append(button);
    return row;
  }

  show(ranking, explained, target, task) {
    while (this.rows.length < ranking.length) {
      this.rows.push(this.row());
      this.list.append(this.rows.at(-1).item);
    }
    this.rows.forEach((row, i) => {
      row.item.hidden = i >= ranking.length;
      if (row.item.hidden) return;
      const [index, label, probability] = ranking[i];
      // A file without an input for the class explains ranks, of the first few alone.
      row.index = this.top === null ? index : -1 - i;
      row.button.disabled = this.top !== null && i >= this.top;
      row.name.textContent = label;
      row.share.textContent = amount(probability, task);
      row.button.style.setProperty("--share", task === "none" ? 0 : probability);
      row.button.classList.toggle("explained", index === explained);
      row.kept = this.top === null
        ? index === target || label === target // programs may name a class
        : i > 0 && target === row.index;
      row.button.setAttribute("aria-pressed", row.kept);
      row.button.title = row.kept ? "Explain the most probable again" : "Keep explaining this";
    });
  }
}

/** A text field that offers classes whose names hold what is typed. */
export class ClassSearch {
  constructor(input, list, choose) {
    Object.assign(this, { input, list, choose, labels: [], count: 0, top: null, target: -1, active: 0, found: [] });
    input.addEventListener("focus", () => { input.select(); this.offer(""); });
    input.addEventListener("click", () => { if (list.hidden) this.offer(""); });
    input.addEventListener("input", () => this.offer(input.value));
    input.addEventListener("blur", () => this.close());
    input.addEventListener("keydown", (event) => this.key(event));
    list.addEventListener("pointerdown", (event) => event.preventDefault()); // keeps the focus
    list.addEventListener("click", (event) => {
      const item = event.target.closest("[data-at]");
      if (item) this.take(Number(item.dataset.at));
    });
  }

  setup(labels, count, top) {
    this.labels = labels;
    this.count = count;
    this.top = top;
    this.show(this.target);
  }

  name(target) {
    if (target === -1) return "Automatic: the most probable";
    if (typeof target === "string") return target;
    if (target < 0) return RANKS[-target];
    return this.labels[target] ?? `class ${target}`;
  }

  show(target) {
    this.target = target;
    if (this.list.hidden) this.input.value = this.name(target);
  }

  matches(typed) {
    const wanted = typed.trim().toLowerCase();
    if (this.top !== null) {
      const ranks = Array.from({ length: Math.min(this.top, RANKS.length - 1) }, (_, i) => -1 - i);
      return ranks.filter((rank) => this.name(rank).toLowerCase().includes(wanted));
    }
    if (!wanted) return [-1, ...Array.from({ length: Math.min(this.count, SHOWN) }, (_, i) => i)];
    const scored = [];
    for (let i = 0; i < this.count; i++) {
      const name = (this.labels[i] ?? "").toLowerCase();
      const at = name.indexOf(wanted);
      if (String(i) === wanted) scored.push([-1, i]);
      else if (at >= 0) scored.push([at === 0 ? 0 : /\W/.test(name[at - 1]) ? 1 : 2, i]);
    }
    scored.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    return scored.slice(0, SHOWN).map(([, i]) => i);
  }

  offer(typed) {
    this.found = this.matches(typed);
    this.list.replaceChildren(...this.found.map((target, at) => {
      const item = document.createElement("li");
      item.id = `class-${at}`;
      item.role = "option";
      item.dataset.at = at;
      item.setAttribute("aria-selected", target === this.target);
      item.textContent = this.name(target);
      return item;
    }));
    if (!this.found.length) {
      const none = document.createElement("li");
      none.className = "none";
      none.textContent = "no class has that in its name";
      this.list.append(none);
    }
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.move(typed ? 0 : Math.max(0, this.found.indexOf(this.target)));
  }

  move(to) {
    this.active = Math.min(Math.max(0, to), this.found.length - 1);
    [...this.list.children].forEach((item, at) => item.classList.toggle("active", at === this.active));
    const item = this.list.children[this.active];
    if (!item) {
      this.input.removeAttribute("aria-activedescendant");
      return;
    }
    this.input.setAttribute("aria-activedescendant", item.id);
    // Not scrollIntoView, which would move the page too.
    if (item.offsetTop < this.list.scrollTop) this.list.scrollTop = item.offsetTop;
    const below = item.offsetTop + item.offsetHeight - this.list.clientHeight;
    if (below > this.list.scrollTop) this.list.scrollTop = below;
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 6, PageUp: -6 };
    if (event.key in steps) {
      event.preventDefault();
      if (this.list.hidden) this.offer("");
      else this.move(this.active + steps[event.key]);
    } else if (event.key === "Enter" && !this.list.hidden && this.found.length) {
      event.preventDefault();
      this.take(this.active);
    } else if (event.key === "Escape") {
      this.close();
    }
  }

  take(at) {
    const target = this.found[at];
    this.target = target;
    this.close();
    this.choose(target);
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    this.input.value = this.name(this.target);
  }
}
