// The pages of cards.
"use strict";

capflow.gallery = (() => {
  const PER_PAGE = 48;
  const cards = document.getElementById("cards");
  const count = document.getElementById("count");
  const form = document.getElementById("filters");
  const pagers = [...document.querySelectorAll(".pager")];
  const { make } = capflow;
  let shown = null;
  let shownPage = null;
  let numbers = [];

  const percent = (share) => `${Math.round(100 * share)} %`;

  /** What the guard did for the sample, without rules. */
  const outcomes = (index, number) => index.guards[number].map((label) => index.guard_names[label]).filter((label) => !label.includes(":"));

  const words = (name) => name.replaceAll("_", " ");

  /** The lowest dimension, where it is lower than the overall grade. */
  const lowest = (index, number) => {
    const found = capflow.filters.lowestOf(index, number);
    if (!found || found[1] >= (index.grades[number] ?? 9)) return null;
    const [name, grade] = found;
    return make("span", { className: "lowest", textContent: `${words(name)} ${grade}`, title: "The lowest grade of a dimension", dataset: { grade } });
  };

  const badges = (index, number) => {
    const mark = capflow.marks.of(index, number);
    const confidence = index.confidences[number];
    const grade = index.grades[number];
    const state = index.state_names[index.states[number]];
    const errors = index.errors[number];
    const domain = index.domain_names[index.domains[number]] ?? "no domain";
    return make(
      "span",
      { className: "badges" },
      mark ? make("span", { className: "mark", textContent: mark.mark, title: mark.note || "Your mark", dataset: { mark: mark.mark } }) : null,
      make("span", { className: "domain", textContent: domain }),
      confidence === null ? null : make("span", { className: "confidence", textContent: percent(confidence), title: "The router's confidence" }),
      state === "done" ? null : make("span", { className: "state", textContent: state, dataset: { state } }),
      ...outcomes(index, number).map((outcome) => make("span", { className: "note", textContent: outcome, title: "What the guard did with an answer" })),
      index.is_cut_off[number] ? make("span", { className: "note", textContent: "cut off", title: "The caption ended at its limit" }) : null,
      errors ? make("span", { className: "note", textContent: `${errors} ${errors === 1 ? "error" : "errors"}`, title: "Errors that the judge found" }) : null,
      lowest(index, number),
      grade === null ? null : make("span", { className: "grade", textContent: String(grade), title: `Overall grade ${grade} of 3`, dataset: { grade } }),
    );
  };

  const picture = (index, number) => {
    if (!index.has_small[number]) return make("span", { className: "thumb none", textContent: "no picture" });
    const src = `small/${Math.floor(number / index.chunk)}/${number}.jpg`;
    const image = make("img", { src, alt: "", loading: "lazy", decoding: "async" });
    const frame = make("span", { className: "thumb" }, image);
    image.addEventListener("load", () => frame.classList.toggle("film", image.naturalWidth > 3.4 * image.naturalHeight));
    return frame;
  };

  const card = async (index, number) => {
    const [name, , text] = await capflow.data.textOf(number);
    const isFailed = index.kind_names[index.kinds[number]] !== null;
    const said = make("span", { className: "words", dir: "auto", textContent: (isFailed ? text.replace(/^\w+:/, words) : text).slice(0, 400) });
    const foot = make("span", { className: "name", dir: "auto", textContent: name });
    const link = make("a", { className: "card", href: capflow.filters.address({ sample: number }), dataset: { number } });
    link.append(picture(index, number), said, badges(index, number), foot);
    return make("li", {}, link);
  };

  const pageCount = () => Math.max(1, Math.ceil(numbers.length / PER_PAGE));

  const drawPagers = (page) => {
    const link = (text, target, label) =>
      target < 1 || target > pageCount()
        ? make("span", { className: "button off", textContent: text, ariaHidden: "true" })
        : make("a", { className: "button", textContent: text, href: capflow.filters.address({ page: target }), ariaLabel: label });
    for (const pager of pagers) {
      const place = make("span", { textContent: `Page ${page} of ${pageCount()}` });
      pager.replaceChildren(link("‹ Previous", page - 1, "Previous page"), place, link("Next ›", page + 1, "Next page"));
      pager.hidden = pageCount() === 1;
    }
  };

  const drawFilters = (view) => {
    for (const field of form.elements) {
      if (!field.name || field === document.activeElement) continue;
      const value = field.name === "order" ? capflow.filters.orderOf(view) : view[field.name];
      if (field.options && ![...field.options].some((option) => option.value === value)) field.append(new Option(value, value));
      field.value = value;
    }
    const more = document.getElementById("more-filters");
    if ([...more.querySelectorAll("select")].some((field) => field.value)) more.open = true;
    document.getElementById("all-samples").hidden = !capflow.filters.isFiltered(view);
  };

  const key = (view) => JSON.stringify([...capflow.filters.CHOICES.map((name) => view[name]), view.page]);

  /** Show the page of the view; nothing is redrawn if it is shown already. */
  const draw = async (view) => {
    drawFilters(view);
    if (shown === key(view)) return;
    shown = key(view);
    count.textContent = view.text.trim() ? "Searching …" : count.textContent;
    const index = await capflow.data.index();
    const found = await capflow.filters.matching(view);
    if (shown !== key(view)) return;
    numbers = found;
    const page = Math.min(Math.max(1, view.page), pageCount());
    const onPage = numbers.slice((page - 1) * PER_PAGE, page * PER_PAGE);
    const items = await Promise.all(onPage.map((number) => card(index, number)));
    if (shown !== key(view)) return;
    cards.replaceChildren(...items);
    drawPagers(page);
    const all = index.states.length.toLocaleString("en");
    count.textContent = numbers.length === index.states.length ? `${all} samples` : `${numbers.length.toLocaleString("en")} of ${all} samples`;
    if (shownPage !== null && shownPage !== page) document.getElementById("samples").scrollIntoView();
    shownPage = page;
    cards.dataset.ready = shown;
  };

  /** Show the marks of the cards as they are now. */
  const drawMarks = async () => {
    const index = await capflow.data.index();
    for (const link of cards.querySelectorAll(".card")) {
      link.querySelector(".badges").replaceWith(badges(index, Number(link.dataset.number)));
    }
  };

  const cardOf = (number) => cards.querySelector(`[data-number="${Number(number)}"]`);

  /** Move the focus by so many cards, from page to page. */
  const step = (by) => {
    const focused = document.activeElement?.closest(".card");
    const links = [...cards.querySelectorAll(".card")];
    const target = focused ? links.indexOf(focused) + by : by > 0 ? 0 : links.length - 1;
    if (links[target]) return links[target].focus();
    const page = capflow.filters.asked().page + by;
    if (focused && page >= 1 && page <= pageCount()) turnTo(page, by);
  };

  const turnTo = async (page, by) => {
    history.pushState(null, "", capflow.filters.address({ page }));
    await draw(capflow.filters.asked());
    const links = cards.querySelectorAll(".card");
    links[by > 0 ? 0 : links.length - 1]?.focus();
  };

  /** The number of the focused card; null without one. */
  const focused = () => {
    const link = document.activeElement?.closest(".card");
    return link ? Number(link.dataset.number) : null;
  };

  return { draw, drawMarks, step, cardOf, focused, numbers: () => numbers, pageOf: (place) => Math.floor(place / PER_PAGE) + 1 };
})();
