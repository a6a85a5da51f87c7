// Ask three models in the page, token by token. No server answers: the models run here, in
// WebAssembly. Nothing but this file is loaded before the reader asks for it.
//
// Loading, prompts and answers come first and know nothing of the page; the form comes after.

const FILES = new URL("./", import.meta.url);
const SHOWN_OTHERS = 4; // tokens that could have come instead

// --- Loading -------------------------------------------------------------------------------------

/** Fetch a file and tell of each piece that arrives, in bytes. */
async function fetchBytes(name, size, arrived, signal) {
  const response = await fetch(new URL(name, FILES), { signal });
  if (!response.ok) throw new Error(`${name} cannot be loaded: the server says ${response.status}.`);
  // The size is known from the build: what a server sends as Content-Length may be compressed.
  const bytes = new Uint8Array(size);
  let length = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (length + value.length > size) throw new Error(`${name} is longer than the page expects.`);
    bytes.set(value, length);
    length += value.length;
    arrived(value.length);
  }
  if (length < size) throw new Error(`${name} arrived only in part. Load it again.`);
  return bytes;
}

/**
 * Load the libraries and the models. `progress(share, what)` is called with a share from 0 to 1.
 * Returns what `ask` needs: the models and the limits of the profile.
 */
export async function load(progress = () => {}, signal = undefined) {
  const response = await fetch(new URL("ask.json", FILES), { signal });
  if (!response.ok) throw new Error(`ask.json cannot be loaded: the server says ${response.status}.`);
  const setup = await response.json();

  const files = new Map([["ort-wasm-simd-threaded.wasm", setup.runtime_bytes]]);
  for (const { onnx, tokenizer } of setup.models) {
    files.set(onnx.file, onnx.bytes).set(tokenizer.file, tokenizer.bytes);
  }
  const total = [...files.values()].reduce((sum, size) => sum + size, 0);
  let loaded = 0;
  const contents = new Map();
  for (const [name, size] of files) {
    contents.set(
      name,
      await fetchBytes(
        name,
        size,
        (length) => progress((loaded += length) / total, `${megabytes(loaded)} of ${megabytes(total)}`),
        signal,
      ),
    );
  }

  progress(1, "starting the models");
  const [ort, { Tokenizer }, { Template }] = await Promise.all([
    import("./ort.wasm.bundle.min.mjs"),
    import("./tokenizers.min.mjs"),
    import("./jinja.js"),
  ]);
  // One thread: more need headers that a plain file server does not send.
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = contents.get("ort-wasm-simd-threaded.wasm");

  const models = [];
  for (const description of setup.models) {
    signal?.throwIfAborted();
    const text = new TextDecoder().decode(contents.get(description.tokenizer.file));
    const session = await ort.InferenceSession.create(contents.get(description.onnx.file), {
      executionProviders: ["wasm"],
      logSeverityLevel: 3, // errors
    });
    const model = {
      ...description,
      setup,
      tokenizer: new Tokenizer(JSON.parse(text), { clean_up_tokenization_spaces: false }),
      template: new Template(description.template),
      /** The logits of the token after `ids`. */
      async logits(ids) {
        const tensor = new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
        return (await session.run({ ids: tensor })).logits.data;
      },
    };
    checkPrompt(model);
    models.push(model);
  }
  return models;
}

