// The page `/`: a ride in, its duration out. The service checks; this only asks, and shows what it says.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const zones = new Map(data.zones.map((zone) => [zone.id, zone]));
const get = (id) => document.getElementById(id);
const NAMES = { PULocationID: "pickup", DOLocationID: "dropoff", trip_distance: "distance", pickup_datetime: "time" };
const TITLES = { pickup: "leave from", dropoff: "go to" };

function make(parent, tag, attributes = {}, text) {
  const element = parent.appendChild(document.createElementNS(parent.namespaceURI, tag));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Two zones may have one name; then their numbers tell them apart.
const times = new Map();
for (const { name } of data.zones) times.set(name, (times.get(name) ?? 0) + 1);
const labelOf = ({ name, id }) => (times.get(name) > 1 ? `${name} (${id})` : name);

// A field to type a zone's name in: the combobox of the ARIA practices, its options grouped by borough.
class Picker {
  constructor(id, changed) {
    this.id = id;
    this.input = get(id);
    this.list = get(`${id}-list`);
    this.changed = changed;
    this.zone = null;
    this.options = [];
    this.active = -1;
    this.input.addEventListener("input", () => this.type());
    this.input.addEventListener("click", () => this.open(""));
    this.input.addEventListener("focus", () => { this.input.select(); map.aim(id); });
    this.input.addEventListener("blur", () => { this.close(); this.show(); });
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the field keeps the focus
      const option = event.target.closest("[role=option]");
      if (option) this.choose(Number(option.dataset.zone));
    });
  }

  type() {
    this.zone = null;
    this.changed();
    this.open(this.input.value);
  }

  open(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = ({ name, borough, id }) => words.every((word) => `${name} ${borough} ${id}`.toLowerCase().includes(word));
    this.list.replaceChildren();
    this.options = [];
    const boroughs = new Map();
    for (const zone of data.zones.filter(fits).sort((a, b) => a.name.localeCompare(b.name))) {
      if (!boroughs.has(zone.borough)) boroughs.set(zone.borough, []);
      boroughs.get(zone.borough).push(zone);
    }
    for (const borough of [...boroughs.keys()].sort((a, b) => boroughs.get(b).length - boroughs.get(a).length)) {
      const key = `${this.id}-${borough.replace(/\W/g, "")}`;
      const group = make(make(this.list, "li", { role: "none" }), "ul", { role: "group", "aria-labelledby": key });
      make(group, "li", { role: "presentation", class: "borough", id: key }, borough);
      for (const zone of boroughs.get(borough)) {
        const option = { role: "option", id: `${this.id}-zone-${zone.id}`, "data-zone": zone.id, "aria-selected": "false" };
        this.options.push(make(group, "li", option, labelOf(zone)));
      }
    }
    if (!this.options.length) make(this.list, "li", { class: "none", role: "presentation" }, "No such zone");
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    const begins = (option) => option.textContent.toLowerCase().startsWith(text.trim().toLowerCase());
    const chosen = (option) => Number(option.dataset.zone) === this.zone;
    this.move(words.length ? Math.max(this.options.findIndex(begins), 0) : this.options.findIndex(chosen));
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  move(to) {
    this.options[this.active]?.setAttribute("aria-selected", "false");
    this.active = to;
    const option = this.options[to];
    if (!option) return this.input.removeAttribute("aria-activedescendant");
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", option.id);
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (this.list.hidden) this.open("");
      else if (this.options.length) this.move((Math.max(this.active, step > 0 ? -1 : 0) + step + this.options.length) % this.options.length);
    } else if (event.key === "Enter" && !this.list.hidden) {
      event.preventDefault();
      if (this.options[this.active]) this.choose(Number(this.options[this.active].dataset.zone));
    } else if (event.key === "Escape") {
      this.close();
    }
  }

  choose(id) {
    this.set(id);
    this.close();
    this.changed();
  }

  set(id) {
    this.zone = id;
    this.show();
  }

  show() {
    if (this.zone !== null) this.input.value = labelOf(zones.get(this.zone));
  }
}

