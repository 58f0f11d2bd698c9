// The viewer: the layers of one image in panes that zoom, move and are windowed in step.
//
// No pixel is ever read. A page that was opened from a disk may not read back what it has drawn of an image file, so
// the browser itself makes what is seen: an SVG filter sets window and level, blending shows a difference, clipping
// makes the slider.

const SVG = "http://www.w3.org/2000/svg";
const GREYS = 255; // a browser shows 8 bits, whatever the file holds
const ZOOM_STEP = 1.25;
const MOST_ZOOM = 32;
const LEAST_WIDTH = 2; // of the window, grey values
const WINDOW_SPEED = 0.6; // grey values for each pixel that the pointer is dragged
const BLINK = 450; // milliseconds for which each of two layers is seen
const MODES = ["grid", "slider", "blink", "difference"];

const bounded = (value, least, most) => Math.min(Math.max(value, least), most);

// An element with properties and children. Texts become text nodes, so no name is ever taken for markup.
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

function svgElement(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// A filter of the page that maps each grey value x in [0, 1] to slope x + intercept.
class LinearFilter {
  constructor(name) {
    this.transfers = ["feFuncR", "feFuncG", "feFuncB"].map((tag) => svgElement(tag, { type: "linear" }));
    const transfer = svgElement("feComponentTransfer", {});
    transfer.append(...this.transfers);
    // sRGB: the values as they stand in the file; the default would make them linear light first
    const filter = svgElement("filter", { id: name, "color-interpolation-filters": "sRGB", x: 0, y: 0, width: 1, height: 1 });
    filter.append(transfer);
    const holder = svgElement("svg", { width: 0, height: 0, "aria-hidden": "true", style: "position:absolute" });
    holder.append(filter);
    document.body.append(holder);
    this.style = `url(#${name})`;
  }

  set(slope, intercept) {
    for (const transfer of this.transfers) {
      transfer.setAttribute("slope", slope);
      transfer.setAttribute("intercept", intercept);
    }
  }
}

// stage: the element that is filled with panes. titles: of the layers. onChange(): after anything that a status line
// may want to show.
class Viewer {
  constructor(stage, titles, onChange = () => {}) {
    this.stage = stage;
    this.titles = titles;
    this.onChange = () => {}; // until everything is there
    this.image = null;
    this.mode = "grid";
    this.seen = titles.map(() => true); // layers in the grid
    this.front = Math.min(1, titles.length - 1); // the two layers of slider, blink and difference
    this.back = 0;
    this.split = 0.5; // where the slider stands, as a share of the pane's width
    this.frontShown = true; // while blinking
    this.tool = "window"; // what dragging does
    this.findingsShown = true;
    this.caption = () => ""; // (layer) -> a line below its title
    this.overlay = null; // (svg, toScreen) draws more into each pane
    this.windowFilter = new LinearFilter("window");
    this.differenceFilter = new LinearFilter("difference");
    this.panes = [];
    this.resetWindow();
    this.fit();
    stage.dataset.tool = this.tool;
    stage.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    stage.addEventListener("pointerdown", (event) => this.onPointerDown(event));
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("dblclick", () => this.fit());
    new ResizeObserver(() => this.place()).observe(stage);
    this.onChange = onChange;
  }

  // image: {name, width, height, sources: [{url, column, columns, strip} or null, for each layer], findings}.
  show(image) {
    this.image = image;
    this.build();
  }

  // --- what is seen ---------------------------------------------------------------------------------------------------

  setMode(mode) {
    this.mode = mode;
    this.build();
  }

  toggleLayer(layer) {
    if (layer >= this.titles.length) return;
    if (this.mode === "grid") {
      this.seen[layer] = !this.seen[layer];
      if (!this.seen.includes(true)) this.seen[layer] = true; // an empty stage helps nobody
    } else {
      this.front = layer;
    }
    this.build();
  }

  choose(back, front) {
    this.back = back;
    this.front = front;
    this.build();
  }

  setTool(tool) {
    this.tool = tool;
    this.stage.dataset.tool = tool;
    this.onChange();
  }

  setFindings(shown) {
    this.findingsShown = shown;
    this.place();
    this.onChange();
  }

  moveSplit(split) {
    this.split = bounded(split, 0, 1);
    this.place();
  }

  // --- window and level -----------------------------------------------------------------------------------------------

  resetWindow() {
    this.width = GREYS;
    this.level = GREYS / 2;
    this.inverted = false;
    this.gain = 2; // of a difference
    this.applyWindow();
  }

  setWindow(level, width) {
    this.level = bounded(level, 0, GREYS);
    this.width = bounded(width, LEAST_WIDTH, 2 * GREYS);
    this.applyWindow();
  }

  setGain(gain) {
    this.gain = bounded(gain, 0.25, 20);
    this.applyWindow();
  }

  invert() {
    this.inverted = !this.inverted;
    this.applyWindow();
  }

  applyWindow() {
    // black at level - width / 2, white at level + width / 2
    const slope = GREYS / this.width;
    const intercept = 0.5 - this.level / this.width;
    const sign = this.inverted ? -1 : 1;
    this.windowFilter.set(sign * slope, this.inverted ? 1 - intercept : intercept);
    // blending gives 0.5 + (a - b) / 2; grey stays grey, a difference is multiplied by the gain
    this.differenceFilter.set(sign * 2 * this.gain, 0.5 - sign * this.gain);
    this.onChange();
  }

  // --- zoom and place -------------------------------------------------------------------------------------------------

  fit() {
    this.zoom = 1;
    this.centre = { x: 0.5, y: 0.5 }; // of a pane, as shares of the image, so that it holds for images of any size
    this.place();
    this.onChange();
  }

  zoomBy(factor, pane = this.panes[0], x = null, y = null) {
    if (!pane || !this.image) return;
    const zoom = bounded(this.zoom * factor, 1, MOST_ZOOM);
    // the point under the pointer stays where it is
    const before = this.geometry(pane);
    const atX = x === null ? pane.element.clientWidth / 2 : x;
    const atY = y === null ? pane.element.clientHeight / 2 : y;
    const shareX = (atX - before.left) / before.width;
    const shareY = (atY - before.top) / before.height;
    this.zoom = zoom;
    const after = this.geometry(pane);
    this.centre.x += shareX - (atX - after.left) / after.width;
    this.centre.y += shareY - (atY - after.top) / after.height;
    this.keepInside();
    this.place();
    this.onChange();
  }

  // dx, dy: pixels of the screen.
  moveBy(dx, dy, pane = this.panes[0]) {
    if (!pane || !this.image) return;
    const { width, height } = this.geometry(pane);
    this.centre.x -= dx / width;
    this.centre.y -= dy / height;
    this.keepInside();
    this.place();
  }

  keepInside() {
    if (this.zoom === 1) this.centre = { x: 0.5, y: 0.5 };
    this.centre.x = bounded(this.centre.x, 0, 1);
    this.centre.y = bounded(this.centre.y, 0, 1);
  }

  // Where the image lies in a pane, pixels of the screen.
  geometry(pane) {
    const paneWidth = pane.element.clientWidth;
    const paneHeight = pane.element.clientHeight;
    const scale = Math.min(paneWidth / this.image.width, paneHeight / this.image.height) * this.zoom;
    const width = this.image.width * scale;
    const height = this.image.height * scale;
    const left = paneWidth / 2 - this.centre.x * width;
    const top = paneHeight / 2 - this.centre.y * height;
    return { left, top, width, height, scale };
  }

  // The point of the image, in its pixels, under a point of the window.
  toImage(pane, clientX, clientY) {
    const box = pane.element.getBoundingClientRect();
    const { left, top, scale } = this.geometry(pane);
    return { x: (clientX - box.left - left) / scale, y: (clientY - box.top - top) / scale };
  }

  // --- panes ----------------------------------------------------------------------------------------------------------

  build() {
    if (!this.image) return;
    clearInterval(this.blinking);
    let contents = [[this.back, this.front]];
    if (this.mode === "grid") {
      const layers = this.titles.map((_, layer) => layer);
      contents = layers.filter((layer) => this.seen[layer] && this.image.sources[layer]).map((layer) => [layer]);
    }
    this.panes = contents.map((layers) => this.buildPane(layers));
    this.stage.replaceChildren(...this.panes.map((pane) => pane.element));
    if (this.mode === "blink") {
      this.frontShown = true;
      this.blinking = setInterval(() => this.blinkOnce(), BLINK);
    }
    this.place();
    this.onChange();
  }

  buildPane(layers) {
    const pane = { element: element("div", { className: "pane" }), sheets: [], layers };
    const add = (sheet) => {
      pane.sheets.push(sheet);
      pane.element.append(sheet.element);
    };
    if (this.mode === "difference") {
      add(this.buildSheet(layers, this.differenceFilter));
    } else {
      for (const layer of layers) add(this.buildSheet([layer], this.windowFilter));
    }
    pane.overlay = svgElement("svg", { class: "overlay", "aria-hidden": "true" });
    pane.element.append(pane.overlay, ...this.buildCaptions(layers));
    if (this.mode === "slider") pane.element.append(this.buildDivider(pane));
    return pane;
  }

  // One image with a filter, or two of which the second is subtracted from the first.
  buildSheet(layers, filter) {
    const cut = element("div", { className: "cut" });
    const sheet = element("div", { className: "sheet" }, cut);
    sheet.style.filter = filter.style;
    const pictures = [];
    for (const [place, layer] of layers.entries()) {
      const source = this.image.sources[layer];
      if (!source) continue;
      const picture = element("img", { alt: `${this.titles[layer]} of ${this.image.name}`, draggable: false });
      picture.decoding = "async";
      if (place === 1) picture.className = "minus";
      picture.addEventListener("error", () => sheet.append(element("div", { className: "missing" }, `${this.titles[layer]}: no such file`)));
      picture.src = source.url;
      pictures.push({ picture, source });
      cut.append(picture);
    }
    if (!pictures.length) sheet.append(element("div", { className: "missing" }, "not there"));
    return { element: sheet, cut, pictures };
  }

  buildCaptions(layers) {
    const captions = [];
    const write = (words, layer, right) => {
      const value = layer === null ? "" : this.caption(layer);
      captions.push(element("div", { className: right ? "caption right" : "caption" }, words, element("span", { className: "value" }, value)));
    };
    if (this.mode === "grid") write(this.titles[layers[0]], layers[0], false);
    if (this.mode === "slider") {
      write(this.titles[this.back], this.back, false);
      write(this.titles[this.front], this.front, true);
    }
    if (this.mode === "blink") {
      write(this.titles[this.front], this.front, false);
      write(this.titles[this.back], this.back, false);
    }
    if (this.mode === "difference") write(`${this.titles[this.back]} − ${this.titles[this.front]}`, null, false);
    return captions;
  }

  buildDivider(pane) {
    const divider = element("div", { className: "divider", role: "slider", tabIndex: 0, "aria-label": "slider between the two images" });
    divider.setAttribute("aria-valuemin", 0);
    divider.setAttribute("aria-valuemax", 100);
    divider.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      divider.setPointerCapture(event.pointerId);
      divider.onpointermove = (move) => {
        const box = pane.element.getBoundingClientRect();
        this.moveSplit((move.clientX - box.left) / box.width);
      };
    });
    divider.addEventListener("pointerup", () => { divider.onpointermove = null; });
    divider.addEventListener("dblclick", (event) => event.stopPropagation());
    pane.divider = divider;
    return divider;
  }

  blinkOnce() {
    this.frontShown = !this.frontShown;
    this.place();
    this.onChange();
  }

  // Everything to where it belongs; called for every movement, and so builds nothing anew but the findings.
  place() {
    if (!this.image || !this.panes.length) return;
    this.arrange();
    for (const pane of this.panes) {
      const { left, top, width, height, scale } = this.geometry(pane);
      for (const sheet of pane.sheets) {
        Object.assign(sheet.cut.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
        for (const { picture, source } of sheet.pictures) {
          // a column of a panel: the others, and the strip of titles above them, are cut off
          const columns = source.columns || 1;
          picture.style.width = `${columns * width}px`;
          picture.style.height = `${height + (source.strip || 0) * scale}px`;
          picture.style.left = `${-(source.column || 0) * width}px`;
          picture.style.top = `${-(source.strip || 0) * scale}px`;
        }
      }
      if (pane.divider) {
        const percent = 100 * this.split;
        pane.divider.style.left = `${percent}%`;
        pane.divider.setAttribute("aria-valuenow", Math.round(percent));
        pane.sheets[1].element.style.clipPath = `inset(0 0 0 ${percent}%)`;
      }
      if (this.mode === "blink") {
        pane.sheets[1].element.style.visibility = this.frontShown ? "visible" : "hidden";
        const [front, back] = pane.element.querySelectorAll(".caption");
        front.hidden = !this.frontShown;
        back.hidden = this.frontShown;
      }
      this.drawOverlay(pane);
    }
  }

  // As many columns of panes as show the images largest.
  arrange() {
    const count = this.panes.length;
    const { clientWidth, clientHeight } = this.stage;
    let best = { columns: 1, scale: 0 };
    for (let columns = 1; columns <= count; columns++) {
      const rows = Math.ceil(count / columns);
      const scale = Math.min(clientWidth / columns / this.image.width, clientHeight / rows / this.image.height);
      if (scale > best.scale) best = { columns, scale };
    }
    this.stage.style.gridTemplateColumns = `repeat(${best.columns}, minmax(0, 1fr))`;
    this.stage.style.gridAutoRows = "minmax(0, 1fr)";
  }

  drawOverlay(pane) {
    const { left, top, scale } = this.geometry(pane);
    const toScreen = (x, y) => ({ x: left + x * scale, y: top + y * scale });
    pane.overlay.replaceChildren();
    for (const finding of this.findingsShown ? this.image.findings || [] : []) {
      // pixels are counted from their centres, so that 0 lies half a pixel inside the image
      const { x, y } = toScreen(finding.x + 0.5, finding.y + 0.5);
      const circle = { cx: x, cy: y, r: Math.max((finding.diameter / 2) * scale, 6) };
      pane.overlay.append(svgElement("circle", { ...circle, class: "halo" }), svgElement("circle", { ...circle, class: "finding" }));
      if (finding.label) {
        const label = svgElement("text", { x: circle.cx + circle.r + 5, y: circle.cy + 4 });
        label.textContent = finding.label;
        pane.overlay.append(label);
      }
    }
    if (this.overlay) this.overlay(pane.overlay, toScreen, scale);
  }

  // --- pointer --------------------------------------------------------------------------------------------------------

  paneAt(event) {
    return this.panes.find((pane) => pane.element.contains(event.target));
  }

  onWheel(event) {
    const pane = this.paneAt(event);
    if (!pane) return;
    event.preventDefault();
    const box = pane.element.getBoundingClientRect();
    this.zoomBy(Math.exp(-event.deltaY / 500), pane, event.clientX - box.left, event.clientY - box.top);
  }

  onPointerDown(event) {
    const pane = this.paneAt(event);
    if (!pane || !this.image || this.tool === "mark") return;
    event.preventDefault();
    const moves = this.tool === "move" || event.shiftKey || event.button > 0;
    const start = { x: event.clientX, y: event.clientY, level: this.level, width: this.width, gain: this.gain };
    let last = start;
    const follow = (move) => {
      if (moves) {
        this.moveBy(move.clientX - last.x, move.clientY - last.y, pane);
        last = { x: move.clientX, y: move.clientY };
      } else if (this.mode === "difference") {
        this.setGain(start.gain * Math.exp((move.clientX - start.x) / 200));
      } else {
        // to the right wider, and so less contrast; up a lower level, and so brighter
        const width = start.width + WINDOW_SPEED * (move.clientX - start.x);
        this.setWindow(start.level + WINDOW_SPEED * (move.clientY - start.y), width);
      }
    };
    const end = () => {
      window.removeEventListener("pointermove", follow);
      window.removeEventListener("pointerup", end);
      window.removeEventListener("pointercancel", end);
    };
    window.addEventListener("pointermove", follow);
    window.addEventListener("pointerup", end);
    window.addEventListener("pointercancel", end);
  }

  // --- keys -----------------------------------------------------------------------------------------------------------

  // Whether the key was the viewer's.
  onKey(event) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const number = event.code.startsWith("Digit") ? Number(event.code.slice(5)) : 0;
    if (number > 0 && this.titles.length > 1) {
      // Shift and a number: the layer on the other side
      if (event.shiftKey && number <= this.titles.length) this.choose(number - 1, this.front);
      else this.toggleLayer(number - 1);
      return true;
    }
    if (event.shiftKey && key.startsWith("Arrow")) {
      const step = 60;
      if (key === "ArrowLeft") this.moveBy(step, 0);
      if (key === "ArrowRight") this.moveBy(-step, 0);
      if (key === "ArrowUp") this.moveBy(0, step);
      if (key === "ArrowDown") this.moveBy(0, -step);
      return true;
    }
    const actions = {
      i: () => this.invert(),
      r: () => this.resetWindow(),
      w: () => this.setTool("window"),
      m: () => this.setTool("move"),
      f: () => this.setFindings(!this.findingsShown),
      "+": () => this.zoomBy(ZOOM_STEP),
      "=": () => this.zoomBy(ZOOM_STEP),
      "-": () => this.zoomBy(1 / ZOOM_STEP),
      0: () => this.fit(),
      "[": () => (this.mode === "difference" ? this.setGain(this.gain * 1.25) : this.setWindow(this.level, this.width * 0.9)),
      "]": () => (this.mode === "difference" ? this.setGain(this.gain / 1.25) : this.setWindow(this.level, this.width / 0.9)),
      ",": () => this.setWindow(this.level - 5, this.width),
      ".": () => this.setWindow(this.level + 5, this.width),
    };
    if (this.titles.length > 1) {
      Object.assign(actions, {
        g: () => this.setMode("grid"),
        s: () => this.setMode("slider"),
        b: () => this.setMode("blink"),
        d: () => this.setMode("difference"),
        x: () => this.choose(this.front, this.back),
        ArrowLeft: () => this.moveSplit(this.split - 0.02),
        ArrowRight: () => this.moveSplit(this.split + 0.02),
        " ": () => this.blinkOnce(),
      });
    }
    if (!(key in actions) || event.ctrlKey || event.metaKey || event.altKey) return false;
    actions[key]();
    return true;
  }
}
