// The knob's name is the method's; eta is there for the methods that have one.
function fit(el, option) {
  el.querySelector("label[for=beta]").textContent = option.dataset.knob;
  const eta = el.querySelector("#eta");
  if (eta) eta.disabled = !("eta" in option.dataset);
}

// Native controls, one request under way at a time: while the server computes, only the latest change waits.
export function render({ model, el }) {
  el.innerHTML = model.controls;
  const form = el.querySelector("form");
  const results = el.querySelector("#results");
  const status = el.querySelector("[role=status]");
  let sent = 0;
  let changed = false;

  function value(input) {
    return "positions" in input.dataset ? JSON.parse(input.dataset.positions)[input.value] : input.value;
  }

  function show(answer) {
    results.innerHTML = answer.html;
    status.textContent = answer.said;
    if (!answer.problems) history.replaceState(null, "", (model.mark || "?") + answer.query);
    results.dataset.serial = answer.serial;
  }

  function ask() {
    if (model.answer.serial < sent) {
      changed = true;
      return;
    }
    sent += 1;
    const settings = {};
    for (const input of form.querySelectorAll("[name]")) settings[input.name] = [String(value(input))];
    results.setAttribute("aria-busy", "true");
    model.request = { serial: sent, settings };
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", ({ target }) => {
    if (target.type === "range") {
      const text = String(value(target));
      target.setAttribute("aria-valuetext", text);
      target.previousElementSibling.textContent = text;
    }
    const option = target.selectedOptions && target.selectedOptions[0];
    if (option && option.dataset.knob) fit(el, option);
    ask();
  });
  model.on("answer", () => {
    show(model.answer);
    results.setAttribute("aria-busy", "false");
    if (changed && model.answer.serial === sent) {
      changed = false;
      ask();
    }
  });
  show(model.answer);
}
