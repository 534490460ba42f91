// Draws every figure of the page, again when the colours of the page change.
(() => {
  "use strict";
  const plots = [...document.querySelectorAll(".plot")].map((div) => [div, JSON.parse(div.nextElementSibling.textContent)]);
  // On a touch screen a drag scrolls the page; it must not zoom the figure instead.
  const drag = matchMedia("(pointer: coarse)").matches ? false : "zoom";

  // The figures name their colours and their font as the style sheet does: "var(--blue)".
  function resolved(value, style) {
    if (typeof value === "string" && value.startsWith("var(")) return style.getPropertyValue(value.slice(4, -1)).trim();
    if (Array.isArray(value)) return value.map((inner) => resolved(inner, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, resolved(inner, style)]));
    return value;
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    for (const [div, figure] of plots) {
      const { data, layout } = resolved(figure, style);
      Plotly.react(div, data, { ...layout, dragmode: drag }, { responsive: true, displayModeBar: false });
    }
  }

  draw();
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
})();
