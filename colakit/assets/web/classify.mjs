// Labels sentences with ONNX Runtime, in a browser and in Node. Reads only files of the exported folder.
import { Tokenizer } from "@huggingface/tokenizers";

/**
 * Load an exported folder.
 * @param {object} ort - the module onnxruntime-web (or onnxruntime-node).
 * @param {(name: string) => Promise<ArrayBuffer>} read - returns the bytes of a file of the folder.
 * @param {string} model - the ONNX file.
 */
export async function load(ort, read, model = "onnx/model.onnx") {
  const json = async (name) => JSON.parse(new TextDecoder().decode(await read(name)));
  const [file, settings, rule] = await Promise.all(
    ["tokenizer.json", "tokenizer_config.json", "colakit.json"].map(json),
  );
  const tokenizer = new Tokenizer(file, settings);
  const session = await ort.InferenceSession.create(new Uint8Array(await read(model)));
  const pad = tokenizer.token_to_id(settings.pad_token);
  const end = tokenizer.token_to_id(settings.eos_token);
  return (sentences) => classify(ort, session, rule, sentences.map(encode(tokenizer, rule, end)), pad);
}

/** Return a function from a sentence to its tokens; a long one loses its last tokens, but no boundary token. */
function encode(tokenizer, rule, end) {
  return (sentence) => {
    const plain = tokenizer.encode(sentence, { add_special_tokens: false }).ids;
    const ids = tokenizer.encode(sentence).ids;
    if (ids.length === 0) return [end];
    const before = Number(rule.prefix), excess = ids.length - (rule.max_tokens ?? Infinity);
    if (excess <= 0) return ids;
    const text = plain.slice(0, Math.max(0, plain.length - excess));
    return [...ids.slice(0, before), ...text, ...ids.slice(before + plain.length)];
  };
}

/** Return label, its probability, all probabilities and the logits of each sentence, given as tokens. */
async function classify(ort, session, rule, sentences, pad) {
  const length = Math.max(...sentences.map((ids) => ids.length));
  const shape = [sentences.length, length];
  const ids = new BigInt64Array(shape[0] * length).fill(BigInt(pad));
  const mask = new BigInt64Array(shape[0] * length);
  sentences.forEach((tokens, row) => {
    tokens.forEach((token, column) => {
      ids[row * length + column] = BigInt(token);
      mask[row * length + column] = 1n;
    });
  });
  const { logits } = await session.run({
    input_ids: new ort.Tensor("int64", ids, shape),
    attention_mask: new ort.Tensor("int64", mask, shape),
  });
  const classes = logits.dims[1];
  return sentences.map((_, row) => {
    const scores = Array.from(logits.data.slice(row * classes, (row + 1) * classes));
    const probabilities = softmax(scores.map((score) => score / rule.temperature));
    const index = choose(scores, probabilities, rule.threshold);
    const [label, probability] = [rule.label_names[index], probabilities[index]];
    return { label, probability, probabilities, logits: scores };
  });
}

function softmax(scores) {
  const largest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

/** Return the index of the label: by the threshold of class 1 if there is one, else the largest logit. */
function choose(scores, probabilities, threshold) {
  if (threshold === null) return scores.indexOf(Math.max(...scores));
  return Number(probabilities[1] >= threshold);
}
