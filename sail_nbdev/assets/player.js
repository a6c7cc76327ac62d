// A player: video, transcript and timeline of one video. All it shows stands in the page, in text and attributes.
const boxes = [...document.querySelectorAll(".sv")];
const UNTOUCHED = 3000;                         // milliseconds without a hand on it until a transcript follows again

function toBlob(uri) {                          // Safari plays blobs, not data URIs
  const at = uri.indexOf(","), bytes = Uint8Array.from(atob(uri.slice(at + 1)), c => c.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], {type: uri.slice(5, at).split(";")[0]}));
}

function readEvent(el) {
  const {start, end, mask} = el.dataset;
  return {el, start: +start, end: +end, text: el.querySelector(".sv-caption").textContent,
          sure: el.querySelector(".sv-sure")?.textContent, mask: mask && readMask(mask)};
}

function readRow(list) {
  return {list, name: list.dataset.row, color: list.style.getPropertyValue("--c"),
          events: [...list.querySelectorAll(".sv-event")].map(readEvent)};
}

class Player {
  constructor(box) {
    const one = name => box.querySelector(name);
    Object.assign(this, {box, one, video: one("video"), list: one(".sv-list"), slider: one(".sv-time")});
    this.total = +box.dataset.duration;
    this.still = 0;                             // the time of a player without a video
    this.touched = -1e9;
    this.rows = [...box.querySelectorAll(".sv-row")].map(readRow);
    this.eventOf = new Map(this.rows.flatMap(row => row.events.map(e => [e.el, e])));
    this.lines = [...box.querySelectorAll(".sv-now span")];
    this.timeline = new Timeline(box, (what, value) => this.told(what, value));
    this.timeline.setRows(this.rows, this.total);
    this.showStrip(one(".sv-strip"));
    box.classList.toggle("many", this.eventOf.size > 24);
    this.open(this.rows.find(row => row.name === box.dataset.main));
    if (this.video) this.watch(this.video);
    this.listenList();
    this.listenTools();
    this.show();
  }

  async showStrip(image) {
    if (!image) return;
    await image.decode();
    this.timeline.setStrip(image, +image.dataset.count);
  }

  // -- time

  get now() { return this.video && this.video.readyState ? this.video.currentTime : this.still; }
  seek(t) {
    this.still = clamp(t, 0, this.total);
    if (this.video) this.video.currentTime = this.still;
    this.timeline.reveal(this.still);
    this.show();
  }
  play() { if (this.video) this.video.play()?.catch(() => {}); }
  toggle() {
    if (!this.video) return;
    if (this.video.paused) this.play();
    else this.video.pause();
  }

  watch(video) {
    if (video.src.startsWith("data:")) video.src = toBlob(video.src);
    const moments = ["timeupdate", "seeked", "pause", "loadedmetadata"];
    for (const name of moments) video.addEventListener(name, () => this.show());
    video.addEventListener("play", () => {
      for (const other of players.values()) if (other !== this) other.video?.pause();
      this.run();
    });
    video.addEventListener("error", () => { this.one(".sv-broken").hidden = false; });
    if (video.error) this.one(".sv-broken").hidden = false;
  }
  run() {                                       // every frame while it plays
    this.show();
    this.timeline.follow(this.now);
    if (!this.video.paused && !this.video.ended) requestAnimationFrame(() => this.run());
  }

  // -- showing: the page is touched only where something changed

  show() {
    const t = this.now;
    this.timeline.setTime(t);
    this.write(this.one(".sv-clock"), `${clock(t, this.total)} / ${clock(this.total, this.total)}`);
    this.rows.forEach((row, i) => this.showRow(row, this.lines[i], row.events.filter(e => covers(e, t))));
    this.followTo(this.row?.events.findLast(e => e.start <= t));
  }
  showRow(row, line, on) {
    if (row.on && on.length === row.on.length && on.every((e, i) => e === row.on[i])) return;
    for (const e of row.on || []) e.el.classList.remove("on");
    for (const e of on) e.el.classList.add("on");
    row.on = on;
    if (line) line.textContent = on.map(e => e.text).join("  ·  ");
    if (row !== this.row) return;
    this.slider.setAttribute("aria-valuenow", Math.round(this.now));
    this.slider.setAttribute("aria-valuetext", [clock(this.now, this.total), ...on.map(e => e.text)].join(", "));
  }
  followTo(e) {                                 // the transcript goes along, unless a hand is on it
    if (!e || e === this.here || performance.now() - this.touched < UNTOUCHED) return;
    this.here = e;
    this.scrollTo(e.el);
  }
  write(el, text) { if (el.textContent !== text) el.textContent = text; }
  scrollTo(el) { this.list.scrollTo({top: el.offsetTop - this.list.clientHeight / 3}); }

  // -- the transcript: one row at a time, one tab stop

