// The page of results: a list of images with search and sort, and the viewer; of a report also plots and tables.
//
// The data, which Python writes into the page (models/viewing/page.py):
//   title, subtitle
//   layers   [{title, folder}]           what the viewer shows of an image
//   methods  [{title, layer}]            of what there are scores
//   scores   [{key, label, scale, better}]
//   images   [{name, width, height, file, layers, strip, thumb, values, findings}]
//              layers: the columns of its panel, null for one that is not shown; without it each layer is a file
//              values: [method][score], null where undefined
//   tables   [{title, headings, rows, best, notes}]

const ROW = 56; // pixels, height of an entry, as in style.css
const BEYOND = 6; // entries that are built above and below what is seen
const DOT = 3; // radius of a plot's dots, pixels
const NEAR = 14; // pixels within which a click belongs to a dot
const COLOURS = ["#93a0ac", "#7cc0e8", "#f2b75c", "#8fd19e", "#d9a0e0", "#f0857d", "#c9c46a"];

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const state = { shown: [], selected: -1, ascending: true, score: -1, method: Math.max(0, data.methods.length - 1) };

// --- Numbers ----------------------------------------------------------------------------------------------------------

function valueOf(image, method, score) {
  const value = image.values?.[method]?.[score];
  return value === null || value === undefined ? NaN : value * data.scores[score].scale;
}

function written(value) {
  return Number.isFinite(value) ? value.toFixed(3) : "—";
}

