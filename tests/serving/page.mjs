// The page's own script, run by Node against a running server, and what then stands on the page after each file that it is given.
// Of a browser there is as much as the script asks for: elements, events and real requests; no layout, and of pictures their size.
import { resolveObjectURL } from "node:buffer";
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import vm from "node:vm";

const [address, ...paths] = process.argv.slice(2);
const page = await (await fetch(address)).text();
const listeners = {}, elements = {}, asked = fetch;

class Element {
  children = []; attributes = {}; listeners = {}; style = {}; classes = new Set();
  constructor(tag, hidden = false) { this.tag = tag; this.hidden = hidden; }
  classList = {
    add: (name) => this.classes.add(name),
    remove: (name) => this.classes.delete(name),
    toggle: (name, on) => (on ? this.classes.add(name) : this.classes.delete(name)),
  };
  setAttribute(name, value) { this.attributes[name] = String(value); }
  addEventListener(kind, listener) { this.listeners[kind] = listener; }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  set textContent(text) { this.children = [text]; }
  get textContent() { return this.children.map((child) => child.textContent ?? child).join(""); }
  within(tag) { return this.children.flatMap((child) => (child instanceof Element ? [...(child.tag === tag ? [child] : []), ...child.within(tag)] : [])); }
  async decode() {
    const bytes = Buffer.from(await resolveObjectURL(this.attributes.src).arrayBuffer());
    if (bytes.toString("latin1", 1, 4) !== "PNG") throw new Error("a format that browsers do not show");
    [this.naturalWidth, this.naturalHeight] = [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
  }
}

for (const [, tag, attributes, text] of page.matchAll(/<(\w+)([^>]*\bid="[^>]*)>([^<]*)/g)) {
  const made = elements[/\bid="(\w+)"/.exec(attributes)[1]] = new Element(tag, /\bhidden\b/.test(attributes));
  made.textContent = text;
}
globalThis.document = {
  getElementById: (id) => elements[id] ?? null,
  createElement: (tag) => new Element(tag),
  createElementNS: (_, tag) => new Element(tag),
};
globalThis.addEventListener = (kind, listener) => { listeners[kind] = listener; };
globalThis.location = new URL(address);
globalThis.innerHeight = 900;
globalThis.fetch = (path, options) => asked(new URL(path, address), options);

async function until(condition) {
  for (const end = Date.now() + 60000; !condition(); await new Promise((go) => setTimeout(go, 10)))
    if (Date.now() > end) throw new Error(`${condition} never came true`);
}
function shown(id) { return elements[id].hidden ? null : elements[id].textContent; }
function standing() {
  const [frame, rows] = [elements.frame, elements.objects];
  return {
    title: document.title,
    ...Object.fromEntries(["name", "caption", "error", "nothing", "time"].map((id) => [id, shown(id)])),
    json: elements.more.hidden ? null : JSON.parse(elements.json.textContent),
    picture: frame.hidden ? null : frame.within("img").map((one) => [one.naturalWidth, one.naturalHeight])[0],
    boxes: frame.within("rect").map(({ attributes }) => ["x", "y", "width", "height"].map((name) => Number(attributes[name]))),
    masks: frame.within("path").length,
    objects: rows.hidden ? [] : rows.within("li").map((row) => row.children.map((cell) => cell.textContent).filter(Boolean)),
  };
}

vm.runInThisContext(/<script>(.*)<\/script>/s.exec(page)[1]);
await until(() => elements.facts.children.length || !elements.error.hidden);
const found = [];
for (const [turn, path] of paths.entries()) {
  const files = [new File([await readFile(path)], basename(path))];
  if (turn % 2) elements.file.listeners.change({ target: { files } });
  else listeners.drop({ preventDefault() {}, dataTransfer: { files } });
  await until(() => !elements.stage.classes.has("busy"));
  found.push(standing());
}
console.log(JSON.stringify(found));
