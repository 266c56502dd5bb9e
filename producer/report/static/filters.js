// The address holds filters, order, page and open sample, so that back and forward work and links can be shared.
"use strict";

capflow.filters = (() => {
  const CHOICES = ["domain", "state", "grade", "guard", "order", "text"];
  let haystacks = null;

  /** The view in the address. */
  const asked = () => {
    const words = new URLSearchParams(location.hash.slice(1));
    const view = Object.fromEntries(CHOICES.map((name) => [name, words.get(name) ?? ""]));
    const number = (name) => (/^\d+$/.test(words.get(name) ?? "") ? Number(words.get(name)) : null);
    return { ...view, page: number("page") ?? 1, sample: number("sample") };
  };

  /** The address of the current view with some changes; never empty, because "#" scrolls to the top. */
  const address = (changes) => {
    const entries = Object.entries({ ...asked(), ...changes });
    return `#${new URLSearchParams(entries.filter(([, value]) => value !== "" && value !== null))}`;
  };

  const search = async (text) => {
    haystacks ??= (await capflow.data.allTexts()).map((row) => row.join("\n").toLowerCase());
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    return (number) => words.every((word) => haystacks[number].includes(word));
  };

  const NEVER = 9;
  const ORDERS = {
    confidence: (index) => (number) => index.confidences[number] ?? NEVER,
    grade: (index) => (number) => index.grades[number] ?? NEVER,
  };

  /** Numbers of the samples that pass the filters, in the chosen order. */
  const matching = async (view) => {
    const index = await capflow.data.index();
    const domain = view.domain === "none" ? null : view.domain;
    const grade = view.grade === "none" ? null : Number(view.grade);
    const guard = index.guard_names.indexOf(view.guard);
    const hasText = view.text.trim() ? await search(view.text) : () => true;
    const numbers = index.states.map((_, number) => number).filter(
      (number) =>
        (view.domain === "" || index.domain_names[index.domains[number]] === domain) &&
        (view.state === "" || index.state_names[index.states[number]] === view.state) &&
        (view.grade === "" || index.grades[number] === grade) &&
        (view.guard === "" || (view.guard === "none" ? !index.guards[number].length : index.guards[number].includes(guard))) &&
        hasText(number),
    );
    const rank = Object.hasOwn(ORDERS, view.order) ? ORDERS[view.order](index) : null;
    return rank ? numbers.sort((one, other) => rank(one) - rank(other) || one - other) : numbers;
  };

  return { asked, address, matching };
})();
