// Connects the parts: the address decides what is shown; keys and form change the address.
"use strict";

(() => {
  const TYPING_MILLISECONDS = 150;
  const form = document.getElementById("filters");
  const search = document.getElementById("search");
  let typing = 0;

  const draw = async () => {
    try {
      const view = capflow.filters.asked();
      await capflow.gallery.draw(view);
      await capflow.detail.draw(view);
    } catch (error) {
      document.getElementById("count").textContent = `The report is not complete: ${error.message}`;
    }
  };

  const filter = () => {
    const choices = Object.fromEntries([...form.elements].filter((field) => field.name).map((field) => [field.name, field.value]));
    history.replaceState(null, "", capflow.filters.address({ ...choices, page: 1, sample: null }));
    draw();
  };

  const addChoices = async () => {
    const { domain_names: names, guard_names: guards } = await capflow.data.index();
    const options = names.filter((name) => name !== null).sort().map((name) => new Option(name, name));
    if (names.includes(null)) options.push(new Option("no domain", "none"));
    form.elements.domain.append(...options);
    form.elements.guard.append(...[...guards].sort().map((label) => new Option(label, label)));
  };

  const KEYS = {
    j: () => step(1),
    k: () => step(-1),
    ArrowRight: () => step(1),
    ArrowLeft: () => step(-1),
    "/": () => capflow.detail.isOpen() || search.focus(),
  };
  const step = (by) => (capflow.detail.isOpen() ? capflow.detail : capflow.gallery).step(by);

  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input, select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (isTyping && event.key === "Escape") return event.target.blur();
    if (isTyping || !Object.hasOwn(KEYS, event.key)) return;
    if (event.target.closest(".scroller, pre") && event.key.startsWith("Arrow")) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", filter);
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(filter, TYPING_MILLISECONDS);
  });
  window.addEventListener("hashchange", draw);
  window.addEventListener("popstate", draw);
  addChoices().then(draw, draw);
})();