// The map: each zone is what lies nearer to its centroid than to any other's, up to a mile and a half.
const map = {
  svg: get("map"),
  next: "pickup",

  draw() {
    const placed = data.zones.filter((zone) => zone.x !== undefined);
    const west = Math.min(...placed.map((zone) => zone.x)), east = Math.max(...placed.map((zone) => zone.x));
    const south = Math.min(...placed.map((zone) => zone.y)), north = Math.max(...placed.map((zone) => zone.y));
    for (const zone of placed) Object.assign(zone, { left: zone.x - west + 2, top: north - zone.y + 2 });
    this.svg.setAttribute("viewBox", `0 0 ${east - west + 4} ${north - south + 4}`);
    for (const zone of placed) {
      const points = this.cell(zone, placed).map((point) => point.map((value) => value.toFixed(2)).join()).join(" ");
      const cell = make(this.svg, "polygon", { points, class: `cell ${zone.borough}`, "data-zone": zone.id });
      make(cell, "title", {}, `${labelOf(zone)}, ${zone.borough}`);
    }
    const aside = { Manhattan: -4.5, Brooklyn: 0, Queens: 0, Bronx: 0, "Staten Island": 0 }; // one is narrower than its name
    for (const [borough, left] of Object.entries(aside)) {
      const own = placed.filter((zone) => zone.borough === borough);
      const middle = (axis) => own.reduce((sum, zone) => sum + zone[axis], 0) / own.length;
      make(this.svg, "text", { class: "name", x: (middle("left") + left).toFixed(2), y: middle("top").toFixed(2) }, borough);
    }
    this.route = make(this.svg, "g");
    this.svg.addEventListener("click", (event) => {
      const cell = event.target.closest(".cell");
      if (!cell) return;
      const end = this.next;
      this.aim(end === "pickup" ? "dropoff" : "pickup");
      pickers[end].choose(Number(cell.dataset.zone));
    });
  },

  cell(zone, placed) {
    let points = Array.from({ length: 16 }, (_, corner) => {
      const angle = (corner * Math.PI) / 8;
      return [zone.left + 1.5 * Math.cos(angle), zone.top + 1.5 * Math.sin(angle)];
    });
    for (const other of placed) {
      const dx = other.left - zone.left, dy = other.top - zone.top;
      const square = dx * dx + dy * dy;
      if (!square || square > 9) continue;
      const side = ([x, y]) => (x - zone.left) * dx + (y - zone.top) * dy - square / 2; // < 0: nearer to this zone
      points = points.flatMap((point, index) => {
        const before = points.at(index - 1);
        const here = side(point), there = side(before);
        const share = there / (there - here);
        const edge = [before[0] + share * (point[0] - before[0]), before[1] + share * (point[1] - before[1])];
        return here < 0 ? (there < 0 ? [point] : [edge, point]) : there < 0 ? [edge] : [];
      });
    }
    return points;
  },

  aim(end) {
    this.next = end;
    get("map-hint").textContent = `Click the zone to ${TITLES[end]}`;
  },

  show(ends) {
    this.route.replaceChildren();
    const placed = Object.entries(ends).filter(([, zone]) => zone?.x !== undefined);
    if (placed.length === 2) {
      const [[, a], [, b]] = placed;
      make(this.route, "line", { class: "way", x1: a.left, y1: a.top, x2: b.left, y2: b.top });
    }
    for (const [end, zone] of placed) make(this.route, "circle", { class: `end ${end}`, cx: zone.left, cy: zone.top, r: 0.55 });
  },
};

const distance = {
  input: get("distance"),
  own: false, // typed by the user: the map doesn't change it any more

  fill(a, b) {
    if (this.own || !a || !b) return;
    const known = a.x !== undefined && b.x !== undefined;
    const straight = known ? Math.max(Math.hypot(a.x - b.x, a.y - b.y), data.same_zone_miles) : 0;
    this.input.value = known ? (straight * data.road_factor).toFixed(1) : "";
    this.hint();
  },

  hint() {
    get("distance-hint").textContent = this.input.value === "" ? "Unknown: the map decides" : this.own ? "Your own" : "Filled in from the map";
  },
};

const ask = { timer: 0, number: 0, flags: { interval: true, explain: true } };

function later() {
  const [a, b] = ["pickup", "dropoff"].map((end) => zones.get(pickers[end].zone));
  map.show({ pickup: a, dropoff: b });
  distance.fill(a, b);
  clearTimeout(ask.timer);
  if (a && b) ask.timer = setTimeout(predict, 150);
}

