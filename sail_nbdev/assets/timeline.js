// Rows of events over time, drawn on one canvas; player.js and explorer.js stand on it. Times are seconds.
const AXIS = 24, LABEL = 16, MASKS = 56, MAP = 26, STRIP = 44, MOST_LANES = 8, EDGE = 4, SHORTEST_VIEW = 2;
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
const clamp = (value, least, most) => Math.max(least, Math.min(most, value));

function clock(seconds, total) {                // with hours where the video has one
  const s = Math.floor(seconds + 1e-6), two = n => String(n).padStart(2, "0");
  const minutes = Math.floor(s / 60), hours = Math.floor(s / 3600);
  return total >= 3600 ? `${hours}:${two(minutes % 60)}:${two(s % 60)}` : `${minutes}:${two(s % 60)}`;
}

function layLanes(events) {                     // each event in the first lane that is free
  const ends = [];
  for (const e of [...events].sort((a, b) => a.start - b.start || a.end - b.end)) {
    const free = ends.findIndex(end => end <= e.start + 1e-6);
    const lane = free < 0 ? ends.length : free;
    ends[lane] = e.end;
    e.lane = lane % MOST_LANES;
  }
  return clamp(ends.length, 1, MOST_LANES);
}

const covers = (e, t) => e.start <= t && (t < e.end || t === e.start);
const shortest = events => events.reduce((a, b) => !a || b.end - b.start < a.end - a.start ? b : a, null);

function readMask(text) {                       // "start end" in seconds, then percents at equal steps
  const [start, end, ...values] = text.split(" ").map(Number);
  return {start, end, values: values.map(v => v / 100)};
}

class Timeline {
  // `box` holds .sv-canvas, .sv-map and .sv-tip. `tell(what, value)` is called with "seek" and a time, "pick" and an
  // event, "view"; it answers "wheel" (may a wheel alone zoom?) and "grip" (does a drag from here move an event?),
  // and is then told "drag" and "drop"
  constructor(box, tell) {
    const [canvas, map, tip] = ["canvas", "map", "tip"].map(name => box.querySelector(".sv-" + name));
    Object.assign(this, {canvas, map, tip, tell, rows: [], from: 0, to: 1, total: 1, time: 0, width: 1});
    Object.assign(this, {hot: null, chosen: null, found: null, strip: null, fingers: new Map(), touched: -1e9});
    this.listen();
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    matchMedia("(prefers-color-scheme:dark)").addEventListener("change", () => this.resize());
  }

  // rows: [{name, color, events: [{start, end, text, sure?, mask?: {start, end, values}}]}]
  setRows(rows, total) {
    for (const row of rows) {
      for (const e of row.events) e.row = row;
      row.lanes = layLanes(row.events);
      row.lane = row.lanes > 4 ? 15 : 22;       // pixels
      row.longestFirst = [...row.events].sort((a, b) => b.end - b.start - (a.end - a.start));
    }
    if (total !== this.total) Object.assign(this, {from: 0, to: total});
    Object.assign(this, {rows, total, hot: null, masked: rows.flatMap(row => row.events.filter(e => e.mask))});
    this.resize();
  }

  // -- places

  get span() { return this.to - this.from; }
  get zoomed() { return this.span < this.total * .999; }
  x(t) { return (t - this.from) / this.span * this.width; }
  t(x) { return this.from + x / this.width * this.span; }

  arrange() {                                   // the top of each row, and the height of all
    let top = AXIS;
    if (this.strip) {
      this.stripTop = top;
      top += this.strip.height + 6;
    }
    for (const row of this.rows) {
      row.top = top + (this.rows.length > 1 ? LABEL : 0);
      top = row.top + row.lanes * row.lane + 6;
    }
    this.maskTop = top + LABEL;
    this.height = this.masked.length ? this.maskTop + MASKS : top;
  }

