// panel(row, blocks, change): how the weight of one adapter varies, as fields; `change(words)` gets the new words,
// those of sdlora.generation.words. `blocks` is {lists: [[name]], parts: {name: [block]}}, or {} where none are known.
const WHEN = [
  ["all", "All steps", {}],
  ["early", "Early steps: shapes", { end: "0.6" }],
  ["late", "Late steps: surface", { start: "0.4" }],
  ["in", "Fading in", { curve: "0@0,1@0.5" }],
  ["out", "Fading out", { curve: "1@0.5,0@1" }],
  ["range", "From … to …", { start: "0.2", end: "0.8" }],
  ["curve", "A curve …", { curve: "0@0,1@0.3,1@0.7,0@1" }],
  ["turn", "In turns with others …", { turn: "1/2" }],
];
const WHERE = [
  ["all", "The whole picture", {}],
  ["left", "Left half", { box: "0,0,0.5,1" }],
  ["right", "Right half", { box: "0.5,0,1,1" }],
  ["top", "Upper half", { box: "0,0,1,0.5" }],
  ["bottom", "Lower half", { box: "0,0.5,1,1" }],
  ["box", "A rectangle …", { box: "0.25,0.25,0.75,0.75" }],
  ["mask", "A mask …", {}],
];
const WHAT = [
  ["all", "All blocks", {}],
  ["content", "Content, not style", { style: 0, detail: 0 }],
  ["style", "Style, not content", { composition: 0, content: 0 }],
  ["own", "Block by block …", {}],
];
const STEPS = ["curve", "start", "end", "turn"];
const PLACE = ["box", "mask"];

const pick = (words, names) => Object.fromEntries(names.filter((name) => name in words).map((name) => [name, words[name]]));
const without = (words, names) => Object.fromEntries(Object.entries(words).filter(([name]) => !names.includes(name)));
const same = (a, b) => Object.keys(a).length === Object.keys(b).length && Object.keys(a).every((name) => a[name] === b[name]);
const percent = (text) => `${Math.round(Number(text) * 100)} %`;
const plain = (number) => String(Math.round(number * 1000) / 1000);

const whenOf = (words) => {
  const mine = pick(words, STEPS);
  const known = WHEN.find(([, , preset]) => same(preset, mine));
  return known ? known[0] : "curve" in mine ? "curve" : "turn" in mine ? "turn" : "range";
};
const whereOf = (words) => {
  if ("mask" in words) return "mask";
  const known = WHERE.find(([name, , preset]) => name !== "mask" && same(preset, pick(words, PLACE)));
  return known ? known[0] : "box";
};

// Block weights: the words hold a list, and a part's slider stands for all blocks of the part.
const listOf = (words, blocks) => (words.lbw ? words.lbw.split(",").map(Number) : blocks.lists[0].map(() => 1));
const namesOf = (list, blocks) => blocks.lists.find((names) => names.length === list.length) || blocks.lists[0];
const partOf = (list, part, blocks) => {
  const values = namesOf(list, blocks).map((name, at) => (blocks.parts[part].includes(name) ? list[at] : null)).filter((value) => value !== null);
  return values.every((value) => value === values[0]) ? values[0] : null;
};
const withParts = (list, parts, blocks) => namesOf(list, blocks).map((name, at) => {
  const part = Object.keys(parts).find((each) => blocks.parts[each].includes(name));
  return part ? parts[part] : list[at];
});
const withList = (words, list) => (list.every((value) => value === 1) ? without(words, ["lbw"]) : { ...without(words, ["lbw"]), lbw: list.map(plain).join(",") });
const whatOf = (words, blocks) => {
  if (!words.lbw) return "all";
  const ones = listOf(words, blocks).map(() => 1);
  const known = WHAT.find(([name, , parts]) => name !== "own" && withParts(ones, parts, blocks).map(plain).join(",") === words.lbw);
  return known ? known[0] : "own";
};

// What varies in few words, for the closed row.
const summary = (row, blocks) => {
  const words = row.change;
  const parts = [];
  if (row.text_weight !== null && row.text_weight !== row.weight) parts.push(`text ${row.text_weight}`);
  if ("turn" in words) parts.push(`turn ${words.turn}`);
  if ("curve" in words) parts.push(whenOf(words) === "in" ? "fading in" : whenOf(words) === "out" ? "fading out" : "a curve");
  if ("start" in words || "end" in words) parts.push(`steps ${percent(words.start || 0)} to ${percent(words.end || 1)}`);
  if (words.box) parts.push(whereOf(words) === "box" ? "a rectangle" : WHERE.find(([name]) => name === whereOf(words))[1].toLowerCase());
  if (words.mask) parts.push("a mask");
  if (words.lbw) parts.push(blocks.lists && whatOf(words, blocks) !== "own" ? WHAT.find(([name]) => name === whatOf(words, blocks))[1].toLowerCase() : "own blocks");
  return parts.join(", ");
};

