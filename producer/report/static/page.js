// Connects the parts: the address decides what is shown; keys, form and charts change the address.
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
    if (choices.order === capflow.filters.orderOf({ order: "" })) choices.order = "";
    history.replaceState(null, "", capflow.filters.address({ ...choices, page: 1, sample: null }));
    draw();
  };

  const words = (name) => name.replaceAll("_", " ");

  /** Offer the names that samples have; a filter without a choice is hidden. */
  const offer = (name, names, without = null) => {
    const field = form.elements[name];
    const options = names.filter((each) => each !== null).sort().map((each) => new Option(words(each), each));
    if (names.includes(null) && without) options.push(new Option(without, "none"));
    field.append(...options);
    field.closest("label").hidden = options.length < 2 && name !== "kind" && name !== "guard";
  };

  const prepare = async () => {
    const index = await capflow.data.index();
    capflow.filters.prepare(index);
    offer("domain", index.domain_names, "no domain");
    offer("dimension", Object.keys(index.dimensions));
    offer("dataset", index.dataset_names);
    offer("kind", index.kind_names, "did not fail");
    offer("guard", index.guard_names);
    offer("agent", index.agent_names);
    offer("model", index.model_names);
    form.elements.domain.closest("label").hidden = false;
    capflow.marks.draw();
  };

  const mark = (name) => {
    const number = capflow.detail.isOpen() ? capflow.detail.number() : capflow.gallery.focused();
    if (number !== null) capflow.marks.toggle(number, name);
  };

  const step = (by) => (capflow.detail.isOpen() ? capflow.detail : capflow.gallery).step(by);
  const KEYS = {
    j: () => step(1),
    k: () => step(-1),
    ArrowRight: () => step(1),
    ArrowLeft: () => step(-1),
    g: () => mark("good"),
    b: () => mark("bad"),
    u: () => mark("unsure"),
    n: () => capflow.detail.writeNote(),
    "/": () => capflow.detail.isOpen() || search.focus(),
  };

  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input, select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (isTyping && ["Escape", "Enter"].includes(event.key) && event.target.id === "note") {
      event.preventDefault();
      return event.target.blur();
    }
    if (isTyping && event.key === "Escape") return event.target.blur();
    if (isTyping || !Object.hasOwn(KEYS, event.key)) return;
    if (event.target.closest(".scroller, pre, video") && event.key.startsWith("Arrow")) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", filter);
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(filter, TYPING_MILLISECONDS);
  });
  document.querySelector("main").addEventListener("click", async (event) => {
    if (!event.target.closest(".charts a, #marking a")) return;
    // After the address has changed.
    await new Promise((resolve) => setTimeout(resolve));
    await draw();
    document.getElementById("samples").scrollIntoView();
  });
  // The text of all samples takes a while to read where there are many.
  search.addEventListener("focus", () => capflow.data.allTexts(), { once: true });
  window.addEventListener("hashchange", draw);
  window.addEventListener("popstate", draw);
  capflow.marks.onChange(capflow.gallery.drawMarks);
  capflow.marks.onChange(capflow.detail.drawMark);
  prepare().then(draw, draw);
})();
