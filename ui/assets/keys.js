// Ctrl+Enter draws.
document.addEventListener("keydown", (event) => {
  const button = document.querySelector("#generate-go");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && button?.offsetParent) button.click();
});
// Where the picture comes far below the button, as on a telephone, it is brought into sight.
document.addEventListener("click", (event) => {
  if (innerWidth < 900 && event.target.closest("#generate-go")) setTimeout(() => {
    document.querySelector("#stage")?.scrollIntoView({ block: "start" });
  }, 700);
});
