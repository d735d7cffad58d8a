"use strict";

// Everything shown is in the server's own description of itself, as text nodes.

const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Text in which `code` is set as such. */
function prose(text) {
  return text.split("`").map((part, place) => (place % 2 ? element("code", {}, part) : part));
}

/** A path that may be broken at its slashes. */
function breakable(path) {
  return path.split(/(?<=.)(?=\/)/).flatMap((part, place) => (place ? [element("wbr"), part] : [part]));
}

let definitions = {};

function resolved(schema) {
  return schema.$ref ? { ...definitions[schema.$ref.split("/").pop()], ...Object.fromEntries(Object.entries(schema).filter(([key]) => key !== "$ref")) } : schema;
}

const NAMES = { string: "text", integer: "whole number", number: "number", boolean: "true or false", object: "object", null: "null" };

function bounds(schema) {
  const found = [];
  if (schema.minimum !== undefined && schema.maximum !== undefined) found.push(`${schema.minimum} to ${schema.maximum}`);
  else if (schema.minimum !== undefined) found.push(`${schema.minimum} or more`);
  if (schema.maxLength !== undefined) found.push(`at most ${schema.maxLength} characters`);
  if (schema.maxItems !== undefined) found.push(`at most ${schema.maxItems.toLocaleString("en")}`);
  return found.length ? ` (${found.join(", ")})` : "";
}

function type(raw) {
  const schema = resolved(raw);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return several.filter((each) => each.type !== "null").map(type).join(" | ");
  if (schema.type === "array") return `list of ${schema.items ? type(schema.items).replace(/^(text|number|object|whole number)\b/, "$1s") : "anything"}${bounds(schema)}`;
  return `${NAMES[schema.type] ?? "anything"}${bounds(schema)}`;
}

/** The schemas with fields of their own that a field's value is made of. */
function inner(raw) {
  const schema = resolved(raw);
  if (schema.properties) return [schema];
  return [...(schema.anyOf ?? schema.oneOf ?? []), ...(schema.items ? [schema.items] : [])].flatMap(inner);
}

function rows(schema, prefix, depth) {
  const needs = (name) => (schema.required ?? []).includes(name);
  const fields = Object.entries(schema.properties ?? {});
  // What can't be left out comes first.
  fields.sort(([one], [other]) => needs(other) - needs(one));
  return fields.flatMap(([name, raw]) => {
    const field = resolved(raw);
    const needed = needs(name);
    const standard = field.default !== undefined && field.default !== null ? ` Default: ${JSON.stringify(field.default)}.` : "";
    const told = [element("span", { class: "soft" }, type(raw))];
    if (raw.description ?? (raw.$ref ? "" : field.description)) told.push(element("p", {}, ...prose((raw.description ?? field.description) + standard)));
    else if (standard) told.push(element("p", {}, standard.trim()));
    const below = depth < 4 ? inner(raw).flatMap((each) => rows(each, `${prefix}${name}${/^list/.test(type(raw)) ? "[]" : ""}.`, depth + 1)) : [];
    const mark = needed && depth === 0 ? [element("span", { class: "chip" }, "needed")] : [];
    return [element("tr", {}, element("td", {}, `${prefix}${name} `, ...mark), element("td", {}, ...told)), ...below];
  });
}

function table(raw) {
  const schema = resolved(raw);
  const head = element("tr", {}, element("th", { scope: "col" }, "Field"), element("th", { scope: "col" }, "What"));
  return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows(schema, "", 0))));
}

function example(raw) {
  const schema = resolved(raw);
  if (schema.examples?.length) return schema.examples[0];
  const found = {};
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const given = field.examples?.[0] ?? resolved(field).examples?.[0];
    if (given !== undefined) found[name] = given;
  }
  return Object.keys(found).length ? found : undefined;
}

function media(content) {
  return Object.values(content ?? {})[0] ?? {};
}

function operation(path, method, described) {
  const id = `${method}${path.replace(/[^a-z0-9]+/gi, "-")}`;
  const parts = [element("h2", {}, element("span", { class: "method" }, method.toUpperCase()), path)];
  if (described.description) parts.push(element("p", {}, ...prose(described.description)));
  const body = media(described.requestBody?.content);
  if (body.schema) {
    if (Object.keys(resolved(body.schema).properties ?? {}).length) parts.push(element("h3", {}, "Request"), table(body.schema));
    const shown = body.example ?? example(body.schema);
    if (shown) {
      const quoted = JSON.stringify(shown).replaceAll("'", "'\\''");
      parts.push(element("h3", {}, "Example"), element("pre", { tabindex: "0" }, `curl ${location.origin}${path} --json '${quoted}'`));
    }
  }
  const statuses = Object.entries(described.responses ?? {});
  for (const [status, response] of statuses) {
    const schema = status[0] === "2" && media(response.content).schema;
    if (schema && Object.keys(resolved(schema).properties ?? {}).length) parts.push(element("h3", {}, `Reply (${status})`), table(schema));
  }
  const problems = statuses.map(([status]) => status).filter((status) => status[0] !== "2");
  if (problems.length) {
    parts.push(element("h3", {}, "Statuses of errors"), element("ul", { class: "statuses" }, ...problems.map((status) => element("li", {}, status))));
  }
  return { id, card: element("section", { class: "card operation", id }, ...parts) };
}

const GROUPS = [
  ["Tasks", (path, method) => path.startsWith("/v1/") && method === "post"],
  ["Open Inference Protocol", (path) => /^\/v2(\/|$)/.test(path)],
  ["The server", () => true],
];

async function show() {
  const reply = await fetch("/openapi.json");
  const document_ = await reply.json();
  definitions = document_.components?.schemas ?? {};
  const left = Object.entries(document_.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, described]) => ({ path, method, described })));
  const contents = [];
  const cards = [];
  let rest = left;
  for (const [title, belongs] of GROUPS) {
    const here = rest.filter((each) => belongs(each.path, each.method));
    rest = rest.filter((each) => !here.includes(each));
    const made = here.map((each) => ({ ...each, ...operation(each.path, each.method, each.described) }));
    contents.push(element("h2", {}, title), element("ul", {}, ...made.map((each) => element("li", {}, element("a", { href: `#${each.id}` }, ...breakable(each.path))))));
    cards.push(...made.map((each) => each.card));
  }
  $("contents").replaceChildren(...contents);
  $("operations").replaceChildren(...cards);
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

show().catch(() => {
  $("problem").textContent = "The server’s description of its API can’t be read. Reload the page in a moment.";
  $("problem").hidden = false;
});
