(() => {
  const clock = s => Math.floor(s / 60) + ":" + String(Math.floor(s % 60)).padStart(2, "0");
  const boxes = [...document.querySelectorAll(".sv")];
  const players = new Map(boxes.map(box => [box, player(box)]));

  function toBlob(uri) {                      // Safari plays blobs, not data URIs
    const at = uri.indexOf(","), bytes = atob(uri.slice(at + 1));
    const array = new Uint8Array(bytes.length);
    for (let i = 0; i < bytes.length; i++) array[i] = bytes.charCodeAt(i);
    return URL.createObjectURL(new Blob([array], {type: uri.slice(5, at).split(";")[0]}));
  }

  function player(box) {
    const video = box.querySelector("video"), total = +box.dataset.duration;
    const rows = [...box.querySelectorAll(".sv-row[data-row]")].map((row, i) => ({
      line: box.querySelectorAll(".sv-now span")[i],
      events: [...row.querySelectorAll(".sv-event")].map(el => ({el, start: +el.dataset.start, end: +el.dataset.end}))}));
    let still = 0, chosen = rows[rows.length - 1];
    const now = () => video ? video.currentTime : still;

    function show() {
      const t = now();
      box.style.setProperty("--at", Math.min(1, t / total));
      box.querySelector(".sv-clock").textContent = clock(t) + " / " + clock(total);
      for (const row of rows) {
        const on = row.events.filter(e => e.start <= t && (t < e.end || t === e.start));
        for (const e of row.events) e.el.classList.toggle("on", on.includes(e));
        const text = on.map(e => e.el.textContent).join("  ·  ");
        if (row.line.textContent !== text) row.line.textContent = text;
      }
    }
    function seek(t) {
      still = Math.max(0, Math.min(total, t));
      if (video) video.currentTime = still;
      show();
    }
    function play() { if (video) { const p = video.play(); if (p) p.catch(() => {}); } }
    function toggle() { if (video) { if (video.paused) play(); else video.pause(); } }
    function step(sign) {
      const starts = chosen ? chosen.events.map(e => e.start).sort((a, b) => a - b) : [], t = now();
      const next = sign > 0 ? starts.find(s => s > t + .05) : starts.reverse().find(s => s < t - .3);
      if (next !== undefined) seek(next);
    }
    function follow() { show(); if (!video.paused && !video.ended) requestAnimationFrame(follow); }

    if (video) {
      if (video.src.startsWith("data:")) video.src = toBlob(video.src);
      for (const name of ["timeupdate", "seeked", "pause"]) video.addEventListener(name, show);
      video.addEventListener("play", () => {
        for (const other of boxes) if (other !== box) { const v = other.querySelector("video"); if (v) v.pause(); }
        follow();
      });
      video.addEventListener("error", () => { box.querySelector(".sv-broken").hidden = false; });
    }
    for (const go of box.querySelectorAll(".sv-event,.sv-go")) go.addEventListener("click", () => { seek(+go.dataset.start); play(); });
    rows.forEach(row => row.events.forEach(e => e.el.addEventListener("focus", () => { chosen = row; })));
    for (const track of box.querySelectorAll(".sv-track")) {
      const at = e => { const r = track.getBoundingClientRect(); seek(total * (e.clientX - r.left) / r.width); };
      track.addEventListener("pointerdown", e => { if (e.target === track || e.target.tagName === "I") { track.setPointerCapture(e.pointerId); at(e); } });
      track.addEventListener("pointermove", e => { if (track.hasPointerCapture(e.pointerId)) at(e); });
    }
    show();
    return {seek, toggle, step, now};
  }

  function keys(e) {
    const box = e.target.closest(".sv") || (boxes.length === 1 && e.target === document.body ? boxes[0] : null);
    if (!box || e.ctrlKey || e.metaKey || e.altKey || e.target.closest("video,summary")) return;
    const p = players.get(box), by = e.shiftKey ? 5 : 1;
    const act = {" ": p.toggle, ArrowLeft: () => p.seek(p.now() - by), ArrowRight: () => p.seek(p.now() + by), n: () => p.step(1), p: () => p.step(-1)}[e.key];
    if (!act) return;
    e.preventDefault();
    if (e.type === "keydown") act();
  }
  document.addEventListener("keydown", keys);
  document.addEventListener("keyup", e => { if (e.key === " ") keys(e); });
})();
