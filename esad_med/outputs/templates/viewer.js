// The deep-zoom page of one slide: OpenSeadragon shows the tiles, the rest is below.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const part = (id) => document.getElementById(id);
const buttons = [...document.querySelectorAll(".list button")];
const SCALE_PX = 140; // the scale bar at most
const AROUND = 7; // tiles across when one is looked at
let viewer, heat, outline;
let current = -1;

function start() {
  viewer = OpenSeadragon({
    element: part("slide"),
    drawer: "canvas", // WebGL draws black from file://
    tileSources: {
      ...data.pyramid,
      getTileUrl: (level, x, y) => `tiles/${level}/${x}_${y}.jpg`,
    },
    showNavigationControl: false, // its pictures are files that we have not
    showNavigator: true,
    navigatorSizeRatio: 0.15,
    navigatorBackground: "#fff",
    keyboardNavEnabled: false, // see onKey
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.5,
    maxZoomPixelRatio: 4,
  });
  viewer.addOnceHandler("open", () => {
    viewer.addTiledImage({
      tileSource: { type: "image", url: "heat.png", buildPyramid: false },
      width: data.heatWidth, // shares of the slide's width
      opacity: opacity(),
      success: ({ item }) => { heat = item; showHeat(); },
      error: () => say("The heat map could not be loaded."),
    });
    say("");
    drawScale();
  });
  viewer.addHandler("open-failed", () => say("The slide could not be opened."));
  viewer.addHandler("tile-load-failed", () => say("Parts of the slide could not be loaded."));
  viewer.addHandler("update-viewport", drawScale);
}

function say(text) {
  part("message").textContent = text;
}

const opacity = () => (part("shown").checked ? part("opacity").value / 100 : 0);

function showHeat() {
  if (heat) heat.setOpacity(opacity());
}

// A round length of 1, 2 or 5 times a power of ten, in µm or mm.
function drawScale() {
  const slide = viewer.world.getItemAt(0);
  if (!slide) return;
  const umPerPx = data.mpp / slide.viewportToImageZoom(viewer.viewport.getZoom(true));
  const most = SCALE_PX * umPerPx;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = power * [5, 2, 1].find((step) => step * power <= most);
  part("scale").style.width = `${length / umPerPx}px`;
  const told = length >= 1000 ? `${length / 1000} mm` : `${+length.toPrecision(3)} µm`;
  part("scale").firstElementChild.textContent = told;
}

function go(rank) {
  if (!viewer || !viewer.isOpen() || !buttons.length) return;
  buttons[current]?.removeAttribute("aria-current");
  current = Math.max(0, Math.min(rank, buttons.length - 1));
  const button = buttons[current];
  button.setAttribute("aria-current", "true");
  const list = button.closest("ol"); // scrolls the list, not the page
  list.scrollTop = button.offsetTop - list.offsetTop - list.clientHeight / 2;
  part("current").textContent = button.dataset.told;
  const [x, y] = data.tiles[current];
  const edge = data.edge;
  const slide = viewer.world.getItemAt(0);
  const at = slide.imageToViewportRectangle(x, y, edge, edge);
  if (!outline) {
    outline = document.createElement("div");
    outline.className = "outline";
    viewer.addOverlay({ element: outline, location: at });
  } else {
    viewer.updateOverlay(outline, at);
  }
  const margin = ((AROUND - 1) / 2) * edge;
  viewer.viewport.fitBounds(
    slide.imageToViewportRectangle(x - margin, y - margin, AROUND * edge, AROUND * edge),
  );
}

function move(x, y) {
  const step = viewer.viewport.getBounds().width / 8;
  viewer.viewport.panBy(new OpenSeadragon.Point(x * step, y * step)).applyConstraints();
}

function zoom(factor) {
  viewer.viewport.zoomBy(factor).applyConstraints();
}

const KEYS = {
  n: () => go(current + 1),
  p: () => go(current - 1),
  ArrowUp: () => move(0, -1),
  ArrowDown: () => move(0, 1),
  ArrowLeft: () => move(-1, 0),
  ArrowRight: () => move(1, 0),
  "+": () => zoom(1.5),
  "=": () => zoom(1.5),
  "-": () => zoom(1 / 1.5),
  0: () => viewer.viewport.goHome(),
  o: () => part("shown").click(),
  "?": () => part("help").showModal(),
};

function onKey(event) {
  const taken = part("help").open || event.ctrlKey || event.metaKey || event.altKey;
  const slides = event.target.type === "range" && event.key.startsWith("Arrow");
  if (taken || slides || !viewer || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
}

document.addEventListener("keydown", onKey);
part("next").addEventListener("click", () => go(current + 1));
part("previous").addEventListener("click", () => go(current - 1));
part("keys").addEventListener("click", () => part("help").showModal());
for (const name of ["shown", "opacity"]) part(name).addEventListener("input", showHeat);
buttons.forEach((button, rank) => button.addEventListener("click", () => go(rank)));

const library = document.createElement("script");
library.src = "../../openseadragon.js";
library.addEventListener("load", start);
library.addEventListener("error", () => say("openseadragon.js could not be loaded."));
document.head.append(library);