function complain(errors) {
  for (const id of [...Object.values(NAMES), "general"]) {
    const text = errors[id] ?? "";
    get(`${id}-error`).textContent = text;
    if (text) get(id)?.setAttribute("aria-invalid", "true");
    else get(id)?.removeAttribute("aria-invalid");
  }
}

async function predict() {
  const number = ++ask.number;
  const missing = {};
  for (const end of ["pickup", "dropoff"]) if (pickers[end].zone === null) missing[end] = "Choose a zone from the list.";
  if (distance.input.validity.badInput) missing.distance = "This must be a number of miles.";
  if (get("time").validity.badInput) missing.time = "This must be a date and a time.";
  complain(missing);
  if (Object.keys(missing).length) return hide();

  const ride = {
    PULocationID: pickers.pickup.zone,
    DOLocationID: pickers.dropoff.zone,
    trip_distance: distance.input.value === "" ? null : Number(distance.input.value),
  };
  if (get("time").value) ride.pickup_datetime = get("time").value;
  const query = Object.keys(ask.flags).filter((name) => ask.flags[name]).map((name) => `${name}=true`).join("&");
  const path = `/predict${query && `?${query}`}`;
  const body = JSON.stringify(ride);
  let answer, response;
  try {
    response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    answer = await response.json();
  } catch {
    hide();
    return complain({ general: "The service does not answer; try again." });
  }
  if (number !== ask.number) return; // a newer ride was asked for meanwhile
  if (response.ok) return show(answer, path, body);
  const refused = answer.errors ?? [];
  if (refused.some(({ field }) => field === "interval" && ask.flags.interval)) {
    ask.flags.interval = false; // this model has none
    return predict();
  }
  hide();
  const errors = {};
  for (const { field, detail } of refused) errors[NAMES[field] ?? "general"] = `This ${detail}.`;
  complain(refused.length ? errors : { general: answer.detail });
}

function hide() {
  for (const id of ["answer", "why", "how"]) get(id).hidden = true;
}

function show(answer, path, body) {
  get("duration").textContent = Math.round(answer.duration);
  get("interval").hidden = !answer.interval;
  if (answer.interval) {
    const [low, high] = answer.interval, end = high * 1.25;
    const band = document.querySelector(".band").style, mark = document.querySelector(".mark").style;
    band.left = `${(100 * low) / end}%`;
    band.width = `${(100 * (high - low)) / end}%`;
    mark.left = `${(100 * answer.duration) / end}%`;
    get("interval-text").textContent = `Eight of ten such rides take ${Math.round(low)} to ${Math.round(high)} minutes.`;
  }
  const parts = get("parts");
  parts.replaceChildren();
  const most = Math.max(...answer.explanation.map((part) => Math.abs(part.minutes)));
  for (const part of answer.explanation) {
    const row = make(parts, "li");
    make(row, "span", {}, part.feature);
    const bar = make(make(row, "span", { class: "bar", "aria-hidden": "true" }), "i", { class: part.minutes < 0 ? "minus" : "plus" });
    bar.style.width = `${(50 * Math.abs(part.minutes)) / most}%`;
    make(row, "b", {}, `${part.minutes < 0 ? "−" : "+"}${Math.abs(part.minutes).toFixed(1)} min`);
  }
  get("curl").textContent = `curl '${location.origin}${path}' -H 'Content-Type: application/json' -d '${body}'`;
  get("version").textContent = answer.model_version;
  for (const id of ["answer", "why", "how"]) get(id).hidden = false;
}

map.draw();
const pickers = { pickup: new Picker("pickup", later), dropoff: new Picker("dropoff", later) };
get("time").value = new Date().toLocaleString("sv-SE", { timeZone: "America/New_York" }).slice(0, 16).replace(" ", "T");
distance.input.addEventListener("input", () => { distance.own = distance.input.value !== ""; distance.hint(); later(); });
get("time").addEventListener("input", later);
get("ride").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(ask.timer); predict(); });
get("swap").addEventListener("click", () => {
  const [from, to] = [pickers.pickup.zone, pickers.dropoff.zone];
  for (const [picker, zone] of [[pickers.pickup, to], [pickers.dropoff, from]]) {
    if (zone === null) Object.assign(picker, { zone }).input.value = "";
    else picker.set(zone);
  }
  later();
});
get("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(get("curl").textContent);
    get("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(get("curl")); // no clipboard without https: selected, to be copied by hand
  }
});