function quantile(sorted, share) {
  const place = share * (sorted.length - 1);
  const low = Math.floor(place);
  const high = Math.ceil(place);
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

// --- The list ---------------------------------------------------------------------------------------------------------

function filterAndSort() {
  const wanted = byId("search").value.trim().toLocaleLowerCase();
  const places = data.images.map((_, place) => place);
  state.shown = places.filter((place) => data.images[place].name.toLocaleLowerCase().includes(wanted));
  const sign = state.ascending ? 1 : -1;
  if (state.score >= 0) {
    const value = (place) => valueOf(data.images[place], state.method, state.score);
    // an image without this score stands last in either order
    state.shown.sort((a, b) => (Number.isNaN(value(a)) - Number.isNaN(value(b))) || sign * (value(a) - value(b)) || a - b);
  } else if (!state.ascending) {
    state.shown.reverse();
  }
  const all = data.images.length;
  byId("count").textContent = state.shown.length === all ? `${all} images` : `${state.shown.length} of ${all} images`;
  byId("direction").textContent = state.ascending ? "↑" : "↓";
  drawList();
}

// Only the entries that are seen exist: a list of thousands costs no more than one of ten.
function drawList() {
  const list = byId("list");
  let room = list.firstElementChild;
  if (!room) {
    room = element("div", { className: "room", role: "presentation" });
    list.append(room);
  }
  room.style.height = `${state.shown.length * ROW}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - BEYOND);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + BEYOND);
  // entries that stay are kept, so that their thumbnails do not flicker
  const before = new Map([...room.children].map((entry) => [Number(entry.dataset.place), entry]));
  const entries = [];
  for (let row = first; row < last; row++) {
    const place = state.shown[row];
    const entry = before.get(place) || buildEntry(place);
    entry.style.top = `${row * ROW}px`;
    entry.setAttribute("aria-posinset", row + 1);
    entry.setAttribute("aria-setsize", state.shown.length);
    entry.setAttribute("aria-selected", place === state.selected);
    entry.querySelector(".value").textContent = shownValue(place);
    entries.push(entry);
  }
  room.replaceChildren(...entries);
  if (state.selected >= 0) list.setAttribute("aria-activedescendant", `entry-${state.selected}`);
}

function buildEntry(place) {
  const image = data.images[place];
  const thumb = element("img", { className: "thumb", alt: "", loading: "lazy", decoding: "async" });
  thumb.addEventListener("error", () => { thumb.style.visibility = "hidden"; });
  if (image.thumb) thumb.src = image.thumb;
  const words = element("div", { className: "words" }, element("div", { title: image.name }, image.name), element("div", { className: "value" }));
  const entry = element("div", { className: "entry", role: "option", id: `entry-${place}` }, thumb, words);
  entry.dataset.place = place;
  entry.addEventListener("click", () => select(place));
  return entry;
}

function shownValue(place) {
  if (state.score < 0) return "";
  return `${data.scores[state.score].label}  ${written(valueOf(data.images[place], state.method, state.score))}`;
}

function select(place) {
  if (place === undefined || place < 0) return;
  state.selected = place;
  const list = byId("list");
  const row = state.shown.indexOf(place);
  if (row >= 0) {
    const top = row * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  }
  drawList();
  viewer.show(forViewer(place));
  // the image's name in the address, so that a link or a bookmark leads to it
  history.replaceState(null, "", `#${encodeURIComponent(data.images[place].name)}`);
  drawPlot();
  drawScores();
  for (const neighbour of [row - 1, row + 1]) loadAhead(state.shown[neighbour]);
}

function step(rows) {
  if (!state.shown.length) return;
  const row = state.shown.indexOf(state.selected);
  select(state.shown[bounded(row < 0 ? 0 : row + rows, 0, state.shown.length - 1)]);
}

// --- An image for the viewer ------------------------------------------------------------------------------------------

function forViewer(place) {
  const image = data.images[place];
  const sources = data.layers.map((layer, number) => {
    if (!image.layers) return { url: `${layer.folder}${image.file}` };
    const column = image.layers.indexOf(number);
    if (column >= 0) return { url: `${data.panels}${image.file}`, column, columns: image.layers.length, strip: image.strip };
    return (image.further || []).includes(number) ? { url: `${layer.folder}${image.file}` } : null;
  });
  const found = [...(image.findings || []), ...(state.findings?.get(image.name) || [])];
  return { name: image.name, width: image.width, height: image.height, sources, findings: found };
}

function loadAhead(place) {
  if (place === undefined) return;
  const urls = new Set(forViewer(place).sources.filter(Boolean).map((source) => source.url));
  for (const url of urls) new Image().src = url;
}

// --- Findings of a file that the reader opens -------------------------------------------------------------------------

// The rows of a CSV text; quotes protect commas and line breaks, and are doubled inside.
function parseCsv(text) {
  const rows = [];
  let row = [];
  let cell = "";
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const letter = text[i];
    if (quoted) {
      if (letter === '"' && text[i + 1] === '"') { cell += '"'; i++; }
      else if (letter === '"') quoted = false;
      else cell += letter;
    } else if (letter === '"') quoted = true;
    else if (letter === ",") { row.push(cell); cell = ""; }
    else if (letter === "\n") { rows.push([...row, cell]); row = []; cell = ""; }
    else if (letter !== "\r") cell += letter;
  }
  if (cell || row.length) rows.push([...row, cell]);
  return rows.filter((each) => each.some((value) => value.trim()));
}

// {image: findings} of the text of a CSV, as metrics.findings takes it; an error says what it lacks.
function readFindings(text) {
  const [headings, ...rows] = parseCsv(text.replace(/^\uFEFF/, ""));
  const names = (headings || []).map((name) => name.trim().toLowerCase());
  const column = (...options) => names.findIndex((name) => options.includes(name));
  const image = column("image", "image_id", "name");
  const label = column("label", "class_name");
  const point = ["x", "y", "diameter"].map((name) => column(name));
  const box = ["x_min", "y_min", "x_max", "y_max"].map((name) => column(name));
  const isPoint = !point.includes(-1);
  if (image < 0 || (!isPoint && box.includes(-1))) {
    throw new Error("a list of findings has the columns image, and x, y, diameter or x_min, y_min, x_max, y_max");
  }
  const found = new Map();
  for (const row of rows) {
    const values = (isPoint ? point : box).map((place) => (row[place] || "").trim());
    if (values.every((value) => !value)) continue; // a healthy image
    const numbers = values.map(Number);
    if (values.includes("") || numbers.some(Number.isNaN)) throw new Error(`no numbers in the row of ${row[image]}`);
    let [x, y, diameter] = numbers;
    if (!isPoint) {
      const [left, top, right, bottom] = numbers;
      x = (left + right) / 2;
      y = (top + bottom) / 2;
      diameter = (right - left + bottom - top) / 2; // the circle of its mean side, as metrics.py has it
    }
    const name = withoutEnding(row[image].trim());
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ x, y, diameter, label: label >= 0 ? row[label] || "" : "" });
  }
  return found;
}

