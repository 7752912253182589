// value: {varies, rows: [{file, name, title, on, weight, text_weight (null: same), change: {word: text}, blocks, triggers: [text],
//   recommended (null: none), parent, note}], arrangements: [[name, title]]}
// Assigns value when a row changes; events: select {trigger}, apply {arrangement}, edit {row, mask}.
let known = "";
const opened = new Set(); // files whose row is unfolded

const assign = (rows) => { known = JSON.stringify(rows); props.value = { ...props.value, rows }; };
const change = (index, part) => assign(props.value.rows.map((row, at) => (at === index ? { ...row, ...part } : row)));
const redraw = (rows) => { assign(rows); fill(); };
const clamp = (text) => {
  const number = Number(text);
  return text === "" || Number.isNaN(number) ? null : Math.min(10, Math.max(-10, number));
};

const weightOf = (row, index) => {
  const number = h("input", {
    type: "number", step: "0.05", min: "-10", max: "10", value: String(row.weight), "aria-label": `Weight of ${row.name}`,
    oninput: (event) => {
      const weight = clamp(event.target.value);
      if (weight === null) return;
      slider.value = weight;
      change(index, { weight });
    },
    onchange: (event) => { event.target.value = String(props.value.rows[index].weight); },
  });
  const slider = h("input", {
    type: "range", step: "0.05", min: "-2", max: "2", value: String(row.weight), "aria-label": `Weight slider of ${row.name}`,
    oninput: (event) => { number.value = event.target.value; change(index, { weight: Number(event.target.value) }); },
  });
  return h("label", { class: "weight" }, h("span", {}, "Weight"), slider, number);
};

const moreOf = (row, index) => {
  const told = h("span", { class: "dim" }, summary(row, row.blocks));
  const retell = () => { told.textContent = summary(props.value.rows[index], row.blocks); };
  const text = h("input", {
    type: "number", step: "0.05", min: "-10", max: "10", placeholder: "same",
    value: row.text_weight === null ? "" : String(row.text_weight), "aria-label": `Text encoder weight of ${row.name}`,
    oninput: (event) => { change(index, { text_weight: clamp(event.target.value) }); retell(); },
    onchange: (event) => { event.target.value = String(props.value.rows[index].text_weight ?? ""); },
  });
  const up = () => redraw(props.value.rows.toSpliced(index, 1).toSpliced(index - 1, 0, props.value.rows[index]));
  return h("details", { class: "more", open: opened.has(row.file),
    ontoggle: (event) => (event.target.open ? opened.add(row.file) : opened.delete(row.file)) },
  h("summary", { "aria-label": `More on ${row.name}` }, "More ", told),
  h("div", { class: "line" },
    h("label", { class: "field small", title: "How strongly it changes the text encoder, which reads the prompt once; empty is the weight itself" },
      h("span", {}, "Weight in the text encoder"), text),
    row.recommended !== null && h("button", { type: "button", class: "quiet act", onclick: () => redraw(props.value.rows.map(
      (each, at) => (at === index ? { ...each, weight: row.recommended } : each))) }, `Use the recommended weight, ${row.recommended}`),
    index > 0 && h("button", { type: "button", class: "quiet act", "aria-label": `Move ${row.name} up`, onclick: up }, "Move up")),
  panel(row, index, row.blocks, (words) => { change(index, { change: words }); retell(); }, props.value.varies));
};

const build = (row, index) => {
  const toggle = h("input", {
    type: "checkbox", role: "switch", checked: row.on, "aria-label": `Use ${row.name}`,
    onchange: (event) => { node.classList.toggle("off", !event.target.checked); change(index, { on: event.target.checked }); },
  });
  const node = h("li", { class: `row ${row.on ? "" : "off"}` },
    h("label", { class: "switch" }, toggle, h("b", { title: row.title }, row.name)),
    weightOf(row, index),
    h("button", {
      type: "button", class: "quiet", title: "Remove from the mix", "aria-label": `Remove ${row.name}`,
      onclick: () => redraw(props.value.rows.filter((_, at) => at !== index)),
    }, "✕"),
    row.note && h("p", { class: "warn" }, row.note),
    row.parent && h("p", { class: "dim" }, `Builds on ${row.parent}.`),
    props.value.varies && row.triggers.length > 0 && h("div", { class: "chips" }, h("span", { class: "dim" }, "Add to prompt:"),
      row.triggers.map((word) => h("button", { type: "button", onclick: () => trigger("select", { trigger: word }) }, word))),
    moreOf(row, index));
  return node;
};

const arranging = () => h("label", { class: "field arrange" }, h("span", {}, "How they share the picture"),
  h("select", { onchange: (event) => trigger("apply", { arrangement: event.target.value }) },
    h("option", { value: "", selected: true, disabled: true }, "Choose an arrangement …"),
    props.value.arrangements.map(([name, title]) => h("option", { value: name }, title))));

const fill = () => {
  const rows = props.value ? props.value.rows : [];
  show(rows.length > 0 && h("ul", { class: "rows" }, rows.map(build)), rows.length > 1 && props.value.varies && arranging());
};

// Only what the server set is drawn anew: a slider being dragged must not be replaced under the finger.
const draw = () => {
  const signature = JSON.stringify(props.value ? props.value.rows : []);
  if (signature === known) return;
  known = signature;
  fill();
};

watch("value", draw);
new MutationObserver(() => { if (!root().childElementCount && props.value?.rows.length) { known = ""; draw(); } }).observe(root(), { childList: true });
draw();
