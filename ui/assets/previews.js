// value: {run, steps: [step], prompts: [text], pictures: {"step:index": url}}
let run = "";
let at = null; // null follows the newest

const picture = (step, index, prompt) => {
  const url = props.value.pictures[`${step}:${index}`];
  const alt = `${prompt}, after ${step} steps`;
  return url ? h("a", { href: url, target: "_blank", rel: "noopener" }, h("img", { src: url, alt, loading: "lazy" }))
    : h("div", { class: "missing" }, "not drawn");
};

const draw = () => {
  const value = props.value;
  if (!value || !value.steps.length) return show();
  if (value.run !== run) { run = value.run; at = null; }
  const last = value.steps.length - 1;
  const chosen = at === null ? last : Math.min(at, last);
  const step = value.steps[chosen];
  const first = value.steps[0];
  let slider = element.querySelector("input[type=range]");
  if (!slider) {
    slider = h("input", {
      type: "range", min: "0", step: "1", "aria-label": "Preview step",
      oninput: (event) => { const index = Number(event.target.value); at = index === props.value.steps.length - 1 ? null : index; draw(); },
    });
    show(h("div", { class: "scrub" }, h("span", { class: "from" }), slider, h("output", {})), h("div", { class: "strips" }));
  }
  slider.max = String(last);
  slider.value = String(chosen);
  slider.disabled = last === 0;
  slider.setAttribute("aria-valuetext", `step ${step}`);
  element.querySelector(".from").textContent = `Step ${first}`;
  element.querySelector("output").textContent = `Step ${step}`;
  element.querySelector(".strips").replaceChildren(...value.prompts.map((prompt, index) => h("figure", {},
    h("div", { class: "pair" },
      h("div", {}, picture(first, index, prompt), h("small", {}, first === 0 ? "before training" : `step ${first}`)),
      first !== step && h("div", {}, picture(step, index, prompt), h("small", {}, `step ${step}`))),
    h("figcaption", {}, prompt || "(empty prompt)"))));
};

watch("value", draw);
draw();