function withoutEnding(name) {
  const known = /\.(png|tiff?|jpe?g|bmp|gif|webp|jp2|j2k|p[gpn]m|npy|dcm|dicom|img)$/i;
  return name.replace(known, "");
}

async function openFindings(file) {
  try {
    state.findings = readFindings(await file.text());
    const known = data.images.filter((image) => state.findings.has(image.name)).length;
    byId("status-note").textContent = `${file.name}: findings in ${known} of these images`;
  } catch (error) {
    byId("status-note").textContent = `${file.name}: ${error.message}`;
    return;
  }
  byId("findings").hidden = false;
  if (state.selected >= 0) viewer.show(forViewer(state.selected));
}

// --- Plots ------------------------------------------------------------------------------------------------------------

// Where the dots are: [{x, y, place, method}], for clicks and keys.
let dots = [];

// Box plots of the chosen score, a column for each method, and every image as a dot.
function drawPlot() {
  const canvas = byId("plot");
  if (byId("plots").hidden || state.score < 0) return;
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";

  const series = data.methods.map((_, method) => data.images.map((image) => valueOf(image, method, state.score)));
  const finite = series.flat().filter(Number.isFinite);
  dots = [];
  if (!finite.length) return;
  const [least, most] = range(finite);
  const margin = (most - least || 1) * 0.06;
  const [left, right, top, bottom] = [66, width - 12, 26, height - 26];
  const toY = (value) => bottom - ((value - least + margin) / (most - least + 2 * margin)) * (bottom - top);

  // axis
  pen.fillStyle = "#93a0ac";
  pen.strokeStyle = "#20272e";
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (const tick of ticks(least, most)) {
    pen.fillText(tick.text, left - 8, toY(tick.value));
    pen.beginPath();
    pen.moveTo(left, toY(tick.value));
    pen.lineTo(right, toY(tick.value));
    pen.stroke();
  }
  const score = data.scores[state.score];
  const arrow = { larger: " ↑", smaller: " ↓" }[score.better] || "";
  pen.textAlign = "left";
  pen.fillStyle = "#d9dfe5";
  pen.fillText(score.label + arrow, 10, 12);

  // a column for each method
  const column = (right - left) / series.length;
  const half = Math.min(column * 0.32, 70);
  for (const [method, values] of series.entries()) {
    const middle = left + (method + 0.5) * column;
    const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
    pen.fillStyle = COLOURS[method % COLOURS.length];
    pen.globalAlpha = bounded(60 / sorted.length, 0.25, 0.85);
    for (const [place, value] of values.entries()) {
      if (!Number.isFinite(value)) continue;
      // sideways by the golden ratio, which spreads any number of dots evenly and always alike
      const x = middle + (((place * 0.618034) % 1) * 2 - 1) * half * 0.8;
      const y = toY(value);
      dots.push({ x, y, place, method });
      pen.beginPath();
      pen.arc(x, y, DOT, 0, 2 * Math.PI);
      pen.fill();
    }
    pen.globalAlpha = 1;
    if (sorted.length) drawBox(pen, sorted, middle, half, toY);
    pen.textAlign = "center";
    pen.fillStyle = "#d9dfe5";
    pen.fillText(shortened(pen, data.methods[method].title, column - 10), middle, height - 11);
  }

  // the image that is shown, in every method
  for (const dot of dots.filter((each) => each.place === state.selected)) {
    pen.strokeStyle = "#ffffff";
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(dot.x, dot.y, DOT + 3, 0, 2 * Math.PI);
    pen.stroke();
  }
  const selected = state.selected >= 0 ? `; shown: ${data.images[state.selected].name}` : "";
  canvas.setAttribute("aria-label", `box plots of ${score.label}: left and right walk through the images by it${selected}`);
}

