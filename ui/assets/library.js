// value: {chosen, items: [{file, name, family, detail, triggers: [text], picture, bad}]}
// events: select {file}
let search = "";
let family = "";
let byName = false;

const card = (item) => h("li", {},
  h("button", {
    type: "button", class: `card ${item.bad ? "bad" : ""}`, "aria-pressed": String(item.file === props.value.chosen),
    onclick: () => {
      trigger("select", { file: item.file });
      if (innerWidth < 700) document.querySelector("#adapter-card").scrollIntoView({ block: "start" });
    },
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
    show(h("div", { class: "toolbar" }, field, h("select", { "aria-label": "Made for", onchange: (event) => { family = event.target.value; draw(); } }),
      h("select", { "aria-label": "Order", onchange: (event) => { byName = event.target.value === "name"; draw(); } },
        h("option", { value: "new" }, "Newest first"), h("option", { value: "name" }, "By name")),
      h("span", { class: "count", role: "status" })), h("ul", { class: "cards" }));
  }
  const families = [...new Set(value.items.map((item) => item.family))].sort();
  if (!families.includes(family)) family = "";
  const select = element.querySelector("select");
  select.hidden = families.length < 2;
  select.replaceChildren(...[["", "All bases"], ...families.map((name) => [name, name])].map(
    ([name, text]) => h("option", { value: name, selected: name === family }, text)));
  const words = (item) => `${item.name} ${item.family} ${item.detail} ${item.triggers.join(" ")}`.toLowerCase();
  const hits = value.items.filter((item) => words(item).includes(search) && (!family || item.family === family));
  if (byName) hits.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true, sensitivity: "base" }));
  const count = `${hits.length} adapter${hits.length === 1 ? "" : "s"}`;
  element.querySelector(".count").textContent = hits.length === value.items.length ? count : `${hits.length} of ${value.items.length}`;
  element.querySelector(".cards").replaceChildren(...hits.map(card));
};

watch("value", draw);
draw();
