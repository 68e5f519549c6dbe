// Runs a model in this page.

export const FEATURES = 64;
const TOLERANCE = 1e-5;
let runtime;

/** Loads the runtime, once. */
function started() {
  runtime ??= import("/runtime/ort.wasm.min.mjs").then((ort) => {
    ort.env.wasm.wasmPaths = "/runtime/";
    // One row takes less time than waking a thread.
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = "error";
    return ort;
  });
  return runtime;
}

/** Returns a model that is ready to predict; throws if the bytes are none, or of another width. */
export async function open(bytes, labels) {
  if (typeof WebAssembly !== "object") {
    throw new Error("this browser has no WebAssembly, which runs the model");
  }
  const ort = await started();
  const session = await ort.InferenceSession.create(new Uint8Array(bytes), {
    executionProviders: ["wasm"],
  });
  const model = { ort, session, labels };
  // A model of another width fails here, and not under a finger.
  await predict(model, [new Float32Array(FEATURES)]);
  return model;
}

/** Returns the probabilities of each row. */
export async function predict({ ort, session, labels }, rows) {
  const values = Float32Array.from(rows.flatMap((row) => [...row]));
  const input = new ort.Tensor("float32", values, [rows.length, FEATURES]);
  const { probabilities } = await session.run({ [session.inputNames[0]]: input });
  const [count, width] = probabilities.dims;
  if (count !== rows.length || width !== labels.length) {
    throw new Error("the model has no probability for each label");
  }
  return rows.map((_, at) => [...probabilities.data.subarray(at * width, (at + 1) * width)]);
}

/** Tells whether the model computes here what it has computed at the publisher. */
export async function passes(model, golden) {
  const found = await predict(model, golden.rows);
  return found.every((row, at) =>
    row.every((value, label) => Math.abs(value - golden.probabilities[at][label]) <= TOLERANCE),
  );
}