  resize() {
    this.arrange();
    this.width = Math.max(1, this.canvas.parentElement.clientWidth);
    if (!this.rows.length) return;
    this.canvas.style.height = this.height + "px";
    this.canvas.parentElement.style.height = this.height + "px";
    const style = getComputedStyle(this.canvas);
    this.ink = {};
    for (const name of ["ink", "soft", "line", "track", "card"]) this.ink[name] = style.getPropertyValue("--" + name);
    this.font = style.fontFamily;
    for (const canvas of [this.canvas, this.map]) {
      canvas.width = this.width * devicePixelRatio;
      canvas.height = (canvas === this.map ? MAP : this.height) * devicePixelRatio;
    }
    this.redraw();
  }

  setStrip(image, count) {                      // `count` frames side by side, of equal parts of the video
    const height = STRIP;
    this.strip = {image, count, height, width: image.width / count * height / image.height};
    this.resize();
  }

  // -- the view

  look(from, span) {
    span = clamp(span, Math.min(SHORTEST_VIEW, this.total), this.total);
    this.from = clamp(from, 0, this.total - span);
    this.to = this.from + span;
    this.redraw();
    this.tell("view");
  }
  zoom(factor, t = clamp(this.time, this.from, this.to)) {
    const span = clamp(this.span * factor, Math.min(SHORTEST_VIEW, this.total), this.total);
    this.look(t - (t - this.from) / this.span * span, span);
  }
  zoomTo(e) {
    const span = Math.max(3 * (e.end - e.start), SHORTEST_VIEW);
    this.look((e.start + e.end - span) / 2, span);
  }
  reveal(t) { if (t < this.from || t > this.to) this.look(t - this.span / 4, this.span); }
  follow(t) {                                   // turn the page when the play head leaves it
    if (performance.now() - this.touched > 3000 && this.zoomed) {
      if (t < this.from || t > this.to - this.span * .02) this.look(t - this.span * .08, this.span);
    }
  }
  setTime(t) {
    this.time = t;
    this.redraw();
  }

  // -- the event under the pointer: of those that cover it in its lane, the shortest

  at(x, y) {
    const row = this.rows.find(r => y >= r.top && y < r.top + r.lanes * r.lane);
    if (!row) return this.maskAt(x, y);
    const lane = Math.floor((y - row.top) / row.lane), slack = EDGE * this.span / this.width, t = this.t(x);
    const near = row.events.filter(e => e.lane === lane && e.start - slack <= t && t <= e.end + slack);
    const under = near.filter(e => covers(e, t));
    return shortest(under.length ? under : near);
  }
  maskAt(x, y) {
    if (y < this.maskTop) return null;
    return shortest(this.masked.filter(e => covers(e, this.t(x))));
  }

