// value: {chosen, items: [{name, status, line, percent}]}
// events: select {name}
const draw = () => {
  const value = props.value;
  if (!value || !value.items.length) return show();
  const live = value.items.find((item) => item.percent !== null);
  document.title = live ? `${live.percent} % ${live.name} · sdlora` : "sdlora";
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.name : null;
  show(h("ul", { class: "runs" }, value.items.map((item) => h("li", {},
    h("button", {
      type: "button", class: "card", "data-name": item.name, "aria-pressed": String(item.name === value.chosen),
      onclick: () => trigger("select", { name: item.name }),
    },
    h("span", { class: "body" },
      h("span", { class: "line" }, h("b", {}, item.name), h("span", { class: `badge ${item.status}` }, item.status)),
      h("span", { class: "dim" }, item.line),
      item.percent !== null && h("span", { class: "bar", "aria-hidden": "true" }, h("span", { style: `width:${item.percent}%` }))))))));
  if (focused) element.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
};

watch("value", draw);
draw();
