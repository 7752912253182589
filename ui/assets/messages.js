// What went wrong before is over once something new is asked for.
document.addEventListener("click", (event) => {
  if (event.target.closest("button.primary, button.secondary"))
    for (const button of document.querySelectorAll(".toast-close")) button.click();
}, true);
