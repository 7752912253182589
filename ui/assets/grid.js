// value: {columns, chosen, prompts: [text], runs: [{name, title, status, line, loss, best, file, pictures: {index: {url, step}}}]}
// events: select {name}, apply {file}
let prompt = 0;

const picture = (run) => {
  const drawn = run.pictures[prompt];
  return drawn ? h("a", { href: drawn.url, target: "_blank", rel: "noopener" }, h("img", { src: drawn.url, alt: `${run.title}, after ${drawn.step} steps` }))
    : h("div", { class: "missing" }, "not drawn yet");
};

const card = (run, chosen) => h("li", { class: run.name === chosen ? "chosen" : "", "data-name": run.name },
  picture(run),
  h("b", {}, run.title),
  h("p", { class: "dim" }, run.line),
  h("p", { class: "line" }, h("span", { class: `badge ${run.status}` }, run.status),
    run.loss && h("span", { class: run.best ? "best" : "dim" }, run.best ? `lowest loss ${run.loss}` : `loss ${run.loss}`)),
  h("p", { class: "line" },
    h("button", { type: "button", class: "quiet act", disabled: !run.file, "aria-label": `Use ${run.title} in Generate`, onclick: () => trigger("apply", { file: run.file }) }, "Use in Generate"),
    run.name !== chosen && h("button", { type: "button", class: "quiet act", "aria-label": `Show ${run.title}`, onclick: () => trigger("select", { name: run.name }) }, "Show")));

const draw = () => {
  const value = props.value;
  if (!value || !value.runs.length) return show();
  prompt = Math.min(prompt, Math.max(0, value.prompts.length - 1));
  const focused = element.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  const choose = value.prompts.length > 1 && h("label", { class: "field" }, "Pictures of",
    h("select", { "aria-label": "Pictures of", onchange: (event) => { prompt = Number(event.target.value); draw(); } },
      value.prompts.map((text, index) => h("option", { value: String(index), selected: index === prompt }, text || "(empty prompt)"))));
  show(choose, h("ul", { class: "grid", style: `--columns:${value.columns}` }, value.runs.map((run) => card(run, value.chosen))));
  if (focused) element.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
};

watch("value", draw);
draw();