// The ends of a series in a list of two: spreading thousands of arguments into Math.min would overflow the stack.
function range(values) {
  let [least, most] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return [least, most];
}

// Median, quartiles, and whiskers to the last value within 1.5 times their distance.
function drawBox(pen, sorted, middle, half, toY) {
  const [low, median, high] = [0.25, 0.5, 0.75].map((share) => quantile(sorted, share));
  const reach = 1.5 * (high - low);
  const bottom = sorted.find((value) => value >= low - reach);
  const top = sorted.filter((value) => value <= high + reach).at(-1);
  pen.strokeStyle = "#dfe6ec";
  pen.lineWidth = 1.2;
  pen.strokeRect(middle - half, toY(high), 2 * half, toY(low) - toY(high));
  pen.beginPath();
  pen.moveTo(middle, toY(low));
  pen.lineTo(middle, toY(bottom));
  pen.moveTo(middle, toY(high));
  pen.lineTo(middle, toY(top));
  pen.stroke();
  pen.lineWidth = 2.4;
  pen.beginPath();
  pen.moveTo(middle - half, toY(median));
  pen.lineTo(middle + half, toY(median));
  pen.stroke();
}

function ticks(least, most) {
  const rough = (most - least || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(size)));
  const found = [];
  for (let value = Math.ceil(least / size) * size; value <= most + size / 1e6; value += size) {
    found.push({ value, text: value.toFixed(digits) });
  }
  return found;
}

function shortened(pen, words, width) {
  let cut = words;
  while (cut.length > 1 && pen.measureText(cut).width > width) cut = `${cut.slice(0, -2)}…`;
  return cut;
}

function nearestDot(event) {
  const box = byId("plot").getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  let best = null;
  let distance = NEAR;
  for (const dot of dots) {
    const away = Math.hypot(dot.x - x, dot.y - y);
    if (away < distance) [best, distance] = [dot, away];
  }
  return best;
}

function onPlotClick(event) {
  const dot = nearestDot(event);
  if (!dot) return;
  // the method that was clicked is shown beside the first layer
  const layer = data.methods[dot.method].layer;
  if (viewer.mode === "grid") viewer.seen[layer] = true;
  else viewer.front = layer;
  select(dot.place);
}

// Left and right: to the image with the next smaller or larger value.
function onPlotKey(event) {
  if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  event.preventDefault();
  event.stopPropagation();
  const value = (place) => valueOf(data.images[place], state.method, state.score);
  const order = data.images.map((_, place) => place).filter((place) => Number.isFinite(value(place))).sort((a, b) => value(a) - value(b));
  const place = order.indexOf(state.selected) + (event.key === "ArrowRight" ? 1 : -1);
  select(order[bounded(place, 0, order.length - 1)]);
}

// --- Tables -----------------------------------------------------------------------------------------------------------

function buildTable({ title, headings, rows, best = [], notes = [] }) {
  const bold = new Set(best.map(([row, column]) => `${row}/${column}`));
  const head = element("tr", {}, ...headings.map((heading) => element("th", { scope: "col" }, heading)));
  const lines = rows.map((cells, row) => element("tr", {}, ...cells.map((cell, column) =>
    element(column ? "td" : "th", { className: bold.has(`${row}/${column}`) ? "best" : "", ...(column ? {} : { scope: "row" }) }, cell))));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
  return element("section", {}, element("h2", {}, title), element("div", { className: "scroller" }, table), ...notes.map((note) => element("p", { className: "note" }, note)));
}

// All scores of the image that is shown.
function drawScores() {
  if (byId("plots").hidden || state.selected < 0) return;
  const image = data.images[state.selected];
  const rows = data.scores.map((score, number) => [score.label, ...data.methods.map((_, method) => written(valueOf(image, method, number)))]);
  byId("scores").replaceChildren(buildTable({ title: "This image", headings: ["", ...data.methods.map((method) => method.title)], rows }));
}