  // -- drawing: once a frame at most, and only what the view holds

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
      this.drawMap();
    });
  }
  visible(events) { return events.filter(e => e.end >= this.from && e.start <= this.to); }
  strength(e) {                                 // how strongly an event is painted
    if (this.found && !this.found.has(e)) return .1;
    return covers(e, this.time) || e === this.chosen ? .78 : e === this.hot ? .6 : .34;
  }

  start(canvas) {
    const pen = canvas.getContext("2d");
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, this.width, canvas.height);
    pen.font = "12px " + this.font;
    pen.textBaseline = "middle";
    return pen;
  }

  draw() {
    this.pen = this.start(this.canvas);
    this.drawAxis();
    if (this.strip) this.drawStrip();
    for (const row of this.rows) this.drawRow(row);
    if (this.masked.length) this.drawMasks();
    this.drawHead();
  }

  drawAxis() {
    const {pen} = this, room = pen.measureText(clock(this.total, this.total)).width + 24;
    const step = STEPS.find(s => s / this.span * this.width > room) || Math.ceil(this.span / 4);
    for (let t = Math.ceil(this.from / step) * step; t <= this.to; t += step) {
      const label = clock(t, this.total), x = this.x(t), wide = pen.measureText(label).width;
      pen.fillStyle = this.ink.soft;
      pen.fillText(label, clamp(x - wide / 2, 0, this.width - wide), 9);
      pen.fillRect(clamp(x, 0, this.width - 1), AXIS - 6, 1, 4);
    }
  }

  drawStrip() {                                 // in each place the frame nearest to its middle
    const {image, count, width, height} = this.strip, source = image.width / count;
    for (let x = 0; x < this.width; x += width) {
      const share = Math.min(this.t(Math.min(x + width / 2, this.width)) / this.total, .999);
      const frame = Math.floor(share * count);
      this.pen.drawImage(image, frame * source, 0, source, image.height, x, this.stripTop, width, height);
    }
  }

  drawLabel(text, color, y) {
    this.pen.fillStyle = color;
    this.pen.fillRect(0, y - 4, 8, 8);
    this.pen.fillStyle = this.ink.soft;
    this.pen.fillText(text, 13, y);
  }

  drawRow(row) {
    const {pen} = this;
    if (this.rows.length > 1) this.drawLabel(row.name, row.color, row.top - LABEL / 2);
    pen.fillStyle = this.ink.track;
    pen.fillRect(0, row.top, this.width, row.lanes * row.lane);
    for (const e of this.visible(row.longestFirst)) this.drawEvent(e, row);
  }

  drawEvent(e, row) {                           // at its true length, but never less than a pixel
    const {pen} = this, left = this.x(e.start), wide = Math.max(1, this.x(e.end) - left);
    const top = row.top + e.lane * row.lane + 1, high = row.lane - 2;
    const gap = wide > 4 ? 1 : 0;               // between neighbours
    pen.fillStyle = row.color;
    pen.globalAlpha = this.strength(e);
    pen.fillRect(left, top, wide - gap, high);
    if (wide > 14) {
      pen.globalAlpha = Math.max(pen.globalAlpha, this.found ? 0 : 1);
      pen.fillRect(left, top, 2, high);
    }
    pen.globalAlpha = 1;
    if (e === this.chosen || e === this.hot) this.outline(left, top, wide - gap, high);
    if (wide > 44) this.drawText(e, Math.max(left, 0) + 6, left + wide - 4, top + high / 2 + 1);
  }
  outline(x, y, w, h) {
    this.pen.strokeStyle = this.ink.ink;
    this.pen.lineWidth = 1.5;
    this.pen.strokeRect(x + .5, y + .5, Math.max(1, w - 1), h - 1);
  }
  drawText(e, left, right, y) {
    if (right - left < 18) return;
    const {pen} = this;
    pen.save();
    pen.beginPath();
    pen.rect(left, y - 12, right - left, 24);
    pen.clip();
    pen.globalAlpha = this.found && !this.found.has(e) ? .35 : 1;
    pen.fillStyle = this.ink.ink;
    pen.fillText(e.text.slice(0, Math.ceil((right - left) / 3)), left, y);
    pen.restore();
  }

  drawMasks() {                                 // pale, but for those that are playing, chosen or under the pointer
    const shown = this.masked.filter(e => e.mask.end >= this.from && e.mask.start <= this.to);
    const strong = e => this.strength(e) > .5, crowded = shown.length > this.width / 16;
    this.drawLabel("masks", this.masked[0].row.color, this.maskTop - LABEL / 2);
    this.pen.fillStyle = this.ink.track;
    this.pen.fillRect(0, this.maskTop, this.width, MASKS);
    for (const e of shown) if (!strong(e)) this.drawMask(e, crowded ? .16 : .1, crowded ? 0 : .5, 1);
    for (const e of shown) if (strong(e)) this.drawMask(e, .5, 1, 2);
  }
  drawMask({row, mask}, fill, line, wide) {
    const {pen} = this, {start, end, values} = mask, low = this.maskTop + MASKS;
    const path = new Path2D(), step = (end - start) / Math.max(1, values.length - 1);
    values.forEach((v, i) => path.lineTo(this.x(start + i * step), low - v * (MASKS - 4)));
    pen.strokeStyle = pen.fillStyle = row.color;
    pen.lineWidth = wide;
    pen.globalAlpha = line;
    pen.stroke(path);
    path.lineTo(this.x(end), low);
    path.lineTo(this.x(start), low);
    pen.globalAlpha = fill;
    pen.fill(path);
    pen.globalAlpha = 1;
  }

  drawHead() {
    const {pen} = this, x = clamp(this.x(this.time), 1, this.width - 1);
    if (this.time < this.from || this.time > this.to) return;
    pen.fillStyle = this.ink.ink;
    pen.fillRect(x - 1, AXIS - 8, 2, this.height);
    pen.beginPath();
    pen.arc(x, AXIS - 6, 5, 0, 7);
    pen.fill();
  }

  drawMap() {                                   // the whole video in small, with the view as a frame
    const pen = this.start(this.map), high = MAP, scale = this.width / this.total;
    const lane = (high - 4) / this.rows.length;
    this.rows.forEach((row, i) => {
      pen.fillStyle = row.color;
      for (const e of row.events) {
        pen.globalAlpha = this.found && !this.found.has(e) ? .12 : .6;
        pen.fillRect(e.start * scale, 2 + i * lane, Math.max(1, (e.end - e.start) * scale - .5), lane - 1);
      }
    });
    pen.globalAlpha = .72;
    pen.fillStyle = this.ink.card;
    pen.fillRect(0, 0, this.from * scale, high);
    pen.fillRect(this.to * scale, 0, this.width, high);
    pen.globalAlpha = 1;
    pen.strokeStyle = this.ink.ink;
    pen.lineWidth = 2;
    pen.strokeRect(this.from * scale + 1, 1, Math.max(4, this.span * scale - 2), high - 2);
    pen.fillStyle = this.ink.ink;
    pen.fillRect(this.time * scale - 1, 0, 2, high);
  }

  // -- pointer: click an event or a time, drag the axis to scrub, drag elsewhere to pan, two fingers to zoom

  listen() {
    const {canvas, map} = this, place = e => [e.offsetX, e.offsetY];
    canvas.addEventListener("wheel", e => this.wheel(e), {passive: false});
    canvas.addEventListener("pointerdown", e => this.press(e));
    canvas.addEventListener("pointermove", e => this.fingers.has(e.pointerId) ? this.drag(e) : this.hover(...place(e)));
    canvas.addEventListener("pointerup", e => this.release(e, true));
    canvas.addEventListener("pointercancel", e => this.release(e, false));
    canvas.addEventListener("pointerleave", () => this.hover(0, -1));
    canvas.addEventListener("dblclick", e => { const found = this.at(...place(e)); if (found) this.zoomTo(found); });
    map.addEventListener("pointerdown", e => this.pressMap(e));
    map.addEventListener("pointermove", e => { if (map.hasPointerCapture(e.pointerId)) this.dragMap(e); });
  }

  wheel(e) {
    const sideways = Math.abs(e.deltaX) > Math.abs(e.deltaY) || e.shiftKey;
    if (!sideways && !e.ctrlKey && !e.metaKey && !this.tell("wheel")) return;
    e.preventDefault();
    this.touched = performance.now();
    const unit = e.deltaMode === 1 ? 16 : 1, by = (e.deltaX || e.deltaY) * unit;
    if (sideways) this.look(this.from + by / this.width * this.span, this.span);
    else this.zoom(Math.exp(clamp(e.deltaY * unit * (e.ctrlKey ? .01 : .002), -1, 1)), this.t(e.offsetX));
  }

  press(e) {
    if (e.button) return;
    this.touched = performance.now();
    this.canvas.setPointerCapture(e.pointerId);
    this.fingers.set(e.pointerId, e.offsetX);
    this.pressed = {x: e.offsetX, y: e.offsetY, from: this.from, moved: this.fingers.size > 1};
    this.grip = this.tell("grip", {x: e.offsetX, y: e.offsetY, t: this.t(e.offsetX)});
    if (e.offsetY < AXIS) this.tell("seek", clamp(this.t(e.offsetX), 0, this.total));
  }

  drag(e) {
    this.touched = performance.now();
    if (this.fingers.size > 1) return this.pinch(e);
    const by = e.offsetX - this.pressed.x;
    if (Math.abs(by) > EDGE) this.pressed.moved = true;
    const t = clamp(this.t(e.offsetX), 0, this.total);
    if (this.grip && this.pressed.moved) this.tell("drag", t);
    else if (this.grip) return;
    else if (this.pressed.y < AXIS) this.tell("seek", t);
    else if (this.pressed.moved) this.look(this.pressed.from - by / this.width * this.span, this.span);
  }

  pinch(e) {                                    // the times under both fingers stay under them
    const [id, other] = [...this.fingers.keys()].sort(i => i === e.pointerId ? -1 : 1);
    const still = this.fingers.get(other), before = this.fingers.get(id) - still, after = e.offsetX - still;
    this.fingers.set(id, e.offsetX);
    if (Math.abs(after) > 12 && before / after > 0) this.zoom(before / after, this.t(still));
  }

  release(e, clicked) {
    this.fingers.delete(e.pointerId);
    const {x, y, moved} = this.pressed;
    if (this.grip && moved) this.tell("drop");
    else if (clicked && !moved && y >= AXIS) this.click(x, y);
    this.grip = null;
    this.pressed.moved = true;                  // the finger that stays does not click
    this.pressed.from = this.from;
    for (const x of this.fingers.values()) this.pressed.x = x;
  }

  click(x, y) {
    const found = this.at(x, y);
    if (found) this.tell("pick", found);
    else this.tell("seek", clamp(this.t(x), 0, this.total));
  }

  hover(x, y) {
    const found = this.at(x, y);
    this.canvas.style.cursor = found ? "pointer" : y < AXIS ? "ew-resize" : this.zoomed ? "grab" : "default";
    if (found !== this.hot) this.redraw();
    this.hot = found;
    this.tip.hidden = !found;
    if (found) this.showTip(found, x, y);
  }
  showTip(e, x, y) {                            // the caption beside the pointer
    const times = `${clock(e.start, this.total)}–${clock(e.end, this.total)}`;
    const facts = [e.row.name, times, e.sure && `confidence ${e.sure}`];
    this.tip.firstChild.textContent = facts.filter(Boolean).join("  ·  ");
    this.tip.lastChild.textContent = e.text;
    this.tip.style.transform = `translate(${clamp(x - 20, 0, Math.max(0, this.width - 260))}px,${y + 18}px)`;
  }

  pressMap(e) {
    this.map.setPointerCapture(e.pointerId);
    const t = e.offsetX / this.width * this.total;
    if (!this.zoomed) this.look(t - this.total / 16, this.total / 8);
    this.held = t >= this.from && t <= this.to ? t - this.from : this.span / 2;
    this.dragMap(e);
  }
  dragMap(e) {
    this.touched = performance.now();
    this.look(e.offsetX / this.width * this.total - this.held, this.span);
  }

  // -- keys: true if the key was one of the timeline's

  key(key) {
    const act = {"+": () => this.zoom(1 / 1.6), "=": () => this.zoom(1 / 1.6), "-": () => this.zoom(1.6),
                 "0": () => this.look(0, this.total), "z": () => { if (this.chosen) this.zoomTo(this.chosen); },
                 "[": () => this.look(this.from - this.span / 4, this.span),
                 "]": () => this.look(this.from + this.span / 4, this.span)}[key];
    if (act) act();
    return Boolean(act);
  }
}
