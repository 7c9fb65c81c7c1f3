// ---- around the session --------------------------------------------------------------------------------------------

/** The parts of the answer's whole time side by side, and the frames. */
function fillSurroundings() {
  const bar = document.getElementById("times");
  const colours = { "start-up": "stopped", waiting: "wait", video: "open", prefill: "prefill", decoding: "accepted" };
  const seconds = (value) => `${value.toFixed(3)} s`;
  for (const [name, value] of data.times) {
    const part = html("i", { title: `${name}: ${seconds(value)}` });
    part.style.cssText = `flex: ${value} 1 0; background: var(--${colours[name]})`;
    bar.append(part);
  }
  legend("parts", data.times.map(([name, value]) => [colours[name], `${name} ${seconds(value)}`]));
  const frames = document.getElementById("frames");
  frames.parentElement.hidden = !data.frames;
  if (data.frames) frames.src = data.frames;
}
