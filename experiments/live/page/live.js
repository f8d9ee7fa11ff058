"use strict";

const HEADER = 32;
const ARROWS = {arrowleft: "\u2190", arrowright: "\u2192", arrowup: "\u2191", arrowdown: "\u2193"};
const at = (id) => document.getElementById(id);
const stage = at("stage");
let about, socket;
let lanes = 0; // canvases
let session = 0; // counts starts: frames of an earlier session are not shown
let running = false, paused = false;
let decoding = Promise.resolve();
let waiting = new Map(); // frame -> one image per lane
let next = 0, due = 0, started = 0, first = null, lastInfo = null;
const drawn = []; // times of the last frames
let stats = null;
const held = new Set(); // keys that are down here
let replayed = false;
let pressed = null, keyLatency = null; // a key that no picture has followed yet; ms

function say(state) { at("state").textContent = document.body.dataset.state = state; }
function tell(text) { at("message").textContent = text; }
function send(type, content = {}) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({type, ...content}));
}

function walks() { return running && !paused && !replayed && about.keys.length > 0; }

function hold(change) {
  const before = [...held].join();
  change();
  if ([...held].join() === before) return;
  for (const {cap, key} of about.keys) cap.classList.toggle("down", held.has(key));
  if (walks()) send("keys", {keys: [...held]});
}

function release() {
  hold(() => held.clear());
  pressed = null;
}

function writes(target) { return target.closest?.("input:not([type=checkbox], [type=radio]), select, textarea") != null; }

function keyed(event) { return about.keys.find(({names}) => names.includes(event.key?.toLowerCase())); }

function down(event) {
  if (event.key === "Meta") return release(); // macOS says nothing of keys that go up beside it
  const found = keyed(event);
  if (!found || !walks() || writes(event.target) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  if (held.has(found.key)) return;
  pressed = {bit: found.bit, at: performance.now()};
  hold(() => held.add(found.key));
}

function up(event) {
  const found = keyed(event);
  if (found) hold(() => held.delete(found.key));
}

function layOutKeys() {
  at("keys").hidden = !about.keys.length;
  at("keys").replaceChildren(...about.keys.map((entry) => {
    const hint = document.createElement("span"), cap = document.createElement("kbd");
    cap.dataset.key = entry.key;
    cap.textContent = entry.names.map((name) => ARROWS[name] ?? name.toUpperCase()).join(" ");
    entry.cap = cap;
    hint.append(cap, ` ${entry.does}`);
    return hint;
  }));
}

function layOutPictures() {
  at("pictures").hidden = !about.pictures.length;
  const choices = [...about.pictures.keys(), null].map((number) => {
    const label = document.createElement("label"), choice = document.createElement("input");
    const shown = document.createElement(number === null ? "span" : "img");
    choice.type = "radio";
    choice.name = "picture";
    choice.value = number ?? "";
    if (number === null) shown.textContent = "nothing";
    else Object.assign(shown, {src: `/pictures/${number}.png`, alt: about.pictures[number] || `picture ${number}`});
    choice.onchange = () => {
      if (about.pictures[number]) at("prompt").value = about.pictures[number];
      showPicture();
    };
    label.append(choice, shown);
    return label;
  });
  at("pictures").append(...choices);
  const first = choices[0].firstChild;
  first.checked = true;
  first.onchange();
}

function picture() {
  const {value} = document.querySelector("[name=picture]:checked");
  return value === "" ? null : Number(value);
}

async function showPicture() { // at rest, where a walk would begin
  if (running) return;
  const mine = session += 1, shown = document.querySelector("[name=picture]:checked + img");
  waiting.clear(); // of a walk that has just ended
  try { await shown?.decode(); } catch { return; }
  if (running || mine !== session || shown !== document.querySelector("[name=picture]:checked + img")) return;
  for (const {firstChild: canvas} of stage.children) {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (shown) context.drawImage(shown, 0, 0, canvas.width, canvas.height);
  }
}

function showKeys(bits) {
  for (const {cap, bit} of about.keys) cap.classList.toggle("moves", (bits & bit) !== 0);
  if (pressed && bits & pressed.bit) {
    keyLatency = performance.now() - pressed.at;
    pressed = null;
  }
}

function layOut(count) {
  lanes = count;
  stage.replaceChildren(...about.students.slice(0, count).map((student) => {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    const caption = document.createElement("figcaption");
    canvas.width = about.width;
    canvas.height = about.height;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", student.name);
    caption.textContent = `${student.name}, trained with ${student.steps} step${student.steps === 1 ? "" : "s"}`;
    figure.append(canvas, caption);
    return figure;
  }));
}

function reset(count) {
  session += 1;
  layOut(count);
  waiting = new Map();
  next = due = 0;
  first = stats = lastInfo = keyLatency = null;
  drawn.length = 0;
  decoding = Promise.resolve();
}

function enable() {
  at("pause").disabled = at("stop").disabled = at("change").disabled = !running;
  at("pause").textContent = paused ? "Resume" : "Pause";
}

function begin(type, content) {
  started = performance.now();
  paused = false;
  release();
  replayed = type === "replay";
  if (about.keys.length && writes(document.activeElement)) document.activeElement.blur(); // keys walk at once
  send(type, content);
  tell("");
}

async function received(buffer, mine) {
  const view = new DataView(buffer);
  const lane = view.getUint8(1), keys = view.getUint16(2, true), frame = view.getUint32(4, true);
  const image = await createImageBitmap(new Blob([buffer.slice(HEADER)], {type: "image/jpeg"}));
  if (mine !== session) return;
  if (!waiting.has(frame)) waiting.set(frame, {keys, images: []});
  waiting.get(frame).images[lane] = image;
  lastInfo = {block: view.getUint32(8, true), denoise: view.getFloat32(16, true),
              decode: view.getFloat32(20, true)};
}

function draw(now) {
  requestAnimationFrame(draw);
  const {keys, images} = waiting.get(next) ?? {};
  const whole = images && images.filter(Boolean).length === lanes;
  if (!whole || now < due || paused) return;
  images.forEach((image, lane) => {
    stage.children[lane].firstChild.getContext("2d").drawImage(image, 0, 0);
    image.close();
  });
  waiting.delete(next);
  showKeys(keys);
  if (first === null) first = performance.now() - started;
  drawn.push(now);
  while (drawn.length > 1 && now - drawn[0] > 2000) drawn.shift();
  document.body.dataset.frame = next;
  send("shown", {frame: next});
  next += 1;
  due = Math.max(due + 1000 / about.fps, now - 1000 / about.fps);
}

function rate() {
  if (drawn.length < 2) return null;
  return 1000 * (drawn.length - 1) / (drawn[drawn.length - 1] - drawn[0]);
}

function meters() {
  const shown = rate();
  const rows = [
    ["frames/s", shown === null ? "-" : `${shown.toFixed(1)} of ${about.fps}`],
    ["first frame", first === null ? "-" : `${first.toFixed(0)} ms`],
    ["block", lastInfo ? `${lastInfo.denoise.toFixed(1)} ms + ${lastInfo.decode.toFixed(1)} ms decoding` : "-"],
    ["frame", next ? String(next - 1) : "-"],
    ["waiting", String(waiting.size)],
    ["steps", stats ? stats.lanes.map((lane) => lane.steps).join(" / ") : "-"],
    ["memory", stats ? stats.memory : "-"],
    ["viewers", stats ? String(stats.viewers) : "-"],
    ["device", about.device],
  ];
  if (about.keys.length) rows.push(["key to picture", keyLatency === null ? "-" : `${keyLatency.toFixed(0)} ms`]);
  at("meters").replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement("div");
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    row.append(term, text);
    return row;
  }));
}