  open(row) {
    if (!row || this.row === row) return;
    this.row = row;
    row.on = this.here = null;
    for (const r of this.rows) r.list.hidden = r !== row;
    const select = this.one(".sv-pick");
    if (select) select.value = row.name;
    this.search();
    this.stop(row.events[0]);
    this.show();
  }
  stop(e) {                                     // the event that a tab into the transcript comes to
    if (this.stopped) this.stopped.el.tabIndex = -1;
    this.stopped = e;
    if (e) e.el.tabIndex = 0;
  }
  choose(e) {
    this.timeline.chosen?.el.setAttribute("aria-selected", "false");
    this.timeline.chosen = e;
    e.el.setAttribute("aria-selected", "true");
    this.open(e.row);
    this.stop(e);
    this.scrollTo(e.el);
  }
  jump(e) {
    this.choose(e);
    this.seek(e.start);
  }
  get matches() { return this.row.events.filter(e => !e.el.hidden); }
  step(sign) {                                  // the next or previous event that the search left
    const t = this.now, events = this.row ? this.matches : [];
    const next = sign > 0 ? events.find(e => e.start > t + .05) : events.findLast(e => e.start < t - .3);
    if (next) this.jump(next);
  }

  listenList() {
    const {list} = this, touch = () => { this.touched = performance.now(); };
    for (const name of ["wheel", "touchmove", "keydown"]) list.addEventListener(name, touch, {passive: true});
    list.addEventListener("click", e => {
      const found = this.eventOf.get(e.target.closest(".sv-event"));
      if (!found || String(getSelection())) return;
      this.jump(found);
      this.play();
    });
    list.addEventListener("keydown", e => this.walk(e));
  }
  walk(e) {
    const events = this.matches, at = events.indexOf(this.eventOf.get(e.target));
    const to = {ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: events.length - 1,
                PageDown: Math.min(at + 10, events.length - 1), PageUp: Math.max(at - 10, 0)}[e.key];
    if (e.key === "Enter" && events[at]) this.jump(events[at]);
    else if (!events[to]) return;
    else {
      this.stop(events[to]);
      events[to].el.focus();
    }
    e.preventDefault();
  }

  // -- search

  search() {
    const words = this.one(".sv-search").value.trim().toLowerCase();
    const hit = e => e.text.toLowerCase().includes(words);
    for (const row of this.rows) for (const e of row.events) e.el.hidden = !hit(e);
    this.timeline.found = words ? new Set([...this.eventOf.values()].filter(hit)) : null;
    this.timeline.redraw();
    this.write(this.one(".sv-count"), words ? `${this.matches.length} of ${this.row.events.length}` : "");
    if (this.stopped?.el.hidden) this.stop(this.matches[0]);
  }

  listenTools() {
    const search = this.one(".sv-search");
    search.addEventListener("input", () => this.search());
    search.addEventListener("keydown", e => {
      if (e.key === "Enter") this.step(e.shiftKey ? -1 : 1);
      if (e.key === "ArrowDown" && this.matches[0]) {
        this.stop(this.matches[0]);
        this.matches[0].el.focus();
        e.preventDefault();
      }
    });
    const pick = this.one(".sv-pick");
    pick?.addEventListener("change", () => this.open(this.rows.find(r => r.name === pick.value)));
    for (const button of this.box.querySelectorAll("[data-key]"))
      button.addEventListener("click", () => this.timeline.key(button.dataset.key));
  }

  // -- what the timeline tells

  told(what, value) {
    if (what === "seek") this.seek(value);
    if (what === "pick") {
      this.jump(value);
      this.play();
    }
    if (what === "view") this.box.classList.toggle("zoomed", this.timeline.zoomed);
    return what === "wheel" && (boxes.length === 1 || this.box.contains(document.activeElement));
  }
  key(e) {
    const by = e.shiftKey ? 5 : 1;
    const act = {" ": () => this.toggle(), n: () => this.step(1), p: () => this.step(-1),
                 ArrowLeft: () => this.seek(this.now - by), ArrowRight: () => this.seek(this.now + by),
                 Home: () => this.seek(0), End: () => this.seek(this.total),
                 "/": () => this.one(".sv-search").focus()}[e.key];
    if (act) act();
    return Boolean(act) || this.timeline.key(e.key);
  }
}

const players = new Map();
for (const box of boxes) players.set(box, new Player(box));

document.addEventListener("keydown", e => {
  const alone = boxes.length === 1 && e.target === document.body ? boxes[0] : null;
  const player = players.get(e.target.closest(".sv") || alone);
  const takesKeys = e.target.closest("video,input,select,summary") || (e.key === " " && e.target.closest("button"));
  if (!player || takesKeys || e.ctrlKey || e.metaKey || e.altKey || e.defaultPrevented) return;
  if (player.key(e)) e.preventDefault();
});
