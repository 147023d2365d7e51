"""The page, made with Gradio; what it shows of a job is in :mod:`.view`."""

import base64
import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import fastapi
import gradio as gr
import pydantic
from fastapi import staticfiles

from e3d_jax.app import jobs, pictures, schema, view

EXAMPLES = pathlib.Path(__file__).parent / "examples"
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif", ".gif", ".bmp"]
DIRECTIONS = ["right", "back", "left"]
SHADINGS = {
    "Texture": ("mesh.glb", "solid"),
    "Normals": ("mesh_normals.glb", "solid"),
    "Wireframe": ("mesh.glb", "wireframe"),
}
UPLOADS, UPLOADS_KEPT = "uploads", 3600  # folder below that of the queue; seconds
AUTO = "auto"
RECENT = 8
TICK = 0.5  # seconds between looks at a job
# A mesh of a job in some shading, for a viewer.
SHADE = f"""(job, shading) => {{
  if (!job) return null
  const [file, mode] = {json.dumps(SHADINGS)}[shading]
  const url = new URL(`api/jobs/${{job}}/files/${{file}}`, location.href).href
  const value = {{path: url, url, orig_name: file, meta: {{_type: 'gradio.FileData'}}}}
  return {{__type__: 'update', value, display_mode: mode}}
}}"""
REMEMBER = "(job) => { history.replaceState(null, '', job ? '?job=' + job : location.pathname); return [] }"


Number = float | int


def mount(app: fastapi.FastAPI, queue: jobs.Jobs) -> fastapi.FastAPI:
    """Add the page to the application that serves a queue.

    Gradio sends clients the paths of their uploads. So that these say nothing of the machine, they are relative, and
    the process goes to the queue's folder.
    """
    os.chdir(queue.folder)
    os.environ["GRADIO_TEMP_DIR"] = UPLOADS
    app.mount("/examples", staticfiles.StaticFiles(directory=EXAMPLES))
    return gr.mount_gradio_app(
        app,
        make(queue),
        "/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=schema.MAX_BYTES,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=view.CSS,
    )


def make(queue: jobs.Jobs) -> gr.Blocks:
    """Return the page of a queue."""
    with gr.Blocks(title="e3d_jax", analytics_enabled=False, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)) as page:
        gr.Markdown("# e3d_jax\nPictures of an object in, 32 views and a mesh out.")
        remembered = gr.BrowserState([], storage_key="e3d_jobs")
        job = gr.Textbox(visible="hidden", label="Job")
        done = gr.Textbox(visible="hidden", label="Job that is done")
        clock = gr.Timer(TICK, active=False)
        with gr.Row():
            with gr.Column():
                form = _form()
                submit = gr.Button("Make a mesh", variant="primary")
                stop = gr.Button("Stop", variant="stop", interactive=False)
            with gr.Column():
                progress = gr.HTML(view.progress(None))
                mesh = gr.Model3D(label="Mesh", clear_color=(1, 1, 1, 1), interactive=False, height=400)
                shading = gr.Radio(list(SHADINGS), value="Texture", label="Shading of the mesh")
                result = gr.HTML()
                with gr.Accordion("Recent results of this browser", open=False):
                    recent = gr.HTML()

        def start(*values: Any) -> str:
            """Put a job into the queue, and return its id."""
            with _sentences():
                return queue.submit(_request(*values))

        def follow(name: str) -> list[Any]:
            """Show where a job is."""
            try:
                now = queue.get(name) if name else None
            except pictures.Refused as error:
                now = schema.Job(id="", progress=schema.Progress(state="failed", message=str(error)))
            state = now.progress.state if now else ""
            active = state in ("waiting", "running")
            return [
                gr.Timer(active=active),
                view.progress(now),
                gr.Button(interactive=active),
                name if state == "done" else "",
            ]

        def show(name: str) -> str:
            """Show a result."""
            with _sentences():
                return view.result(queue.get(name)) if name else ""

        def cancel(name: str) -> None:
            """Stop a job."""
            with _sentences():
                queue.cancel(name)

        def remember(name: str, names: list[str]) -> tuple[list[str], str]:
            """Put a job at the top of those of this browser."""
            names = [name, *(each for each in names if each != name)][:RECENT] if name else names
            found = []
            for each in names:
                with contextlib.suppress(pictures.Refused):
                    found.append(queue.get(each))
            return [each.id for each in found], view.recent(found)

        shown = [clock, progress, stop, done]
        private: Any = {"api_visibility": "private", "show_progress": "hidden"}
        submit.click(start, form, job, api_name="submit", concurrency_limit=2)
        stop.click(cancel, job, **private)
        job.change(follow, job, shown, **private)
        job.change(remember, [job, remembered], [remembered, recent], **private)
        job.change(None, job, None, js=REMEMBER)
        clock.tick(follow, job, shown, **private)
        # Empty in between, as a viewer that has drawn a wireframe never draws anything else. The browser alone knows
        # the address of the page, and Gradio would copy the file to a public folder.
        for changed in (done.change, shading.change):
            changed(None, None, mesh, js="() => null").then(None, [done, shading], mesh, js=SHADE)
        done.change(show, done, result, **private)

        @page.load(inputs=remembered, outputs=[job, recent], **private)
        def reopen(names: list[str], request: gr.Request) -> tuple[str, str]:
            """Show the job that the address names."""
            return request.query_params.get("job", ""), remember("", names)[1]

    return page


