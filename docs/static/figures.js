// Draw every embedded figure; plotly.min.js lies beside this file, so nothing is fetched from elsewhere.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".plotly-embed").forEach((place) => {
    const figure = JSON.parse(place.querySelector("script").textContent);
    const canvas = place.appendChild(document.createElement("div"));
    Plotly.newPlot(canvas, figure.data, figure.layout, { responsive: true }).then(() => {
      if (figure.frames) Plotly.addFrames(canvas, figure.frames);
    });
  });
});
