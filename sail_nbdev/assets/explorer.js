// The stage of the explorer: video, film strip and rows of one video over one time axis. What it shows is in the
// model of the widget: scene {video, duration, rows, chosen: [row, event]}, and the bytes of film and strip.

function make(tag, className, attributes = {}, ...children) {
  const el = document.createElement(tag);
  el.className = className;
  for (const [name, value] of Object.entries(attributes)) el.setAttribute(name, value);
  el.append(...children);
  return el;
}

function readRows(scene) {
  const event = (e, i) => ({...e, index: i, mask: e.mask && readMask(e.mask)});
  return scene.rows.map(row => ({...row, events: row.events.map(event)}));
}

class Stage {
  constructor(model, el) {
    this.model = model;
    this.urls = {};
    this.still = 0;
    this.build(el);
    this.timeline = new Timeline(this.box, (what, value) => this.told(what, value));
    model.on("change:scene", () => this.showScene());
    model.on("change:film", () => this.showFilm());
    model.on("change:strip", () => this.showStrip());
    this.showScene();
    this.showFilm();
    this.showStrip();
  }

  build(el) {
    const tool = (text, key, label) => {
      const button = make("button", "", {type: "button", "aria-label": label, title: `${label} (key ${key})`}, text);
      button.addEventListener("click", () => this.timeline.key(key));
      return button;
    };
    const slider = {tabindex: 0, role: "slider", "aria-label": "Timeline", "aria-valuemin": 0};
    const tip = make("div", "sv-tip", {hidden: ""}, make("b", ""), make("span", ""));
    this.video = make("video", "", {controls: "", playsinline: "", "aria-label": "Video"});
    this.clock = make("output", "sv-clock");
    this.slider = make("div", "sv-time", slider, make("canvas", "sv-canvas"), tip);
    const bar = make("div", "sv-bar", {}, this.clock, tool("−", "-", "Zoom out"), tool("+", "+", "Zoom in"),
                     tool("All", "0", "Whole video"));
    const hint = "Click an event to choose it; drag the chosen one, or one of its edges, to move it.";
    this.box = make("div", "sv sv-explorer", {"data-lm-suppress-shortcuts": "true"},
                    make("div", "sv-screen", {}, this.video), bar, this.slider, make("canvas", "sv-map"),
                    make("p", "sv-keys", {}, hint));
    for (const name of ["timeupdate", "seeked", "loadedmetadata"]) this.video.addEventListener(name, () => this.show());
    this.video.addEventListener("play", () => this.run());
    this.box.addEventListener("keydown", e => this.key(e));
    el.append(this.box);
  }

  url(name, type) {                             // of the bytes in the model; null without any
    URL.revokeObjectURL(this.urls[name]);
    const bytes = this.model.get(name);
    this.urls[name] = bytes?.byteLength ? URL.createObjectURL(new Blob([bytes], {type})) : null;
    return this.urls[name];
  }
  showFilm() {
    const url = this.url("film", this.model.get("scene").type);
    this.video.parentElement.hidden = !url;
    if (url) this.video.src = url;
    else this.video.removeAttribute("src");
  }
  async showStrip() {
    const image = new Image(), url = this.url("strip", "image/jpeg");
    if (!url) {
      this.timeline.strip = null;
      return this.timeline.resize();
    }
    image.src = url;
    await image.decode();
    this.timeline.setStrip(image, this.model.get("scene").frames);
  }

  showScene() {
    const scene = this.model.get("scene"), before = this.scene;
    this.scene = scene;
    this.timeline.setRows(readRows(scene), scene.duration);
    this.slider.setAttribute("aria-valuemax", Math.round(scene.duration));
    const [row, index] = scene.chosen, chosen = this.timeline.rows[row]?.events[index] || null;
    this.timeline.chosen = chosen;
    const same = before && before.video === scene.video && String(before.chosen) === String(scene.chosen);
    if (chosen && !same) this.seek(chosen.start);
    else this.show();
  }

  // -- time

  get now() { return this.video.readyState ? this.video.currentTime : this.still; }
  seek(t) {
    this.still = clamp(t, 0, this.scene.duration);
    this.video.currentTime = this.still;
    this.timeline.reveal(this.still);
    this.show();
  }
  show() {
    const {now} = this, {duration} = this.scene;
    this.timeline.setTime(now);
    this.clock.textContent = `${clock(now, duration)} / ${clock(duration, duration)}`;
    this.slider.setAttribute("aria-valuenow", Math.round(now));
    this.slider.setAttribute("aria-valuetext", clock(now, duration));
  }
  run() {
    this.show();
    this.timeline.follow(this.now);
    if (!this.video.paused && !this.video.ended) requestAnimationFrame(() => this.run());
  }

  // -- a hand on the timeline: pick an event, drag the chosen one or one of its edges

  told(what, value) {
    if (what === "seek") this.seek(value);
    if (what === "pick") this.pick(value);
    if (what === "view") this.box.classList.toggle("zoomed", this.timeline.zoomed);
    if (what === "drag") this.drag(value);
    if (what === "drop") this.drop();
    if (what === "grip") return this.take(value);
    return what === "wheel" && this.box.contains(document.activeElement);
  }
  pick(e) {
    this.timeline.chosen = e;
    this.seek(e.start);
    this.model.send({pick: [e.row.name, e.index]});
  }
  take({x, y, t}) {
    const {timeline} = this, e = timeline.chosen;
    if (!e || !e.row.moves || timeline.at(x, y) !== e || y >= timeline.maskTop) return false;
    const near = time => Math.abs(timeline.x(time) - x) < 7;
    this.held = {e, t, start: e.start, end: e.end, edge: near(e.start) ? "start" : near(e.end) ? "end" : ""};
    return true;
  }
  drag(t) {
    const {e, edge, start, end} = this.held, least = .01 * this.scene.duration;
    const by = clamp(t - this.held.t, -start, this.scene.duration - end);
    if (edge === "start") e.start = clamp(t, 0, end - least);
    else if (edge === "end") e.end = clamp(t, start + least, this.scene.duration);
    else Object.assign(e, {start: start + by, end: end + by});
    this.seek(edge === "end" ? e.end : e.start);
  }
  drop() { this.model.send({move: [this.held.e.start, this.held.e.end]}); }

  key(e) {
    if (e.target.closest("video,button") || e.ctrlKey || e.metaKey || e.altKey) return;
    const by = e.shiftKey ? 5 : 1;
    const act = {" ": () => this.video.paused ? this.video.play()?.catch(() => {}) : this.video.pause(),
                 ArrowLeft: () => this.seek(this.now - by), ArrowRight: () => this.seek(this.now + by)}[e.key];
    if (act) act();
    if (!act && !this.timeline.key(e.key)) return;
    e.preventDefault();
    e.stopPropagation();
  }
  close() {
    this.video.pause();
    for (const url of Object.values(this.urls)) URL.revokeObjectURL(url);
  }
}

export default {
  render({model, el}) {
    const stage = new Stage(model, el);
    return () => stage.close();
  },
};
