// On a telephone each row of a table is a block of its own: its cells carry the heads of their columns.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.docutils")) {
    const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent.trim());
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.cells].forEach((cell, i) => heads[i] && (cell.dataset.head = heads[i]));
    }
  }
});