function showView(name) {
  byId("images").hidden = name !== "images";
  byId("tables").hidden = name !== "tables";
  byId("view-images").setAttribute("aria-pressed", name === "images");
  byId("view-tables").setAttribute("aria-pressed", name === "tables");
  if (name === "images") {
    viewer.place();
    drawList();
    drawPlot();
  } else byId("tables").focus();
}

// --- Controls ---------------------------------------------------------------------------------------------------------

function fillSelect(select, options, value) {
  select.replaceChildren(...options.map(([key, words]) => element("option", { value: key }, words)));
  select.value = value;
}

function buildControls() {
  byId("title").textContent = data.title;
  byId("subtitle").textContent = data.subtitle;
  document.title = data.title;

  // the list
  fillSelect(byId("sort"), [[-1, "in the order of the list"], ...data.scores.map((score, number) => [number, `by ${score.label}`])], state.score);
  fillSelect(byId("method"), data.methods.map((method, number) => [number, `of ${method.title}`]), state.method);
  byId("of-method").hidden = data.methods.length < 2;
  byId("search").addEventListener("input", () => { byId("list").scrollTop = 0; filterAndSort(); });
  byId("sort").addEventListener("change", (event) => { state.score = Number(event.target.value); rearranged(); });
  byId("method").addEventListener("change", (event) => { state.method = Number(event.target.value); rearranged(); });
  byId("direction").addEventListener("click", () => { state.ascending = !state.ascending; rearranged(); });
  byId("list").addEventListener("scroll", drawList);

  // the viewer
  const names = { grid: "Side by side", slider: "Slider", blink: "Blink", difference: "Difference" };
  for (const mode of MODES) {
    const button = element("button", { id: `mode-${mode}`, title: `${names[mode]} (${mode[0].toUpperCase()})` }, names[mode]);
    button.addEventListener("click", () => viewer.setMode(mode));
    byId("modes").append(button);
  }
  for (const [layer, { title }] of data.layers.entries()) {
    const button = element("button", { title: `show or hide (${layer + 1})` }, title);
    button.addEventListener("click", () => viewer.toggleLayer(layer));
    byId("layers").append(button);
  }
  const layers = data.layers.map((layer, number) => [number, layer.title]);
  fillSelect(byId("back"), layers, viewer.back);
  fillSelect(byId("front"), layers, viewer.front);
  byId("back").addEventListener("change", (event) => viewer.choose(Number(event.target.value), viewer.front));
  byId("front").addEventListener("change", (event) => viewer.choose(viewer.back, Number(event.target.value)));
  byId("swap").addEventListener("click", () => viewer.choose(viewer.front, viewer.back));
  byId("tool-window").addEventListener("click", () => viewer.setTool("window"));
  byId("tool-move").addEventListener("click", () => viewer.setTool("move"));
  byId("smaller").addEventListener("click", () => viewer.zoomBy(1 / ZOOM_STEP));
  byId("larger").addEventListener("click", () => viewer.zoomBy(ZOOM_STEP));
  byId("fit").addEventListener("click", () => viewer.fit());
  byId("invert").addEventListener("click", () => viewer.invert());
  byId("reset").addEventListener("click", () => viewer.resetWindow());
  byId("findings").addEventListener("click", () => viewer.setFindings(!viewer.findingsShown));
  byId("findings").hidden = !data.images.some((image) => image.findings?.length);
  byId("findings-file").addEventListener("change", (event) => {
    if (event.target.files.length) openFindings(event.target.files[0]);
  });

  // plots and tables
  byId("plots").hidden = !data.plots;
  byId("views").hidden = !data.tables?.length;
  byId("tables").append(...(data.tables || []).map(buildTable));
  byId("view-images").addEventListener("click", () => showView("images"));
  byId("view-tables").addEventListener("click", () => showView("tables"));
  byId("plot").addEventListener("click", onPlotClick);
  byId("plot").addEventListener("keydown", onPlotKey);
  byId("plot").addEventListener("pointermove", (event) => {
    const dot = nearestDot(event);
    byId("plot").title = dot ? `${data.images[dot.place].name}: ${written(valueOf(data.images[dot.place], dot.method, state.score))}` : "";
  });
  new ResizeObserver(() => { drawPlot(); drawList(); }).observe(byId("images"));

  byId("help").addEventListener("click", () => byId("keys").showModal());
  document.addEventListener("keydown", onKey);
}

