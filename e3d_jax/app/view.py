"""What the page shows of a job, as HTML: text is escaped, addresses are relative, and nothing comes from elsewhere."""

import base64
import datetime
import html
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from e3d_jax.app import schema

STAGES = {
    "loading": "Load the models",
    "input": "Prepare the pictures",
    "anchors": "Draw 8 views",
    "interpolation": "Draw the views between",
    "reconstruction": "Fit the mesh",
    "files": "Write the files",
}
DOWNLOADS = {
    "mesh.glb": "GLB",
    "mesh_obj.zip": "OBJ",
    "mesh.stl": "STL",
    "mesh.ply": "PLY",
    "mesh.usdz": "USDZ",
    "views.zip": "Views",
    "report.json": "Report",
}
THUMBNAIL = 256

_GIVE = """fetch('examples/' + this.dataset.name).then(answer => answer.blob()).then(blob => {
  const given = new DataTransfer(), input = document.querySelector('#pictures input[type=file]')
  given.items.add(new File([blob], this.dataset.name, {type: blob.type}))
  input.files = given.files
  input.dispatchEvent(new Event('change', {bubbles: true}))
})"""
_RESULT = """
<div class="e3d">
  <h3>Views</h3>
  <div class="turn">
    <div class="row">{views}{normals}</div>
    <input type="range" min="0" max="{last}" value="0" aria-label="Turn the object" oninput="this.closest('.turn')
      .querySelectorAll('img').forEach(one => one.hidden = !one.dataset.views.split(' ').includes(this.value))">
  </div>
  <h3>Before and after</h3>
  <div class="compare">
    <figure class="stack">
      <img src="{before}" alt="The given picture">
      <img src="{after}" alt="The view from there" style="clip-path: inset(0 0 0 50%)">
    </figure>
    <input type="range" value="50" aria-label="Before and after" oninput="this.closest('.compare')
      .querySelectorAll('img')[1].style.clipPath = 'inset(0 0 0 ' + this.value + '%)'">
  </div>
  <h3>Downloads</h3>
  <p class="row">{downloads}</p>
</div>
"""

CSS = """
.e3d figure { margin: 0; flex: 1 1 8rem; min-width: 0; }
.e3d figcaption { text-align: center; font-size: var(--text-sm); }
.e3d img { width: 100%; background: #fff; }
.e3d .row, .e3d.row { display: flex; flex-wrap: wrap; gap: .75rem; }
.e3d .stack { position: relative; aspect-ratio: 1; }
.e3d .stack img { position: absolute; inset: 0; }
.e3d.examples button { padding: 0; border: 1px solid var(--border-color-primary); background: #fff; }
.e3d.examples img { display: block; width: 5rem; }
.e3d .cut { max-width: 12rem; }
.e3d .compare figure { max-width: 20rem; }
.e3d input[type=range], .e3d progress { width: 100%; }
.e3d ol { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; margin: .5rem 0; list-style: none; }
.e3d li[aria-current] { font-weight: 600; }
.e3d li.past::before { content: "\\2713\\00a0"; }
.e3d a.button { padding: .5rem 1rem; border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); }
.e3d .warning { border-left: 3px solid var(--color-accent); padding-left: .5rem; }
"""


def address(job: str, file: str) -> str:
    """Return the address of a file of a job, relative to the page."""
    return f"api/jobs/{job}/files/{file}"


def progress(job: schema.Job | None) -> str:
    """Return where a job is."""
    if job is None:
        return "<div class='e3d'>Give one to four pictures of an object, the front first.</div>"
    now = job.progress
    if now.state == "waiting":
        text = f"Waiting for {_counted(now.ahead, 'job')}" if now.ahead else "Starting"
        body = f"<p>{text}</p><progress aria-label='Progress'></progress>"
    elif now.state == "running":
        body = _running(job)
    elif now.state == "done":
        until = datetime.datetime.fromtimestamp(job.expires or 0).strftime("%Y-%m-%d %H:%M")
        body = f"<p>Done. The result is kept at this address until {until} (time of the server).</p>"
    else:
        body = f"<p>{now.state.capitalize()}. {html.escape(now.message[:1].upper() + now.message[1:])}</p>"
    warnings = "".join(f"<p class='warning'>Note: {html.escape(said)}.</p>" for said in now.warnings)
    return f"<div class='e3d' role='status'>{body}{warnings}</div>"


