// value: {dataset, items: [{name, caption, thumb, size, notes: [text]}]}
// events: edit {name, caption}, delete {name}
let known = "";
let cards = new Map();
let search = "";
let only = "all";

const matches = (item) => {
  const text = `${item.name} ${item.caption}`.toLowerCase();
  if (search && !text.includes(search)) return false;
  if (only === "none") return !item.caption.trim();
  return only !== "notes" || item.notes.length > 0;
};

const filter = () => {
  let shown = 0;
  for (const item of props.value.items) {
    const hit = matches(item);
    shown += hit;
    cards.get(item.name).node.hidden = !hit;
  }
  const all = props.value.items.length;
  element.querySelector(".count").textContent = shown === all ? `${all} pictures` : `${shown} of ${all} pictures`;
};

const save = (name, card) => {
  const item = props.value.items.find((each) => each.name === name);
  const caption = card.text.value;
  if (!item || caption === item.caption) return;
  card.state.textContent = "Saving…";
  trigger("edit", { name: item.name, caption });
};

const move = (event, name) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  const visible = [...cards.keys()].filter((key) => !cards.get(key).node.hidden);
  const next = cards.get(visible[visible.indexOf(name) + step]);
  if (next) { next.text.focus(); next.node.scrollIntoView({ block: "nearest" }); }
};

const remarks = (item) => item.notes.map((text) => h("p", { class: "warn" }, text));

const build = (item) => {
  const card = {};
  card.text = h("textarea", {
    rows: 3, "aria-label": `Caption of ${item.name}`, placeholder: "Describe this picture",
    onblur: () => save(item.name, card), onkeydown: (event) => move(event, item.name),
  });
  card.text.value = item.caption;
  card.state = h("span", { class: "state", role: "status" });
  card.notes = h("div", { class: "notes" }, remarks(item));
  card.node = h("li", { class: "picture" },
    h("img", { src: item.thumb, loading: "lazy", alt: "", width: 96, height: 96 }),
    h("div", { class: "body" },
      h("div", { class: "line" },
        h("b", { title: item.name }, item.name),
        h("button", {
          type: "button", class: "quiet", title: "Move this picture to the trash", "aria-label": `Remove ${item.name}`,
          onclick: () => trigger("delete", { name: item.name }),
        }, "✕")),
      card.text,
      h("div", { class: "line" }, h("span", { class: "dim" }, item.size), card.state),
      card.notes));
  return card;
};

const toolbar = () => h("div", { class: "toolbar" },
  h("input", {
    type: "search", placeholder: "Search captions and names", "aria-label": "Search captions and names", value: search,
    oninput: (event) => { search = event.target.value.toLowerCase(); filter(); },
  }),
  h("select", { "aria-label": "Which pictures to show", onchange: (event) => { only = event.target.value; filter(); } },
    [["all", "All pictures"], ["none", "Without caption"], ["notes", "With remarks"]].map(
      ([value, text]) => h("option", { value, selected: value === only }, text))),
  h("span", { class: "count", role: "status" }),
  h("span", { class: "dim keys" }, "Saved when you leave a field. Ctrl+↑ ↓ moves between captions."));

const refresh = () => {
  for (const item of props.value.items) {
    const card = cards.get(item.name);
    const editing = document.activeElement === card.text;
    if (!editing && card.text.value !== item.caption) card.text.value = item.caption;
    card.notes.replaceChildren(...remarks(item));
    if (card.state.textContent === "Saving…") card.state.textContent = "Saved";
  }
};

const draw = () => {
  const value = props.value;
  if (!value || !value.items.length) { known = ""; return show(); }
  const signature = JSON.stringify([value.dataset, value.items.map((item) => [item.name, item.thumb])]);
  if (signature === known) { refresh(); return filter(); }
  known = signature;
  cards = new Map(value.items.map((item) => [item.name, build(item)]));
  show(toolbar(), h("ul", { class: "pictures" }, [...cards.values()].map((card) => card.node)));
  filter();
};

watch("value", draw);
draw();
