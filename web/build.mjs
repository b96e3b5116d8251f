// Bundles the page into surgeon/report/page, with the licences of what goes in, and records what it was built from.

import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

const OUT = "../surgeon/report/page";
// The accessibility check of the browser tests; it is not shipped.
const AXE = "../tests/report/axe.min.js";
const OWN = ["build.mjs", "package.json", "package-lock.json"];

/** The one hash of all sources; tests/report/test_bundle.py computes the same. */
function sources() {
  const files = [...OWN, ...readdirSync("src").map((name) => `src/${name}`)].sort();
  const whole = createHash("sha256");
  for (const file of files) whole.update(`${file}\0${hash(readFileSync(file))}\n`);
  return whole.digest("hex");
}

function hash(data) {
  return createHash("sha256").update(data).digest("hex");
}

/** Names, versions, licences and notices of the packages that are in the bundle. */
function licences(inputs) {
  const found = new Map();
  for (const path of Object.keys(inputs)) {
    const at = path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)\//);
    if (at) found.set(at[1], `node_modules/${at[1]}`);
  }
  const texts = [...found].sort().map(([name, folder]) => {
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json")));
    const file = ["LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE"].map((each) => join(folder, each)).find(existsSync);
    if (!file) throw new Error(`${name} has no licence file`);
    return `${name} ${version} (${license})\n\n${readFileSync(file, "utf8").trim()}\n`;
  });
  return `The report page contains these packages from the npm registry.\n\n${texts.join(`\n${"-".repeat(80)}\n\n`)}`;
}

const options = { bundle: true, minify: true, write: false, metafile: true, charset: "utf8", legalComments: "none", target: ["es2022"] };
const script = await build({ ...options, entryPoints: ["src/main.js"], format: "iife" });
const style = await build({ ...options, entryPoints: ["src/page.css"] });
const parts = {
  "page.js": script.outputFiles[0].text.replaceAll("</script", "<\\/script").trim() + "\n",
  "page.css": style.outputFiles[0].text.replaceAll("</style", "<\\/style"),
  "THIRD_PARTY_LICENSES.txt": licences(Object.values(script.metafile.outputs)[0].inputs),
};
const record = { sources: sources(), parts: Object.fromEntries(Object.entries(parts).map(([name, text]) => [name, hash(text)])) };
mkdirSync(OUT, { recursive: true });
for (const [name, text] of Object.entries(parts)) writeFileSync(join(OUT, name), text);
writeFileSync(join(OUT, "built.json"), `${JSON.stringify(record, null, 1)}\n`);
copyFileSync("node_modules/axe-core/axe.min.js", AXE);
console.log(Object.entries(parts).map(([name, text]) => `${name} ${(text.length / 1024).toFixed(0)} KiB`).join(", "));
