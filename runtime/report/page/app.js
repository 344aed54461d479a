// The page begins: theme, gallery, figures, keys.

function startTheme() {
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  $("theme").addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; });
}

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.matches("input, select") && !$("viewer").open) {
    event.preventDefault();
    $("search").focus();
  } else if (event.key === "Escape" && event.target === $("search")) {
    clearFilters();
  }
});
startTheme();
startGallery();
startOverview();
startViewer();
window.whycam = { images: IMAGES, look, order: () => order };