/** Python wrote one prompt and its ids when the site was built; here they must be the same. */
function checkPrompt(model) {
  const { question, prompt, ids } = model.check;
  const here = renderPrompt(model, question);
  if (here !== prompt || String(encode(model, here)) !== String(ids)) {
    throw new Error(
      `The tokenizer or the chat template of ${model.name} does not work in a browser as it does ` +
        "in Python, so its answers would be others. It cannot be asked here.",
    );
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

// --- The prompt ----------------------------------------------------------------------------------

const encode = (model, text) => model.tokenizer.encode(text, { add_special_tokens: false }).ids;

const decode = (model, ids, skip = true) =>
  ids.length ? model.tokenizer.decode(ids, { skip_special_tokens: skip }) : "";

/** The conversation as the model's own chat template writes it, the assistant's turn opened. */
export function renderPrompt(model, question) {
  const messages = [{ role: "user", content: question }];
  if (model.setup.system) messages.unshift({ role: "system", content: model.setup.system });
  return model.template.render({
    ...model.special_tokens,
    ...model.setup.template_kwargs,
    messages,
    add_generation_prompt: true,
  });
}

/** Why a question cannot be asked, or null. The rules are those of `text_problems` in Python. */
export function problem(model, question) {
  if (!question.trim()) return "Type a question first.";
  // One half of a surrogate pair is no character, and becomes U+FFFD when it is written down.
  if (new TextDecoder().decode(new TextEncoder().encode(question)) !== question) {
    return "The question holds half a character. Remove it.";
  }
  const written = Object.keys(model.markup).find((token) => question.includes(token));
  const ids = new Set(encode(model, question));
  const read = Object.entries(model.markup).find(([, id]) => ids.has(id))?.[0];
  if (written ?? read) {
    return `The question contains ${written ?? read}, which ${model.name} would read as markup. Remove it.`;
  }
  const length = encode(model, renderPrompt(model, question)).length;
  const room = (model.context ?? Infinity) - model.setup.max_new_tokens;
  if (length > room) {
    return `The question is too long for ${model.name}: its prompt has ${length} tokens, and ${room} fit.`;
  }
  return null;
}

/** Whether a question names something that the models have read facts about. */
export function isKnown(setup, question) {
  const words = ` ${question.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ")} `;
  return setup.known.some((name) => words.includes(` ${name} `) || words.includes(` ${name}s `));
}

// --- The answer ----------------------------------------------------------------------------------

/** Numbers in [0, 1), the same for the same seed everywhere: mulberry32 by Tommy Ettinger. */
export function mulberry32(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), seed | 1);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The probabilities of all tokens at a temperature above 0. */
function softmax(logits, temperature = 1) {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Float64Array.from(logits, (logit) => Math.exp((logit - largest) / temperature));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** The id of the likeliest token, or of one drawn at a temperature. */
function choose(logits, temperature, random) {
  if (temperature === 0) return logits.reduce((best, x, id) => (x > logits[best] ? id : best), 0);
  const probabilities = softmax(logits, temperature);
  let left = random();
  const drawn = probabilities.findIndex((probability) => (left -= probability) < 0);
  return drawn < 0 ? probabilities.length - 1 : drawn; // the sum may be a rounding short of 1
}

/**
 * Answer a question, one token at a time. Yields for each the `id`, its `text`, the `probability`
 * that the model gave it, the likeliest `others`, the whole `answer` so far, and whether the
 * answer `ended` with it.
 */
export async function* ask(model, question, { temperature = 0, seed = 0 } = {}) {
  const trouble = problem(model, question);
  if (trouble) throw new Error(trouble);
  const ids = encode(model, renderPrompt(model, question));
  const start = ids.length;
  const random = mulberry32(seed);
  for (let ended = false; !ended && ids.length < start + model.setup.max_new_tokens; ) {
    const logits = await model.logits(ids);
    const id = choose(logits, temperature, random);
    const probabilities = softmax(logits);
    const others = Array.from(probabilities.keys())
      .filter((other) => other !== id)
      .sort((a, b) => probabilities[b] - probabilities[a])
      .slice(0, SHOWN_OTHERS)
      .map((other) => ({ text: decode(model, [other], false), probability: probabilities[other] }));
    ids.push(id);
    ended = model.ends.includes(id);
    const answer = decode(model, ids.slice(start, ended ? -1 : undefined));
    yield { id, text: decode(model, [id], false), probability: probabilities[id], others, answer, ended };
  }
}

// --- The form ------------------------------------------------------------------------------------

const percent = (share) =>
  share >= 0.9995 ? "> 99.9 %" : share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;

/** White space as signs, as in the book's other views of tokens. */
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";

const element = (name, className, text = "") =>
  Object.assign(document.createElement(name), { className, textContent: text });

/** One model's place: its prompt, its answer, its tokens. */
class Column {
  constructor(template, model) {
    this.model = model;
    this.root = template.content.cloneNode(true).firstElementChild;
    this.root.querySelector(".ask-name").textContent = model.name;
    this.root.querySelector(".ask-part").textContent = model.label;
    [this.answer, this.end, this.tokens, this.others, this.prompt] = [
      ".ask-answer", ".ask-end", ".ask-tokens", ".ask-others", ".ask-prompt",
    ].map((selector) => this.root.querySelector(selector));
    this.tokens.setAttribute("aria-label", `Tokens of ${model.name}`);
    this.tokens.addEventListener("keydown", (event) => this.move(event));
    this.tokens.addEventListener("focusin", (event) => this.explain(event.target));
    this.tokens.addEventListener("click", (event) => this.explain(event.target.closest("button")));
  }

  clear(prompt) {
    this.steps = [];
    this.prompt.textContent = prompt;
    this.answer.textContent = this.end.textContent = "";
    this.tokens.replaceChildren();
    this.others.replaceChildren();
  }

  add(step) {
    this.steps.push(step);
    this.answer.textContent = step.answer;
    const button = element("button", "ask-token");
    button.type = "button";
    button.tabIndex = this.steps.length === 1 ? 0 : -1; // one stop for Tab; arrows do the rest
    const bar = element("span", "ask-bar");
    bar.style.setProperty("--share", step.probability);
    button.append(
      element("span", "ask-text", visible(step.text)),
      element("span", "ask-share", percent(step.probability)),
      bar,
    );
    const item = document.createElement("li");
    item.append(button);
    this.tokens.append(item);
  }

  finish(why) {
    this.end.textContent = why;
  }

  /** Left, right, home and end go from token to token. */
  move(event) {
    const buttons = [...this.tokens.querySelectorAll("button")];
    const here = buttons.indexOf(event.target);
    const last = buttons.length - 1;
    const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: last }[event.key];
    if (here < 0 || next === undefined) return;
    event.preventDefault();
    buttons[Math.min(Math.max(next, 0), last)].focus();
  }

  /** What else could have come in the place of a token. */
  explain(button) {
    const buttons = [...this.tokens.querySelectorAll("button")];
    const place = buttons.indexOf(button);
    if (place < 0) return;
    buttons.forEach((other, i) => {
      other.tabIndex = i === place ? 0 : -1;
      other.setAttribute("aria-pressed", String(i === place));
    });
    const { text, probability, others } = this.steps[place];
    const list = element("ol", "");
    for (const other of others) {
      const item = element("li", "");
      item.append(element("code", "", visible(other.text)), ` ${percent(other.probability)}`);
      list.append(item);
    }
    const line = element("p", "", `Token ${place + 1}: `);
    line.append(element("code", "", visible(text)), ` ${percent(probability)}. The likeliest others:`);
    this.others.replaceChildren(line, list);
  }
}

/** Let the page be drawn and clicks arrive: a token is computed in one go. */
const pause = () => new Promise((resolve) => setTimeout(resolve));

function start(root) {
  const find = (selector) => root.querySelector(selector);
  root.querySelector(".ask-without").hidden = true;
  root.append(find("template.ask-page").content.cloneNode(true));

  const [loader, button, bar, amount, cancel] = [
    ".ask-loader", ".ask-load", "progress", ".ask-amount", ".ask-cancel",
  ].map(find);
  const [form, columns, alert, status, spoken, unknown] = [
    "form", ".ask-columns", "[role=alert]", ".ask-status", ".ask-spoken", ".ask-unknown",
  ].map(find);
  let models, places, controller;

  const say = (error) => {
    alert.textContent = error ? String(error.message ?? error) : "";
  };
  const busy = (loading) => {
    button.disabled = loading;
    bar.hidden = amount.hidden = cancel.hidden = !loading;
  };

  button.addEventListener("click", async () => {
    say("");
    busy(true);
    cancel.focus();
    controller = new AbortController();
    const { signal } = controller;
    try {
      models = await load((share, what) => {
        bar.value = share;
        amount.textContent = what;
      }, signal);
      signal.throwIfAborted();
    } catch (error) {
      busy(false);
      button.focus();
      status.textContent = signal.aborted ? "Loading was canceled." : "";
      if (!signal.aborted) say(`The models could not be loaded. ${error.message}`);
      return;
    }
    const labels = JSON.parse(root.dataset.labels);
    places = models.map((model) => {
      const place = new Column(find("template.ask-column"), { ...model, label: labels[model.part] });
      columns.append(place.root);
      return place;
    });
    for (const example of models[0].setup.examples) form.elements.example.add(new Option(example));
    loader.hidden = true;
    form.hidden = columns.hidden = false;
    status.textContent = "The models are loaded. Ask them something.";
    form.elements.question.focus();
  });
  cancel.addEventListener("click", () => controller.abort());
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") controller?.abort();
  });

  form.elements.example.addEventListener("change", ({ target }) => {
    if (target.value) form.elements.question.value = target.value;
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const question = form.elements.question.value;
    const settings = {
      temperature: form.elements.temperature.valueAsNumber,
      seed: form.elements.seed.valueAsNumber,
    };
    const trouble = models.map((model) => problem(model, question)).find(Boolean);
    say(trouble ?? "");
    if (trouble) return form.elements.question.focus();

    unknown.textContent = isKnown(models[0].setup, question)
      ? ""
      : "Nothing that these models have read facts about is named here: whatever comes now is invented.";

    controller = new AbortController();
    const { signal } = controller;
    form.elements.stop.disabled = false;
    if (document.activeElement === form.elements.ask) form.elements.stop.focus();
    form.elements.ask.disabled = true;
    status.textContent = "The models are answering.";
    spoken.textContent = "";
    try {
      // A token of each in turn, so that the answers grow side by side.
      let open = models.map((model, i) => {
        places[i].clear(renderPrompt(model, question));
        return { place: places[i], steps: ask(model, question, settings) };
      });
      while (open.length && !signal.aborted) {
        for (const one of open) {
          if (signal.aborted) break;
          const { value, done } = await one.steps.next();
          if (value) one.place.add(value);
          one.ended = done || value.ended;
          await pause();
        }
        for (const { place } of open.filter((one) => one.ended)) {
          const count = place.steps.length;
          const tokens = `${count} token${count === 1 ? "" : "s"}`;
          const stopped = place.steps.at(-1).ended;
          place.finish(stopped ? `■ stopped by itself after ${tokens}` : `✂ cut at the limit of ${tokens}`);
          spoken.textContent += `${place.model.name}: ${place.steps.at(-1).answer}\n`;
        }
        open = open.filter((one) => !one.ended);
      }
      open.forEach(({ place }) => place.finish(`⏹ you stopped it after ${place.steps.length} tokens`));
      status.textContent = signal.aborted ? "Stopped." : "All of them have answered.";
    } catch (error) {
      say(`The models could not answer. ${error.message}`);
      status.textContent = "";
    } finally {
      form.elements.ask.disabled = false;
      if (document.activeElement === form.elements.stop) form.elements.ask.focus();
      form.elements.stop.disabled = true;
    }
  });
  form.elements.stop.addEventListener("click", () => controller.abort());
}

document.querySelectorAll(".ask[data-labels]").forEach(start);