async function recordings(chosen) {
  const names = await (await fetch("/recordings")).json();
  at("recordings").replaceChildren(...names.map((name) => new Option(name, name)));
  if (chosen) at("recordings").value = chosen;
  at("replay").disabled = !names.length;
  at("download").hidden = !names.length;
  link();
}

function link() { at("download").href = `/recordings/${encodeURIComponent(at("recordings").value)}.jsonl`; }

function heard(message) {
  if (message.type === "started") {
    reset(message.lanes);
    running = true;
    say("running");
  } else if (message.type === "stats") {
    stats = message;
  } else if (message.type === "queued") {
    say(`waiting, number ${message.position}`);
  } else if (message.type === "error" || message.type === "warning") {
    tell(message.text);
  } else if (message.type === "ended" && message.reason !== "restarted") {
    running = false;
    release();
    showKeys(0);
    say(message.reason);
    if (message.text) tell(message.text);
    if (message.recording) recordings(message.recording);
  }
  enable();
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/live`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => say("ready");
  socket.onclose = () => { running = false; say("the server is gone; reload the page"); enable(); };
  socket.onmessage = (event) => {
    if (typeof event.data === "string") return heard(JSON.parse(event.data));
    const mine = session;
    decoding = decoding.then(() => received(event.data, mine));
  };
}

async function main() {
  about = await (await fetch("/about")).json();
  at("names").textContent = about.students.map((student) => student.name).join(" beside ");
  at("captions").replaceChildren(...about.captions.map((caption) => new Option(caption)));
  at("prompt").value = about.captions[0] ?? "";
  const trained = String(about.students[0].steps);
  if (![...at("steps").options].some((option) => option.value === trained)) at("steps").add(new Option(trained));
  at("steps").value = trained;
  at("beside").disabled = about.students.length < 2;
  at("beside").checked = about.students.length > 1;
  layOut(about.students.length);
  layOutKeys();
  layOutPictures();
  if (about.keys.length) {
    addEventListener("keydown", down);
    addEventListener("keyup", up);
    addEventListener("blur", release);
    addEventListener("visibilitychange", release);
    addEventListener("focusin", (event) => { if (writes(event.target)) release(); });
  }
  at("controls").onsubmit = (event) => {
    event.preventDefault();
    begin("start", {prompt: at("prompt").value, seed: Number(at("seed").value), steps: Number(at("steps").value),
                    lanes: at("beside").checked ? 2 : 1, record: at("record").checked, picture: picture()});
  };
  at("new-seed").onclick = () => { at("seed").value = Math.floor(Math.random() * 2 ** 31); };
  at("pause").onclick = () => { release(); paused = !paused; send(paused ? "pause" : "resume"); say(paused ? "paused" : "running"); enable(); };
  at("stop").onclick = () => send("stop");
  at("change").onclick = () => send("prompt", {text: at("prompt").value, how: at("how").value});
  at("steps").onchange = () => { if (running) send("steps", {steps: Number(at("steps").value)}); };
  at("replay").onclick = () => begin("replay", {recording: at("recordings").value});
  at("recordings").onchange = link;
  await recordings();
  connect();
  enable();
  meters();
  setInterval(meters, 500);
  requestAnimationFrame(draw);
}

main().catch((error) => tell(String(error)));
