// The page of the reading study: one image at a time, three criteria, lesions, a clock; answers stay in the browser.
//
// The data, which Python writes into the page (models/reading/folder.py):
//   title, study     the study's name, by which answers are known to belong to it
//   criteria         [{key, title, options: [[value, words]]}]
//   confidences      [[value, words]]
//   orders           {reader: [image, ...]}
//   images           {image: [width, height]}

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const CLICK = 5; // pixels of the screen that a pointer may move and still have clicked
const TICK = 1000; // milliseconds between two looks at the clock

// answers: {image: {<criterion>: value, marks: [{x, y, width, height, confidence}], none, seconds}}, pixels of the image
let session = null; // {study, reader, experience, place, answers}
let clock = null; // when the image's time was last counted, while it runs

const order = () => data.orders[session.reader];
const current = () => order()[session.place];

function answer() {
  session.answers[current()] ??= { marks: [], none: false, seconds: 0 };
  return session.answers[current()];
}

// What an image still lacks, in words.
function lacking(given) {
  if (!given) return ["everything"];
  const lacks = data.criteria.filter(({ key }) => !given[key]).map(({ title }) => title.toLowerCase());
  if (!given.none && !given.marks.length) lacks.push("lesions, or that there is none");
  if (given.marks.some((mark) => !mark.confidence)) lacks.push("how sure you are of a lesion");
  return lacks;
}

const isDone = (image) => lacking(session.answers[image]).length === 0;

// --- Keeping ----------------------------------------------------------------------------------------------------------

const storeKey = (reader) => `reading study ${data.study} ${reader}`;

function keep() {
  try {
    localStorage.setItem(storeKey(session.reader), JSON.stringify(session));
  } catch {
    byId("lacking").textContent = "This browser keeps nothing: save your answers to a file before you close it.";
  }
}

function kept(reader) {
  try {
    return JSON.parse(localStorage.getItem(storeKey(reader)));
  } catch {
    return null;
  }
}

function save() {
  countTime();
  keep();
  const complete = order().every(isDone);
  const text = JSON.stringify({ ...session, complete, saved: new Date().toISOString() }, null, 1);
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: `answers_${session.reader}.json` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), TICK);
}

async function openSaved(file) {
  try {
    const saved = JSON.parse(await file.text());
    if (saved.study !== data.study || !(saved.reader in data.orders)) throw new Error("it is of another study");
    const { study, reader, experience, place, answers } = saved;
    start({ study, reader, experience, place, answers });
  } catch (error) {
    byId("welcome-note").textContent = `${file.name} cannot be gone on from: ${error.message}`;
  }
}

// --- The clock --------------------------------------------------------------------------------------------------------

// Only time in which the page is seen and not paused counts.
function runClock(runs) {
  countTime();
  clock = runs ? performance.now() : null;
}

function countTime() {
  if (clock === null || !session || byId("reading").hidden) return;
  const now = performance.now();
  answer().seconds += (now - clock) / 1000;
  clock = now;
}