def _form() -> list[Any]:
    """Make the inputs of a job, in the order of :func:`_request`; pictures are shown as they will be cut out."""
    files = gr.File(
        file_count="multiple",
        file_types=SUFFIXES,
        label="Pictures, the front first",
        allow_reordering=True,
        height=160,
        elem_id="pictures",
    )
    gr.HTML(view.examples([path.name for path in sorted(EXAMPLES.glob("*.png"))]))
    sides = [
        gr.Dropdown(
            DIRECTIONS,
            value=side,
            allow_custom_value=True,
            visible=False,
            label=f"Direction of picture {number}",
            info="Or degrees to the right of the front.",
        )
        for number, side in enumerate(DIRECTIONS, 2)
    ]
    cutouts = gr.HTML()
    tolerance = gr.Slider(
        0,
        0.6,
        value=0,
        step=0.01,
        label="Background tolerance",
        info="Raise it if background is left, lower it if the object has holes; 0 finds it.",
    )
    with gr.Accordion("Options", open=False):
        seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed")
        quality = gr.Dropdown(["weights", "fast", "standard", "best"], value="weights", label="Quality of the mesh")
        steps = gr.Textbox(AUTO, label="Sampling steps, or auto")
        elevation = gr.Textbox(AUTO, label="Elevation in degrees, or auto")
        up = gr.Radio(["z", "y"], value="z", label="Axis that is up in OBJ, STL, and PLY files")
        size = gr.Textbox(AUTO, label="Longest side in meters, or auto")

    hidden: Any = {"api_visibility": "private", "show_progress": "hidden"}
    for changed in (files.change, tolerance.release, *(side.change for side in sides)):
        changed(look, [files, tolerance, *sides], [files, cutouts, *sides], concurrency_limit=2, **hidden)
    return [files, *sides, tolerance, seed, quality, steps, elevation, up, size]


def look(paths: list[str] | None, tolerance: Number, *directions: str) -> list[Any]:
    """Cut the pictures out; if one cannot be used, remove all."""
    given = [pathlib.Path(path) for path in paths or []][: schema.MAX_PICTURES]
    try:
        cut = [pictures.read(path, number, tolerance or None, cut=True) for number, path in enumerate(given)]
    except pictures.Refused as error:
        gr.Warning(str(error))
        for path in given:
            path.unlink(missing_ok=True)
        given, cut = [], []
    visible = [gr.Dropdown(visible=len(cut) >= number) for number in range(2, schema.MAX_PICTURES + 1)]
    captioned = list(zip(cut, ("front", *directions), strict=False))
    return [gr.skip() if cut or not paths else None, view.cutouts(captioned), *visible]


def _request(
    paths: list[str] | None,
    second: str,
    third: str,
    fourth: str,
    tolerance: Number,
    seed: int,
    quality: str,
    steps: str,
    elevation: str,
    up: str,
    size: str,
) -> schema.Request:
    """Return the job that the form describes."""
    if not paths:
        raise pictures.Refused("give at least one picture", 422)
    given = [
        {"data": base64.b64encode(pathlib.Path(path).read_bytes()), "azimuth": azimuth}
        for path, azimuth in zip(paths, ("front", second, third, fourth), strict=False)
    ]
    options = {"seed": seed, "quality": quality, "tolerance": tolerance or None, "up": up}
    numbers = {"steps": steps, "elevation": elevation, "size": size}
    known = {name: text for name, text in numbers.items() if text.strip() not in ("", AUTO)}
    return schema.Request.model_validate({"pictures": given, **options, **known})


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Show why something is refused."""
    try:
        yield
    except pydantic.ValidationError as error:
        raise gr.Error(schema.sentence(error.errors()[0]), print_exception=False) from error
    except pictures.Refused as error:
        raise gr.Error(str(error), print_exception=False) from error