def _running(job: schema.Job) -> str:
    now, names = job.progress, list(STAGES)
    here = names.index(now.stage) if now.stage in names else 0
    items = [
        f"<li{' class=past' if place < here else ' aria-current=step' if place == here else ''}>{STAGES[name]}</li>"
        for place, name in enumerate(names)
    ]
    bar = f" value='{now.done}' max='{now.total}'" if now.done else ""
    doing = "compiling, which is needed once" if now.compiling else f"step {now.done} of {now.total}"
    left = "" if now.remaining is None else f"; about {_duration(now.remaining)} left"
    label = f"{STAGES.get(now.stage, 'Start')}: {doing if now.total else 'a moment'}{left}"
    shown = "".join(
        f"<img src='{address(job.id, file)}?{now.stage}' alt='{text}'>"
        for file, text in (("input.png", "The cut-out picture"), ("views.png", "The views so far, and their normals"))
        if file in job.files
    )
    return f"<ol>{''.join(items)}</ol><p>{label}</p><progress aria-label='{label}'{bar}></progress><div>{shown}</div>"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def result(job: schema.Job | None) -> str:
    """Return the views on a slider, the given view before and after, and the downloads."""
    if job is None or job.progress.state != "done":
        return ""
    views = sorted(file for file in job.files if re.fullmatch(r"views/rgb_\d+\.png", file))
    normals = sorted(file for file in job.files if re.fullmatch(r"views/normal_\d+\.png", file))
    shown_with: dict[str, list[int]] = {file: [] for file in normals}
    for number in range(len(views)):
        if normals:
            shown_with[min(normals, key=lambda file: _apart(_number(file), number, len(views)))].append(number)
    return _RESULT.format(
        views=_stack(job.id, {file: [number] for number, file in enumerate(views)}, "View"),
        normals=_stack(job.id, shown_with, "Normals"),
        last=len(views) - 1,
        before=address(job.id, "input.png"),
        after=address(job.id, views[0]),
        downloads=_downloads(job),
    )


def _stack(job: str, files: dict[str, list[int]], name: str) -> str:
    """Return images of which one is shown, with the positions of the slider at which each is."""
    tags = [
        f"<img src='{address(job, file)}' data-views='{' '.join(map(str, places))}'{'' if 0 in places else ' hidden'} "
        f"alt='{name} {_number(file)}'>"
        for file, places in files.items()
    ]
    return f"<figure><div class='stack'>{''.join(tags)}</div><figcaption>{name}</figcaption></figure>" if tags else ""


def _number(file: str) -> int:
    return int(re.findall(r"\d+", file)[-1])


def _apart(first: int, second: int, count: int) -> int:
    return min((first - second) % count, (second - first) % count)


def _downloads(job: schema.Job) -> str:
    return "".join(
        f"<a class='button' download href='{address(job.id, file)}' aria-label='Download {name}'>{name}</a>"
        for file, name in DOWNLOADS.items()
        if file in job.files
    )


def examples(names: Sequence[str]) -> str:
    """Return buttons that put example pictures, which are at ``examples/NAME``, into the form as a user would."""
    buttons = [
        f"<button aria-label='Example: {html.escape(name.partition('.')[0])}' data-name='{html.escape(name)}' "
        f"onclick=\"{_GIVE}\"><img src='examples/{html.escape(name)}' alt=''></button>"
        for name in names
    ]
    return f"<div class='e3d row examples'>{''.join(buttons)}</div>"


def cutouts(found: Sequence[tuple[Any, str]]) -> str:
    """Return cut-outs on white, given as RGBA in [0, 1] with a caption each."""
    figures = []
    for rgba, caption in found:
        picture = Image.fromarray((rgba * 255 + 0.5).astype(np.uint8))
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        text = html.escape(caption)
        image = f"<img src='{source}' alt='Cut-out: {text}'>"
        figures.append(f"<figure class='cut'>{image}<figcaption>{text}</figcaption></figure>")
    return f"<div class='e3d'><div class='row'>{''.join(figures)}</div></div>" if figures else ""


def recent(jobs: Sequence[schema.Job]) -> str:
    """Return links to results."""
    links = "".join(f"<li><a href='?job={job.id}'>{html.escape(job.id)}</a> {job.progress.state}</li>" for job in jobs)
    return f"<div class='e3d'><ol>{links}</ol></div>" if links else "<div class='e3d'>None yet.</div>"
