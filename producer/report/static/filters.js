// The address holds filters, order, page and open sample, so that back and forward work and links can be shared.
"use strict";

capflow.filters = (() => {
  const CHOICES = ["domain", "state", "dimension", "grade", "mark", "dataset", "kind", "guard", "agent", "model", "confidence", "order", "text"];
  let haystacks = null;
  let lowest = null;
  let usualOrder = "plan";

  /** The view in the address. */
  const asked = () => {
    const words = new URLSearchParams(location.hash.slice(1));
    const view = Object.fromEntries(CHOICES.map((name) => [name, words.get(name) ?? ""]));
    const number = (name) => (/^\d+$/.test(words.get(name) ?? "") ? Number(words.get(name)) : null);
    return { ...view, page: number("page") ?? 1, sample: number("sample") };
  };

  const written = (view) => `#${new URLSearchParams(Object.entries(view).filter(([, value]) => value !== "" && value !== null))}`;

  /** The address of the current view with some changes; never empty, because "#" scrolls to the top. */
  const address = (changes) => written({ ...asked(), ...changes });

  /** The address of these filters and no others. */
  const only = (view) => written({ ...view, page: 1 });

  const isFiltered = (view) => CHOICES.some((name) => name !== "order" && view[name].trim() !== "");

  /** The worst come first unless nothing is bad; called once. */
  const prepare = (index) => {
    const failed = index.state_names.indexOf("failed");
    const isBad = index.states.some((state, number) => state === failed || index.grades[number] === 1);
    usualOrder = isBad ? "worst" : "plan";
    lowest = new Uint8Array(index.states.length);
    for (const digits of Object.values(index.dimensions)) {
      for (let number = 0; number < digits.length; number++) {
        const grade = digits.charCodeAt(number) - 48;
        if (grade && (!lowest[number] || grade < lowest[number])) lowest[number] = grade;
      }
    }
  };

  /** A function from a sample's number to its grade in a dimension, 0 without one; overall without a dimension. */
  const gradesIn = (index, dimension) => {
    if (dimension === "") return (number) => index.grades[number] ?? 0;
    if (dimension === "lowest") return (number) => lowest[number];
    const digits = Object.hasOwn(index.dimensions, dimension) ? index.dimensions[dimension] : "";
    return (number) => (digits.charCodeAt(number) || 48) - 48;
  };

  /** The lowest of a sample's dimensions, [name, grade]; null without grades. */
  const lowestOf = (index, number) =>
    Object.entries(index.dimensions)
      .map(([name, digits]) => [name, Number(digits[number])])
      .find(([, grade]) => grade && grade === lowest[number]) ?? null;

  const search = async (text) => {
    haystacks ??= (await capflow.data.allTexts()).map((row) => row.join("\n").toLowerCase());
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    return (number) => words.every((word) => haystacks[number].includes(word));
  };

  const hasName = (name) => (index, value) => {
    const wanted = index[`${name}_names`].indexOf(value === "none" ? null : value);
    return (number) => index[`${name}s`][number] === wanted;
  };
  const lists = (name) => (index, value) => {
    const wanted = index[`${name}_names`].indexOf(value);
    return (number) => (value === "none" ? !index[`${name}s`][number].length : index[`${name}s`][number].includes(wanted));
  };

  /** By filter: which samples have the value asked for. */
  const TESTS = {
    domain: hasName("domain"),
    state: hasName("state"),
    dataset: hasName("dataset"),
    kind: hasName("kind"),
    guard: lists("guard"),
    agent: lists("agent"),
    model: lists("model"),
    grade: (index, value, view) => {
      const grade = gradesIn(index, view.dimension);
      const wanted = value === "none" ? 0 : Number(value);
      return (number) => grade(number) === wanted;
    },
    confidence: (index, value) => {
      const [from, to] = value.split("-").map(Number);
      return (number) => {
        const confidence = index.confidences[number];
        return confidence !== null && confidence >= from && (confidence < to || to >= 1);
      };
    },
    mark: (index, value) => {
      if (value === "any") return (number) => capflow.marks.of(index, number) !== null;
      return (number) => (capflow.marks.of(index, number)?.mark ?? "none") === value;
    },
    text: (index, value) => search(value),
  };

  const NEVER = 9;
  const ORDERS = {
    confidence: (index) => (number) => index.confidences[number] ?? NEVER,
    // Failures, then by grade, then by the lowest dimension; what has no grade comes last.
    worst: (index, view) => {
      const failed = index.state_names.indexOf("failed");
      const grade = gradesIn(index, view.dimension);
      return (number) => (index.states[number] === failed ? 0 : 10 * (grade(number) || NEVER) + (lowest[number] || NEVER));
    },
  };

  const orderOf = (view) => view.order || usualOrder;

  /** Numbers of the samples that pass the filters, in the chosen order. */
  const matching = async (view) => {
    const index = await capflow.data.index();
    const active = Object.entries(TESTS).filter(([name]) => view[name].trim() !== "");
    const tests = await Promise.all(active.map(([name, test]) => test(index, view[name], view)));
    const numbers = index.states.map((_, number) => number).filter((number) => tests.every((test) => test(number)));
    const order = orderOf(view);
    const rank = Object.hasOwn(ORDERS, order) ? ORDERS[order](index, view) : null;
    if (!rank) return numbers;
    const ranks = Float64Array.from(index.states, (_, number) => rank(number));
    return numbers.sort((one, other) => ranks[one] - ranks[other] || one - other);
  };

  return { CHOICES, asked, address, only, isFiltered, prepare, lowestOf, orderOf, matching };
})();
