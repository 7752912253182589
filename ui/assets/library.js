// value: {chosen, items: [{file, name, family, detail, triggers: [text], picture, bad}]}
// events: select {file}
let search = "";

const card = (item) => h("li", {},
  h("button", {
    type: "button", class: `card ${item.bad ? "bad" : ""}`, "aria-pressed": String(item.file === props.value.chosen),
    onclick: () => trigger("select", { file: item.file }),
  },
  item.picture ? h("img", { src: item.picture, alt: "", loading: "lazy" }) : h("span", { class: "letter", "aria-hidden": "true" }, item.name.slice(0, 1).toUpperCase()),
  h("span", { class: "body" },
    h("b", {}, item.name),
    h("span", { class: "dim" }, item.family, item.detail && ` · ${item.detail}`),
    item.triggers.length > 0 && h("span", { class: "chips" }, item.triggers.slice(0, 4).map((word) => h("span", {}, word))),
    item.bad && h("span", { class: "warn" }, item.bad))));

const draw = () => {
  const value = props.value;
  if (!value || !value.items.length) return show();
  let field = element.querySelector("input[type=search]");
  if (!field) {
    field = h("input", { type: "search", placeholder: "Search adapters", "aria-label": "Search adapters",
      oninput: (event) => { search = event.target.value.toLowerCase(); draw(); } });
    show(h("div", { class: "toolbar" }, field, h("span", { class: "count", role: "status" })), h("ul", { class: "cards" }));
  }
  const hits = value.items.filter((item) => `${item.name} ${item.family} ${item.triggers.join(" ")}`.toLowerCase().includes(search));
  const count = `${hits.length} adapter${hits.length === 1 ? "" : "s"}`;
  element.querySelector(".count").textContent = hits.length === value.items.length ? count : `${hits.length} of ${value.items.length}`;
  element.querySelector(".cards").replaceChildren(...hits.map(card));
};

watch("value", draw);
draw();