const choice = (label, options, value, chosen) => h("label", { class: "field" }, h("span", {}, label),
  h("select", { onchange: (event) => chosen(event.target.value) },
    options.map(([name, text]) => h("option", { value: name, selected: name === value }, text))));
const amount = (label, value, { min, max, step }, changed) => h("label", { class: "field small" }, h("span", {}, label),
  h("input", { type: "number", min: String(min), max: String(max), step: String(step), value: String(value),
    onchange: (event) => {
      const number = Number(event.target.value);
      if (event.target.value !== "" && number >= min && number <= max) changed(number);
      else event.target.value = String(value);
    } }));

const plot = (words) => {
  const ends = "start" in words || "end" in words;
  const [start, end] = [Number(words.start || 0), Number(words.end || 1)];
  const points = ends ? [[start, 0], [start, 1], [end, 1], [end, 0]]
    : words.curve ? words.curve.split(",").map((point) => point.split("@").map(Number)).map(([value, at]) => [at, value]) : [[0, 1]];
  const whole = [[0, ends && start > 0 ? 0 : points[0][1]], ...points, [1, ends && end < 1 ? 0 : points[points.length - 1][1]]];
  const top = Math.max(1, ...whole.map(([, value]) => Math.abs(value)));
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 160 44");
  svg.setAttribute("class", "plot");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", whole.map(([at, value]) => `${4 + at * 152},${40 - (Math.max(value, 0) / top) * 36}`).join(" "));
  svg.append(line);
  return svg;
};

const CURVE = /^\s*-?\d*\.?\d+\s*@\s*(0|1|0?\.\d+|1\.0*)\s*$/;
const text = (label, value, hint, good, changed) => {
  const problem = h("p", { class: "warn", hidden: true }, hint);
  const field = h("input", { type: "text", value, onchange: (event) => {
    problem.hidden = good(event.target.value);
    if (problem.hidden) changed(event.target.value.replaceAll(" ", ""));
  } });
  return h("div", { class: "wide" }, h("label", { class: "field" }, h("span", {}, label), field), problem);
};

const stepFields = (words, set, kind) => {
  const range = { min: 0, max: 100, step: 5 };
  const part = (name, share) => set({ ...words, [name]: plain(share / 100) });
  if (kind === "range") {
    const [start, end] = [Number(words.start || 0) * 100, Number(words.end || 1) * 100];
    return [amount("From, % of the steps", plain(start), { ...range, max: end }, (share) => part("start", share)),
      amount("To, % of the steps", plain(end), { ...range, min: start }, (share) => part("end", share))];
  }
  if (kind === "curve") return [text("Weight@part of the steps", words.curve, "Write weight@fraction, such as 0@0,1@0.5.",
    (value) => value.split(",").every((point) => CURVE.test(point)), (curve) => set({ ...words, curve }))];
  if (kind !== "turn") return [];
  const [turn, of] = words.turn.split("/").map(Number);
  return [amount("Turn", turn, { min: 1, max: of, step: 1 }, (value) => set({ ...words, turn: `${value}/${of}` })),
    amount("of", of, { min: turn, max: 20, step: 1 }, (value) => set({ ...words, turn: `${turn}/${value}` }))];
};

