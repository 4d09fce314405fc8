// The page's own few lines: where a click falls in the image, and saving what is shown.

function explorerPoint(element, event) {
  const drawing = element.querySelector("svg");
  if (!drawing || !drawing.contains(event.target)) return null;
  const point = drawing.createSVGPoint();
  point.x = event.clientX;
  point.y = event.clientY;
  const place = point.matrixTransform(drawing.getScreenCTM().inverse());
  return { x: place.x, y: place.y };
}

function explorerSave(blob, suffix) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "explorer." + suffix;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function explorerSvg() {
  return new XMLSerializer().serializeToString(document.querySelector("#stage svg"));
}

function explorerSaveSvg() {
  explorerSave(new Blob([explorerSvg()], { type: "image/svg+xml" }), "svg");
}

function explorerSavePng() {
  const view = document.querySelector("#stage svg").viewBox.baseVal;
  const scale = 1600 / Math.max(view.width, view.height);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(view.width * scale);
  canvas.height = Math.round(view.height * scale);
  const sized = explorerSvg().replace("<svg ", `<svg width="${canvas.width}" height="${canvas.height}" `);
  const image = new Image();
  image.onload = () => {
    canvas.getContext("2d").drawImage(image, 0, 0);
    canvas.toBlob((blob) => explorerSave(blob, "png"));
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(sized);
}

function explorerSaveJson(text) {
  explorerSave(new Blob([text], { type: "application/json" }), "json");
}
