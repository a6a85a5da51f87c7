// What stood in attributes of the theme's buttons, where the page's policy allows no script; and
// what the keyboard needs where a finger or a wheel would do.
(() => {
  const each = (selector, act) => document.querySelectorAll(selector).forEach(act);
  each(".btn-download-pdf-button", (button) => button.addEventListener("click", () => print()));
  each(".btn-fullscreen-button", (button) => button.addEventListener("click", () => toggleFullScreen()));
  each(".copybtn", (button) => button.setAttribute("aria-label", "Copy"));

  // Sphinx shows a part of each page that it finds, which a browser does not read from a folder.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

  // A frame that scrolls can be reached with the keyboard, and says what it is.
  const frames = document.querySelectorAll(
    "article :is(pre, figure, .output, .cell_output, .math, .pst-scrollable-table-container)"
  );
  const reach = () => frames.forEach((frame) => {
    const style = getComputedStyle(frame);
    const scrolls = (axis, inner, outer) => /auto|scroll/.test(axis) && inner > outer;
    if (scrolls(style.overflowX, frame.scrollWidth, frame.clientWidth)
        || scrolls(style.overflowY, frame.scrollHeight, frame.clientHeight)) {
      frame.tabIndex = 0;
      if (frame.tagName === "DIV") {
        frame.setAttribute("role", "group");
        frame.setAttribute("aria-label", "Scrolls");
      }
    } else {
      frame.removeAttribute("tabindex");
    }
  });
  new ResizeObserver(reach).observe(document.body);
  each("details", (details) => details.addEventListener("toggle", reach));
})();
