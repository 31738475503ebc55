// The page without a server: what `page.js` asks for is looked up in the draws that the file holds.
const grid = JSON.parse(document.getElementById("grid").textContent);
const el = document.getElementById("page").attachShadow({ mode: "open" }).appendChild(document.createElement("div"));
const inflated = new Map();

function pages(name) {
  if (!inflated.has(name)) {
    const bytes = Uint8Array.from(atob(document.getElementById(name).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    inflated.set(name, new Response(stream).json());
  }
  return inflated.get(name);
}

async function answer(serial, chosen) {
  const settings = {};
  for (const [name, values] of Object.entries(grid.axes)) settings[name] = chosen[name] ? chosen[name][0] : values[0];
  const draw = grid.draw.map((name) => settings[name]).join(" ");
  const key = [settings.method, ...grid.uses[settings.method].map((name) => settings[name])].join(" ");
  const [html, said] = (await pages(draw))[key];
  return { serial, html, said, query: new URLSearchParams(settings).toString(), problems: 0 };
}

const model = {
  controls: grid.controls,
  mark: "#",
  on(_, heard) { this.heard = heard; },
  set request({ serial, settings }) {
    answer(serial, settings).then((found) => { this.answer = found; this.heard(); });
  },
};

// The address's settings, where this file has them: the controls are put there before the first look-up.
const asked = new URLSearchParams(location.hash.slice(1));
const opened = document.createElement("div");
opened.innerHTML = grid.controls;
const start = {}, missing = [];
for (const input of opened.querySelectorAll("[name]")) {
  start[input.name] = [input.dataset.positions ? String(JSON.parse(input.dataset.positions)[input.value]) : input.value];
}
for (const [name, text] of asked) {
  if ((grid.axes[name] || []).includes(text)) start[name] = [text];
  else missing.push(`${name}=${text}`);
}
model.answer = await answer(0, start);
render({ model, el });
for (const input of el.querySelectorAll("[name]")) {
  const [text] = start[input.name];
  if (input.dataset.positions) {
    input.value = JSON.parse(input.dataset.positions).map(String).indexOf(text);
    input.setAttribute("aria-valuetext", text);
    input.previousElementSibling.textContent = text;
  } else input.value = text;
}
fit(el, el.querySelector("[name=method]").selectedOptions[0]);
if (missing.length) {
  const said = el.querySelector("section").insertBefore(document.createElement("p"), el.querySelector("#results"));
  said.setAttribute("role", "alert");
  said.textContent = `Not in this file, the default taken instead: ${missing.join(", ")}.`;
}
addEventListener("hashchange", () => location.reload());
