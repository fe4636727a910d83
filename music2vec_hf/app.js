// The song itself never comes back from the server: the browser plays the file that was dropped, beside its answer.
(() => {
  let address = null;
  const keep = (files) => {
    if (!files || !files.length) return;
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(files[0]);
  };
  document.addEventListener("change", (event) => event.target.type === "file" && keep(event.target.files), true);
  document.addEventListener("drop", (event) => event.dataTransfer && keep(event.dataTransfer.files), true);

  const answer = (element) => element.closest && element.closest(".m2v[data-seconds]");
  // A player without a source is one of a new answer.
  new MutationObserver(() => {
    const player = document.querySelector("audio.m2v-song:not([src])");
    if (!player || !address) return;
    player.addEventListener("error", () => player.remove());
    player.addEventListener("timeupdate", () => {
      const shown = answer(player);
      const place = (100 * player.currentTime) / Number(shown.dataset.seconds);
      shown.style.setProperty("--m2v-place", `${Math.min(100, place)}%`);
      shown.classList.add("m2v-played");
    });
    player.src = address;
    player.hidden = false;
  }).observe(document, { childList: true, subtree: true });
  document.addEventListener("click", (event) => {
    const line = event.target.closest && event.target.closest(".m2v-line, .m2v-curve");
    const player = line && answer(line).querySelector("audio.m2v-song[src]");
    if (!player) return;
    const box = line.getBoundingClientRect();
    player.currentTime = ((event.clientX - box.left) / box.width) * Number(answer(line).dataset.seconds);
    player.play();
  });
})();
