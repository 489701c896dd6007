// Everything that comes from agents and callers is put in by textContent, never as markup.
"use strict";

const KEPT_EVENTS = 50;
const SEARCH_DELAY = 200; // ms: while somebody types
const NEAR_EXPIRY = 14 * 86400;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

// Texts

function bytes(count) {
  if (count < 1000) return `${count} B`;
  let unit = -1;
  do { count /= 1000; unit += 1; } while (count >= 999.5 && unit < 4);
  return `${count.toPrecision(3)} ${"kMGTP"[unit]}B`;
}

function age(since) {
  const seconds = Math.max(0, Math.floor(Date.now() / 1000 - since));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds / 3600) % 24} h`;
}

const milliseconds = (ms) => (ms === null ? "" : `${ms < 10 ? ms.toFixed(2) : ms.toFixed(0)} ms`);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function sparkline(values) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", "0 0 100 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...values), least = Math.min(...values);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", values.map((value, index) => {
    const x = values.length > 1 ? (index * 100) / (values.length - 1) : 100;
    const y = most > least ? 18 - (16 * (value - least)) / (most - least) : 10;
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  }).join(" "));
  svg.append(line);
  return svg;
}

// The table. A column without a sort key cannot be sorted by.

function plain(of) {
  return (cell, agent) => setText(cell, of(agent));
}

function drawOnce(facts, draw) { // leaves a cell alone that shows the same as before
  return (cell, agent) => {
    const now = JSON.stringify(facts(agent));
    if (cell.shown === now) return;
    cell.shown = now;
    cell.replaceChildren(...draw(agent));
  };
}

const COLUMNS = [
  { title: "Name", key: "name", draw: drawOnce(
    (agent) => [agent.name, agent.draining, agent.ejected],
    (agent) => [
      document.createTextNode(`${agent.name} `),
      ...(agent.draining ? [element("span", "draining", "chip warn")] : []),
      ...(agent.ejected ? [element("span", "ejected", "chip warn")] : []),
    ]) },
  { title: "Labels", draw: drawOnce(
    (agent) => agent.labels,
    (agent) => Object.entries(agent.labels).map(([key, value]) => {
      const chip = element("span", `${key}=${value}`, "chip");
      chip.title = chip.textContent;
      return chip;
    })) },
  { title: "Ports", draw: plain((agent) => agent.ports.slice(0, 8).join(", ") + (agent.ports.length > 8 ? ", …" : "")) },
  { title: "Round trip", key: "round_trip", number: true, draw: drawOnce(
    (agent) => agent.round_trips_ms,
    (agent) => agent.round_trips_ms.length
      ? [document.createTextNode(milliseconds(agent.round_trip_ms)), sparkline(agent.round_trips_ms)] : []) },
  { title: "Streams", key: "streams", number: true, draw: plain((agent) => number.format(agent.streams)) },
  { title: "To agent", key: "to_agent", number: true, draw: plain((agent) => bytes(agent.bytes_to_agent)) },
  { title: "From agent", key: "from_agent", number: true, draw: plain((agent) => bytes(agent.bytes_from_agent)) },
  { title: "Parked", key: "parked", number: true, draw: plain((agent) => number.format(agent.parked)) },
  { title: "Address", key: "address", draw: plain((agent) => agent.address) },
  { title: "Since", key: "since", number: true, draw: plain((agent) => age(agent.since)) },
  { title: "Version", key: "version", draw: plain((agent) => agent.version || "old protocol") },
  { title: "Broker", draw: plain((agent) => agent.broker.slice(0, 8)) },
];

const view = { search: "", sort: "name", offset: 0, limit: 50, matching: 0 };
const rows = new Map();

function drawHead() {
  const head = document.querySelector("#agents thead tr");
  for (const column of COLUMNS) {
    const cell = element("th", undefined, column.number ? "number" : "");
    cell.scope = "col";
    if (column.key) {
      const button = element("button", column.title);
      button.type = "button";
      button.addEventListener("click", () => sortBy(column.key));
      cell.append(button);
      for (const [prefix, arrow] of [["", "▲"], ["-", "▼"]]) {
        const choice = element("option", `${column.title} ${arrow}`);
        choice.value = prefix + column.key;
        byId("sort").append(choice);
      }
    } else {
      cell.textContent = column.title;
    }
    column.head = cell;
    head.append(cell);
  }
}

function drawSort() {
  byId("sort").value = view.sort;
  for (const { key, head } of COLUMNS) {
    if (key === view.sort) head.setAttribute("aria-sort", "ascending");
    else if (view.sort === `-${key}`) head.setAttribute("aria-sort", "descending");
    else head.removeAttribute("aria-sort");
  }
}

function newRow() {
  const row = document.createElement("tr");
  for (const column of COLUMNS) {
    const cell = element("td", undefined, column.number ? "number" : "");
    cell.dataset.label = column.title;
    row.append(cell);
  }
  return row;
}

function drawAgents(table) {
  view.matching = table.matching;
  if (table.offset >= table.matching && table.offset > 0) { // the page has gone
    view.offset = Math.max(0, Math.floor((table.matching - 1) / view.limit) * view.limit);
    listen();
    return;
  }
  const body = document.querySelector("#agents tbody");
  const names = new Set(table.agents.map((agent) => agent.name));
  for (const [name, row] of rows) {
    if (!names.has(name)) { row.remove(); rows.delete(name); }
  }
  table.agents.forEach((agent, index) => {
    let row = rows.get(agent.name);
    if (!row) rows.set(agent.name, (row = newRow()));
    row.agent = agent;
    drawRow(row);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] || null);
  });
  const first = table.matching ? table.offset + 1 : 0;
  const last = table.offset + table.agents.length;
  const of = table.matching === table.total ? "" : ` (${number.format(table.total)} in all)`;
  setText(byId("range"), `${number.format(first)}–${number.format(last)} of ${number.format(table.matching)}${of}`);
  byId("previous").disabled = table.offset === 0;
  byId("next").disabled = last >= table.matching;
  byId("none").hidden = table.matching > 0;
  setText(byId("none"), table.total ? "No agent matches the search." : "No agent is registered yet.");
}

function drawRow(row) {
  COLUMNS.forEach((column, index) => column.draw(row.children[index], row.agent));
}

// Events

function drawEvent(event) {
  const item = document.createElement("li");
  const when = element("time", new Date(event.at * 1000).toLocaleTimeString());
  when.dateTime = new Date(event.at * 1000).toISOString();
  item.append(when);
  const asked = event.caller ? `, asked by ${event.caller}` : "";
  if (event.kind === "joined") item.append(`${event.agent} joined from ${event.address}`);
  else if (event.kind === "left") item.append(`${event.agent} left: ${event.reason}`);
  else if (event.kind === "dial") {
    const parked = event.parked ? "" : ", none was parked";
    const exactly = event.target === `${event.agent}:${event.port}`;
    const reached = exactly ? "" : ` → ${event.agent} port ${event.port}`;
    item.append(`${event.target}${reached} in ${milliseconds(event.ms)}${parked}${asked}`);
  } else {
    item.append(`${event.target}${asked} (${event.reason})`, element("span", event.error, "why"));
  }
  return item;
}

const LISTS = { joined: "comings", left: "comings", dial: "dials", failure: "failures" };
let eventsOf = "";

function drawEvents(told) {
  if (told.broker !== eventsOf) { // another broker, or the same one started anew
    eventsOf = told.broker;
    for (const id of new Set(Object.values(LISTS))) byId(id).replaceChildren();
  }
  for (const event of told.events) {
    const list = byId(LISTS[event.kind]);
    if (Number(list.dataset.latest || 0) >= event.number && list.dataset.of === told.broker) continue;
    list.dataset.latest = event.number;
    list.dataset.of = told.broker;
    list.prepend(drawEvent(event));
    while (list.children.length > KEPT_EVENTS) list.lastChild.remove();
  }
}

// The broker

function drawList(list, facts) {
  list.replaceChildren(...facts.map(([name, value]) => {
    const pair = document.createElement("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  }));
}

function drawBroker(state) {
  drawList(byId("facts"), [
    ["agents", number.format(state.agents)], ["domains", number.format(state.domains)],
    ["streams", number.format(state.streams)], ["parked", number.format(state.parked)],
    ["to agents", bytes(state.bytes_to_agents)], ["from agents", bytes(state.bytes_from_agents)],
  ]);
  drawList(byId("broker"), [
    ["broker", state.broker], ["version", state.version],
    ["started", new Date(state.since * 1000).toLocaleString()],
    ["state", state.not_ready === null ? "ready" : state.not_ready],
    ["agents register at port", String(state.control_port)],
    ["and connect back to", state.reverse_address.join(":")],
    ["TLS", state.tls ? "mutual" : "off"],
  ]);
  byId("certificates").replaceChildren(...state.certificates.map((certificate) => {
    if (certificate.problem) return element("li", certificate.problem, "bad");
    const left = certificate.expires - Date.now() / 1000;
    const until = new Date(certificate.expires * 1000).toLocaleString();
    const names = certificate.names.join(", ") || certificate.subject;
    const item = element("li", `${certificate.use}: ${names} — `);
    item.append(element("span", `${left < 0 ? "expired" : "valid until"} ${until}`,
      left < 0 ? "bad" : left < NEAR_EXPIRY ? "warn" : ""));
    return item;
  }));
}

// What is listened to

let source = null;

function listen() {
  if (source) source.close();
  const wanted = new URLSearchParams({ sort: view.sort, offset: view.offset, limit: view.limit });
  if (view.search) wanted.set("search", view.search);
  drawSort();
  source = new EventSource(`api/live?${wanted}`);
  source.onopen = () => connection("live", "live");
  source.onerror = () => {
    connection("lost", "no answer from the broker, trying again");
    if (source.readyState === EventSource.CLOSED) again(2000); // refused, as when it is full
  };
  const draws = { broker: drawBroker, agents: drawAgents, events: drawEvents };
  for (const [name, draw] of Object.entries(draws)) {
    source.addEventListener(name, (event) => draw(JSON.parse(event.data)));
  }
}

function connection(state, text) {
  byId("connection").dataset.state = state;
  setText(byId("connection"), text);
}

let pending = 0;
function again(delay) {
  clearTimeout(pending);
  pending = setTimeout(listen, delay);
}

function show(changes, delay = 0) {
  Object.assign(view, { offset: 0 }, changes);
  again(delay);
}

function sortBy(key) {
  show({ sort: view.sort === key ? `-${key}` : key });
}

function turn(pages) {
  const offset = view.offset + pages * view.limit;
  if (offset >= 0 && offset < view.matching) show({ offset });
}

byId("search").addEventListener("input", (event) => show({ search: event.target.value.trim() }, SEARCH_DELAY));
byId("sort").addEventListener("change", (event) => show({ sort: event.target.value }));
byId("limit").addEventListener("change", (event) => show({ limit: Number(event.target.value) }));
byId("previous").addEventListener("click", () => turn(-1));
byId("next").addEventListener("click", () => turn(1));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && event.target === byId("search")) {
    event.target.value = "";
    show({ search: "" });
    event.target.blur();
  }
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
  if (event.key === "[") turn(-1);
  if (event.key === "]") turn(1);
});
setInterval(() => rows.forEach(drawRow), 1000); // ages grow

drawHead();
listen();