function drawClock() {
  countTime();
  if (!session || byId("reading").hidden) return;
  const seconds = Math.floor(answer().seconds);
  byId("timer").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

// --- Going through ----------------------------------------------------------------------------------------------------

function show(part) {
  byId("welcome").hidden = part !== "welcome";
  byId("end").hidden = part !== "end";
  for (const id of ["bar", "progress", "reading"]) byId(id).hidden = part !== "reading";
}

function start(begun) {
  session = begun;
  // to the first image that is not read, if there is one
  const open = order().findIndex((image) => !isDone(image));
  session.place = open < 0 ? order().length - 1 : open;
  keep();
  if (open < 0) show("end");
  else go(session.place);
}

function go(place) {
  runClock(false);
  session.place = place;
  show("reading");
  const image = current();
  const [width, height] = data.images[image];
  viewer.resetWindow(); // the same for every image, so that none is seen through another's window
  viewer.fit();
  viewer.show({ name: `image ${place + 1}`, width, height, sources: [{ url: `images/${image}.png` }] });
  byId("where").textContent = `Image ${place + 1} of ${order().length}`;
  byId("who").textContent = `reader ${session.reader}`;
  byId("progress").firstElementChild.style.width = `${(100 * order().filter(isDone).length) / order().length}%`;
  byId("back").disabled = place === 0;
  byId("lacking").textContent = "";
  drawForm();
  byId("form").scrollTop = 0;
  document.activeElement?.blur();
  runClock(true);
  if (place + 1 < order().length) new Image().src = `images/${order()[place + 1]}.png`;
}

function next() {
  countTime();
  const lacks = lacking(answer());
  byId("lacking").textContent = lacks.length ? `Still to say: ${lacks.join(", ")}.` : "";
  if (lacks.length) return;
  keep();
  if (session.place + 1 < order().length) go(session.place + 1);
  else if (order().every(isDone)) {
    runClock(false);
    show("end");
    byId("save-end").focus();
  } else go(order().findIndex((image) => !isDone(image)));
}

// --- The form ---------------------------------------------------------------------------------------------------------

function buildCriteria() {
  for (const { key, title, options } of data.criteria) {
    const choices = options.map(([value, words]) => element("label", { className: "option" },
      element("input", { type: "radio", name: key, value }), element("span", {}, element("b", {}, `${value} `), words)));
    byId("criteria").append(element("fieldset", {}, element("legend", {}, title), ...choices));
  }
  byId("criteria").addEventListener("change", (event) => {
    answer()[event.target.name] = Number(event.target.value);
    keep();
  });
}

function drawForm() {
  const given = answer();
  for (const radio of byId("criteria").querySelectorAll("input")) radio.checked = given[radio.name] === Number(radio.value);
  byId("none").checked = given.none;
  byId("marks").replaceChildren(...given.marks.map((mark, number) => {
    const sure = element("select", { "aria-label": `how sure of lesion ${number + 1}` }, element("option", { value: "" }, "how sure?"),
      ...data.confidences.map(([value, words]) => element("option", { value }, `${value} ${words}`)));
    sure.value = mark.confidence || "";
    sure.addEventListener("change", () => { mark.confidence = Number(sure.value) || null; keep(); });
    const remove = element("button", { type: "button", "aria-label": `remove lesion ${number + 1}` }, "×");
    remove.addEventListener("click", () => removeMark(number));
    return element("li", {}, element("span", { className: "what" }, `${number + 1}. ${mark.width ? "box" : "point"}`), sure, remove);
  }));
  viewer.place();
}

function addMark(mark) {
  answer().marks.push({ ...mark, confidence: null });
  answer().none = false;
  keep();
  drawForm();
  byId("marks").lastElementChild.querySelector("select").focus();
}

function removeMark(number) {
  answer().marks.splice(number, 1);
  keep();
  drawForm();
}

function setNone(none) {
  answer().none = none;
  if (none) answer().marks = [];
  keep();
  drawForm();
}

// --- Marking on the image ---------------------------------------------------------------------------------------------

function drawMarks(svg, toScreen, scale) {
  if (!session) return;
  const marks = [...answer().marks, ...(drawing ? [drawing] : [])];
  for (const [number, mark] of marks.entries()) {
    const { x, y } = toScreen(mark.x, mark.y);
    const size = mark.width ? [mark.width * scale, mark.height * scale] : [0, 0];
    for (const kind of ["halo", "finding"]) {
      if (mark.width) svg.append(svgElement("rect", { x: x - size[0] / 2, y: y - size[1] / 2, width: size[0], height: size[1], class: kind }));
      else svg.append(svgElement("path", { d: `M${x - 9} ${y}h6m6 0h6M${x} ${y - 9}v6m0 6v6`, class: kind }));
    }
    const label = svgElement("text", { x: x + size[0] / 2 + 8, y: y - size[1] / 2 - 4 });
    label.textContent = number + 1;
    svg.append(label);
  }
}

let drawing = null; // the box that is being dragged

function onMark(event) {
  const pane = viewer.panes[0];
  if (viewer.tool !== "mark" || event.button > 0 || event.shiftKey || !pane?.element.contains(event.target)) return;
  event.preventDefault();
  const from = viewer.toImage(pane, event.clientX, event.clientY);
  const box = (to) => ({ x: (from.x + to.x) / 2, y: (from.y + to.y) / 2, width: Math.abs(to.x - from.x), height: Math.abs(to.y - from.y) });
  const isClick = (move) => Math.hypot(move.clientX - event.clientX, move.clientY - event.clientY) < CLICK;
  const follow = (move) => {
    drawing = isClick(move) ? null : box(viewer.toImage(pane, move.clientX, move.clientY));
    viewer.place();
  };
  const end = (up) => {
    window.removeEventListener("pointermove", follow);
    drawing = null;
    const mark = isClick(up) ? { ...from, width: 0, height: 0 } : box(viewer.toImage(pane, up.clientX, up.clientY));
    const { width, height } = viewer.image;
    if (mark.x >= 0 && mark.y >= 0 && mark.x <= width && mark.y <= height) addMark(mark);
  };
  window.addEventListener("pointermove", follow);
  window.addEventListener("pointerup", end, { once: true });
}

function markMiddle() {
  const box = viewer.panes[0].element.getBoundingClientRect();
  addMark({ ...viewer.toImage(viewer.panes[0], box.left + box.width / 2, box.top + box.height / 2), width: 0, height: 0 });
}

// --- Keys and controls ------------------------------------------------------------------------------------------------

function drawStatus() {
  byId("status-window").textContent = `window ${Math.round(viewer.width)}, level ${Math.round(viewer.level)} of ${GREYS}${viewer.inverted ? ", inverted" : ""}`;
  byId("status-zoom").textContent = `${Math.round(100 * viewer.zoom)} % of the pane`;
  for (const tool of ["window", "move", "mark"]) byId(`tool-${tool}`).setAttribute("aria-pressed", viewer.tool === tool);
  byId("invert").setAttribute("aria-pressed", viewer.inverted);
}

// A number answers the criterion that has the focus, else the first without an answer.
function answerByNumber(number) {
  const focused = document.activeElement?.name;
  const criterion = data.criteria.find(({ key }) => key === focused) || data.criteria.find(({ key }) => !answer()[key]);
  if (!criterion || !criterion.options.some(([value]) => value === number)) return;
  answer()[criterion.key] = number;
  keep();
  drawForm();
}

function onKey(event) {
  if (byId("reading").hidden || document.querySelector("dialog[open]")) return;
  const target = event.target;
  if (target.matches("select, input[type=text], input[type=number]")) return;
  if (target.matches("button, input[type=checkbox]") && [" ", "Enter"].includes(event.key)) return;
  const isRadio = target.matches("input[type=radio]");
  if (isRadio && (event.key.startsWith("Arrow") || event.key === " ")) return;
  const actions = {
    Enter: next,
    Backspace: () => { if (session.place > 0) go(session.place - 1); },
    Delete: () => removeMark(answer().marks.length - 1),
    n: () => setNone(!answer().none),
    l: () => viewer.setTool("mark"),
    c: markMiddle,
    "?": () => byId("keys").showModal(),
    1: () => answerByNumber(1),
    2: () => answerByNumber(2),
    3: () => answerByNumber(3),
  };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key in actions) {
    event.preventDefault();
    actions[key]();
  } else if (viewer.onKey(event)) event.preventDefault();
}

