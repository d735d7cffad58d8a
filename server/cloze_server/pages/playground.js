"use strict";

// What people see is made of text nodes alone: nothing that a model or a person wrote becomes markup.

const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (key === "hue") made.style.setProperty("--hue", value);
    else if (key === "width") made.style.width = `${value}%`;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const percent = (score) => `${(100 * score).toFixed(score < 0.0995 ? 2 : 1)} %`;
const milliseconds = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(1)} ms`;

// The server counts characters as Unicode has them; JavaScript counts halves of those beyond the 65,536th.
const characters = (text) => Array.from(text);

/** A colour for a label, the same each time. */
function hue(label) {
  let sum = 0;
  for (const character of label) sum = (sum * 31 + character.codePointAt(0)) % 9973;
  return [165, 262, 28, 205, 335, 95, 45, 300, 0][sum % 9];
}

function bar(name, share, number, attributes = {}) {
  const parts = [
    element("span", {}, name),
    element("span", { class: "track", "aria-hidden": "true" }, element("i", { width: Math.max(0, Math.min(1, share)) * 100 })),
    element("span", { class: "number" }, number),
  ];
  return element(attributes.onclick ? "button" : "div", { type: attributes.onclick && "button", ...attributes, class: `bar ${attributes.class ?? ""}` }, ...parts);
}

const bars = (items) => element("ol", { class: "bars" }, ...items.map((each) => element("li", {}, each)));

// ---------------------------------------------------------------- tasks

/** A token as it reads in a text: without the marks that sub-words carry. */
function spelt(token) {
  return token.replace(/^[ĠĊ▁]+/u, "");
}

function showMasks(result, body, model) {
  const parts = body.inputs.split(model.mask);
  const chosen = result.masks.map((mask) => mask.predictions[0].token);
  const sentence = element("p", { class: "prose" });
  const fill = () => {
    sentence.replaceChildren();
    parts.forEach((part, place) => {
      const token = chosen[place];
      const glued = token?.startsWith("##");
      sentence.append(glued ? part.trimEnd() : part);
      if (place < parts.length - 1) sentence.append(element("mark", {}, glued ? token.slice(2) : spelt(token)));
    });
  };
  const groups = result.masks.flatMap((mask, place) => {
    const best = mask.predictions[0].score;
    const buttons = mask.predictions.map((each) => bar(spelt(each.token) || "(a space)", each.score / best, percent(each.score), {
      "aria-pressed": each === mask.predictions[0] ? "true" : "false",
      onclick: (event) => {
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === event.currentTarget));
        chosen[place] = each.token;
        fill();
      },
    }));
    return [element("h3", {}, result.masks.length > 1 ? `Blank ${place + 1}` : "What fits"), bars(buttons)];
  });
  // After truncation the masks that are left can't be told from those that were cut.
  if (parts.length - 1 !== result.masks.length) return groups;
  fill();
  return [sentence, ...groups];
}

function showLabels(result) {
  return [bars(result.predictions.map((each) => bar(each.label, each.score, percent(each.score))))];
}

function marked(text, spans) {
  const letters = characters(text);
  const made = element("p", { class: "prose", tabindex: "0" });
  let at = 0;
  for (const span of [...spans].sort((one, other) => one.start - other.start)) {
    if (span.start < at || span.end <= span.start) continue;
    made.append(letters.slice(at, span.start).join(""), span.mark(letters.slice(span.start, span.end).join("")));
    at = span.end;
  }
  made.append(letters.slice(at).join(""));
  return made;
}

function showTags(result, body) {
  const tags = result.tags.filter((tag) => tag.label && tag.label !== "O");
  const text = marked(body.inputs, tags.map((tag) => ({
    start: tag.start,
    end: tag.end,
    mark: (words) => element("mark", { hue: hue(tag.label) }, words, element("small", {}, tag.label)),
  })));
  if (!tags.length) return [text, element("p", { class: "soft" }, "The model marks nothing in this text.")];
  const rows = tags.map((tag) => element("tr", {},
    element("td", {}, tag.word), element("td", {}, tag.label),
    element("td", { class: "number" }, `${tag.start}–${tag.end}`),
    element("td", { class: "number" }, tag.score === null ? "" : percent(tag.score))));
  const head = element("tr", {}, element("th", { scope: "col" }, "Words"), element("th", { scope: "col" }, "Label"),
    element("th", { scope: "col", class: "number" }, "Characters"), element("th", { scope: "col", class: "number" }, "Score"));
  return [text, element("h3", {}, tags.length === 1 ? "1 finding" : `${tags.length} findings`),
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows))];
}

function showAnswers(result, body) {
  const found = result.answers.filter((each) => each.end > each.start);
  const spans = found.map((each, place) => ({
    start: each.start,
    end: each.end,
    mark: (words) => element("mark", place === 0 ? {} : { class: "lesser" }, words),
  }));
  // The best answer is marked first; a lesser one that overlaps it isn't.
  const apart = spans.filter((span, place) => !spans.slice(0, place).some((better) => span.start < better.end && better.start < span.end));
  const list = result.answers.map((each) => bar(each.answer || "No answer in the context", each.score, percent(each.score), { class: "wide" }));
  return [bars(list), element("h3", {}, "Where it stands"), marked(body.context, apart),
    element("p", { class: "soft" }, `That the context has no answer: ${percent(result.no_answer_score)}`)];
}

function showSimilarity(reply, body) {
  const order = body.sentences.map((sentence, place) => ({ sentence, score: reply.scores[place] }));
  order.sort((one, other) => other.score - one.score);
  return [bars(order.map((each) => bar(each.sentence, each.score, each.score.toFixed(3), { class: "wide" }))),
    element("p", { class: "soft" }, "The cosine between the texts’ vectors: 1 is the same direction, 0 has nothing in common.")];
}

function showEcho(result) {
  return [element("p", {}, "An echo model answers with the SHA-256 of the text:"), element("pre", { tabindex: "0" }, result.sha256)];
}

const TEXT = { id: "text", label: "Text", name: "inputs" };

const TASKS = {
  "fill-mask": {
    title: "Fill in the blank",
    fields: [{ ...TEXT, label: "Text with a blank" }],
    examples: (model) => [`The weather in Paris is ${model.mask} today.`, `She ${model.mask} her coffee and left the ${model.mask}.`],
    options: [{ id: "top_k", label: "Guesses", value: 5, max: 50 }],
    show: (reply, body, model) => showMasks(reply.results[0], body, model),
  },
  "sequence-classification": {
    title: "Label a text",
    fields: [TEXT],
    examples: () => ["My card was charged twice and nobody answers the phone.", "The parcel arrived a day early, thank you!"],
    options: [{ id: "top_k", label: "Labels", value: 8, max: 100 }],
    show: (reply) => showLabels(reply.results[0]),
  },
  "token-classification": {
    title: "Find names",
    fields: [TEXT],
    examples: () => ["Ada Lovelace lived in London, near St. James’s Square.", "Grace Hopper found a moth at Harvard University."],
    options: [{ id: "aggregation", label: "Put together", choices: { first: "by first sub-word", average: "by the average", max: "by the surest", simple: "sub-words as they are", none: "not at all" } }],
    show: (reply, body) => showTags(reply.results[0], body),
  },
  "question-answering": {
    title: "Answer from a text",
    fields: [{ id: "question", label: "Question", name: "question", line: true }, { id: "context", label: "Text that holds the answer", name: "context" }],
    examples: () => [["Where did Ada live?", "Ada Lovelace was born in 1815 and lived in London, where she met Charles Babbage."]],
    options: [{ id: "top_k", label: "Answers", value: 3, max: 20 }, { id: "no_answer", label: "May be none", check: true }],
    show: (reply, body) => showAnswers(reply.results[0], body),
  },
  "embedding": {
    title: "Compare meanings",
    route: "/v1/similarity",
    fields: [{ ...TEXT, name: "source" }, { id: "sentences", label: "Compare with (one sentence a line)", name: "sentences", lines: true }],
    examples: () => [["Where is my parcel?", "The delivery is late.\nHow do I reset my password?\nMy package has not arrived.\nThe sun shines."]],
    options: [],
    show: (reply, body) => showSimilarity(reply, body),
  },
  "echo": {
    title: "Echo",
    fields: [TEXT],
    examples: () => ["a text"],
    options: [],
    show: (reply) => showEcho(reply.results[0]),
  },
};

const TRUNCATION = { id: "truncate", label: "A text that is too long", choices: { error: "is refused", right: "loses its end", left: "loses its beginning", window: "is read in windows" } };

// ---------------------------------------------------------------- the form

let key = "";
let models = [];
let model = null;
let running = null;

const identity = (each) => `${each.name}/${each.version}`;

function optionsOf(task) {
  return [...task.options, task === TASKS.echo ? null : TRUNCATION].filter(Boolean);
}

function control(option) {
  if (option.check) {
    return element("label", { class: "check" }, element("input", { type: "checkbox", id: option.id }), option.label);
  }
  const label = element("label", { class: "label", for: option.id }, option.label);
  if (option.choices) {
    const choices = Object.entries(option.choices).map(([value, name]) => element("option", { value }, name));
    const select = element("select", { id: option.id }, ...choices);
    if (option === TRUNCATION && model.task === "question-answering") select.value = "window";
    return element("div", {}, label, select);
  }
  return element("div", {}, label, element("input", { id: option.id, type: "number", min: 1, max: option.max, value: option.value, required: true }));
}

function setExample(task, example) {
  [example].flat().forEach((value, place) => { $(task.fields[place].id).value = value; });
}

function buildFields() {
  const task = TASKS[model.task];
  const examples = task.examples(model);
  const fields = task.fields.map((field, place) => {
    const attributes = { id: field.id, spellcheck: "false", required: true, class: field.line ? "question" : undefined };
    const input = field.line ? element("input", { type: "text", ...attributes }) : element("textarea", { rows: 4, ...attributes });
    const extras = [];
    if (model.mask && place === 0) {
      extras.push(element("button", { type: "button", class: "quiet", onclick: () => {
        input.setRangeText(model.mask, input.selectionStart, input.selectionEnd, "end");
        input.focus();
      } }, `Insert ${model.mask}`));
    }
    if (place === task.fields.length - 1) {
      extras.push(...examples.map((example, number) => element("button", { type: "button", class: "quiet", onclick: () => setExample(task, example) },
        examples.length > 1 ? `Example ${number + 1}` : "Example")));
    }
    return element("div", { class: "field" }, element("label", { class: "label", for: field.id }, field.label), input,
      element("div", { class: "examples" }, ...extras));
  });
  $("fields").replaceChildren(...fields, element("div", { class: "options" }, ...optionsOf(task).map(control)));
  setExample(task, examples[0]);
  const [before, after] = ["Nothing asked ", " yet."];
  $("answer").replaceChildren(element("h2", {}, task.title), element("div", { class: "empty" }, element("b", {}, before, element("span", {}), after),
    element("p", {}, "The answer appears here, with the time that each step took.")));
}

function buildModels() {
  $("model-list").replaceChildren(...models.map((each, place) => {
    const radio = element("input", { type: "radio", name: "model", value: place, onchange: () => { model = each; buildFields(); } });
    radio.checked = each === model;
    return element("label", { class: "model" }, radio, element("span", { class: "chip" }, TASKS[each.task].title), element("b", {}, each.name),
      element("span", { class: "soft" }, `version ${each.version}`),
      element("small", {}, `${each.architecture} · up to ${each.max_length.toLocaleString("en")} tokens${each.labels.length ? ` · ${each.labels.length} labels` : ""}`));
  }));
}

function asked() {
  const task = TASKS[model.task];
  const body = {};
  for (const field of task.fields) {
    const value = $(field.id).value;
    body[field.name] = field.lines ? value.split("\n").filter((line) => line.trim()) : value;
  }
  for (const option of optionsOf(task)) {
    const input = $(option.id);
    if (option.check) { if (input.checked) body[option.id] = true; } else body[option.id] = option.choices ? input.value : Number(input.value);
  }
  if (models.length > 1) body.model = identity(model);
  return body;
}

// ---------------------------------------------------------------- requests

class ServerProblem extends Error {
  constructor(title, detail, status) {
    super(detail);
    this.title = title;
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  let text;
  try {
    response = await fetch(path, { ...options, headers });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerProblem("The server can’t be reached", "It may have ended, or the network is interrupted. Try again in a moment.", 0);
  }
  let document;
  try {
    document = JSON.parse(text);
  } catch {
    throw new ServerProblem("The reply isn’t the server’s", `Something in between answered with status ${response.status}.`, response.status);
  }
  if (!response.ok && document.detail) {
    const wait = response.headers.get("retry-after");
    const sentence = document.detail[0].toUpperCase() + document.detail.slice(1);
    throw new ServerProblem(document.title, `${sentence}.${wait ? ` Try again in ${wait} s.` : ""}`, response.status);
  }
  return { response, document };
}

const STAGES = { tokenize: ["Tokenize", 205], queue: ["Wait", 45], infer: ["Infer", 165], post: ["Answer", 300], rest: ["Network and rest"] };

function timing(response, total) {
  const found = {};
  for (const [, stage, duration] of (response.headers.get("server-timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g)) found[stage] = Number(duration);
  const server = found.total ?? 0;
  delete found.total;
  const spent = Object.values(found).reduce((sum, each) => sum + each, 0);
  found.rest = Math.max(0, total - spent);
  const shown = Object.entries(found).filter(([stage]) => stage in STAGES);
  const name = ([stage, duration]) => `${STAGES[stage][0]} ${milliseconds(duration)}`;
  return [
    element("h3", {}, `${milliseconds(total)} in all, of which ${milliseconds(server)} at the server`),
    element("div", { class: "timing", "aria-hidden": "true" },
      ...shown.map(([stage, duration]) => element("i", { class: stage, hue: STAGES[stage][1], width: (100 * duration) / total }))),
    element("ul", { class: "legend" }, ...shown.map((each) => element("li", { class: each[0], hue: STAGES[each[0]][1] }, name(each)))),
  ];
}

/** inputs: texts that the model read, each in one window unless it was too long. */
function facts(response, reply, inputs) {
  const cut = reply.truncated ? ", a part was cut" : "";
  const windows = reply.windows > inputs ? ` in ${reply.windows} windows` : "";
  const entries = [
    ["Tokens", `${reply.tokens.toLocaleString("en")}${windows}${cut}`],
    ["Model", `${reply.model}, version ${reply.version}`],
    ["Digest", reply.digest],
    ["Request id", response.headers.get("x-request-id")],
  ];
  return element("dl", { class: "facts" }, ...entries.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function command(path, body) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const header = key ? ' \\\n  --header "authorization: Bearer $KEY"' : "";
  return `curl ${location.origin}${path}${header} \\\n  --json '${quoted}'`;
}

function more(title, content) {
  return element("details", {}, element("summary", {}, title), ...content);
}

function showProblem(place, problem) {
  place.replaceChildren(element("strong", {}, problem.title), problem.message);
  place.hidden = false;
}

async function ask() {
  running?.abort();
  const mine = (running = new AbortController());
  const task = TASKS[model.task];
  const path = task.route ?? model.route;
  const body = asked();
  const answer = $("answer");
  $("go").setAttribute("aria-disabled", "true");
  answer.classList.add("busy");
  const began = performance.now();
  try {
    const { response, document: reply } = await call(path, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal: mine.signal,
    });
    const total = performance.now() - began;
    answer.replaceChildren(element("h2", {}, task.title), ...task.show(reply, body, model), ...timing(response, total),
      more("About this answer", [facts(response, reply, 1 + (body.sentences?.length ?? 0))]),
      more("Ask it from your own code", [element("pre", { tabindex: "0" }, command(path, body))]),
      more("The reply as it came", [element("pre", { tabindex: "0" }, JSON.stringify(reply, null, 2))]));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) return askForKey(error);
    const place = element("p", { class: "problem", role: "alert" });
    showProblem(place, error instanceof ServerProblem ? error : new ServerProblem("This page failed", String(error), 0));
    answer.replaceChildren(element("h2", {}, task.title), place);
  } finally {
    // Below the form, on narrow screens.
    if (answer.getBoundingClientRect().top > 0.7 * innerHeight) answer.scrollIntoView({ block: "start" });
    if (running === mine) {
      $("go").removeAttribute("aria-disabled");
      answer.classList.remove("busy");
    }
  }
}

// ---------------------------------------------------------------- start

function askForKey(problem) {
  $("columns").hidden = true;
  $("access").hidden = false;
  $("state").textContent = "Waiting for a key";
  if (key) showProblem($("access-problem"), problem);
  $("key").focus();
}

const STATES = {
  ready: (count) => `Ready, ${count === 1 ? "1 model" : `${count} models`}`,
  draining: () => "The server ends: it still answers what it has begun",
  failed: () => "The server couldn’t load its model",
};

async function look() {
  let status;
  try {
    status = (await call("/v1/models")).document;
  } catch (error) {
    if (error.status === 401) return askForKey(error);
    $("state").dataset.state = "failed";
    $("state").textContent = error.title;
    return void setTimeout(look, 2000);
  }
  models = status.models.filter((each) => each.task in TASKS);
  $("state").dataset.state = status.state;
  $("state").textContent = STATES[status.state]?.(models.length) ?? `Loading: ${status.stage ?? ""}`.replace("-", " ");
  $("server-problem").hidden = true;
  if (status.message) showProblem($("server-problem"), new ServerProblem("Something is in the way", status.message, 0));
  if (status.state === "loading") return void setTimeout(look, 1000);
  if (!models.length) return;
  model = models[0];
  buildModels();
  buildFields();
  $("access").hidden = true;
  $("columns").hidden = false;
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); $("form").requestSubmit(); }
});
$("access-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("access-problem").hidden = true;
  look();
});
if (navigator.platform.startsWith("Mac")) $("control").textContent = "⌘";
look();
