// Ctrl+Enter draws.
document.addEventListener("keydown", (event) => {
  const button = document.querySelector("#generate-go");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && button?.offsetParent) button.click();
});
