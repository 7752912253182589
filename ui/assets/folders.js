// A folder dropped on a dataset becomes a zip: Gradio would forget its sub-folders, whose names mean repeats (10_name).
(() => {
  const LARGEST = 2 ** 30; // bytes of a zip; more files go into the next one
  const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
    let c = n;
    for (let bit = 0; bit < 8; bit += 1) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
    return c >>> 0;
  });
  const crcOf = async (file) => {
    let crc = 0xffffffff;
    for (let at = 0; at < file.size; at += 1 << 22)
      for (const byte of new Uint8Array(await file.slice(at, at + (1 << 22)).arrayBuffer())) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
    return (crc ^ 0xffffffff) >>> 0;
  };

  // [{name, file}] of all files below an entry, names with their folders
  const filesOf = async (entry, above = "") => {
    const name = above + entry.name;
    if (entry.isFile) return [{ name, file: await new Promise((done, failed) => entry.file(done, failed)) }];
    const reader = entry.createReader();
    const found = [];
    for (;;) { // a reader gives at most a hundred entries at once
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) return found;
      for (const each of some) found.push(...await filesOf(each, `${name}/`));
    }
  };

  const numbers = (...pairs) => {
    const view = new DataView(new ArrayBuffer(pairs.reduce((sum, [size]) => sum + size, 0)));
    let at = 0;
    for (const [size, value] of pairs) {
      if (size === 2) view.setUint16(at, value, true); else view.setUint32(at, value, true);
      at += size;
    }
    return view.buffer;
  };
  // PKWARE's APPNOTE, sections 4.3.7, 4.3.12 and 4.3.16: stored, not compressed, names in UTF-8
  const zipped = async (files) => {
    const parts = [];
    const index = [];
    let at = 0;
    for (const { name, file } of files) {
      const path = new TextEncoder().encode(name);
      const facts = [[2, 0x0800], [2, 0], [2, 0], [2, 0x21], [4, await crcOf(file)], [4, file.size], [4, file.size], [2, path.length], [2, 0]];
      const head = numbers([4, 0x04034b50], [2, 20], ...facts);
      index.push(numbers([4, 0x02014b50], [2, 20], [2, 20], ...facts, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]), path);
      parts.push(head, path, file);
      at += head.byteLength + path.length + file.size;
    }
    const size = index.reduce((sum, part) => sum + part.byteLength, 0);
    return new Blob([...parts, ...index, numbers([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, at], [2, 0])]);
  };

  const groups = (files) => files.reduce((made, each) => {
    const last = made[made.length - 1];
    const full = last.length >= 60000 || last.reduce((sum, { file }) => sum + file.size, each.file.size) > LARGEST;
    if (last.length && full) made.push([each]); else last.push(each);
    return made;
  }, [[]]);

  document.addEventListener("drop", async (event) => {
    const zone = event.target.closest?.("#upload");
    const entries = [...(event.dataTransfer?.items || [])].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!zone || !entries.some((entry) => entry.isDirectory)) return;
    event.preventDefault();
    event.stopPropagation();
    const files = (await Promise.all(entries.map((entry) => filesOf(entry)))).flat();
    const sent = new DataTransfer();
    for (const [number, group] of groups(files).entries()) sent.items.add(new File([await zipped(group)], `${entries[0].name}-${number + 1}.zip`));
    const input = zone.querySelector("input[type=file]");
    input.files = sent.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }, true);
})();
