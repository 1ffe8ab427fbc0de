"use strict";
// The volumes lie in the page as sheets of slices; a plane along any axis is read out of them.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (selector) => document.querySelector(selector);
  const $$ = (selector) => [...document.querySelectorAll(selector)];
  if (data.volumes) volumes(data.volumes);
  if (data.choice) choice(data.choice);

  function volumes(found) {
    const [depth, high, wide] = found.shape;
    const at = { ...found.start };
    const decoded = new Map();
    const grid = $("#slices .grid");
    const slider = $("#depth");
    const cursor = $(".cursor");
    let mode = "intensity";
    let brightness = 1;

    // [z, y, x] bytes of a sheet, read once.
    function voxels(name) {
      if (decoded.has(name)) return decoded.get(name);
      const image = document.getElementById("sheet-" + name);
      const canvas = document.createElement("canvas");
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
      const { columns, tile, index } = found.sheets[name];
      const values = new Uint8Array(depth * high * wide);
      for (let z = 0, n = 0; z < depth; z++) {
        const top = Math.floor(index[z] / columns) * tile[0];
        const left = (index[z] % columns) * tile[1];
        for (let y = 0; y < high; y++) {
          let from = 4 * ((top + y) * canvas.width + left);
          for (let x = 0; x < wide; x++, from += 4) values[n++] = pixels[from];
        }
      }
      decoded.set(name, values);
      return values;
    }

    const planes = {
      xy: { size: [high, wide], across: "x", along: "y", of: (r, c) => (at.z * high + r) * wide + c },
      xz: { size: [depth, wide], across: "x", along: "z", of: (r, c) => (r * high + at.y) * wide + c },
      yz: { size: [depth, high], across: "y", along: "z", of: (r, c) => (r * high + c) * wide + at.x },
    };

    function sheetOf(column) {
      const error = column + "-error";
      return mode === "error" && found.sheets[error] ? error : column;
    }

    function draw(canvas) {
      const { column, view } = canvas.dataset;
      const name = sheetOf(column);
      const hot = found.sheets[name].hot;
      const plane = planes[view];
      const [rows, columns] = plane.size;
      const values = voxels(name);
      const image = new ImageData(columns, rows);
      for (let r = 0, to = 0; r < rows; r++) {
        for (let c = 0; c < columns; c++, to += 4) {
          const value = Math.min(255, values[plane.of(r, c)] * brightness) | 0;
          const colour = hot ? found.magma[value] : null;
          image.data[to] = hot ? colour[0] : value;
          image.data[to + 1] = hot ? colour[1] : value;
          image.data[to + 2] = hot ? colour[2] : value;
          image.data[to + 3] = 255;
        }
      }
      const raw = document.createElement("canvas");
      raw.width = columns;
      raw.height = rows;
      raw.getContext("2d").putImageData(image, 0, 0);
      const ratio = window.devicePixelRatio || 1;
      canvas.width = Math.round(canvas.clientWidth * ratio);
      canvas.height = Math.round(canvas.clientHeight * ratio);
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(raw, 0, 0, canvas.width, canvas.height);
      context.strokeStyle = "rgba(74, 190, 235, .75)";
      context.lineWidth = ratio;
      const x = ((at[plane.across] + 0.5) / columns) * canvas.width;
      const y = ((at[plane.along] + 0.5) / rows) * canvas.height;
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, canvas.height);
      context.moveTo(0, y);
      context.lineTo(canvas.width, y);
      if ($("#lines").checked) context.stroke();
      if (column === $("#slices canvas:not([hidden])").dataset.column) bar(canvas, context, ratio);
    }

    // As long as the data says, on the first column; letters keep their size on any screen.
    function bar(canvas, context, ratio) {
      const plane = planes[canvas.dataset.view];
      if (plane.across !== "x" || canvas.height < 40 * ratio) return;
      const length = (found.bar.length / found.bar.width) * canvas.width;
      const [left, bottom] = [8 * ratio, canvas.height - 8 * ratio];
      context.fillStyle = "#fff";
      context.shadowColor = "#000";
      context.shadowBlur = 3 * ratio;
      context.fillRect(left, bottom - 3 * ratio, length, 3 * ratio);
      context.font = `${11 * ratio}px system-ui, sans-serif`;
      context.fillText(found.bar.label, left, bottom - 7 * ratio);
      context.shadowBlur = 0;
    }

    function describe() {
      const z = found.slices[at.z];
      const parts = [`z = ${z} of ${found.depth}`];
      if (found.unit) parts[0] += ` (${(z * found.spacing).toFixed(1)} ${found.unit})`;
      if (found.centres.length) {
        const away = Math.min(...found.centres.map((centre) => Math.abs(centre - z)));
        parts.push(`${away} slices from the centre of a projection`);
      }
      for (const [name, values] of Object.entries(found.psnr)) {
        if (values[z] !== null) parts.push(`${name} ${values[z].toFixed(2)} dB`);
      }
      $("#readout").textContent = parts.join(" · ");
      slider.setAttribute("aria-valuetext", parts[0]);
      const labels = { xy: `xy at z = ${z}`, xz: `xz at y = ${at.y * found.factor}` };
      labels.yz = `yz at x = ${at.x * found.factor}`;
      for (const label of $$("#slices .row")) label.textContent = labels[label.dataset.view];
      if (cursor) {
        const [left, right] = found.plot;
        cursor.style.left = `${left + ((z + 0.5) / found.depth) * (right - left)}%`;
      }
    }

    function render() {
      slider.value = at.z;
      describe();
      for (const canvas of $$("#slices canvas")) {
        if (!canvas.hidden) draw(canvas);
      }
    }

    let waiting = false;
    function soon() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; render(); });
    }

    function clamp(value, size) { return Math.max(0, Math.min(size - 1, value)); }

    function move(canvas, event) {
      const box = canvas.getBoundingClientRect();
      const plane = planes[canvas.dataset.view];
      const limits = { z: depth, y: high, x: wide };
      const x = Math.floor(((event.clientX - box.left) / box.width) * plane.size[1]);
      const y = Math.floor(((event.clientY - box.top) / box.height) * plane.size[0]);
      at[plane.across] = clamp(x, limits[plane.across]);
      at[plane.along] = clamp(y, limits[plane.along]);
      soon();
    }

    for (const canvas of $$("#slices canvas")) {
      canvas.addEventListener("pointerdown", (event) => {
        canvas.setPointerCapture(event.pointerId);
        move(canvas, event);
      });
      canvas.addEventListener("pointermove", (event) => { if (event.buttons) move(canvas, event); });
    }
    slider.addEventListener("input", () => { at.z = +slider.value; soon(); });
    $("#brightness").addEventListener("input", (event) => {
      brightness = 2 ** +event.target.value;
      soon();
    });
    $("#lines").addEventListener("change", soon);
    for (const radio of $$("input[name=mode]")) {
      radio.addEventListener("change", () => { mode = radio.value; soon(); });
    }
    function columns() {
      let count = 0;
      for (const box of $$("input[name=column]")) {
        count += box.checked ? 1 : 0;
        for (const cell of $$(`#slices [data-column="${box.value}"]`)) cell.hidden = !box.checked;
      }
      grid.style.setProperty("--columns", Math.max(count, 1));
      soon();
    }
    for (const box of $$("input[name=column]")) box.addEventListener("change", columns);
    const plot = $(".plot");
    if (plot) {
      const jump = (event) => {
        const box = plot.getBoundingClientRect();
        const [left, right] = found.plot;
        const share = (100 * (event.clientX - box.left)) / box.width;
        const z = ((share - left) / (right - left)) * found.depth - 0.5;
        at.z = clamp(Math.round(z / found.step), depth);
        soon();
      };
      plot.addEventListener("pointerdown", jump);
      plot.addEventListener("pointermove", (event) => { if (event.buttons) jump(event); });
    }
    let timer = null;
    const play = $("#play");
    play.addEventListener("click", () => {
      if (timer) {
        clearInterval(timer);
        timer = null;
      } else {
        timer = setInterval(() => { at.z = (at.z + 1) % depth; soon(); }, 110);
      }
      play.textContent = timer ? "Stop" : "Play";
      play.setAttribute("aria-pressed", String(Boolean(timer)));
    });
    window.addEventListener("resize", soon);

    const asked = /^#z=(\d+)$/.exec(window.location.hash);
    if (asked) at.z = clamp(Math.round(+asked[1] / found.step), depth);
    Promise.all($$(".sheets img").map((image) => image.decode())).then(() => {
      columns();
      document.documentElement.dataset.ready = "yes";
    });
  }

  // One of several pictures at a time, by a slider: the parameter of a sweep.
  function choice(found) {
    const slider = $("#parameter");
    function show() {
      const name = found.values[+slider.value];
      for (const cell of $$("[data-value]")) cell.hidden = cell.dataset.value !== name;
      slider.setAttribute("aria-valuetext", `${found.parameter} ${name}`);
      $("#readout").textContent = `${found.parameter} ${name} · ${found.captions[+slider.value]}`;
      document.documentElement.dataset.ready = "yes";
    }
    slider.addEventListener("input", show);
    show();
  }
})();