function rearranged() {
  filterAndSort();
  viewer.build();
  drawPlot();
}

function drawStatus() {
  byId("status-name").textContent = viewer.image ? viewer.image.name : "no image";
  const difference = viewer.mode === "difference";
  const window = `window ${Math.round(viewer.width)}, level ${Math.round(viewer.level)} of ${GREYS}`;
  byId("status-window").textContent = (difference ? `difference × ${viewer.gain.toFixed(1)}, grey: none` : window) + (viewer.inverted ? ", inverted" : "");
  byId("status-zoom").textContent = `${Math.round(100 * viewer.zoom)} % of the pane`;
  for (const mode of MODES) byId(`mode-${mode}`).setAttribute("aria-pressed", mode === viewer.mode);
  for (const [layer, button] of [...byId("layers").children].entries()) button.setAttribute("aria-pressed", viewer.seen[layer]);
  byId("layers").hidden = viewer.mode !== "grid";
  byId("two").hidden = viewer.mode === "grid";
  byId("back").value = viewer.back;
  byId("front").value = viewer.front;
  byId("tool-window").setAttribute("aria-pressed", viewer.tool === "window");
  byId("tool-move").setAttribute("aria-pressed", viewer.tool === "move");
  byId("invert").setAttribute("aria-pressed", viewer.inverted);
  byId("findings").setAttribute("aria-pressed", viewer.findingsShown);
}

function onKey(event) {
  const target = event.target;
  const typing = target.matches("input, textarea, select");
  if (typing) {
    if (event.key === "Escape" || (event.key === "Enter" && target.id === "search")) byId("list").focus();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  // on a button these two press it
  if (target.matches("button") && [" ", "Enter"].includes(event.key)) return;
  const onDivider = target.matches(".divider");
  const actions = {
    "?": () => byId("keys").showModal(),
    "/": () => byId("search").focus(),
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    PageDown: () => step(10),
    PageUp: () => step(-10),
    Home: () => step(-data.images.length),
    End: () => step(data.images.length),
  };
  if (data.plots) actions.p = () => { byId("plots").hidden = !byId("plots").hidden; drawPlot(); drawScores(); };
  if (data.tables?.length) actions.t = () => showView(byId("tables").hidden ? "tables" : "images");
  const inTables = !byId("tables").hidden;
  if (inTables && !["t", "?"].includes(event.key)) return;
  const scrolls = event.shiftKey && event.key.startsWith("Arrow");
  if (event.key in actions && !scrolls && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    actions[event.key]();
  } else if (viewer.onKey(event)) {
    event.preventDefault();
    // a rebuilt slider keeps the focus that its handle had
    if (onDivider) document.querySelector(".divider")?.focus();
  }
}

const viewer = new Viewer(byId("stage"), data.layers.map((layer) => layer.title), drawStatus);
viewer.caption = (layer) => {
  const method = data.methods.findIndex((each) => each.layer === layer);
  if (method < 0 || state.score < 0 || state.selected < 0) return "";
  return `${data.scores[state.score].label} ${written(valueOf(data.images[state.selected], method, state.score))}`;
};
if (data.plots) state.score = Math.max(0, data.scores.findIndex((score) => score.key === "PSNR"));
buildControls();
filterAndSort();
const askedPlace = data.images.findIndex((image) => `#${encodeURIComponent(image.name)}` === location.hash);
select(askedPlace >= 0 ? askedPlace : state.shown[0]);
drawStatus();
byId("list").focus();
