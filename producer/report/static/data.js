// Loads the report's data. They are scripts, because a page opened from disk may load nothing else.
"use strict";

const capflow = {};

/** An element with these properties and children; text is never parsed as HTML. */
capflow.make = (tag, properties = {}, ...children) => {
  const { dataset = {}, ...others } = properties;
  const element = Object.assign(document.createElement(tag), others);
  Object.assign(element.dataset, dataset);
  element.append(...children.filter((child) => child !== null));
  return element;
};

capflow.data = (() => {
  /** Chunks of details kept in memory: people view neighbours, not all samples. */
  const KEPT_DETAILS = 6;
  const promises = new Map();
  const takers = new Map();

  const address = (name) => {
    if (!/^(index|prompts|text-\d+|samples-\d+)$/.test(name)) throw new TypeError(`no data are named ${name}`);
    return `data/${name}.js`;
  };
  const policy = window.trustedTypes?.createPolicy("capflow", { createScriptURL: address });

  const request = (name) =>
    new Promise((resolve, reject) => {
      const script = document.createElement("script");
      takers.set(name, resolve);
      script.addEventListener("load", () => script.remove());
      script.addEventListener("error", () => reject(new Error(`data/${name}.js cannot be read`)));
      script.src = policy ? policy.createScriptURL(name) : address(name);
      document.head.append(script);
    });

  const load = (name) => {
    if (!promises.has(name)) promises.set(name, request(name));
    return promises.get(name);
  };

  /** Called by each data script. */
  const take = (name, value) => {
    takers.get(name)?.(value);
    takers.delete(name);
  };

  const dropOldDetails = () => {
    const details = [...promises.keys()].filter((name) => name.startsWith("samples-"));
    for (const name of details.slice(0, -KEPT_DETAILS)) promises.delete(name);
  };

  const index = () => load("index");
  const chunkOf = async (number) => Math.floor(number / (await index()).chunk);

  /** [name, paths, caption or reason] of a sample. */
  const textOf = async (number) => {
    const chunk = await chunkOf(number);
    return (await load(`text-${chunk}`))[number - chunk * (await index()).chunk];
  };

  /** Name, paths and caption of all samples, in order. */
  const allTexts = async () => {
    const { chunk, states } = await index();
    const names = Array.from({ length: Math.ceil(states.length / chunk) }, (_, number) => `text-${number}`);
    return (await Promise.all(names.map(load))).flat();
  };

  const detailOf = async (number) => {
    const chunk = await chunkOf(number);
    const details = await load(`samples-${chunk}`);
    dropOldDetails();
    return details[number - chunk * (await index()).chunk];
  };

  const prompts = () => load("prompts");

  return { take, index, prompts, textOf, allTexts, detailOf };
})();
