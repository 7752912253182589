// value: {rows: [{file, name, title, on, weight, text_weight (null: same), triggers: [text], note}]}
// Assigns value when a row changes; events: select {trigger}.
let known = "";

const assign = (rows) => { props.value = { ...props.value, rows }; };
const change = (index, part) => assign(props.value.rows.map((row, at) => (at === index ? { ...row, ...part } : row)));
const clamp = (text) => {
  const number = Number(text);
  return text === "" || Number.isNaN(number) ? null : Math.min(10, Math.max(-10, number));
};

const build = (row, index) => {
  const number = h("input", {
    type: "number", step: "0.05", min: "-10", max: "10", value: String(row.weight), "aria-label": `Weight of ${row.name}`,
    oninput: (event) => {
      const weight = clamp(event.target.value);
      if (weight === null) return;
      slider.value = weight;
      change(index, { weight });
    },
  });
  const slider = h("input", {
    type: "range", step: "0.05", min: "-2", max: "2", value: String(row.weight), "aria-label": `Weight slider of ${row.name}`,
    oninput: (event) => { number.value = event.target.value; change(index, { weight: Number(event.target.value) }); },
  });
  const toggle = h("input", {
    type: "checkbox", role: "switch", checked: row.on, "aria-label": `Use ${row.name}`,
    onchange: (event) => { node.classList.toggle("off", !event.target.checked); change(index, { on: event.target.checked }); },
  });
  const text = h("input", {
    type: "number", step: "0.05", min: "-10", max: "10", placeholder: "same",
    value: row.text_weight === null ? "" : String(row.text_weight), "aria-label": `Text encoder weight of ${row.name}`,
    oninput: (event) => change(index, { text_weight: clamp(event.target.value) }),
  });
  const node = h("li", { class: `row ${row.on ? "" : "off"}` },
    h("label", { class: "switch" }, toggle, h("b", { title: row.title }, row.name)),
    h("label", { class: "weight" }, h("span", {}, "Weight"), slider, number),
    h("label", { class: "text" }, h("span", { title: "How strongly it changes the text encoder; empty is the weight itself" }, "Text"), text),
    h("button", {
      type: "button", class: "quiet", title: "Remove from the mix", "aria-label": `Remove ${row.name}`,
      onclick: () => assign(props.value.rows.filter((_, at) => at !== index)),
    }, "✕"),
    row.triggers.length > 0 && h("div", { class: "chips" }, h("span", { class: "dim" }, "Add to prompt:"),
      row.triggers.map((word) => h("button", { type: "button", onclick: () => trigger("select", { trigger: word }) }, word))),
    row.note && h("p", { class: "warn" }, row.note));
  return node;
};

// Only rows that came or went are drawn anew: a slider being dragged must not be replaced under the finger.
const draw = () => {
  const rows = props.value ? props.value.rows : [];
  const signature = JSON.stringify(rows.map((row) => [row.file, row.note]));
  if (signature !== known || !sameValues(rows)) {
    known = signature;
    show(rows.length > 0 && h("ul", { class: "rows" }, rows.map(build)));
  }
};

// Values that the server set (a restored picture) differ from what the inputs say.
const sameValues = (rows) => {
  const nodes = [...element.querySelectorAll(".row")];
  return nodes.length === rows.length && rows.every((row, at) =>
    nodes[at].querySelector("[role=switch]").checked === row.on
    && clamp(nodes[at].querySelector(".weight [type=number]").value) === row.weight
    && clamp(nodes[at].querySelector(".text input").value) === row.text_weight);
};

watch("value", draw);
new MutationObserver(() => { if (!root().childElementCount) { known = ""; draw(); } }).observe(root(), { childList: true });
draw();