// A rectangle drawn with the pointer, in steps of 5 %; the four numbers do the same by keyboard.
const pad = (box, set) => {
  const frame = h("div", { class: "frame" });
  const place = ([left, top, right, bottom]) => Object.assign(frame.style, {
    left: `${left * 100}%`, top: `${top * 100}%`, width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%` });
  const area = h("div", { class: "pad", "aria-hidden": "true", title: "Draw a rectangle" }, frame);
  let from = null;
  const at = (event) => {
    const bounds = area.getBoundingClientRect();
    const share = (value) => Math.round(Math.min(1, Math.max(0, value)) * 20) / 20;
    return [share((event.clientX - bounds.left) / bounds.width), share((event.clientY - bounds.top) / bounds.height)];
  };
  const drawn = (to) => [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
  area.addEventListener("pointerdown", (event) => { from = at(event); area.setPointerCapture(event.pointerId); });
  area.addEventListener("pointermove", (event) => { if (from) place(drawn(at(event))); });
  area.addEventListener("pointerup", (event) => {
    const made = drawn(at(event));
    from = null;
    if (made[2] > made[0] && made[3] > made[1]) set(made); else place(box);
  });
  place(box);
  return area;
};
const placeFields = (words, set, kind, row, index) => {
  if (kind === "mask") return [h("label", { class: "field" }, h("span", {}, "Picture, white where it counts"),
    h("input", { type: "file", accept: "image/*", onchange: async (event) => {
      const file = event.target.files[0];
      if (file) trigger("edit", { row: index, mask: (await upload(file)).path });
    } })), words.mask && h("img", { class: "mask", src: `gradio_api/file=${words.mask.replaceAll("\\", "/").split("/").map(encodeURIComponent).join("/")}`, alt: "The mask" })];
  if (kind !== "box") return [];
  const box = words.box.split(",").map(Number);
  const write = (made) => set({ ...without(words, PLACE), box: made.map(plain).join(",") });
  const side = (label, number, limits) => amount(label, plain(box[number] * 100), { step: 5, ...limits },
    (value) => write(box.map((old, each) => (each === number ? value / 100 : old))));
  return [pad(box, write), h("div", { class: "sides" },
    side("Left, %", 0, { min: 0, max: box[2] * 100 - 1 }), side("Right, %", 2, { min: box[0] * 100 + 1, max: 100 }),
    side("Top, %", 1, { min: 0, max: box[3] * 100 - 1 }), side("Bottom, %", 3, { min: box[1] * 100 + 1, max: 100 }))];
};

const blockFields = (words, set, blocks) => {
  const list = listOf(words, blocks);
  const slider = (part) => {
    const value = partOf(list, part, blocks);
    const shown = h("output", {}, value === null ? "mixed" : plain(value));
    return h("label", { class: "field part" }, h("span", {}, part, shown), h("input", {
      type: "range", min: "-1", max: "2", step: "0.05", value: String(value === null ? 1 : value),
      oninput: (event) => { shown.textContent = event.target.value; },
      onchange: (event) => set(withList(words, withParts(list, { [part]: Number(event.target.value) }, blocks))),
    }));
  };
  const lengths = blocks.lists.map((names) => names.length);
  return [h("div", { class: "parts" }, Object.keys(blocks.parts).map(slider)),
    text("All block weights", list.map(plain).join(","), `Give ${lengths.join(" or ")} numbers with commas between.`,
      (value) => lengths.includes(value.split(",").length) && value.split(",").every((each) => each.trim() !== "" && Number.isFinite(Number(each))),
      (value) => set(withList(words, value.split(",").map(Number)))),
    h("p", { class: "dim wide" }, `In the order ${namesOf(list, blocks).join(" ")}.`)];
};

const panel = (row, index, blocks, change, varies) => {
  const node = h("div", { class: "panel" });
  const kinds = { when: whenOf(row.change), where: whereOf(row.change), what: blocks.lists ? whatOf(row.change, blocks) : "all" };
  let words = row.change;
  const set = (changed) => { words = changed; change(changed); fill(); };
  const keep = (name, kind, changed) => { kinds[name] = kind; set(changed); };
  const preset = (table, kind) => table.find(([name]) => name === kind)[2];
  const fill = () => {
    const fields = () => [...node.querySelectorAll("input, select")];
    const focused = fields().indexOf(document.activeElement);
    node.replaceChildren(...lines());
    fields()[focused]?.focus();
  };
  const lines = () => [
    ...(varies ? [h("div", { class: "line" },
      choice("When", WHEN, kinds.when, (kind) => keep("when", kind, { ...without(words, STEPS), ...preset(WHEN, kind) })),
      stepFields(words, set, kinds.when), !["all", "turn"].includes(kinds.when) && plot(words)),
    h("div", { class: "line" },
      choice("Where", WHERE, kinds.where, (kind) => keep("where", kind, { ...without(words, PLACE), ...preset(WHERE, kind) })),
      placeFields(words, set, kinds.where, row, index))] : []),
    blocks.lists && h("div", { class: "line" },
      choice("What of it", WHAT, kinds.what, (kind) => keep("what", kind, kind === "own" ? words
        : withList(words, withParts(listOf({}, blocks), preset(WHAT, kind), blocks)))),
      kinds.what === "own" && blockFields(words, set, blocks)),
  ].filter(Boolean);
  fill();
  return node;
};
