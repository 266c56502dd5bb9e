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

  const badges = (index, number) => {
    const confidence = index.confidences[number];
    const grade = index.grades[number];
    const state = index.state_names[index.states[number]];
    const errors = index.errors[number];
    const domain = index.domain_names[index.domains[number]] ?? "no domain";
    return make(
      "span",
      { className: "badges" },
      make("span", { className: "domain", textContent: domain }),
      confidence === null ? null : make("span", { className: "confidence", textContent: percent(confidence), title: "The router's confidence" }),
      state === "done" ? null : make("span", { className: "state", textContent: state, dataset: { state } }),
      ...outcomes(index, number).map((outcome) => make("span", { className: "note", textContent: outcome, title: "What the guard did with an answer" })),
      index.is_cut_off[number] ? make("span", { className: "note", textContent: "cut off", title: "The caption ended at its limit" }) : null,
      errors ? make("span", { className: "note", textContent: `${errors} ${errors === 1 ? "error" : "errors"}`, title: "Errors that the judge found" }) : null,
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
    const words = make("span", { className: "words", dir: "auto", textContent: text.slice(0, 400) });
    const foot = make("span", { className: "name", dir: "auto", textContent: name });
    const link = make("a", { className: "card", href: capflow.filters.address({ sample: number }), dataset: { number } });
    link.append(picture(index, number), words, badges(index, number), foot);
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
      if (field.name && field !== document.activeElement) field.value = view[field.name];
    }
  };

  const key = (view) => JSON.stringify([view.domain, view.state, view.grade, view.guard, view.order, view.text, view.page]);

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

  return { draw, step, cardOf, numbers: () => numbers, pageOf: (place) => Math.floor(place / PER_PAGE) + 1 };
})();
