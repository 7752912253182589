// value: {title (may lack), items: [{url, file, name, alt, seed ("": not told)}]}
// events: select {file}: its settings are wanted. (Gradio takes a datum called "path" for an upload.)
const figure = (item) => h("figure", {},
  h("a", { href: item.url, target: "_blank", rel: "noopener", title: `Open ${item.name}` },
    h("img", { src: item.url, alt: item.alt, loading: "lazy" })),
  h("figcaption", {},
    item.seed && h("span", { class: "dim" }, `Seed ${item.seed}`),
    h("button", { type: "button", class: "quiet", "aria-label": `Use the settings of ${item.name}`, onclick: () => trigger("select", { file: item.file }) },
      "Use settings"),
    item.seed && h("a", { href: item.url, download: item.name, class: "quiet", "aria-label": `Save ${item.name}` }, "Save")));

let known = "";
const draw = () => {
  const items = props.value ? props.value.items : [];
  const signature = JSON.stringify(items);
  if (signature === known) return;
  known = signature;
  show(items.length > 0 && props.value.title && h("h2", {}, props.value.title), items.length > 0 && h("div", { class: `sheet n${Math.min(items.length, 4)}` }, items.map(figure)));
};

watch("value", draw);
draw();