function begin() {
  const reader = byId("reader").value;
  const before = kept(reader);
  const experience = byId("experience").value;
  start(before || { study: data.study, reader, experience: experience === "" ? null : Number(experience), place: 0, answers: {} });
}

const viewer = new Viewer(byId("stage"), ["image"], drawStatus);
viewer.buildCaptions = () => []; // nothing is written over the image
viewer.overlay = drawMarks;
byId("title").textContent = data.title;
byId("total").textContent = Object.keys(data.images).length;
byId("reader").append(...Object.keys(data.orders).map((reader) => element("option", { value: reader }, `reader ${reader}`)));
buildCriteria();
byId("begin").addEventListener("click", begin);
byId("open").addEventListener("change", (event) => { if (event.target.files.length) openSaved(event.target.files[0]); });
byId("form").addEventListener("submit", (event) => { event.preventDefault(); next(); });
byId("back").addEventListener("click", () => go(session.place - 1));
byId("none").addEventListener("change", (event) => setNone(event.target.checked));
byId("save").addEventListener("click", save);
byId("save-end").addEventListener("click", save);
byId("look-again").addEventListener("click", () => go(0));
for (const tool of ["window", "move", "mark"]) byId(`tool-${tool}`).addEventListener("click", () => viewer.setTool(tool));
byId("smaller").addEventListener("click", () => viewer.zoomBy(1 / ZOOM_STEP));
byId("larger").addEventListener("click", () => viewer.zoomBy(ZOOM_STEP));
byId("fit").addEventListener("click", () => viewer.fit());
byId("invert").addEventListener("click", () => viewer.invert());
byId("reset").addEventListener("click", () => viewer.resetWindow());
byId("stage").addEventListener("pointerdown", onMark);
byId("help").addEventListener("click", () => byId("keys").showModal());
byId("pause").addEventListener("click", () => { runClock(false); keep(); byId("paused").showModal(); });
byId("paused").addEventListener("close", () => runClock(true));
document.addEventListener("visibilitychange", () => { if (session && !byId("paused").open) runClock(!document.hidden); });
document.addEventListener("keydown", onKey);
window.addEventListener("pagehide", () => { if (session) { countTime(); keep(); } });
setInterval(drawClock, TICK);
