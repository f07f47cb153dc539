// node web/node.mjs [onnx/model.onnx] < sentences.txt: a JSON line for each line of text.
import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import * as ort from "onnxruntime-web";
import { load } from "./classify.mjs";

const read = (name) => readFile(new URL(`../${name}`, import.meta.url));
const classify = await load(ort, read, process.argv[2]);
const sentences = (await text(process.stdin)).split(/\r?\n/);
if (sentences.at(-1) === "") sentences.pop();
for (const sentence of sentences) {
  const [{ label, probabilities }] = await classify([sentence]);
  console.log(JSON.stringify({ label, probabilities }));
}
